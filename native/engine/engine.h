// What stands behind pyaircache.h: one conversation on a model, which is one sequence of a context.
#pragma once

#include "archive.h"
#include "border.h"
#include "context.h"
#include "model.h"
#include "sampling.h"

#include "llama-aircache.h"

#include "llama-cpp.h"
#include "mtmd-helper.h"
#include "mtmd.h"

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

llama_aircache_method pac_to_llama(const pac_method & m);
pac_method            pac_from_llama(const llama_aircache_method & m);

// A part of a prompt: text, or a picture, a tile of one, some frames of a video.
struct pac_chunk {
    std::vector<llama_token> tokens; // text, or:
    const mtmd_input_chunk * media = nullptr;
    int32_t   n_tokens = 0;
    llama_pos n_pos    = 0;
    int32_t   image    = 0; // media: index into the prompt's images
    int32_t   nth      = 0; // of the image's chunks
    std::string key;        // media: what its embeddings are kept by; "": they are not
    pac_embeddings embd;    // media: those that are kept, or null
};

// A prompt as it is evaluated.
struct pac_prompt_layout {
    std::vector<mtmd::input_chunks_ptr> owners; // of what the chunks point to
    std::vector<pac_chunk> chunks;

    std::vector<pac_span>            spans;
    std::vector<llama_aircache_span> air_spans;
    std::vector<int32_t> tokens;      // -1: visual
    std::vector<int32_t> text;        // index of every text token behind the first image
    std::vector<uint8_t> is_template; // of text
    int32_t   n_visual = 0;
    int32_t   n_media  = 0;
    llama_pos pos_end  = 0;
};

// What prompts are made of, as the caller has it.
struct pac_pieces {
    std::vector<pac_part> parts;
    const pac_image     * images   = nullptr; // of all parts
    int32_t               n_images = 0;
    bool                  whole    = false; // a conversation from its beginning
};

struct pac_engine {
    // with a context of its own
    pac_engine(std::shared_ptr<pac_model> model, const pac_engine_params & params);

    // with a sequence of a context that other engines use, too
    pac_engine(std::shared_ptr<pac_model> model, std::shared_ptr<pac_context> context, llama_seq_id seq, const pac_engine_params & params);
    ~pac_engine();

    pac_engine(const pac_engine &) = delete;
    pac_engine & operator=(const pac_engine &) = delete;

    // engine.cpp
    pac_info  info() const;
    pac_stats stats() const;
    void reset();
    const float * logits() const;
    int32_t sample();

    // layout.cpp
    int64_t count_tokens(const char * text, const pac_image * images, int32_t n_images) const;
    void layout(const char * text, const pac_image * images, int32_t n_images, pac_prompt_info & out);

    // prompt.cpp
    void prompt(const char * text, const pac_image * images, int32_t n_images, int32_t reserve, const pac_method * observe,
            pac_progress_callback progress, void * user_data, pac_prompt_info & out);
    void conversation(std::vector<pac_part> parts, const pac_image * images, int32_t n_images, int32_t reserve, const pac_method * observe,
            pac_progress_callback progress, void * user_data, pac_prompt_info & out);
    void decode(int32_t token);
    void check_step(int32_t token); // throws where decode would before it computes anything
    void end_step(int32_t token, int32_t i, bool ok); // of a batch with others: its i-th token was this; throws when it failed or was cancelled

    // compress.cpp
    void score(const pac_method & method, pac_scores & out);
    void evict(const int32_t * budgets, const int32_t * kept, double merge, bool mask_only, pac_compression & out);
    void compress(const pac_method & method, bool mask_only, pac_scores * scores_out, pac_compression & out);

    // set by pac_cancel, from any thread; it counts while a prompt or a token is evaluated
    std::atomic<bool> cancelled{false};
    std::atomic<bool> cancellable{false};

    bool must_stop() const { return cancelled && cancellable; }

    // Whoever uses the context, or changes what this engine knows of it, holds a turn. What is said of nothing else below
    // expects its caller to hold one.
    pac_turn turn() const { return pac_turn(*context, { this }); }

