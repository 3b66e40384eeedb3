// The border to C: nothing is thrown across it. One handler for all calls of llama-aircache.h.
#pragma once

#include "cache/failure.h"

#include <cstdio>
#include <new>

// keeps the message for llama_aircache_error(); returns the status
int32_t llama_aircache_fail(int32_t status, const char * message) noexcept;

// calls f; OK, or the status of what it threw
template <typename F>
int32_t llama_aircache_guarded(F && f) noexcept {
    try {
        f();
        return LLAMA_AIRCACHE_OK;
    } catch (const llama_aircache_failure & e) {
        return llama_aircache_fail(e.status, e.what());
    } catch (const std::bad_alloc &) {
        return llama_aircache_fail(LLAMA_AIRCACHE_MEMORY, "out of memory on the device or host");
    } catch (const std::exception & e) {
        return llama_aircache_fail(LLAMA_AIRCACHE_COMPUTE, e.what());
    } catch (...) {
        return llama_aircache_fail(LLAMA_AIRCACHE_COMPUTE, "unknown error");
    }
}

// throws an ARGUMENT unless ok
#define LLAMA_AIRCACHE_REQUIRE(ok, ...) \
    do { if (!(ok)) { throw llama_aircache_failure(LLAMA_AIRCACHE_ARGUMENT, __VA_ARGS__); } } while (0)
