// pyaircache engine: ask a vision-language model about images with a compressed visual KV cache.
//
// A small C interface over llama.cpp + mtmd, made for cffi (and usable from C). A pac_model holds what is read from the
// files: weights, vocabulary, projector, chat template. A pac_engine is one conversation on a model, with a context (KV
// cache) of its own. Every function checks its arguments, returns PAC_OK or a negative pac_status, and leaves a message
// for pac_last_error(); no exception crosses this border, and after a failed call the engine stays usable.
//
// No argument and no projector file ends the process: what llama.cpp would answer with an assertion is checked before.
// What remains: assertions in a backend (a GPU that is lost, an RPC server that goes away), the text model's own tensors,
// which llama.cpp checks, a pointer or an array's length that is not what this header says, and the system's own killing
// of a process for its memory.
//
// The life of a question:
//   pac_sampling_set()  how its answer is drawn; without it: the most likely token, always
//   pac_prompt()    tokenise, encode the images, prefill; logits of the last token are ready
//   pac_score()     importance of every visual token in every layer, from the queries seen during the prefill
//   pac_compress()  score + layer budgets + eviction in one call (pac_score and pac_evict are its halves)
//   pac_sample() -> pac_decode() -> pac_sample() ...
// The first token is sampled from the logits of the full cache, whatever pac_compress() does:
// docs/method.md, section 3.
//
// Threads: one call at a time per engine; pac_cancel alone may be called from any thread. Different engines may be used by
// different threads at the same time, those of one model too: there only the encoding of images waits for one another.
// The functions of a pac_model may be called from any thread. Pointers handed out belong to the engine and stay valid
// until the next pac_prompt, pac_score, pac_compress, pac_reset or pac_engine_free; strings in pac_model_info until
// the model is gone.
//
// Structs with a field `size` begin with it: sizeof(the struct) as the caller knows it, set by the function that gives the
// defaults. Fields are only ever added at their ends, and a shorter one of an older caller is taken.

#ifndef PYAIRCACHE_H
#define PYAIRCACHE_H

#include <stdbool.h>
#include <stdint.h>

#if defined(_WIN32)
#    define PAC_API __declspec(dllexport)
#else
#    define PAC_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

// cffi reads everything between the next marker and the closing one: no preprocessor lines in between.
// cffi-begin

typedef struct pac_model  pac_model;
typedef struct pac_engine pac_engine;
typedef struct pac_pool   pac_pool;

enum pac_status {
    PAC_OK              =   0,
    PAC_ERR_ARGUMENT    =  -1, // a value outside its limits; the message names value and limits
    PAC_ERR_FILE        =  -2, // no such file, or it cannot be read
    PAC_ERR_MODEL       =  -3, // not a GGUF, or not a model that this build can load
    PAC_ERR_PROJECTOR   =  -4, // the mmproj does not load or does not fit the text model, or there is none
    PAC_ERR_CONTEXT     =  -5, // the prompt does not fit the context window
    PAC_ERR_MEMORY      =  -6, // an allocation failed
    PAC_ERR_UNSUPPORTED =  -7, // this cache or model cannot be compressed; the message names the reason
    PAC_ERR_STATE       =  -8, // called in the wrong order
    PAC_ERR_COMPUTE     =  -9, // a backend failed
    PAC_ERR_CANCELLED   = -10, // the progress callback or pac_cancel asked to stop
    PAC_ERR_INTERNAL    = -11
};

// Message of the last failed call of this thread; "" when there was none.
PAC_API const char * pac_last_error(void);

// Version of the engine and of llama.cpp, e.g. "0.1.0 (llama.cpp 0c1e570)".
PAC_API const char * pac_version(void);

