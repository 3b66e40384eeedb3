// Compression in llama-server: what patches/0003 calls. docs/server.md says what users see of it.
//
// A request's images are compressed once its whole prompt is decoded and before its first token is sampled:
//   server_aircache_observer::observe    before the first image is decoded
//   server_aircache_observer::finish     after the decode that held the prompt's last token
// What of a slot's cells the next request can use is decided in one place: server_aircache_reusable.
#pragma once

#include "aircache-params.h"

#include "mtmd.h"

#include "json.h"

#include <atomic>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <ostream>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

struct common_memory;
struct common_params;
struct server_task_result;
struct server_tokens;

// Throws std::invalid_argument, naming the field, where a request (or the flags) asks for what this server cannot do.
void server_aircache_check(const common_params & params, const common_params_aircache & wanted);

// The settings of a request as one reads them back, behind those in `res`.
common_json server_aircache_add_params(const common_params_aircache & params, common_json res);

// One field of a request. Throws std::invalid_argument.
void server_aircache_read(common_params_aircache & params, const std::string & field, const common_json & value);

// What a slot's cells hold of compressed images. Part of server_prompt, so whatever clears a prompt clears it.
struct server_prompt_aircache {
    size_t n_tokens = 0;            // tokens of the prompt when it was compressed; 0: it is not
    common_params_aircache params;  // how

    int32_t n_visual  = 0;          // visual tokens of all its images
    double  n_kept    = 0;          // of these, kept: mean over the layers
    int64_t n_cells   = 0;          // cells in use right after the compression
    int64_t kv_bytes  = 0;          // that attention read of them
    int64_t kv_bytes_cell = 0;      // of one cell in all layers

    // bytes now that the prompt has grown to n_tokens_now: every later token takes a cell in every layer
    int64_t kv_bytes_now(size_t n_tokens_now) const;

    // What of n_past tokens can be kept: the compressed prefix stays or goes as a whole. Forgets it when it goes.
    int32_t clamp(int32_t n_past);

    common_json to_json(size_t n_tokens_now) const; // of /slots
};

// "aircache" in the timings of a response
struct server_aircache_stats {
    bool    set       = false;
    int32_t n_visual  = 0;
    double  n_kept    = 0;
    double  keep      = 1;
    double  ms        = 0; // of this request: 0 when it continued a compressed prompt without new images
    int64_t kv_bytes_full = 0;
    int64_t kv_bytes  = 0;
    std::string method;
    std::string error;     // why nothing was compressed although it was asked for
    bool    lost      = false; // and the slot's cells are gone: the request cannot be answered

    common_json to_json() const;
};

// of /metrics
struct server_aircache_metrics {
    void write(std::ostream & out) const;

    bool     shown    = false;
    uint64_t n_visual = 0;
    double   n_kept   = 0;
    double   ms       = 0;
    uint64_t n_reused = 0;
};

// Once the model is loaded: finds out whether requests can be compressed (params.aircache_refused). Throws
// std::invalid_argument when the flags ask for what this server cannot do.
void server_aircache_init(common_params & params, llama_context * ctx_tgt, const llama_context * ctx_dft, bool has_images,
        server_aircache_metrics & metrics);

// The number of leading tokens of `prompt` whose cells can be used when the slot holds `cached`. The rule:
//  - Nothing compressed, nothing to compress: the common prefix, as ever.
//  - A compressed prefix can be used only as a whole, by a request that goes on behind it, generated text included, and
//    asks for the same compression. So no question is answered from cells that another one chose, except for the next
//    turns of the same conversation.
//  - Images that are to be compressed are decoded together with all that follows them, because what follows chooses
//    their cells: the prefix ends before the first image that is not compressed yet.
size_t server_aircache_reusable(const server_tokens & cached, const server_prompt_aircache & compressed,
        const server_tokens & prompt, const common_params_aircache & wanted);

// Removes a sequence's cells from position p0 on, in the draft model's memory as well. false: it is compressed and cannot
// be cut there.
bool server_aircache_truncate(const common_memory & mem, llama_seq_id seq, llama_pos p0);

// Several answers to a request of the OpenAI kind become one, answers[0]: usage and timings of all of them in it.
void server_aircache_sum_usage(common_json & answers, const std::vector<std::unique_ptr<server_task_result>> & results);

// The same for streamed ones: the usage of all stands in the last of them. n_decoded: of those before it.
void server_aircache_sum_usage(server_task_result & result, int32_t & n_decoded, bool is_last);

// The prompt that a slot is decoding.
class server_aircache_observer {
public:
    // finish() has something to do, or to say
    bool active() const { return observing || !error.empty(); }

    // Call before an image at n_past is decoded. Does nothing when the prompt is observed already, or nothing is wanted.
    // When it fails, the prompt goes on uncompressed and finish() reports the error.
    void observe(llama_context * ctx, llama_seq_id seq, const mtmd_context * mctx,
            const server_tokens & prompt, size_t n_past, const common_params_aircache & wanted);

    // Call when the last token of the prompt is decoded. Chooses and moves; on failure nothing has changed, unless it
    // returns false: then the slot's cells are lost. `yield` runs what it is given while the server answers other requests;
    // the results are written once it is back, as /slots and /metrics read them.
    bool finish(llama_context * ctx, llama_seq_id seq, size_t n_tokens, const common_params_aircache & wanted,
            server_prompt_aircache & prompt, server_aircache_stats & stats, server_aircache_metrics & metrics,
            const std::function<void(std::function<void()> &&)> & yield);

    // the request is over, whatever came of it
    void end(llama_context * ctx, llama_seq_id seq);

private:
    std::pair<server_prompt_aircache, server_aircache_stats> compress(llama_context * ctx, llama_seq_id seq,
            size_t n_tokens, const server_prompt_aircache & before, const common_params_aircache & wanted);

    bool observing = false;
    std::string error; // of observe
};

// Image embeddings by content, least recently used out first: another question on an image costs no vision encode.
class server_aircache_embds {
public:
    // of the media chunk at token idx: of the batch that encoded it, else a kept one; null: neither has it (either may be
    // null itself). Valid until the next store().
    static float * find(server_aircache_embds * kept, mtmd_batch * batch, const server_tokens & prompt, size_t idx);

    bool contains(const server_tokens & prompt, size_t idx) const;

    // all of prompt's chunks that the batch has encoded
    void store(mtmd_batch * batch, const server_tokens & prompt, size_t n_embd);

    void clear();

    std::atomic<uint64_t> n_reused = 0; // read by /metrics from another thread

private:
    struct entry {
        std::string        key;
        std::vector<float> embd;
    };

    float * take(const server_tokens & prompt, size_t idx);

    static std::string key(const server_tokens & prompt, size_t idx);

    std::list<entry> entries; // most recently used first
    std::unordered_map<std::string, std::list<entry>::iterator> index;
    size_t n_bytes = 0;
};
