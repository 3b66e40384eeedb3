#include "cache/devices.h"

#include "cache/observers.h"

std::string llama_aircache_missing_op(const llama_aircache_layer_tensors & t, bool merging, const llama_aircache_supports & supports) {
    const int64_t n = 2; // any number of rows

    ggml_context_ptr owner(ggml_init({ 64*ggml_tensor_overhead(), nullptr, true }));
    if (!owner) {
        throw std::bad_alloc();
    }
    auto * ctx = owner.get();

    ggml_tensor * idx = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, n);
    ggml_tensor * row = ggml_new_tensor_1d(ctx, GGML_TYPE_I64, n);

    const auto f32 = [&](int64_t ne0) { return ggml_new_tensor_2d(ctx, GGML_TYPE_F32, ne0, n); };

    std::vector<ggml_tensor *> ops;

    // as graph/moves.cpp does it
    const auto move_rows = [&](ggml_tensor * t) {
        ggml_tensor * src = ggml_get_rows(ctx, llama_aircache_words(ctx, t, 0, t->ne[1]), idx);
        ops.push_back(src);
        ops.push_back(ggml_cpy(ctx, src, llama_aircache_words(ctx, t, 0, n)));
    };
    const auto merge_rows = [&](ggml_tensor * t) {
        ops.push_back(ggml_get_rows(ctx, t, idx));
        ops.push_back(ggml_set_rows(ctx, t, f32(t->ne[0]), row));
    };

    if (merging) {
        merge_rows(t.k);
        if (!t.v_trans) {
            merge_rows(t.v);
        }
    } else {
        ops.push_back(ggml_set_rows(ctx, t.q, f32(t.q->ne[0]), row)); // observation
        ops.push_back(ggml_get_rows(ctx, t.q, idx));                  // scores
        ops.push_back(ggml_get_rows(ctx, t.k, idx));
        move_rows(t.k);
        if (t.v_trans) {
            ggml_tensor * some = llama_aircache_columns(ctx, t.v, 0, n);
            ops.push_back(ggml_cont(ctx, ggml_transpose(ctx, some)));
            ops.push_back(ggml_cpy(ctx, ggml_transpose(ctx, f32(t.v->ne[0])), some));
        } else {
            move_rows(t.v);
        }
    }

    for (const auto * op : ops) {
        if (!supports(op)) {
            return std::string(ggml_op_desc(op)) + " of " + ggml_type_name(op->src[0]->type) + " to " + ggml_type_name(op->type);
        }
    }
    return "";
}

std::string llama_aircache_missing_op(const llama_aircache_kv & kv, bool merging) {
    for (uint32_t l = 0; l < kv.n_layer(); ++l) {
        auto * dev = ggml_backend_buft_get_device(ggml_backend_buffer_get_type(kv.k(l, 0)->buffer));
        if (!dev) {
            continue; // not a device's own memory
        }

        const auto spec = llama_aircache_observers::query_spec(kv, l, 1);

        ggml_context_ptr ctx(ggml_init({ ggml_tensor_overhead(), nullptr, true }));
        if (!ctx) {
            throw std::bad_alloc();
        }
        ggml_tensor * q = ggml_new_tensor_2d(ctx.get(), spec.type, spec.ne0, 2);

        const std::string op = llama_aircache_missing_op({ q, kv.k(l, 0), kv.v(l, 0), kv.v_trans() }, merging, [dev](const ggml_tensor * op) {
            return ggml_backend_dev_supports_op(dev, op);
        });
        if (!op.empty()) {
            return std::string("the device ") + ggml_backend_dev_name(dev) + " lacks the operation " + op;
        }
    }
    return "";
}