// level: 0 none, 1 debug, 2 info, 3 warn, 4 error (ggml's levels), 5 continues the line before. NULL silences llama.cpp.
// The callback is called from any thread, by several at once, and without a lock held. It replaces the one before, for
// all engines: when pac_log_set returns, the old one is no longer called or under way, unless pac_log_set was called
// from within it.
typedef void (*pac_log_callback)(int32_t level, const char * text, void * user_data);
PAC_API void pac_log_set(pac_log_callback callback, void * user_data);

// stage: 0 load (done of total = permille), 1 encode (images), 2 prefill (tokens). Return true to go on, false to cancel.
typedef bool (*pac_progress_callback)(int32_t stage, int32_t done, int32_t total, void * user_data);

//
// model
//

struct pac_model_params {
    uint32_t     size;         // sizeof(struct pac_model_params)
    const char * model;        // path of the text GGUF
    const char * mmproj;       // path of the projector GGUF, or NULL: text only
    int32_t      n_gpu_layers; // -1: all
    int32_t      n_threads;    // of the vision tower; 0: physical cores; at most 512
    int32_t      flash_attn;   // of the vision tower: -1 auto, 0 off, 1 on
    const char * rpc_servers;  // "host:port,host:port" or NULL; needs a build with GGML_RPC. ggml ends the process when
                               // one does not answer: try to connect first, as the Python layer does
    int64_t      image_cache_bytes; // memory for the embeddings of images that were encoded: another question on one of
                               // them encodes nothing. The least recently used go first; 0: none are kept
    pac_progress_callback progress; // of pac_model_new
    void       * user_data;
};
PAC_API struct pac_model_params pac_model_default_params(void); // image_cache_bytes: 256 MiB

PAC_API int32_t pac_model_new (const struct pac_model_params * params, pac_model ** out);
// Gives up the caller's hold. Engines hold their model as well: it is gone when the last of them is freed.
PAC_API void    pac_model_free(pac_model * model);

struct pac_model_info {
    const char * description;   // e.g. "qwen2vl 4M Q8_0"
    const char * architecture;  // general.architecture
    const char * projector;     // clip.projector_type, "" without one
    int32_t n_layers;
    int32_t n_embd;
    int32_t n_heads;
    int32_t n_heads_kv;
    int32_t n_vocab;
    int32_t n_ctx_train;
    int64_t n_params;
    int64_t model_bytes;
    bool    vision;
    int32_t n_engines;          // on it now
    int32_t n_kept_images;      // images, or tiles of one, whose embeddings are kept
    int64_t image_cache_bytes;  // that these take
};
PAC_API int32_t pac_model_info(pac_model * model, struct pac_model_info * out);

// Forgets the kept image embeddings.
PAC_API int32_t pac_model_forget_images(pac_model * model);

//
// engine
//

// Where the full cells of a prompt stay for the next question, up to its last image (pac_conversation).
enum pac_archive_kind {
    PAC_ARCHIVE_NONE   = 0, // nowhere
    PAC_ARCHIVE_AUTO   = 1, // on the layers' devices where at least twice as much is free there, else in host memory likewise, else nowhere
    PAC_ARCHIVE_DEVICE = 2, // on the devices; of layers on a CPU that is host memory
    PAC_ARCHIVE_RAM    = 3, // in host memory
    PAC_ARCHIVE_FILE   = 4
};

struct pac_engine_params {
    uint32_t     size;         // sizeof(struct pac_engine_params)
    int32_t      n_ctx;        // context window in cells; 0: the model's own, at most 32768. llama.cpp rounds it up to
                               // a multiple of 256: pac_engine_info says what it became
    int32_t      n_batch;      // tokens per decode call; 0: 2048
    int32_t      n_ubatch;     // tokens per graph; 0: 512
    int32_t      n_threads;    // of the text model; 0: physical cores; at most 512
    const char * cache_type_k; // "f32", "f16", "bf16", "q8_0", "q4_0"
    const char * cache_type_v;
    int32_t      flash_attn;   // of the text model: -1 auto, 0 off, 1 on
    bool         keep_embeddings; // for pac_image_embeddings
    bool         resize_kv;    // on devices, with one sequence: make K and V anew, as large as needed, after a compression and before
                               // a prompt. Elsewhere memory comes and goes by pages. True by default
    int32_t      archive;      // enum pac_archive_kind: of the prompts of pac_conversation that are observed
    const char * archive_path; // with PAC_ARCHIVE_FILE: a file that is written anew, and removed with the engine. One that is
                               // there and is no archive is refused when it is to be written
};
PAC_API struct pac_engine_params pac_engine_default_params(void); // PAC_ARCHIVE_NONE

