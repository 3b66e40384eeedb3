// The C border: arguments are checked, exceptions become codes with a message.
#pragma once

#include "pyaircache.h"

#include <cstdint>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>

// carries a pac_status to the C border
struct pac_error : std::runtime_error {
    int32_t status;
    pac_error(int32_t status, const std::string & message) : std::runtime_error(message), status(status) {}
};

std::string pac_format(const char * fmt, ...) __attribute__((format(printf, 1, 2)));

// one line, n bytes at most and whole characters: llama.cpp's errors quote all of a text behind the place of a fault
std::string pac_shorten(std::string text, size_t n);

// throws the error of the last llama_aircache_* call when status is one
void pac_check(int32_t aircache_status);

// first error that llama.cpp logged in this thread since this was last asked, or since the C call began; "" if none
std::string pac_take_logged_error();

void    pac_begin();                                        // of a C call
int32_t pac_fail(int32_t status, const char * message);     // keeps the message; returns status
void    pac_route_log();                                    // llama.cpp's log goes through us from now on

template <typename F>
int32_t pac_guarded(F && f) {
    pac_begin();
    try {
        f();
        return PAC_OK;
    } catch (const pac_error & e) {
        return pac_fail(e.status, e.what());
    } catch (const std::bad_alloc &) {
        return pac_fail(PAC_ERR_MEMORY, "out of memory");
    } catch (const std::exception & e) {
        return pac_fail(PAC_ERR_INTERNAL, e.what());
    } catch (...) {
        return pac_fail(PAC_ERR_INTERNAL, "unknown error");
    }
}

inline void pac_require(bool ok, const char * message) {
    if (!ok) {
        throw pac_error(PAC_ERR_ARGUMENT, message);
    }
}

inline void pac_check_range(const char * name, int64_t value, int64_t lo, int64_t hi) {
    if (value < lo || value > hi) {
        throw pac_error(PAC_ERR_ARGUMENT, pac_format("%s is %lld: it must be in [%lld, %lld]", name,
                (long long) value, (long long) lo, (long long) hi));
    }
}

// A struct that the caller may know in an older, shorter form: what it lacks has its default. first: size of the form that
// was the first.
template <typename T>
T pac_read(const T * given, const T & defaults, const char * name, size_t first) {
    if (given->size < first || given->size > sizeof(T)) {
        throw pac_error(PAC_ERR_ARGUMENT, pac_format("%s.size is %u: this library knows sizes from %zu to %zu; take the struct from "
                "the function that gives its defaults", name, given->size, first, sizeof(T)));
    }
    T res = defaults;
    memcpy(&res, given, given->size);
    res.size = sizeof(T);
    return res;
}
