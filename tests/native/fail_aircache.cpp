// Loaded before libllama (LD_PRELOAD): lets calls of the compression fail in a server that is otherwise the real one.
// PAC_FAIL: observe (no memory), evict (no memory), lost (a backend fails in the middle of the moves: what
// llama-aircache.h says is that the sequence is removed then). PAC_FAIL_FROM, PAC_FAIL_TO: which calls, counted from 1.
#include "llama-aircache.h"

#include <dlfcn.h>

#include <cstdlib>
#include <cstring>

static thread_local const char * message = nullptr;

static bool fails(const char * what, int n_call) {
    const char * wanted = getenv("PAC_FAIL");
    return wanted && strcmp(wanted, what) == 0 && n_call >= atoi(getenv("PAC_FAIL_FROM")) && n_call <= atoi(getenv("PAC_FAIL_TO"));
}

template <class F>
static F * next(F *, const char * name) {
    return (F *) dlsym(RTLD_NEXT, name);
}

extern "C" const char * llama_aircache_error(void) {
    return message ? message : next(llama_aircache_error, "llama_aircache_error")();
}

extern "C" int32_t llama_aircache_observe(llama_context * ctx, llama_seq_id seq, const llama_aircache_span * spans, int32_t n_spans,
        llama_pos pos_end, const llama_aircache_method * method, const uint8_t * is_template) {
    static int n = 0;
    message = nullptr;
    if (fails("observe", ++n)) {
        message = "no memory for the queries (a test)";
        return LLAMA_AIRCACHE_MEMORY;
    }
    return next(llama_aircache_observe, "llama_aircache_observe")(ctx, seq, spans, n_spans, pos_end, method, is_template);
}

extern "C" int32_t llama_aircache_compress(llama_context * ctx, llama_seq_id seq, const llama_aircache_method * method, bool mask_only,
        llama_aircache_compression * out) {
    static int n = 0;
    message = nullptr;
    ++n;
    if (fails("evict", n)) {
        message = "no memory for the moves (a test)";
        return LLAMA_AIRCACHE_MEMORY;
    }
    if (fails("lost", n)) {
        message = "the backend failed (a test)";
        llama_aircache_clear(ctx, seq);
        llama_memory_seq_rm(llama_get_memory(ctx), seq, -1, -1);
        return LLAMA_AIRCACHE_COMPUTE;
    }
    return next(llama_aircache_compress, "llama_aircache_compress")(ctx, seq, method, mask_only, out);
}
