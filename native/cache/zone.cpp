// Saving and restoring the compressed region of a stream.
#include "cache/aircache.h"

#include "llama-impl.h"
#include "llama-io.h"

#include <algorithm>
#include <stdexcept>

void llama_aircache_zone::write(llama_io_write_i & io, uint32_t n_layer) const {
    if (!hidden.empty()) {
        throw std::runtime_error("a mask-only compression cannot be saved");
    }

    const uint32_t n = empty() ? 0 : n_layer;

    io.write(&n, sizeof(n));
    if (n > 0) {
        io.write(start.data(), n*sizeof(start[0]));
        io.write(&end, sizeof(end));
        io.write(&p0,  sizeof(p0));
        io.write(&p1,  sizeof(p1));
    }
}

void llama_aircache_zone::read(llama_io_read_i & io, uint32_t n_layer) {
    *this = {};

    uint32_t n = 0;
    io.read(&n, sizeof(n));
    if (n == 0) {
        return;
    }
    if (n != n_layer) {
        throw std::runtime_error("compressed state of another number of layers");
    }

    start.resize(n);
    io.read(start.data(), n*sizeof(start[0]));
    io.read(&end, sizeof(end));
    io.read(&p0,  sizeof(p0));
    io.read(&p1,  sizeof(p1));
}

bool llama_aircache::restore(llama_kv_cache & kv, const llama_kv_cache::slot_info & sinfo, const llama_aircache_zone & zone) {
    // the survivors' rows are only right at the cells they were saved from
    const auto & idxs = sinfo.idxs[0];
    for (uint32_t i = 0; i < zone.end; ++i) {
        if (i >= idxs.size() || idxs[i] != i) {
            LLAMA_LOG_ERROR("%s: a compressed sequence can only be restored into an empty stream\n", __func__);
            return false;
        }
    }
    if (std::any_of(zone.start.begin(), zone.start.end(), [&](uint32_t s) { return s > zone.end; })) {
        LLAMA_LOG_ERROR("%s: corrupt compressed state\n", __func__);
        return false;
    }

    if (!kv.air) {
        kv.air = std::make_shared<llama_aircache>(kv);
    }

    kv.air->zones[sinfo.strm[0]] = zone;
    kv.air->version++;

    return true;
}