// A new conversation on a model.
PAC_API int32_t pac_engine_new (pac_model * model, const struct pac_engine_params * params, pac_engine ** out);
// A model for one engine: pac_model_new, pac_engine_new, pac_model_free. params may be NULL: the defaults.
PAC_API int32_t pac_engine_open(const struct pac_model_params * model, const struct pac_engine_params * params, pac_engine ** out);
PAC_API void    pac_engine_free(pac_engine * engine);

struct pac_info {
    const char * description;   // as in pac_model_info
    const char * architecture;
    const char * projector;
    int32_t n_layers;
    int32_t n_embd;
    int32_t n_heads;
    int32_t n_heads_kv;
    int32_t n_vocab;
    int32_t n_ctx;              // as created
    int32_t n_ctx_train;
    int64_t n_params;
    int64_t model_bytes;
    int64_t kv_bytes_per_token; // all layers, K and V
    bool    vision;
    bool    can_compress;
    const char * why_not;       // reason when can_compress is false, else ""
};
PAC_API int32_t pac_engine_info(const pac_engine * engine, struct pac_info * out);

struct pac_message {
    const char * role;    // "system", "user", "assistant"
    const char * content; // pac_marker() stands for an image
};
// What stands for an image in a prompt's text: another one in every process, so that no text holds it by chance.
PAC_API const char * pac_marker(const pac_engine * engine);

// Applies the model's own chat template (Jinja). *out: a NUL-terminated string, to be freed with pac_string_free.
// PAC_ERR_MODEL when the template is broken, refuses the messages, or does not come to an end.
PAC_API int32_t pac_apply_template(const pac_engine * engine, const struct pac_message * messages, int32_t n_messages,
        bool add_generation_prompt, char ** out);
PAC_API void    pac_string_free(char * string);

struct pac_image {
    int32_t         width;
    int32_t         height;
    const uint8_t * rgb;      // [height, width, 3]; NULL is enough for pac_count_tokens and pac_layout
    int32_t         n_frames; // 0: a picture; else a video: rgb is [n_frames, height, width, 3], with one marker in the text
};

// One run of visual tokens (a picture, or one tile of it).
struct pac_span {
    int32_t image;  // index into the images of the prompt
    int32_t first;  // index of its first token among the prompt's tokens
    int32_t n_tokens;
    int32_t nx;     // token grid, columns; 0 when the tokens do not form a grid
    int32_t ny;     // token grid, rows
    int32_t pos0;   // position range [pos0, pos1) in the sequence
    int32_t pos1;
};

struct pac_prompt_info {
    int32_t n_tokens;  // of this prompt: text and visual
    int32_t n_visual;
    int32_t n_past;    // KV cells in use after it
    int32_t n_spans;
    const struct pac_span * spans; // [n_spans]
    double  ms_encode;
    double  ms_prefill; // without the encoding
    int32_t n_encoded; // images that were encoded, in whole or (tiles) in part
    int32_t n_reused;  // images whose embeddings were all kept from before: the same, bit for bit
};

