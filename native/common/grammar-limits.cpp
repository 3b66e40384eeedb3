#include "common/grammar-limits.h"

static constexpr uint64_t MAX_STEPS = 50000000;
static constexpr int      MAX_DEPTH = 3200; // 200 groups within each other

static constexpr uint64_t UNLIMITED = UINT64_MAX;

static thread_local uint64_t steps_left = UNLIMITED;
static thread_local int      depth      = 0;

aircache_grammar_limit::aircache_grammar_limit() : before(steps_left) {
    steps_left = before == UNLIMITED ? MAX_STEPS : before; // the outer one counts on
}

aircache_grammar_limit::~aircache_grammar_limit() {
    if (before == UNLIMITED) {
        steps_left = UNLIMITED;
    }
}

void aircache_grammar_spend(uint64_t n) {
    if (steps_left == UNLIMITED) {
        return;
    }
    if (n > steps_left) {
        throw std::runtime_error("the grammar takes too long: it repeats too much, or can be read in too many ways");
    }
    steps_left -= n;
}

aircache_grammar_step::aircache_grammar_step(int weight) : weight(weight) {
    if (depth + weight > MAX_DEPTH) {
        throw std::runtime_error("the grammar is nested too deeply");
    }
    aircache_grammar_spend(weight == SCHEMA ? 2000 : 1);
    depth += weight;
}

aircache_grammar_step::~aircache_grammar_step() {
    depth -= weight;
}
