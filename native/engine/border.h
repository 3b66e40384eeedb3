// The C border for files beside api.cpp: arguments are checked, exceptions become codes with a message.
#pragma once

#include "engine.h"

#include <functional>

// runs f; returns PAC_OK, or the status of what it threw with its message kept for pac_last_error
int32_t pac_guarded(const std::function<void()> & f);

inline void pac_require(bool ok, const char * message) {
    if (!ok) {
        throw pac_error(PAC_ERR_ARGUMENT, message);
    }
}