    int32_t n_ctx() const { return llama_n_ctx_seq(ctx); } // cells of the conversation

    const std::shared_ptr<pac_model>   model;
    const std::shared_ptr<pac_context> context;
    llama_context * const ctx;
    const llama_seq_id    seq;

    // the conversation
    llama_pos n_pos   = 0; // next position
    int32_t   n_cells = 0; // cells in use
    bool      has_logits = false;
    std::vector<float> kept_logits; // in a shared context, where others overwrite what was computed
    bool      observed   = false; // the last prompt can still be scored and compressed
    pac_sampler sampler;
    pac_archive archive;

    // the last prompt
    std::vector<pac_span> spans;
    std::vector<int32_t>  prompt_tokens; // -1: visual
    std::vector<int32_t>  text_tokens;   // prompt token index of every text token behind the first image
    bool keep_embeddings = false;
    std::vector<float>    embeddings;  // of its images
    int32_t n_visual       = 0;
    int32_t n_reused_start = 0; // graph reuse count when it was over
    int32_t n_decodes      = 0;
    std::string step_error; // of the last pac_pool_decode

    // results handed out
    std::vector<pac_span> planned;
    std::vector<float>   scores;
    std::vector<double>  alive;
    std::vector<int32_t> n_elite;
    std::vector<int32_t> elite;
    std::vector<int32_t> budgets;
    std::vector<int32_t> kept;
    std::vector<double>  strength;
    std::vector<double>  skewness;

private:
    // engine.cpp
    void forget();

    // layout.cpp
    mtmd::input_chunks_ptr tokenize(const char * text, const pac_image * images, int32_t n_images, bool begins, bool with_pixels) const;
    pac_prompt_layout lay_out(const pac_pieces & pieces, const std::vector<bool> & with_pixels) const;
    pac_prompt_layout prepare(const pac_pieces & pieces, bool use_archive) const;

    // prompt.cpp
    struct job; // a prompt that is evaluated
    void prompt(const pac_pieces & pieces, int32_t reserve, const pac_method * observe, pac_progress_callback progress, void * user_data,
            pac_prompt_info & out);
    void observe(const pac_prompt_layout & layout, const pac_method * method);
    size_t restore(job & now);
    void run(job & now, size_t first);
    template <typename F> void evaluate(bool anew, F && f); // f gets the turn
    bool roll_back(llama_pos pos, int32_t cells);
    int32_t n_batch() const; // tokens of a prompt that are evaluated before others may have their turn
    void list_elite(const std::vector<uint8_t> & observers, int32_t n_layer);
    void evicted(int32_t status);
    void decode_text(const llama_token * tokens, size_t n, bool last, const std::function<void(int32_t)> & done);
    void decode_media(const pac_chunk & c, const pac_embeddings & embd, const std::function<void(int32_t)> & done);
    void keep_logits(int32_t i);
};

// while it lives, pac_cancel counts
class pac_cancel_scope {
public:
    explicit pac_cancel_scope(std::vector<pac_engine *> engines);
    ~pac_cancel_scope();

    pac_cancel_scope(const pac_cancel_scope &) = delete;
    pac_cancel_scope & operator=(const pac_cancel_scope &) = delete;

private:
    const std::vector<pac_engine *> engines;
};

// a llama_batch of text
class pac_batch {
public:
    explicit pac_batch(int32_t n_max) : batch(llama_batch_init(n_max, 0, 1)) {}
    ~pac_batch() { llama_batch_free(batch); }

    pac_batch(const pac_batch &) = delete;
    pac_batch & operator=(const pac_batch &) = delete;

    void clear() { batch.n_tokens = 0; }
    void add(llama_token token, llama_pos pos, llama_seq_id seq, bool logits);

    int32_t size() const { return batch.n_tokens; }
    const llama_batch & get() const { return batch; }

private:
    llama_batch batch;
};

size_t pac_text_length(const char * text); // throws when it is longer than what is taken
std::vector<llama_token> pac_tokenize_text(const llama_vocab * vocab, const char * text, bool add_special, bool parse_special);
