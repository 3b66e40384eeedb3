// Chat templates come with model files: one that calls itself or loops without end, or makes endless text, must fail
// with an error. patches/0006 calls this where llama.cpp's Jinja parses and runs.
#pragma once

#include <cstdint>
#include <stdexcept>

// Of the template that runs in this thread; a loop's turn takes some steps, each a microsecond or two.
struct aircache_jinja_budget {
    static constexpr int     MAX_DEPTH = 400;
    static constexpr int64_t MAX_STEPS = 1000000;

    int     depth = 0;
    int64_t steps = 0;

    static aircache_jinja_budget & current() {
        static thread_local aircache_jinja_budget res;
        return res;
    }

    void spend(int64_t n) {
        if (n > MAX_STEPS - steps) {
            throw std::runtime_error("the chat template takes too long: it has a loop without end, or makes endless text");
        }
        steps += n;
    }
};

// n bytes or elements are made; a string of many pieces takes some 30 times its length
inline void aircache_jinja_spend(uint64_t n) {
    aircache_jinja_budget::current().spend(1 + n/16);
}

// lives while an expression or statement is parsed or run
struct aircache_jinja_step {
    aircache_jinja_step() {
        auto & cur = aircache_jinja_budget::current();
        if (cur.depth == 0) {
            cur.steps = 0;
        }
        if (cur.depth >= aircache_jinja_budget::MAX_DEPTH) {
            throw std::runtime_error("the chat template is nested too deeply, or calls itself without end");
        }
        cur.spend(1);
        cur.depth++;
    }
    ~aircache_jinja_step() {
        aircache_jinja_budget::current().depth--;
    }
    aircache_jinja_step(const aircache_jinja_step &) = delete;
    aircache_jinja_step & operator=(const aircache_jinja_step &) = delete;
};
