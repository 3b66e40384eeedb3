// Compression in llama-server: what patches/0003 calls, a call a place. docs/server.md says what users see of it.
//
// Two objects are put into llama.cpp's. server_tokens holds a server_aircache_tokens: what a request wants, what a slot's
// cells are; so that it goes wherever tokens go. A slot holds the observer of the prompt it decodes. A request's images are
// compressed once its whole prompt is decoded and before its first token is sampled:
//   server_aircache_observer::observe    before the first image is decoded
//   server_aircache_compress             after the decode that held the prompt's last token
// What of a slot's cells the next request can use is decided in one place: server_aircache_reusable.
// Counters and kept embeddings are the process's: llama-server is one server.
#pragma once

#include "aircache-memory.h"
#include "aircache-params.h"

#include "llama-aircache.h"
#include "mtmd.h"

#include "json.h"

#include <cstdint>
#include <functional>
#include <memory>
#include <ostream>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

struct common_memory;
struct common_params;
struct server_slot_stats;
struct server_task_result;
struct server_tokens;

//
// requests: aircache-request.cpp
//

// Once the model is loaded: finds out whether requests can be compressed (params.aircache.refused). false, with the reason
// in the log, when the flags ask for what this server cannot do.
bool server_aircache_init(common_params & params, llama_context * ctx_tgt, const llama_context * ctx_dft, bool has_images);

// Where the number of slots is the server's to choose: compressed slots need streams of their own.
void server_aircache_set_streams(common_params & params);

// What a request's body asks for, and the flags where it says nothing. Throws std::invalid_argument, naming the field.
common_params_aircache server_aircache_read(const common_params & params, const common_json & body);

// The settings of a request as one reads them back, behind those in `res`; outside of requests those of the flags.
common_json server_aircache_add_params(const common_params_aircache & params, common_json res);

//
// prompts: aircache-prompt.cpp
//

// What a slot's cells hold of compressed images.
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

    common_json to_json(size_t n_tokens_now) const; // of /slots
};

// Part of server_tokens.
struct server_aircache_tokens {
    common_params_aircache wanted; // of a request's prompt
    server_prompt_aircache cells;  // of a slot's
    size_t n_observed = 0;         // of a slot's that is being decoded: tokens that came from an archive, with what was observed of them

    bool compressed() const { return cells.n_tokens > 0; }

    // "aircache" of /slots, when there is something to say
    void add_to(common_json & slot, size_t n_tokens_now) const;
};

// "aircache" in the timings of a response
struct server_aircache_stats {
    bool    set       = false;
    int32_t n_visual  = 0;
    double  n_kept    = 0;
    double  keep      = 1;
    double  ms        = 0; // of this request: 0 when it continued a compressed prompt without new images
    size_t  n_recalled = 0; // tokens that came from an archive
    int64_t kv_bytes_full = 0;
    int64_t kv_bytes  = 0;
    int64_t kv_bytes_allocated = 0; // of all slots: memory that was taken for cells
    int64_t kv_bytes_reserved  = 0; // of all slots: what the unpatched server takes
    std::string method;
    std::string error;     // why nothing was compressed although it was asked for
    bool    lost      = false; // and the slot's cells are gone: the request cannot be answered

    void add_to(common_json & timings) const;
};

// The number of leading tokens of `prompt` whose cells can be used when a slot holds `cached`, of the n_common that are the
// same. The rule:
//  - Nothing compressed, nothing to compress: the common prefix, as ever.
//  - A compressed prefix can be used only as a whole, by a request that goes on behind it, generated text included, and
//    asks for the same compression. So no question is answered from cells that another one chose, except for the next
//    turns of the same conversation.
//  - What two slots hold is the same when it was compressed at the same token in the same way: the host's prompt cache asks.
//  - Images that are to be compressed are decoded together with all that follows them, because what follows chooses
//    their cells: the prefix ends before the first image that is not compressed yet.
size_t server_aircache_reusable(const server_tokens & cached, const server_tokens & prompt, size_t n_common);

// Removes what a slot's memory holds from position p0 on, behind the tokens that are kept; in the draft model's as well.
// false: the compressed prefix would be cut, which stays or goes as a whole.
bool server_aircache_truncate(const common_memory & mem, llama_seq_id seq, server_tokens & kept, llama_pos p0);

// The prompt that a slot is decoding.
class server_aircache_observer {
public:
    // finish() has something to do, or to say
    bool active() const { return observing || !error.empty(); }

    // Call before an image at n_past is decoded. Does nothing when the prompt is observed already, or nothing is wanted.
    // When it fails, the prompt goes on uncompressed and finish() reports the error.
    void observe(llama_context * ctx, llama_seq_id seq, const mtmd_context * mctx, const server_tokens & prompt, size_t n_past);

    // Call before it is decided how much of what a slot holds the prompt can use. Where there is an archive of its images, the
    // slot holds them afterwards, whole and observed, and nothing else.
    void recall(llama_context * ctx, llama_seq_id seq, const mtmd_context * mctx, server_tokens & held, const server_tokens & prompt);

