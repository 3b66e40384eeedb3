// Of the C API of llama-aircache.h what needs no context: methods, budgets, selection, messages.
#include "api/border.h"
#include "api/checks.h"
#include "policy/policy.h"

#include <algorithm>
#include <cinttypes>
#include <cmath>
#include <numeric>

// no std::string: to report that memory is out must not take any
static thread_local char last_error[512];

int32_t llama_aircache_fail(int32_t status, const char * message) noexcept {
    snprintf(last_error, sizeof(last_error), "%s", message);
    return status;
}

const char * llama_aircache_error(void) {
    return last_error;
}

//
// methods
//

llama_aircache_method llama_aircache_method_default(void) {
    return aircache::default_method();
}

const char * llama_aircache_method_name(int32_t index) {
    return aircache::name_of(index);
}

int32_t llama_aircache_method_by_name(const char * name, llama_aircache_method * out) {
    return llama_aircache_guarded([&] {
        LLAMA_AIRCACHE_REQUIRE(name && out, "name or out is null");
        const auto * method = aircache::named(name);
        LLAMA_AIRCACHE_REQUIRE(method, "there is no method named \"%.64s\"", name);
        *out = *method;
    });
}

void llama_aircache_check(const llama_aircache_method * method) {
    LLAMA_AIRCACHE_REQUIRE(method, "method is null");
    const auto text = aircache::invalid(*method);
    LLAMA_AIRCACHE_REQUIRE(text.empty(), "%s", text.c_str());
}

void llama_aircache_check_room(const char * name, const void * array, int64_t have, int64_t n) {
    LLAMA_AIRCACHE_REQUIRE(!array || have >= n, "%s has room for %" PRId64 " elements, and %" PRId64 " are needed", name, have, n);
}

//
// budgets and selection
//

static void check_scores(const float * scores, int32_t n_layer, int32_t n_visual) {
    LLAMA_AIRCACHE_REQUIRE(scores && n_layer >= 1 && n_visual >= 1, "scores must be [n_layer >= 1, n_visual >= 1], got [%d, %d]", n_layer, n_visual);
    LLAMA_AIRCACHE_REQUIRE((int64_t) n_layer*n_visual <= INT32_MAX, "scores [%d, %d] are more than %d", n_layer, n_visual, INT32_MAX);
    for (size_t i = 0; i < (size_t) n_layer*n_visual; ++i) {
        LLAMA_AIRCACHE_REQUIRE(scores[i] >= 0.0f && std::isfinite(scores[i]), "score %zu is %g: scores must be finite and not negative", i, scores[i]);
    }
}

std::vector<int32_t> llama_aircache_budgets(const llama_aircache_method & method, const float * scores, const double * alive,
        int32_t n_layer, int32_t n_visual, double * strength, double * skewness) {
    check_scores(scores, n_layer, n_visual);
    if (method.allocation == LLAMA_AIRCACHE_ALLOC_VL) {
        LLAMA_AIRCACHE_REQUIRE(alive, "allocation vl needs the layers' counts of living entries");
        for (int32_t l = 0; l < n_layer; ++l) {
            LLAMA_AIRCACHE_REQUIRE(alive[l] >= 0.0 && std::isfinite(alive[l]), "alive[%d] is %g: counts must be finite and not negative", l, alive[l]);
        }
    }

    const auto st = aircache::strength(scores, n_layer, n_visual);
    const auto sk = aircache::skewness(scores, n_layer, n_visual);
    if (strength) { std::copy(st.begin(), st.end(), strength); }
    if (skewness) { std::copy(sk.begin(), sk.end(), skewness); }

    return aircache::allocate(method, scores, st, sk, alive, n_layer, n_visual);
}

void llama_aircache_choose(const float * scores, int32_t n_layer, int32_t n_visual, const int32_t * budgets, int32_t rank,
        int32_t * kept, int64_t n_kept_max) {
    LLAMA_AIRCACHE_REQUIRE(rank >= 0 && rank <= n_visual, "rank is %d: it must be in [0, %d]", rank, n_visual);
    for (int32_t l = 0; l < n_layer; ++l) {
        LLAMA_AIRCACHE_REQUIRE(budgets[l] >= 0 && budgets[l] <= n_visual && (rank == 0 || budgets[l] == 1),
                "budget %d of layer %d is outside of [0, %d], or not 1 with a rank", budgets[l], l, n_visual);
    }
    llama_aircache_check_room("kept", kept, n_kept_max, std::accumulate(budgets, budgets + n_layer, (int64_t) 0));

    for (int32_t l = 0; l < n_layer; ++l) {
        if (rank > 0) {
            aircache::only_nth(scores + (size_t) l*n_visual, n_visual, rank, kept);
        } else {
            aircache::top_n(scores + (size_t) l*n_visual, n_visual, budgets[l], kept);
        }
        kept += budgets[l];
    }
}

int32_t llama_aircache_allocate(const llama_aircache_method * method, const float * scores, const double * alive,
        int32_t n_layer, int32_t n_visual, int32_t * budgets, double * strength, double * skewness) {
    return llama_aircache_guarded([&] {
        llama_aircache_check(method);
        LLAMA_AIRCACHE_REQUIRE(budgets, "budgets is null");
        const auto res = llama_aircache_budgets(*method, scores, alive, n_layer, n_visual, strength, skewness);
        std::copy(res.begin(), res.end(), budgets);
    });
}

int32_t llama_aircache_select(const float * scores, int32_t n_layer, int32_t n_visual, const int32_t * budgets, int32_t rank,
        int32_t * kept, int64_t n_kept_max) {
    return llama_aircache_guarded([&] {
        check_scores(scores, n_layer, n_visual);
        LLAMA_AIRCACHE_REQUIRE(budgets && kept, "budgets or kept is null");
        llama_aircache_choose(scores, n_layer, n_visual, budgets, rank, kept, n_kept_max);
    });
}
