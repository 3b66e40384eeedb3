// Saving and restoring the compressed region of a stream.
//
// Nothing read from a state is trusted: a zone is taken over only when it is one that plan() could have made and the
// restored cells are those that belong to it. Whatever throws here makes llama_kv_cache::state_read empty the sequence.
#include "cache/aircache.h"

#include "llama-io.h"

#include <algorithm>
#include <cstdio>
#include <stdexcept>

// begins each record, with the number of its format, so that those of other formats are refused by name
static const uint32_t ZONE_MAGIC   = 0x41495200; // "\0RIA"
static const uint32_t ZONE_VERSION = 1;

void llama_aircache_zone::write(llama_io_write_i & io) const {
    if (!hidden.empty()) {
        throw std::runtime_error("a mask-only compression cannot be saved");
    }

    const uint32_t head[] = { ZONE_MAGIC | ZONE_VERSION, (uint32_t) start.size() };

    io.write(head, sizeof(head));
    if (!empty()) {
        io.write(start.data(), start.size()*sizeof(start[0]));
        io.write(&end, sizeof(end));
        io.write(&p0,  sizeof(p0));
        io.write(&p1,  sizeof(p1));
    }
}

void llama_aircache_zone::read(llama_io_read_i & io, uint32_t n_layer) {
    *this = {};

    uint32_t head[2];
    io.read(head, sizeof(head));

    if (head[0] != (ZONE_MAGIC | ZONE_VERSION)) {
        char buf[160];
        snprintf(buf, sizeof(buf), "compressed state of an unknown format (%08x, this version reads %08x): "
                "it was saved by another version of pyaircache, or is damaged", head[0], ZONE_MAGIC | ZONE_VERSION);
        throw std::runtime_error(buf);
    }
    if (head[1] == 0) {
        return;
    }
    if (head[1] != n_layer) {
        char buf[160];
        snprintf(buf, sizeof(buf), "compressed state of %u layers, the model has %u", head[1], n_layer);
        throw std::runtime_error(buf);
    }

    start.resize(n_layer);
    io.read(start.data(), n_layer*sizeof(start[0]));
    io.read(&end, sizeof(end));
    io.read(&p0,  sizeof(p0));
    io.read(&p1,  sizeof(p1));
}

bool llama_aircache_zones::saves(llama_seq_id seq) const {
    for (uint32_t s = 0; s < zones.size(); ++s) {
        if ((seq < 0 || kv.stream(seq) == s) && zone_of(s, seq)) {
            return true;
        }
    }

    return false;
}

// flag in the stream count of a state: zones follow
static const uint32_t STATE_FLAG = 0x80000000u;

uint32_t llama_aircache_zones::mark(const llama_aircache_zones * zones, uint32_t n_stream, llama_seq_id seq) {
    return n_stream | (zones && zones->saves(seq) ? STATE_FLAG : 0);
}

bool llama_aircache_zones::unmark(uint32_t & n_stream) {
    const bool res = n_stream & STATE_FLAG;
    n_stream &= ~STATE_FLAG;
    return res;
}

void llama_aircache_zones::write_zone(llama_io_write_i & io, uint32_t stream, llama_seq_id seq) const {
    if (!saves(seq)) {
        return;
    }

    untidy = true;

    // another sequence of a unified stream may hold it
    const auto * zone = zone_of(stream, seq);

    (zone ? *zone : llama_aircache_zone()).write(io);
}

// caches inside of others (sliding windows, hybrids) have no context
static void check_compressible(llama_context * ctx) {
    const std::string reason = ctx ? llama_aircache::unsupported(ctx) : "this memory cannot be compressed";
    if (!reason.empty()) {
        throw std::runtime_error("compressed state refused: " + reason);
    }
}

llama_aircache_zone llama_aircache_zones::read_zone(llama_kv_cache & kv, llama_io_read_i & io, bool marked) {
    llama_aircache_zone res;
    if (marked) {
        check_compressible(kv.air_ctx);
        res.read(io, llama_aircache_kv(kv).n_layer());
    }
    return res;
}

static void refuse_unless(bool ok, const char * why) {
    if (!ok) {
        throw std::runtime_error(std::string("compressed state refused: ") + why);
    }
}

void llama_aircache_zones::restore(llama_kv_cache & kv, const llama_kv_cache::slot_info & sinfo, llama_aircache_zone zone) {
    if (zone.empty()) {
        return;
    }

    const auto & cells = llama_aircache_kv(kv).cells(sinfo.strm[0]);
    const auto & idxs  = sinfo.idxs[0];

    refuse_unless(zone.end > 0 && zone.end <= idxs.size(), "it claims more cells than it holds");
    refuse_unless(zone.p0 >= 0 && zone.p0 < zone.p1 && llama_aircache_pos_valid(zone.p1), "its image has no valid positions");

    // the largest budget reaches down to cell 0, and every layer keeps something
    const auto [lo, hi] = std::minmax_element(zone.start.begin(), zone.start.end());
    refuse_unless(*lo == 0 && *hi < zone.end, "its layers' budgets do not fit its cells");

    // the survivors' rows are only right at the cells they were saved from
    for (uint32_t i = 0; i < zone.end; ++i) {
        refuse_unless(idxs[i] == i, "a compressed sequence can only be restored into an empty stream");
    }

    // the survivors stand where the last visual token did, and belong to the same sequences
    const llama_pos last = cells.pos_get(0);
    const auto    & seqs = cells.seq_get_all(0);

    refuse_unless(last >= zone.p0 && last < zone.p1 && seqs.any(), "its survivors do not stand in its image");

    for (uint32_t i = 0; i < zone.end; ++i) {
        refuse_unless(cells.pos_get(i) == last && cells.seq_get_all(i) == seqs, "its survivors differ in position or sequence");
    }

    // text stands before them, or between the images, or behind the last one
    for (size_t j = zone.end; j < idxs.size(); ++j) {
        const bool same = (cells.seq_get_all(idxs[j]) & seqs).any();
        const auto pos  = cells.pos_get(idxs[j]);
        refuse_unless(!same || pos < last || pos >= zone.p1, "text stands in its image");
    }

    if (!kv.air) {
        kv.air = std::make_shared<llama_aircache>(kv);
    }

    kv.air->set_zone(sinfo.strm[0], std::move(zone));
    kv.air->untidy = true;
}
