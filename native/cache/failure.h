// Why a call is refused; carries an enum llama_aircache_status to the C border (api/border.h).
#pragma once

#include "llama-aircache.h"

#include <cstdarg>
#include <cstdio>
#include <exception>

class llama_aircache_failure : public std::exception {
public:
    __attribute__((format(printf, 3, 4)))
    llama_aircache_failure(int32_t status, const char * fmt, ...) noexcept : status(status) {
        va_list args;
        va_start(args, fmt);
        vsnprintf(message, sizeof(message), fmt, args);
        va_end(args);
    }

    const char * what() const noexcept override { return message; }

    const int32_t status;

private:
    char message[512]; // no std::string: what reports that something failed must not fail itself
};
