#include "aircache-limits.h"

#include "aircache-params.h"

#include <cmath>
#include <locale>
#include <sstream>
#include <stdexcept>

common_aircache_limits & common_aircache_get_limits() {
    static common_aircache_limits limits;
    return limits;
}

const common_aircache_limit_flag & common_aircache_kv_memory_flag() {
    static const common_aircache_limit_flag flag = { "--aircache-kv-memory", "LLAMA_ARG_AIRCACHE_KV_MEMORY", "SIZE",
        "most memory for the KV cells in use in all slots: MiB, or a number of cells (16384cells); requests that do not fit wait, "
        "idle conversations make room (default: 0, no bound but the slots' contexts)" };
    return flag;
}

const common_aircache_limit_flag & common_aircache_archive_flag() {
    static const common_aircache_limit_flag flag = { "--aircache-archive", "LLAMA_ARG_AIRCACHE_ARCHIVE", "MIB",
        "most host memory for images' cells from before their compression, so that every question sees the whole images "
        "(default: 0, none: the next turn of a conversation sees what its first question left)" };
    return flag;
}

// a number of at least 0 that ends with the text; unit: what must stand behind it
static bool read_size(const std::string & value, const std::string & unit, double & size) {
    if (value.size() < unit.size() || value.compare(value.size() - unit.size(), unit.size(), unit) != 0) {
        return false;
    }
    std::istringstream in(value.substr(0, value.size() - unit.size()));
    in.imbue(std::locale::classic());
    double number = 0;
    if (!(in >> number) || in.peek() != std::istringstream::traits_type::eof() || !std::isfinite(number) || number < 0 || number > 1e12) {
        return false;
    }
    size = number;
    return true;
}

void common_aircache_limits::set_kv_memory(const std::string & value) {
    double size = 0;
    if (read_size(value, "cells", size) && size == std::floor(size) && size > 0) {
        kv_mib   = 0;
        kv_cells = (int64_t) size;
    } else if (read_size(value, "", size)) {
        kv_mib   = size;
        kv_cells = 0;
    } else {
        throw std::invalid_argument("aircache_kv_memory must be a number of MiB, or a number of cells as in 16384cells, got '" +
            common_aircache_shown(value) + "'");
    }
}

void common_aircache_limits::set_archive(const std::string & value) {
    if (!read_size(value, "", archive_mib)) {
        throw std::invalid_argument("aircache_archive must be a number of MiB of at least 0, got '" + common_aircache_shown(value) + "'");
    }
}
