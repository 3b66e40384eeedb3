// LLaVA-OneVision and LLaVA-NeXT: tower, projector, and the tiles' tokens put together to one picture.
#include "onevision.h"

#include <algorithm>

namespace {

struct clip_graph_onevision : clip_graph {
    clip_graph_onevision(clip_ctx * ctx, const clip_image_f32 & img)
        : clip_graph(ctx, img), anyres(img.anyres), tile(img.nx()), n_tiles(img.ny()/img.nx()), side(tile/patch_size),
          n_class(model.class_embedding ? 1 : 0), n_pos(side*side + n_class) {}

    const clip_image_f32::anyres_info anyres;
    const int tile;    // pixels
    const int n_tiles; // below each other in the input
    const int side;    // tokens
    const int n_class; // tokens of CLIP's tower that are no patches
    const int n_pos;   // of a tile

    ggml_cgraph * build() override;

    ggml_tensor * linear(ggml_tensor * cur, ggml_tensor * w, ggml_tensor * b) const;
    ggml_tensor * gelu(ggml_tensor * cur) const;
    ggml_tensor * tower(ggml_tensor * cur, int n) const;
    ggml_tensor * encode(ggml_tensor * pixels);
    ggml_tensor * encode_all();
    ggml_tensor * resize(ggml_tensor * cur, int w, int h);
    ggml_tensor * newlines(int n);
    ggml_tensor * grid(ggml_tensor * cur);
};

ggml_tensor * clip_graph_onevision::linear(ggml_tensor * cur, ggml_tensor * w, ggml_tensor * b) const {
    cur = build_mm(w, cur);
    return b ? ggml_add(ctx0, cur, b) : cur;
}

// The tanh form is x*sigmoid(x*s) with s = sqrt(8/pi)*(1 + 0.044715*x^2), which is silu(x*s)/s. On the CPU ggml_gelu
// looks a value up in a table of F16, silu computes it. CLIP's quick form has a constant s.
ggml_tensor * clip_graph_onevision::gelu(ggml_tensor * cur) const {
    if (hparams.ffn_op == FFN_GELU_QUICK) {
        const float s = 1.702f;
        return ggml_scale(ctx0, ggml_silu(ctx0, ggml_scale(ctx0, cur, s)), 1.0f/s);
    }
    const float c = 1.5957691216057308f;
    ggml_tensor * s = ggml_scale_bias(ctx0, ggml_sqr(ctx0, cur), 0.044715f*c, c);
    return ggml_div(ctx0, ggml_silu(ctx0, ggml_mul(ctx0, cur, s)), s);
}

// The tower's blocks without its last norm, of n tiles: [n_embd, n_pos*n]
ggml_tensor * clip_graph_onevision::tower(ggml_tensor * cur, int n) const {
    for (int il = 0; il < n_layer; ++il) {
        const auto & layer = model.layers[il];

        ggml_tensor * inp = cur;
        cur = build_norm(inp, layer.ln_1_w, layer.ln_1_b, NORM_TYPE_NORMAL, eps, il);
        ggml_tensor * q = ggml_reshape_4d(ctx0, linear(cur, layer.q_w, layer.q_b), d_head, n_head, n_pos, n);
        ggml_tensor * k = ggml_reshape_4d(ctx0, linear(cur, layer.k_w, layer.k_b), d_head, n_head, n_pos, n);
        ggml_tensor * v = ggml_reshape_4d(ctx0, linear(cur, layer.v_w, layer.v_b), d_head, n_head, n_pos, n);
        cur = build_attn(layer.o_w, layer.o_b, q, k, v, nullptr, kq_scale, il);
        inp = ggml_add(ctx0, cur, inp);

        cur = build_norm(inp, layer.ln_2_w, layer.ln_2_b, NORM_TYPE_NORMAL, eps, il);
        cur = gelu(linear(cur, layer.ff_up_w, layer.ff_up_b));
        cur = ggml_add(ctx0, linear(cur, layer.ff_down_w, layer.ff_down_b), inp);
        cb(cur, "layer_out", il);
    }
    return cur;
}

// [tile, tile, 3, n] -> [width of the projector, side*side, n]
ggml_tensor * clip_graph_onevision::encode(ggml_tensor * pixels) {
    const int n = pixels->ne[3];

    // the patches as columns: ggml_conv_2d would round them, and weights in F32, to F16
    ggml_tensor * w = model.patch_embeddings_0;
    ggml_tensor * cur = ggml_im2col(ctx0, w, pixels, patch_size, patch_size, 0, 0, 1, 1, true, GGML_TYPE_F32);
    cur = ggml_reshape_2d(ctx0, cur, cur->ne[0], side*side*n);
    cur = linear(cur, ggml_reshape_2d(ctx0, w, cur->ne[0], n_embd), model.patch_bias);

    cur = ggml_reshape_3d(ctx0, cur, n_embd, side*side, n);
    if (n_class > 0) {
        ggml_tensor * first = ggml_reshape_3d(ctx0, model.class_embedding, n_embd, 1, 1);
        cur = ggml_concat(ctx0, n == 1 ? first : ggml_repeat_4d(ctx0, first, n_embd, 1, n, 1), cur, 1);
    }
    cur = ggml_add(ctx0, cur, model.position_embeddings);
    cur = ggml_reshape_2d(ctx0, cur, n_embd, n_pos*n);
    if (model.pre_ln_w) {
        cur = build_norm(cur, model.pre_ln_w, model.pre_ln_b, NORM_TYPE_NORMAL, eps, -1);
    }
    cur = tower(cur, n);
    if (n_class > 0) {
        cur = ggml_cont(ctx0, ggml_view_3d(ctx0, cur, n_embd, side*side, n, cur->nb[1], n_pos*cur->nb[1], n_class*cur->nb[1]));
        cur = ggml_reshape_2d(ctx0, cur, n_embd, side*side*n);
    }

    cur = build_ffn(cur, model.mm_0_w, model.mm_0_b, nullptr, nullptr, model.mm_2_w, model.mm_2_b, FFN_GELU_ERF, -1);
    return ggml_reshape_3d(ctx0, cur, n_mmproj_embd, side*side, n);
}

// A few tiles after each other: the tower's memory then is that of a few tiles. More parts would need a larger graph
// than clip makes.
ggml_tensor * clip_graph_onevision::encode_all() {
    ggml_tensor * pixels = ggml_reshape_3d(ctx0, build_inp_raw(), tile*tile, n_tiles, 3);
    pixels = ggml_cont(ctx0, ggml_permute(ctx0, pixels, 0, 2, 1, 3));
    pixels = ggml_reshape_4d(ctx0, pixels, tile, tile, 3, n_tiles);

    const int n_parts = std::clamp(6000/(48*std::max(1, n_layer)), 1, (n_tiles + 7)/8);
    const int n_part  = (n_tiles + n_parts - 1)/n_parts;

    ggml_tensor * res = nullptr;
    for (int i = 0; i < n_tiles; i += n_part) {
        ggml_tensor * part = ggml_view_4d(ctx0, pixels, tile, tile, 3, std::min(n_part, n_tiles - i),
                pixels->nb[1], pixels->nb[2], pixels->nb[3], i*pixels->nb[3]);
        part = encode(part);
        res = res ? ggml_concat(ctx0, res, part, 2) : part;
    }
    return res;
}

// [n_embd, x, y, n] -> [n_embd, w, h, n]
ggml_tensor * clip_graph_onevision::resize(ggml_tensor * cur, int w, int h) {
    cur = ggml_cont(ctx0, ggml_permute(ctx0, cur, 2, 0, 1, 3));
    cur = ggml_interpolate(ctx0, cur, w, h, cur->ne[2], cur->ne[3], GGML_SCALE_MODE_BILINEAR);
    return ggml_cont(ctx0, ggml_permute(ctx0, cur, 1, 2, 0, 3));
}

// [n_embd, 1, n]
ggml_tensor * clip_graph_onevision::newlines(int n) {
    ggml_tensor * cur = ggml_reshape_3d(ctx0, model.image_newline, n_mmproj_embd, 1, 1);
    return n == 1 ? cur : ggml_repeat_4d(ctx0, cur, n_mmproj_embd, 1, n, 1);
}

// [n_embd, side*side, tiles of the grid] -> [n_embd, tokens]
ggml_tensor * clip_graph_onevision::grid(ggml_tensor * cur) {
    const int nx = anyres.grid_x;
    const int ny = anyres.grid_y;
    const auto g = onevision_get_grid(hparams, anyres, side);

    ggml_tensor * end = newlines(g.rows);
    if (g.cols > 0) {
        // the k-th rows of the tiles beside each other become one row
        cur = ggml_reshape_4d(ctx0, cur, n_mmproj_embd*side, side, nx, ny);
        cur = ggml_cont(ctx0, ggml_permute(ctx0, cur, 0, 2, 1, 3));
        cur = ggml_reshape_3d(ctx0, cur, n_mmproj_embd, nx*side, ny*side);

        cur = ggml_view_3d(ctx0, cur, n_mmproj_embd, g.w, g.h, cur->nb[1], cur->nb[2], g.x*cur->nb[1] + g.y*cur->nb[2]);
        if (g.reduced()) {
            cur = resize(cur, g.cols, g.rows);
        }
        end = ggml_concat(ctx0, ggml_cont(ctx0, cur), end, 1);
    }
    return ggml_reshape_2d(ctx0, end, n_mmproj_embd, g.n_tokens());
}

ggml_cgraph * clip_graph_onevision::build() {
    ggml_tensor * cur = encode_all();

    if (anyres.n_frames > 0) {
        const int half = (side + 1)/2;
        cur = resize(ggml_reshape_4d(ctx0, cur, n_mmproj_embd, side, side, n_tiles), half, half);
        cur = ggml_reshape_2d(ctx0, cur, n_mmproj_embd, half*half*n_tiles);
        cur = ggml_concat(ctx0, cur, newlines(1), 1);
    } else if (!anyres.is_tiled()) {
        cur = ggml_concat(ctx0, ggml_reshape_2d(ctx0, cur, n_mmproj_embd, side*side), newlines(1), 1);
    } else if (onevision_get_grid(hparams, anyres, side).n_tokens() == 0) {
        cur = ggml_cont(ctx0, ggml_view_2d(ctx0, cur, n_mmproj_embd, side*side, cur->nb[1], 0));
    } else {
        ggml_tensor * base  = ggml_view_2d(ctx0, cur, n_mmproj_embd, side*side, cur->nb[1], 0);
        ggml_tensor * tiles = ggml_view_3d(ctx0, cur, n_mmproj_embd, side*side, n_tiles - 1, cur->nb[1], cur->nb[2], cur->nb[2]);
        cur = ggml_concat(ctx0, base, grid(tiles), 1);
    }

    ggml_build_forward_expand(gf, cur);
    return gf;
}

} // namespace

std::unique_ptr<clip_graph> onevision_graph(clip_ctx * ctx, const clip_image_f32 & img) {
    return std::make_unique<clip_graph_onevision>(ctx, img);
}
