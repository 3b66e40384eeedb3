// A llama_context, and whose turn it is with it: one engine's, or that of several, each with a sequence of its own.
#pragma once

#include "border.h"

#include "llama-cpp.h"

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

struct pac_engine;
struct pac_model;

// A lock that is taken in the order of coming. A mutex would let the thread that has just left it in again, and so a long
// prompt would hold all others up.
class pac_queue {
public:
    void enter();
    void leave() noexcept;

private:
    std::mutex mutex;
    std::condition_variable moved;
    uint64_t last = 0; // ticket handed out
    uint64_t next = 1; // ticket that may enter
};

// What every context of ours has in common: a stream for each sequence, and logits of last tokens only. Throws for a cache type
// that does not exist.
llama_context_params pac_context_params(int32_t n_seq, int32_t n_threads, int32_t flash_attn, const char * type_k, const char * type_v);
ggml_type pac_cache_type(const char * name); // null: f16; throws when it is none of those that are supported

struct pac_context {
    // params.n_ctx: cells of each of n_seq sequences
    pac_context(const pac_model & model, const pac_engine_params & params, int32_t n_seq);

    pac_context(const pac_context &) = delete;
    pac_context & operator=(const pac_context &) = delete;

    static void check(const pac_engine_params & params); // throws

    bool shared() const { return n_seq > 1; }

    llama_seq_id take_seq(); // throws when all are taken
    void give_seq(llama_seq_id seq);

    // Memory that follows what is kept, on devices (docs/memory.md); nothing elsewhere, and nothing in a pool. A prompt comes with
    // room for all of its cells at once: throws when there is none, with all as it was. After a compression: as small as
    // can be; returns milliseconds.
    void   make_room(int32_t n_cells);
    double shrink();

    const int32_t n_seq;
    llama_context_ptr ctx;
    std::string why_not; // reason why nothing can be compressed, "" if it can

private:
    const bool resizes;
    int32_t    n_room = 0; // cells that buffers were made for last; 0: for all, as in the beginning

    friend class pac_turn;

    bool must_stop() const;

    pac_queue queue;
    std::vector<const pac_engine *> running; // whose turn it is

    std::mutex seqs;
    std::vector<bool> taken; // [n_seq]
};

// Whoever computes with a context, or reads what was computed, holds one. Not twice in a thread: it would wait for itself.
class pac_turn {
public:
    pac_turn(pac_context & context, std::vector<const pac_engine *> engines);
    ~pac_turn();

    pac_turn(const pac_turn &) = delete;
    pac_turn & operator=(const pac_turn &) = delete;

    // calls f while others may have their turns
    template <typename F>
    void pause(F && f) {
        struct again {
            pac_turn & turn;
            explicit again(pac_turn & turn) : turn(turn) { turn.end(); }
            ~again() { turn.begin(); }
        } scope(*this);
        f();
    }

private:
    void begin();
    void end() noexcept;

    pac_context & context;
    const std::vector<const pac_engine *> engines; // all of which must be cancelled for an evaluation to be
};
