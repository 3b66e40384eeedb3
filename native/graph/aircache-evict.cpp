// Closing up the cache: docs/method.md, section 3.
#include "graph/aircache-run.h"

#include <algorithm>

ggml_tensor * llama_aircache_words(ggml_context * ctx, ggml_tensor * t, uint32_t i0, uint32_t n) {
    ggml_tensor * res = ggml_view_2d(ctx, t, t->ne[0], n, t->nb[1], i0*t->nb[1]);

    res->type  = GGML_TYPE_I32;
    res->ne[0] = t->nb[1]/sizeof(int32_t);
    res->nb[0] = sizeof(int32_t);
    res->nb[1] = t->nb[1];
    res->nb[2] = res->nb[1]*n;
    res->nb[3] = res->nb[2];

    return res;
}

ggml_tensor * llama_aircache_columns(ggml_context * ctx, ggml_tensor * v, uint32_t i0, uint32_t n) {
    return ggml_view_2d(ctx, v, n, v->ne[0], ggml_row_size(v->type, v->ne[1]), ggml_row_size(v->type, i0));
}

// means of the merged rows: F32 [n_embd, n_groups]; rows: the source rows, F32 [n_embd, n_members]
static ggml_tensor * merged(ggml_context * ctx, ggml_tensor * rows, ggml_tensor * group, ggml_tensor * scale) {
    // only the shape of the last argument counts
    ggml_tensor * sums = ggml_get_rows_back(ctx, rows, group, ggml_new_tensor_2d(ctx, GGML_TYPE_F32, rows->ne[0], scale->ne[1]));
    return ggml_mul(ctx, sums, scale);
}

void llama_aircache_run_evict(llama_context * lctx, llama_aircache & air, llama_seq_id seq, const llama_aircache::layout & lay) {
    const llama_aircache_scratch scratch = { air };

    llama_aircache_graph graph(lctx, air, 48*air.n_layer());

    auto * ctx = graph.ctx();
    auto * gf  = graph.gf();

    const uint32_t s = air.stream(seq);

    for (uint32_t l = 0; l < air.n_layer(); ++l) {
        const auto & rows = lay.rows[l];
        const auto & mg   = lay.merges[l];

        // rows that lie right already
        uint32_t skip = 0;
        while (mg.cells.empty() && skip < rows.size() && rows[skip] == lay.start[l] + skip) {
            skip++;
        }
        if (skip == rows.size()) {
            continue;
        }

        const uint32_t i0     = lay.start[l] + skip;
        const uint32_t n      = rows.size() - skip;
        const uint32_t n_used = *std::max_element(rows.begin(), rows.end()) + 1;

        ggml_tensor * idx = graph.input_i32({ rows.begin() + skip, rows.end() });

        // merging: sums are taken before anything moves, the means replace the kept rows afterwards
        ggml_tensor * members = nullptr;
        ggml_tensor * group   = nullptr;
        ggml_tensor * scale   = nullptr;
        if (!mg.cells.empty()) {
            members = graph.input_i32(mg.cells);
            group   = graph.input_i32(mg.group);
            scale   = graph.input_f32(mg.scale, 1, mg.scale.size());
        }

        // source and target overlap: gather into scratch first
        const auto move_rows = [&](ggml_tensor * t) {
            ggml_tensor * mean = nullptr;
            if (members) {
                mean = merged(ctx, ggml_get_rows(ctx, t, members), group, scale);
                ggml_build_forward_expand(gf, mean);
            }
            ggml_tensor * src = ggml_get_rows(ctx, llama_aircache_words(ctx, t, 0, t->ne[1]), idx);
            ggml_build_forward_expand(gf, ggml_cpy(ctx, src, llama_aircache_words(ctx, t, i0, n)));
            if (members) {
                ggml_build_forward_expand(gf, ggml_set_rows(ctx, t, mean, graph.input_i64(mg.target)));
            }
        };
        const auto move_columns = [&](ggml_tensor * t) {
            const uint32_t n_all = members ? std::max(n_used, *std::max_element(mg.cells.begin(), mg.cells.end()) + 1) : n_used;
            ggml_tensor * all = ggml_cont(ctx, ggml_transpose(ctx, llama_aircache_columns(ctx, t, 0, n_all)));
            ggml_tensor * src = ggml_get_rows(ctx, all, idx); // F32, which f16 and bf16 pass through unchanged
            if (members) {
                std::vector<uint32_t> local;
                for (const uint32_t i : mg.target) {
                    local.push_back(i - i0);
                }
                src = ggml_set_rows(ctx, src, merged(ctx, ggml_get_rows(ctx, all, members), group, scale), graph.input_i64(local));
            }
            ggml_build_forward_expand(gf, ggml_cpy(ctx, ggml_transpose(ctx, src), llama_aircache_columns(ctx, t, i0, n)));
        };

        move_rows(air.k(l, s));
        if (air.v_trans()) {
            move_columns(air.v(l, s));
        } else {
            move_rows(air.v(l, s));
        }
    }

    if (ggml_graph_n_nodes(gf) > 0) {
        graph.run();
    }
}
