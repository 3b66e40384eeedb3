// Faults on purpose: lets tests make any one allocation or backend call of observe, score and evict fail.
//
// Only in builds with PYAIRCACHE_TESTS (which defines PAC_FAULTS for our sources); elsewhere all of this is nothing.
// Points are counted inside of a scope alone: a call of llama_aircache_observe, _score or _evict.
//
//   buffer   a backend buffer for an observation        set, get  data to or from a backend
//   graph    a scheduler's buffers for a graph          alloc     operator new in our own code
//   compute  a graph that was computed reports failure
//
// Armed from a test by llama_aircache_fault_arm(), or in any program by PYAIRCACHE_FAULT=POINT:N.
#pragma once

#ifdef PAC_FAULTS

#include "llama.h"

// must this point fail now?
bool llama_aircache_fault(const char * point);

struct llama_aircache_fault_scope {
    llama_aircache_fault_scope();
    ~llama_aircache_fault_scope();
};

// llama.cpp's and ggml's own allocations are not ours to fail: C code does not expect exceptions
struct llama_aircache_fault_pause {
    llama_aircache_fault_pause();
    ~llama_aircache_fault_pause();
};

extern "C" {
    // From now on count the hits of a point ("*": of all but alloc) from 1, and let the n-th fail; n = 0: only count.
    LLAMA_API void llama_aircache_fault_arm(const char * point, int64_t n);

    // hits since then
    LLAMA_API int64_t llama_aircache_fault_count(void);
}

#else

inline bool llama_aircache_fault(const char *) { return false; }

struct llama_aircache_fault_scope { llama_aircache_fault_scope() {} };
struct llama_aircache_fault_pause { llama_aircache_fault_pause() {} };

#endif