// What to observe, how to score, how to share out the cells: the fields of llama_aircache_method (llama-aircache.h).
struct pac_method {
    double   keep;          // kept share of the visual cells, (0, 1]
    int32_t  min_keep;      // cells that every layer keeps at least, >= 1
    int32_t  window;        // 0 elite, 1 last text tokens, 2 all text, 3 last visual tokens, 4 every token
    int32_t  window_n;      // of windows 1 and 3
    double   alpha;         // elite threshold, (0, 1]
    bool     elite_content; // leave out template tokens
    bool     elite_last;    // always hold the last token
    int32_t  score;         // 0 attention, 1 random, 2 stride
    int32_t  keys;          // softmax over 0 visual tokens and window, 1 all tokens seen
    uint32_t seed;
    bool     text_weights;
    int32_t  pool;          // 0 none, 1 avg, 2 max
    int32_t  pool_size;     // odd
    bool     pool_2d;
    double   last_term;
    bool     value_norm;
    bool     diversity;
    int32_t  allocation;    // 0 strength + skewness, 1 uniform, 2 pyramid, 3 strength, 4 skewness, 5 prefix, 6 vl
    double   uniform_share; // [0, 1]
    int32_t  rank;          // r: keep only the r-th most important token of every layer; 0: off
    double   merge;         // share of the dropped tokens averaged into the nearest kept one, [0, 1]
};
PAC_API struct pac_method pac_method_default(void);

// Named methods: index 0, 1, ... until NULL; the method of a name, with keep 0.1.
PAC_API const char * pac_method_name(int32_t index);
PAC_API int32_t      pac_method_by_name(const char * name, struct pac_method * out);

// The parts of a method in words, the same for llama-server's flags and request fields, for the command line and for Python:
// docs/methods.md. "method" is a name and sets all parts but keep. Each with one word for its values, and a line of help.
PAC_API const char * pac_method_part     (int32_t index); // 0, 1, ... until NULL
PAC_API const char * pac_method_part_hint(int32_t index);
PAC_API const char * pac_method_part_help(int32_t index);
// Reads text, e.g. "window", "elite:0.5:last". On failure (PAC_ERR_ARGUMENT) the method is as it was; the message begins with
// the part and says what it may be.
PAC_API int32_t      pac_method_set(struct pac_method * method, const char * part, const char * text);
// The text that pac_method_set reads back to the same value, NUL-terminated; 64 bytes are enough. Of "method": the first name
// whose parts these are, "" when there is none. Returns its length, or a negative pac_status.
PAC_API int32_t      pac_method_get(const struct pac_method * method, const char * part, char * buffer, int32_t size);

// Tokenises text (special tokens are parsed; each marker is replaced by the next image), without evaluating anything.
// n_cells: cells this prompt needs.
PAC_API int32_t pac_count_tokens(pac_engine * engine, const char * text, const struct pac_image * images, int32_t n_images,
        int32_t * n_cells);

// What pac_prompt would make of a prompt: its spans, tokens and n_past, without evaluating anything (the times and counts of images are 0).
// The spans are valid until the next call. Pixels are not looked at, sizes are.
PAC_API int32_t pac_layout(pac_engine * engine, const char * text, const struct pac_image * images, int32_t n_images,
        struct pac_prompt_info * out);

// Appends a prompt to the conversation and evaluates it. reserve: cells that must stay free for the answer.
// observe: the method that pac_score will use, or NULL; without it, or without images, this is a plain prefill.
// On failure the conversation is as it was before the call (PAC_ERR_CONTEXT: nothing was evaluated at all; otherwise the
// logits are gone, and an earlier prompt can no longer be scored). Where that cannot be had, the message says that the
// conversation was reset.
PAC_API int32_t pac_prompt(pac_engine * engine, const char * text, const struct pac_image * images, int32_t n_images,
        int32_t reserve, const struct pac_method * observe, pac_progress_callback progress, void * user_data, struct pac_prompt_info * out);

// A piece of a conversation: text to be tokenised, whose markers are replaced by the next images; or, where text is NULL, tokens
// as they are, such as an answer's.
struct pac_part {
    const char    * text;
    const int32_t * tokens; // [n_tokens]
    int32_t         n_tokens;
};

