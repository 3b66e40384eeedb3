// See faults.h: empty but in builds for tests.
#include "cache/faults.h"

#ifdef PAC_FAULTS

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>

namespace {

char                 armed_point[16] = "";
std::atomic<int64_t> armed_n { 0 };
std::atomic<int64_t> n_hits  { 0 };

thread_local int depth  = 0; // scopes
thread_local int paused = 0;

bool matches(const char * point) {
    return strcmp(armed_point, point) == 0 || (strcmp(armed_point, "*") == 0 && strcmp(point, "alloc") != 0);
}

bool hit(const char * point) {
    const bool res = depth > 0 && matches(point) && ++n_hits == armed_n;
    if (res) {
        fprintf(stderr, "pyaircache: point %s fails on purpose\n", point);
    }
    return res;
}

struct from_environment {
    from_environment() {
        const char * value = getenv("PYAIRCACHE_FAULT");
        const char * colon = value ? strchr(value, ':') : nullptr;
        if (colon) {
            snprintf(armed_point, sizeof(armed_point), "%.*s", (int) (colon - value), value);
            armed_n = atoll(colon + 1);
        }
    }
} at_load;

} // namespace

bool llama_aircache_fault(const char * point) {
    return hit(point);
}

llama_aircache_fault_scope::llama_aircache_fault_scope()  { ++depth; }
llama_aircache_fault_scope::~llama_aircache_fault_scope() { --depth; }

llama_aircache_fault_pause::llama_aircache_fault_pause()  { ++paused; }
llama_aircache_fault_pause::~llama_aircache_fault_pause() { --paused; }

void llama_aircache_fault_arm(const char * point, int64_t n) {
    snprintf(armed_point, sizeof(armed_point), "%s", point ? point : "");
    armed_n = n;
    n_hits  = 0;
}

int64_t llama_aircache_fault_count(void) {
    return n_hits;
}

//
// the point alloc: this library's operator new, which the libraries and programs that load it share on ELF systems
//

void * operator new(size_t size) {
    const bool fails = paused == 0 && hit("alloc");

    void * res = fails ? nullptr : malloc(size ? size : 1);
    if (!res) {
        throw std::bad_alloc();
    }
    return res;
}

void operator delete(void * ptr) noexcept         { free(ptr); }
void operator delete(void * ptr, size_t) noexcept { free(ptr); }

#endif
