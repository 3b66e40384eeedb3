// Buffers of K and V that follow what is kept, where pages do not come and go by themselves: on devices they are made anew.
#include "graph/runner.h"

#include "cache/failure.h"
#include "llama-context.h"
#include "llama-impl.h"

#include <algorithm>

// Views of llama.cpp's graphs end at multiples of this, so that smaller steps would not be used.
static const uint32_t STEP = 256;

// copies the first n cells of a stream of one layer
static void copy_cells(llama_aircache_graph & graph, ggml_tensor * from, ggml_tensor * to, bool transposed, uint32_t n) {
    const auto view = [&](ggml_tensor * t) {
        return transposed ? llama_aircache_columns(graph.ctx(), t, 0, n) : llama_aircache_words(graph.ctx(), t, 0, n);
    };
    ggml_tensor * res = ggml_cpy(graph.ctx(), view(from), view(to));

    auto * dev = ggml_backend_buft_get_device(ggml_backend_buffer_get_type(to->view_src->buffer));
    if (dev && !ggml_backend_dev_supports_op(dev, res)) {
        throw llama_aircache_failure(LLAMA_AIRCACHE_UNSUPPORTED, "the device %s cannot copy cells of a %s cache",
                ggml_backend_dev_name(dev), ggml_type_name(to->type));
    }
    ggml_build_forward_expand(graph.gf(), res);
}

void llama_aircache_runner::resize(uint32_t n_rows) {
    const auto & kv = air.kv;

    uint32_t n_used = 0;
    for (const auto & table : kv.tables()) {
        if (table.get_has_shift()) {
            throw llama_aircache_failure(LLAMA_AIRCACHE_STATE, "a shift of positions waits and could not be applied");
        }
        n_used = std::max(n_used, table.used_max_p1());
    }

    n_rows = std::min(kv.n_cells(), GGML_PAD(std::max({ n_rows, n_used, 1u }), STEP));
    if (n_rows == kv.n_rows() || kv.is_mapped()) {
        return;
    }

    llama_kv_cells_vec tables(kv.n_stream());
    for (uint32_t s = 0; s < kv.n_stream(); ++s) {
        tables[s].resize(n_rows);
        tables[s].set(0, kv.cells(s).cp(0, kv.cells(s).used_max_p1()));
    }

    auto fresh = kv.make(n_rows);

    const llama_aircache_scratch scratch = { *this };
    llama_aircache_graph graph(*this, 16*kv.n_layer()*kv.n_stream()); // streams and their parts are views, too

    for (uint32_t s = 0; s < kv.n_stream(); ++s) {
        const uint32_t n = tables[s].used_max_p1(); // with what lies below a layer's first row: saved states hold it
        for (uint32_t l = 0; n > 0 && l < kv.n_layer(); ++l) {
            copy_cells(graph, kv.k(l, s), fresh.layers[l].k_stream[s], false,        n);
            copy_cells(graph, kv.v(l, s), fresh.layers[l].v_stream[s], kv.v_trans(), n);
        }
    }
    if (ggml_graph_n_nodes(graph.gf()) > 0) {
        graph.run(); // whatever fails, the buffers at hand are as they were
    }

    reset(); // it knows the old buffers
    kv.put(std::move(fresh), std::move(tables));
    air.set_resized();
}

//
// hooks of llama_kv_cache
//

static bool grow(llama_aircache_zones * zones, llama_context * ctx, uint32_t n_rows) {
    auto & air = *llama_aircache::of(zones);
    if (n_rows <= air.kv.n_rows() || air.kv.n_rows() == air.kv.n_cells()) {
        return true; // and if a batch does not fit into the context, llama.cpp says so
    }
    try {
        ctx->synchronize();
        llama_aircache_runner::get(ctx, air).resize(n_rows);
        return true;
    } catch (const std::exception & e) {
        LLAMA_LOG_ERROR("%s: no memory for a KV cache of %u cells a sequence instead of %u (%s)\n", __func__, n_rows, air.kv.n_rows(), e.what());
        return false;
    }
}

bool llama_aircache_zones::make_room(const std::vector<llama_ubatch> & ubatches) {
    tidy();
    std::vector<uint32_t> n_used;
    for (const auto & table : kv.tables()) {
        n_used.push_back(table.get_used());
    }
    for (const auto & ubatch : ubatches) {
        for (uint32_t i = 0; i < ubatch.n_tokens; ++i) {
            n_used[kv.stream(ubatch.seq_id[i][0])]++;
        }
    }
    return grow(this, kv.context(), *std::max_element(n_used.begin(), n_used.end()));
}

bool llama_aircache_zones::make_room(uint32_t stream, uint32_t n) {
    return grow(this, kv.context(), kv.cells(stream).get_used() + n);
}