// Begins a conversation anew with all of these parts as one prompt, as pac_prompt would after pac_reset. Spans, tokens and scores
// are those of the whole; all of its images are compressed together by its last question. What the archive holds of its beginning is
// not evaluated again: cells, scores and logits are those of a prefill from the beginning. Where it cannot serve (pac_archive_get says
// why), all is evaluated, with the embeddings that are kept. With observe, the archive is then made anew, up to the last image.
// Fails as pac_prompt, but what was there before is gone, except for the archive (PAC_ERR_CONTEXT, and faulty arguments: all is as
// it was). PAC_ERR_MEMORY, PAC_ERR_FILE: also when the archive that was asked for by its place cannot be made.
PAC_API int32_t pac_conversation(pac_engine * engine, const struct pac_part * parts, int32_t n_parts,
        const struct pac_image * images, int32_t n_images, int32_t reserve, const struct pac_method * observe,
        pac_progress_callback progress, void * user_data, struct pac_prompt_info * out);

struct pac_archive_info {
    uint32_t     size;       // sizeof(struct pac_archive_info), set by the caller
    int32_t      kind;       // enum pac_archive_kind: where it is now; NONE: there is none
    int64_t      bytes;      // that it takes there
    int32_t      n_tokens;   // that it holds of the conversation's beginning
    int32_t      n_restored; // tokens of the last pac_conversation that came from it
    double       ms_make;    // of the last pac_conversation; 0: it was not made then
    double       ms_restore; // likewise
    const char * why;        // "" or why there is none, or why the last one did not serve; until the next pac_conversation
};
// The archive stays until pac_reset, or until another one is made.
PAC_API int32_t pac_archive_get(const pac_engine * engine, struct pac_archive_info * out);

struct pac_scores {
    int32_t n_layers;
    int32_t n_visual;
    const float   * scores;   // [n_layers, n_visual]: I of docs/method.md, section 1
    const int32_t * n_elite;  // [n_layers]
    const int32_t * elite;    // concatenated: prompt token indices of each layer's observing text tokens, ascending
    const double  * alive;    // [n_layers]: VL-Cache's count of living attention entries; NULL unless allocation is vl
    double ms;
};
// Scores the visual tokens of the last pac_prompt. PAC_ERR_STATE when it was not observed or was compressed already.
PAC_API int32_t pac_score(pac_engine * engine, const struct pac_method * method, struct pac_scores * out);

struct pac_compression {
    int32_t n_layers;
    int32_t n_visual;
    const int32_t * budgets;  // [n_layers]: visual cells kept
    const int32_t * kept;     // concatenated: each layer's kept visual indices, ascending
    const double  * strength; // [n_layers], as measured; docs/method.md, section 2
    const double  * skewness; // [n_layers], as measured
    int64_t kv_bytes_full;    // bytes of the sequence's cells in all layers before
    int64_t kv_bytes;         // after: sum over layers of (kept visual + text) * row bytes
    double  ms_score;
    double  ms_evict;
};
// Evicts all but the given visual tokens: budgets [n_layers], kept: concatenated ascending indices. merge: as in pac_method.
// mask_only: hide instead of move (the oracle for tests; frees nothing).
PAC_API int32_t pac_evict(pac_engine * engine, const int32_t * budgets, const int32_t * kept, double merge, bool mask_only,
        struct pac_compression * out);
// Score, allocate, select, evict.
PAC_API int32_t pac_compress(pac_engine * engine, const struct pac_method * method, bool mask_only,
        struct pac_scores * scores, struct pac_compression * out);

// Layer budgets of docs/method.md, section 2 from scores [n_layers, n_visual]; pure, no engine. alive [n_layers]: for
// allocation vl, else NULL. strength, skewness: NULL or [n_layers].
PAC_API int32_t pac_allocate(const struct pac_method * method, const float * scores, const double * alive,
        int32_t n_layers, int32_t n_visual, int32_t * budgets, double * strength, double * skewness);
