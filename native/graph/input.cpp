#include "graph/input.h"

#include "cache/aircache.h"

#include <algorithm>
#include <cmath>
#include <cstring>

// of the tokens whose attention a layer sums up
static const uint32_t MAX_TILES = 8;

std::shared_ptr<llm_graph_input_aircache> llm_graph_input_aircache::build(
        ggml_context * ctx, ggml_cgraph * gf, const llama_ubatch & ubatch,
        const llama_kv_cache_context * mctx, ggml_tensor * kq_mask) {
    auto * air = llama_aircache::of(mctx->get_air());
    if (!air) {
        return nullptr;
    }

    const auto seen = air->observers.observed(ubatch);
    if (seen.empty() && !air->any() && !air->was_resized()) {
        return nullptr;
    }

    auto res = std::make_shared<llm_graph_input_aircache>();

    res->air     = air;
    res->version = air->version();

    if (!seen.queries.empty()) {
        res->tokens = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, seen.queries.size());
        res->rows   = ggml_new_tensor_1d(ctx, GGML_TYPE_I64, seen.queries.size());
        ggml_set_input(res->tokens);
        ggml_set_input(res->rows);
    }
    if (!seen.summed.empty()) {
        const auto & strm = mctx->get_sinfo().strm;
        res->sum        = seen.sum;
        res->n_stream   = strm.size();
        res->sum_stream = std::find(strm.begin(), strm.end(), air->kv.stream(seen.sum->seq)) - strm.begin();
        res->weights = ggml_new_tensor_1d(ctx, GGML_TYPE_F32, ubatch.n_tokens);
        ggml_set_input(res->weights);
    }

    if (air->any()) {
        res->build_masks(ctx, gf, mctx, kq_mask);
    }

    return res;
}

bool llm_graph_input_aircache::can_reuse(const llm_graph_input_aircache * self, const llama_kv_cache_context * mctx, const llama_ubatch & ubatch) {
    auto * air = llama_aircache::of(mctx->get_air());
    if (!air) {
        return self == nullptr;
    }

    const auto seen = air->observers.observed(ubatch);
    if (!self) {
        return seen.empty() && !air->any() && !air->was_resized();
    }

    const size_t n_queries = self->tokens ? self->tokens->ne[0] : 0;

    // the common mask's shape (n_kv, tokens, streams) is compared by the caller, the streams themselves by llm_graph_params
    return self->version == air->version() && n_queries == seen.queries.size() && (self->weights != nullptr) == !seen.summed.empty();
}

uint32_t llm_graph_input_aircache::max_nodes(const llama_memory_i * memory) {
    const uint32_t n_layer = llama_aircache_kv::count_layers(memory);

    // a layer: 4 for its mask (view, copy, bias, sum), 4 for its queries, 17 for each tile of summed attention and 4 for
    // its keys and sums; a graph: the inputs of observation and copies of the common mask
    return n_layer > 0 ? n_layer*(12 + 17*MAX_TILES) + 16 : 0;
}

void llm_graph_input_aircache::build_masks(ggml_context * ctx, ggml_cgraph * gf, const llama_kv_cache_context * mctx, ggml_tensor * kq_mask) {
    const auto & sinfo = mctx->get_sinfo();

    bool mask_only = false;

    for (uint32_t l = 0; l < air->kv.n_layer(); ++l) {
        group g = { {}, -1, air->view_start(l, sinfo), nullptr };
        for (const uint32_t s : sinfo.strm) {
            const auto & zone = air->zone(s);
            g.start.push_back(zone.empty() ? 0 : zone.start[l]);
#ifdef PAC_ORACLE
            if (!zone.hidden.empty()) {
                g.hidden  = l;
                mask_only = true;
            }
#endif
        }

        const auto same = std::find_if(groups.begin(), groups.end(), [&](const group & o) {
            return o.start == g.start && o.hidden == g.hidden && o.i0 == g.i0;
        });
        layer_group.push_back(same - groups.begin());

        if (same == groups.end()) {
            groups.push_back(std::move(g));
        }
    }

    // One token a step: small masks, filled on the host. More: masks are made from the common one on the device when
    // a layer needs them, so that only one has to be there at a time.
    if (kq_mask->ne[1] == 1 || mask_only) {
        build_host_masks(ctx, gf, kq_mask);
    } else {
        build_device_masks(ctx, kq_mask);
    }
}

void llm_graph_input_aircache::build_host_masks(ggml_context * ctx, ggml_cgraph * gf, ggml_tensor * kq_mask) {
    int64_t n = 0;
    for (auto & g : groups) {
        g.offset = n;
        n += GGML_PAD((kq_mask->ne[0] - g.i0)*kq_mask->ne[1]*kq_mask->ne[3], 64); // device kernels want aligned masks
    }

    masks = ggml_new_tensor_1d(ctx, kq_mask->type, n);
    ggml_set_input(masks);
    ggml_set_name(masks, "aircache_masks");

    // views of a host input would be uploaded one by one
    ggml_tensor * cur = ggml_cont(ctx, masks);

    for (auto & g : groups) {
        const int64_t ne0 = kq_mask->ne[0] - g.i0;
        const size_t  row = ggml_row_size(cur->type, ne0);
        g.mask = ggml_view_4d(ctx, cur, ne0, kq_mask->ne[1], 1, kq_mask->ne[3],
                row, row*kq_mask->ne[1], row*kq_mask->ne[1], ggml_row_size(cur->type, g.offset));
    }

    // no layer reads the common mask any more, but the groups' are made from it: keep it allocated
    ggml_build_forward_expand(gf, kq_mask);
}

