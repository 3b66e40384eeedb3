// The calls of llama-aircache.h that keep and restore a prompt's full cells.
#include "api/border.h"
#include "api/checks.h"

#include "cache/archive.h"
#include "cache/faults.h"

#include <algorithm>
#include <new>

static void make_archive(llama_context * ctx, llama_seq_id seq, llama_pos p1, llama_aircache_archive ** out,
        const llama_aircache_archive::make_store & store) {
    const llama_aircache_fault_scope faults;

    LLAMA_AIRCACHE_REQUIRE(out, "out is null");
    *out = nullptr;

    auto & air = llama_aircache_open(ctx, seq);
    LLAMA_AIRCACHE_REQUIRE(p1 > 0, "p1 is %d: it must be one past the last image's positions", p1);
    llama_aircache_settle(ctx);

    *out = new llama_aircache_archive(air, seq, p1, store);
}

int32_t llama_aircache_archive_make(llama_context * ctx, llama_seq_id seq, llama_pos p1, const char * path, llama_aircache_archive ** out) {
    return llama_aircache_guarded([&] {
        make_archive(ctx, seq, p1, out, [&](const auto & sections, uint64_t shape) {
            return path ? llama_aircache_store::in_file(path, sections, shape) : llama_aircache_store::in_memory(sections);
        });
    });
}

int32_t llama_aircache_archive_make_on_device(llama_context * ctx, llama_seq_id seq, llama_pos p1, llama_aircache_archive ** out) {
    return llama_aircache_guarded([&] {
        make_archive(ctx, seq, p1, out, [](const auto & sections, uint64_t) { return llama_aircache_store::on_devices(sections); });
    });
}

int32_t llama_aircache_device_free(llama_context * ctx, int64_t * bytes) {
    return llama_aircache_guarded([&] {
        const auto & air = llama_aircache_open(ctx, 0);
        LLAMA_AIRCACHE_REQUIRE(bytes, "bytes is null");
        *bytes = -1;
        for (uint32_t l = 0; l < air.kv.n_layer(); ++l) {
            auto * buft = ggml_backend_buffer_get_type(air.kv.k(l)->buffer);
            auto * dev  = ggml_backend_buft_get_device(buft);
            if (ggml_backend_buft_is_host(buft) || !dev) {
                continue;
            }
            size_t free  = 0;
            size_t total = 0;
            ggml_backend_dev_memory(dev, &free, &total);
            *bytes = *bytes < 0 ? (int64_t) free : std::min(*bytes, (int64_t) free);
        }
    });
}

int32_t llama_aircache_archive_restore(llama_context * ctx, llama_seq_id seq, const llama_aircache_archive * archive) {
    return llama_aircache_guarded([&] {
        const llama_aircache_fault_scope faults;

        LLAMA_AIRCACHE_REQUIRE(archive, "archive is null");
        auto & air = llama_aircache_open(ctx, seq);
        llama_aircache_settle(ctx);
        archive->check(air, seq);

        air.kv.remove(seq);
        if (!air.make_room(air.kv.stream(seq), archive->n_cells())) {
            throw std::bad_alloc();
        }
        archive->restore(air, seq);
    });
}

int64_t llama_aircache_archive_bytes(const llama_aircache_archive * archive) {
    return archive ? archive->bytes() : 0;
}

void llama_aircache_archive_free(llama_aircache_archive * archive) {
    llama_aircache_guarded([&] { delete archive; });
}