// Kept sets of docs/method.md, section 3: budgets [n_layers] -> kept [sum of budgets], which has room for n_kept_max
// elements; pure, no engine. rank: 0, or as in pac_method.
PAC_API int32_t pac_select(const float * scores, int32_t n_layers, int32_t n_visual, const int32_t * budgets, int32_t rank,
        int32_t * kept, int64_t n_kept_max);

// Token ids of the last prompt, [n_tokens] of its pac_prompt_info: -1 for visual ones. pac_span.first, pac_scores.elite and
// so on count them. PAC_ERR_STATE when there was none.
PAC_API int32_t pac_prompt_tokens(pac_engine * engine, const int32_t ** ids, int32_t * n_tokens);

//
// answer
//

// How answers are drawn. The defaults are greedy: the most likely token, of equal ones that with the lowest id. Otherwise
// llama.cpp's samplers in its own order: repeat_penalty, top_k, top_p, min_p, temperature, and a draw by the seed.
struct pac_sampling {
    uint32_t     size;           // sizeof(struct pac_sampling)
    float        temperature;    // >= 0; 0: the most likely of what penalty and grammar leave, whatever top_k to min_p say
    int32_t      top_k;          // of the k most likely tokens; 0: off
    float        top_p;          // of the most likely that have this probability together, (0, 1]; 1: off
    float        min_p;          // of those at least this likely, relative to the most likely, [0, 1]; 0: off
    float        repeat_penalty; // divides the logits of tokens that were there already, [0.01, 100]; 1: off
    int32_t      repeat_last_n;  // among the last n text tokens of prompts and answers; 0: off; -1: all
    uint32_t     seed;           // the same seed gives the same answer; 4294967295: another one every time
    const char * grammar;        // GBNF text that the answer follows, from its first token; NULL or "": none
    const char * json_schema;    // the same by a JSON schema, converted as in llama-server (but a pattern that cannot be followed
                                 // is refused, where the server lets any string pass); not both
};
PAC_API struct pac_sampling pac_sampling_default(void); // greedy; repeat_last_n 64

// Of all answers from now on; NULL: the defaults. pac_prompt and pac_reset start its grammar and its random numbers anew.
// PAC_ERR_ARGUMENT, and all stays as it was, when a number is outside its limits, or the grammar or schema is malformed,
// has more than 64 KiB, is nested too deeply, or takes too long to follow.
PAC_API int32_t pac_sampling_set(pac_engine * engine, const struct pac_sampling * sampling);

// Next token from the current logits. It is not appended: pac_decode does, and moves the grammar on; until then each call
// is another draw. PAC_ERR_COMPUTE when no token of the vocabulary fits the grammar, or the grammar takes too long.
PAC_API int32_t pac_sample(pac_engine * engine, int32_t * token, bool * end_of_answer);

// Natural-log probabilities by the current logits: softmax over the whole vocabulary, before any parameter of pac_sampling.
// ids, values [n]: the n most likely tokens, most likely first, of equal ones that with the lowest id. value: of `token`, or
// NULL, then token is not looked at. n in [0, n_vocab]; ids and values may be NULL when it is 0.
PAC_API int32_t pac_logprobs(pac_engine * engine, int32_t n, int32_t * ids, double * values, int32_t token, double * value);