void llm_graph_input_aircache::build_device_masks(ggml_context * ctx, ggml_tensor * kq_mask) {
    ggml_tensor * base = ggml_cont(ctx, kq_mask); // one upload

    for (auto & g : groups) {
        const int64_t ne0 = base->ne[0] - g.i0;

        g.mask = ggml_cont(ctx, ggml_view_4d(ctx, base, ne0, base->ne[1], 1, base->ne[3],
                base->nb[1], base->nb[2], base->nb[3], ggml_row_size(base->type, g.i0)));

        if (std::any_of(g.start.begin(), g.start.end(), [&](uint32_t start) { return start > g.i0; })) {
            g.bias = ggml_new_tensor_4d(ctx, base->type, ne0, 1, 1, base->ne[3]);
            ggml_set_input(g.bias);
            g.mask = ggml_add(ctx, g.mask, g.bias);
        }
    }
}

void llm_graph_input_aircache::set_input(const llama_ubatch * ubatch, const llama_kv_cache_context * mctx, const ggml_tensor * kq_mask) {
    const auto & sinfo = mctx->get_sinfo();

    const auto seen = air->observers.observed(*ubatch);

    if (tokens) {
        std::vector<int32_t> token;
        std::vector<int64_t> row;
        for (const auto & q : seen.queries) {
            const int32_t query = q.query >= 0 ? q.query : q.obs->next_query(sinfo.idxs[q.token/sinfo.size()][q.token%sinfo.size()]);
            if (q.query >= 0) {
                q.obs->seen[query] = 1;
            }
            token.push_back(q.token);
            row.push_back(q.obs->row(query));
        }
        ggml_backend_tensor_set(tokens, token.data(), 0, ggml_nbytes(tokens));
        ggml_backend_tensor_set(rows,   row.data(),   0, ggml_nbytes(rows));
    }

    if (weights) {
        std::vector<float> weight(ubatch->n_tokens, 0.0f);
        for (const uint32_t t : seen.summed) {
            const int32_t query = sum->text_query(ubatch->pos[t]);
            if (query >= 0) {
                sum->seen[query] = 1;
            }
            weight[t] = 1.0f;
        }
        ggml_backend_tensor_set(weights, weight.data(), 0, ggml_nbytes(weights));
    }

    if (groups.empty()) {
        return;
    }

    if (kq_mask->type == GGML_TYPE_F16) {
        fill_masks<ggml_fp16_t>(mctx, kq_mask, ggml_fp32_to_fp16(-INFINITY));
        fill_biases<ggml_fp16_t>(ggml_fp32_to_fp16(-INFINITY));
    } else {
        fill_masks<float>(mctx, kq_mask, -INFINITY);
        fill_biases<float>(-INFINITY);
    }
}

template <typename T>
void llm_graph_input_aircache::fill_biases(T drop) {
    for (const auto & g : groups) {
        if (!g.bias) {
            continue;
        }
        std::vector<T> data(ggml_nelements(g.bias), T(0)); // all zero bits are 0 in both types
        for (size_t s = 0; s < g.start.size(); ++s) {
            const auto row = data.begin() + s*g.bias->ne[0];
            std::fill(row, row + (std::max(g.start[s], g.i0) - g.i0), drop);
        }
        ggml_backend_tensor_set(g.bias, data.data(), 0, ggml_nbytes(g.bias));
    }
}

template <typename T>
void llm_graph_input_aircache::fill_masks(const llama_kv_cache_context * mctx, const ggml_tensor * kq_mask, T drop) {
    if (!masks) {
        return;
    }

    GGML_ASSERT(ggml_backend_buffer_is_host(masks->buffer) && ggml_backend_buffer_is_host(kq_mask->buffer));

    const auto & sinfo = mctx->get_sinfo();

    const int64_t n_kv  = kq_mask->ne[0];
    const int64_t n_tps = kq_mask->ne[1];

    for (const auto & g : groups) {
        T * dst = (T *) masks->data + g.offset;

        for (size_t s = 0; s < sinfo.strm.size(); ++s) {
            for (int64_t t = 0; t < n_tps; ++t) {
                const T * src = (const T *) kq_mask->data + (s*n_tps + t)*n_kv;

                memcpy(dst, src + g.i0, (n_kv - g.i0)*sizeof(T));

                if (g.start[s] > g.i0) {
                    std::fill(dst, dst + g.start[s] - g.i0, drop);
                }

#ifdef PAC_ORACLE
                const auto & hidden = air->zone(sinfo.strm[s]).hidden;
                if (g.hidden >= 0 && !hidden.empty()) {
                    for (const uint32_t i : hidden[g.hidden]) {
                        if (i < n_kv) {
                            dst[i] = drop;
                        }
                    }
                }
#endif

                dst += n_kv - g.i0;
            }
        }
    }
}