    // Call when the last token of the prompt is decoded. Chooses and moves; on failure nothing has changed, unless it
    // returns false: then the slot's cells are lost. `yield` runs what it is given while the server answers other requests;
    // the results are written once it is back, as /slots and /metrics read them.
    bool finish(llama_context * ctx, llama_seq_id seq, const common_params_aircache & wanted, server_tokens & held,
            server_aircache_stats & stats, const std::function<void(std::function<void()> &&)> & yield);

    // the request is over, whatever came of it
    void end(llama_context * ctx, llama_seq_id seq, server_tokens & held);

    // KV memory of its answer (aircache-memory.h)
    int32_t n_granted = 0; // cells
    bool    waits     = false;

private:
    std::pair<server_prompt_aircache, server_aircache_stats> compress(llama_context * ctx, llama_seq_id seq,
            const server_tokens & held, const common_params_aircache & wanted);

    // keeps what compress() is about to evict
    void archive(llama_context * ctx, llama_seq_id seq, const server_tokens & held);

    bool observing = false;
    size_t n_recalled = 0;
    std::string error; // of observe
};

// After a sub-batch [off, off + n) is decoded: compresses the images of the prompts whose last token was in it. fail(slot, why)
// tells a slot's client. A template, because server-context.cpp alone knows what a slot is.
template <class Slots, class Queue, class Fail>
void server_aircache_compress(Slots & slots, int32_t off, int32_t n, Queue & queue, Fail fail) {
    for (auto & slot : slots) {
        using state = std::decay_t<decltype(slot.state)>;
        if (slot.state != state::SLOT_STATE_DONE_PROMPT || slot.task->is_child() || slot.i_batch < off || slot.i_batch >= off + n) {
            continue;
        }
        const bool ok = slot.aircache.finish(slot.ctx_tgt, slot.id, slot.task->tokens.aircache.wanted, slot.prompt.tokens, slot.stats.aircache,
            [&](std::function<void()> && work) { queue.yield_to_queue(std::move(work)); });
        server_aircache_wake(queue);
        if (ok) {
            continue;
        }
        const int         id_task = slot.task->id;
        const std::string error   = "the compression of the prompt's images failed: " + slot.stats.aircache.error;
        for (auto & other : slots) { // with those that wait for its prompt
            if (other.is_processing() && (other.task->id == id_task || other.task->id_parent == id_task)) {
                fail(other, error);
                other.prompt_clear();
                other.release();
            }
        }
    }
}

//
// files of slots: aircache-states.cpp
//

// The tokens of a slot, as its file holds them, with a record of the compression behind them if there is one.
std::vector<char> server_aircache_pack(const server_aircache_tokens & aircache, std::vector<char> packed);

// Takes the record off again. Throws std::runtime_error when it is damaged, or of another version.
server_prompt_aircache server_aircache_unpack(std::vector<llama_token> & packed);

// Gives it to the restored tokens. Throws std::runtime_error when it does not say of the slot's restored cells what they are.
void server_aircache_take(llama_context * ctx, llama_seq_id seq, server_tokens & restored, server_prompt_aircache cells);

//
// archives of images' cells: aircache-archive.cpp
//

void server_aircache_archives_init(bool possible); // of another model; those at hand are dropped

// Tokens of the prompt that an archive holds, 0: there is none that could be used.
size_t server_aircache_archived(const server_tokens & prompt);

void server_aircache_archives_write_metrics(std::ostream & out);

//
// image embeddings by content, kept for other questions on an image: aircache-embds.cpp
//

// Of the media chunk at token idx: of the batch that encoded it, which is kept then, else a kept one; null: neither has it
// (the batch may be null itself). Valid until the next call.
float * server_aircache_embd(llama_context * ctx, mtmd_batch * batch, const server_tokens & prompt, size_t idx);

// Is there a kept one that this prompt may use?
bool server_aircache_embd_kept(const server_tokens & prompt, size_t idx);

void     server_aircache_embds_clear(); // of another model
uint64_t server_aircache_embds_reused();

//
// answers: aircache-results.cpp
//

// Several answers to a request of the OpenAI kind become one, answers[0]: usage and timings of all of them in it.
void server_aircache_sum_usage(common_json & answers, const std::vector<std::unique_ptr<server_task_result>> & results);

// The same for streamed ones: the usage of all stands in the last of them. n_decoded: of those before it.
void server_aircache_sum_usage(server_task_result & result, int32_t & n_decoded, bool is_last);

void server_aircache_add_timings(const server_slot_stats & stats, common_json & res);

// of /metrics; shown: by a server that can compress
void server_aircache_count(int32_t n_visual, double n_kept, double ms);
void server_aircache_show_metrics(bool shown);
void server_aircache_write_metrics(std::ostream & out);
void server_aircache_write_metric(std::ostream & out, const char * type, const char * name, const char * description, double value);