// Token ids of a text: returns their count, or a negative pac_status. When ids is NULL or capacity is less than the count,
// nothing is written. special: control tokens like <|im_end|> are recognised, else they are plain text. Nothing is put
// before or behind it.
PAC_API int32_t pac_tokenize(const pac_engine * engine, const char * text, bool special, int32_t * ids, int32_t capacity);
// Bytes of a token (not NUL-terminated; may end inside a UTF-8 sequence): returns their count, or a negative pac_status.
// special: control tokens have their name, like <|im_end|>; else none.
PAC_API int32_t pac_token_bytes(const pac_engine * engine, int32_t token, bool special, char * buffer, int32_t size);
// Appends one token to the conversation. On failure the conversation is as it was before, as after pac_prompt.
// PAC_ERR_ARGUMENT when the token does not exist, or does not fit the grammar of pac_sampling_set.
PAC_API int32_t pac_decode(pac_engine * engine, int32_t token);
// Makes the pac_prompt or pac_decode that runs on this engine return PAC_ERR_CANCELLED as soon as it can, with the
// conversation as it was before that call. From any thread, and while the engine lives. Does nothing when none runs.
// On the CPU the evaluation stops between two operations, on other devices between two batches; the encoding of an image
// stops between two layers of the vision tower, and waiting for another engine's encoding stops at once. Reading and
// resizing a picture is not interrupted.
PAC_API int32_t pac_cancel(pac_engine * engine);
// Logits of the last evaluated token: [n_vocab].
PAC_API int32_t pac_logits(pac_engine * engine, const float ** logits, int32_t * n_vocab);

// Image embeddings of the last prompt as the projector gave them: [n_tokens, n_embd], all images in order. For checks
// against other implementations. PAC_ERR_STATE when there were no images, or keep_embeddings was not set.
PAC_API int32_t pac_image_embeddings(pac_engine * engine, const float ** embd, int32_t * n_tokens, int32_t * n_embd);

struct pac_stats {
    int32_t n_ctx;
    int32_t n_past;         // cells of the table in use
    int32_t n_free;         // cells free for what comes
    int32_t n_graphs_reused;
    int32_t n_decodes;      // graph evaluations since the last pac_prompt
    int64_t kv_bytes;       // bytes that attention reads: sum over layers of their cells * row bytes
    int64_t kv_bytes_reserved;  // of all cells of the context, in use or not
    int64_t kv_bytes_allocated; // memory taken for them: on Linux and the CPU pages that hold something, elsewhere buffers
};
PAC_API int32_t pac_engine_stats(const pac_engine * engine, struct pac_stats * out);

// Forgets the conversation.
PAC_API int32_t pac_reset(pac_engine * engine);

//
// pool
//

// Several conversations on one context, each with n_ctx cells of its own: their tokens are decoded together, and so the
// weights are read once for all of them. n_engines: 1 to 256. The cache takes n_engines * n_ctx cells.
PAC_API int32_t pac_pool_new (pac_model * model, const struct pac_engine_params * params, int32_t n_engines, pac_pool ** out);
// Gives up the caller's hold: the context is gone when the last engine of the pool is freed.
PAC_API void    pac_pool_free(pac_pool * pool);

// An engine of the pool, for all the calls above; to be freed with pac_engine_free. PAC_ERR_STATE: all n_engines are there.
// Engines of one pool may be used by different threads, as others may, but their computations wait for one another, in the
// order of coming. pac_prompt gives way to them after every n_ubatch tokens, and while an image is encoded.
PAC_API int32_t pac_pool_engine(pac_pool * pool, pac_engine ** out);

struct pac_step {
    pac_engine * engine;
    int32_t      token;
    int32_t      status;  // filled in: as of pac_decode
    const char * message; // filled in: of an error, else ""; the engine's, until its next step
};
// pac_decode for several engines of a pool at once. What fails for one of them, and pac_cancel, concern that one alone; an
// evaluation that fails for all is made again for each by itself. A step under way is finished in spite of pac_cancel,
// unless all are cancelled. Fails as a whole, and nothing has changed, when an engine is NULL, of another pool, or there twice.
PAC_API int32_t pac_pool_decode(pac_pool * pool, struct pac_step * steps, int32_t n_steps);

// cffi-end

#ifdef __cplusplus
}
#endif

#endif // PYAIRCACHE_H