ggml_tensor * llm_graph_input_aircache::kq_mask(ggml_tensor * kq_mask, int il) const {
    return groups.empty() ? kq_mask : groups[layer_group[air->kv.layer_ikv(il)]].mask;
}

// sum over tokens of weight * mean over heads of softmax(q k^T * scale + mask): [n_kv]; scratch: n_kv * n_tokens * n_head
// values, twice
static ggml_tensor * attention_sum(ggml_context * ctx, ggml_tensor * k, ggml_tensor * q, ggml_tensor * mask, ggml_tensor * weight, float scale) {
    k = ggml_permute(ctx, k, 0, 2, 1, 3);
    q = ggml_permute(ctx, q, 0, 2, 1, 3);

    ggml_tensor * cur = ggml_mul_mat(ctx, k, q); // [n_kv, n_tokens, n_head]
    ggml_prec_set_acc(cur, GGML_PREC_F32);

    cur = ggml_soft_max_ext(ctx, cur, mask, scale, 0.0f);

    const int64_t n_kv   = cur->ne[0];
    const int64_t n_head = cur->ne[2];

    cur = ggml_cont(ctx, ggml_permute(ctx, cur, 1, 0, 2, 3)); // [n_tokens, n_kv, n_head]
    cur = ggml_mul_mat(ctx, ggml_reshape_2d(ctx, cur, cur->ne[0], n_kv*n_head), weight);
    ggml_prec_set_acc(cur, GGML_PREC_F32);

    cur = ggml_cont(ctx, ggml_transpose(ctx, ggml_reshape_2d(ctx, cur, n_kv, n_head)));
    return ggml_reshape_1d(ctx, ggml_mean(ctx, cur), n_kv);
}

void llm_graph_input_aircache::observe(ggml_context * ctx, ggml_cgraph * gf, ggml_tensor * q, ggml_tensor * k, ggml_tensor * mask, float kq_scale, int il) {
    const int32_t ikv = air->kv.layer_ikv(il);

    air->observers.kq_scale[ikv] = kq_scale;

    if (tokens) {
        ggml_tensor * dst = air->observers.queries(ikv);
        ggml_tensor * src = ggml_is_contiguous(q) ? q : ggml_cont(ctx, q);

        src = ggml_reshape_2d(ctx, src, dst->ne[0], ggml_nelements(q)/dst->ne[0]);

        ggml_build_forward_expand(gf, ggml_set_rows(ctx, dst, ggml_get_rows(ctx, src, tokens), rows));
    }

    if (weights) {
        const size_t  i0  = groups.empty() ? 0 : groups[layer_group[ikv]].i0;

        const int64_t t_stream = sum_stream*(q->ne[2]/n_stream); // first token of the stream
        if (n_stream > 1) {
            k    = ggml_view_3d(ctx, k, k->ne[0], k->ne[1], k->ne[2], k->nb[1], k->nb[2], sum_stream*k->nb[3]);
            mask = ggml_view_2d(ctx, mask, mask->ne[0], mask->ne[1], mask->nb[1], sum_stream*mask->nb[3]);
        }

        // in a few tiles of tokens where that is much; more would take more nodes than a context's graphs should be made for
        const int64_t n_tokens = q->ne[2]/n_stream;
        const size_t  bytes    = 2*sizeof(float)*k->ne[2]*n_tokens*q->ne[1];
        const int64_t n_tiles  = std::min<int64_t>({ (int64_t) MAX_TILES, n_tokens, (int64_t) (bytes/air->tile_bytes) + 1 });

        ggml_tensor * k_f32 = ggml_cast(ctx, k, GGML_TYPE_F32);
        ggml_tensor * cur   = nullptr;
        for (int64_t t = 0; t < n_tiles; ++t) {
            const int64_t t0 = n_tokens*t/n_tiles;
            const int64_t n  = n_tokens*(t + 1)/n_tiles - t0;

            ggml_tensor * sum = attention_sum(ctx, k_f32,
                    ggml_view_3d(ctx, q, q->ne[0], q->ne[1], n, q->nb[1], q->nb[2], (t_stream + t0)*q->nb[2]),
                    ggml_view_2d(ctx, mask, mask->ne[0], n, mask->nb[1], t0*mask->nb[1]),
                    ggml_view_1d(ctx, weights, n, (t_stream + t0)*sizeof(float)), kq_scale);
            cur = cur ? ggml_add(ctx, cur, sum) : sum;
        }

        ggml_tensor * acc = ggml_view_1d(ctx, sum->sums[ikv], cur->ne[0], i0*sizeof(float));

        ggml_build_forward_expand(gf, ggml_cpy(ctx, ggml_add(ctx, acc, cur), acc));
    }
}
