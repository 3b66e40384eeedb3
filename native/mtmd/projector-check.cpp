#include "projector-check.h"

#include "clip-impl.h"
#include "projector-file.h"

#include <cinttypes>
#include <cmath>
#include <cstdio>
#include <set>

// More than any model has. A graph has room for 8192 nodes; a layer takes at most 50.
static constexpr int64_t MAX_LAYERS = 128;
static constexpr int64_t MAX_EMBD   = 1 << 16;
static constexpr int64_t MAX_PATCH  = 56; // a window of Qwen2.5-VL, 112 pixels, must hold one merged patch
static constexpr int64_t MAX_IMAGE  = 8192;
static constexpr int64_t MAX_TILES  = 64; // InternVL; its models use 12, at most 40
static constexpr int64_t MAX_EDGE_TILES = 16; // Idefics 3: beside each other; its models use 4 or 5
static constexpr int64_t MAX_POINTS = 2048;

namespace {

struct checker : aircache_projector_file {
    // of the vision tower
    int64_t E     = 0; // width
    int64_t F     = 0; // width of the feed-forward part
    int64_t L     = 0; // layers
    int64_t heads = 0;
    int64_t patch = 0;
    int64_t image = 0;

    //
    // the parts of a vision tower
    //

    void sizes() {
        E     = number("clip.vision.embedding_length",     1, MAX_EMBD);
        L     = number("clip.vision.block_count",          1, MAX_LAYERS);
        heads = number("clip.vision.attention.head_count", 1, E);
        patch = number("clip.vision.patch_size",           1, MAX_PATCH);
        image = number("clip.vision.image_size",           0, MAX_IMAGE);
        if (E % heads != 0) {
            fail(string_format("clip.vision.embedding_length, %" PRId64 ", is no multiple of clip.vision.attention.head_count, %" PRId64, E, heads));
        }
        number("clip.vision.attention.head_count_kv", heads, heads, heads);
        number("clip.vision.attention.head_dim",      E/heads, E/heads, E/heads);
        number("clip.vision.feed_forward_length", 0, MAX_EMBD*4);
    }

    // patches in a row of a picture of fixed size; pixels may remain
    int64_t side() const {
        if (image < patch) {
            fail(string_format("clip.vision.image_size, %" PRId64 ", is smaller than clip.vision.patch_size, %" PRId64, image, patch));
        }
        return image/patch;
    }

    void embedding(bool bias) {
        tensor(KERNEL, TN_PATCH_EMBD, { patch, patch, 3, E });
        tensor(VECTOR, TN_PATCH_BIAS, { E }, bias);
        norm("v.pre_ln",  E);
        norm("v.post_ln", E);
    }

    void feed_forward(const std::string & blk, bool swaps) {
        // old files name the two matrices the other way around
        const auto * down = typed(MATRIX, blk + "ffn_down.weight", true);
        const bool swapped = swaps && down->ne[0] == E;

        const std::string in  = blk + (swapped ? "ffn_down" : "ffn_up");
        const std::string out = blk + (swapped ? "ffn_up" : "ffn_down");
        F = linear(in, E, false);
        linear(out, F, E, false);
        if (find_tensor(blk + "ffn_gate.weight")) {
            linear(blk + "ffn_gate", E, F, false);
        } else {
            absent(blk + "ffn_gate.bias");
        }
    }

    void layers(bool fused, bool separate, bool bias, bool swaps, bool extras) {
        for (int64_t il = 0; il < L; ++il) {
            const std::string blk = "v.blk." + std::to_string(il) + ".";
            if (fused && (!separate || find_tensor(blk + "attn_qkv.weight"))) {
                linear(blk + "attn_qkv", E, 3*E, bias);
            } else {
                for (const char * name : { "attn_q", "attn_k", "attn_v" }) {
                    linear(blk + name, E, E, bias);
                }
            }
            linear(blk + "attn_out", E, E, false);
            norm(blk + "ln1", E);
            norm(blk + "ln2", E);
            feed_forward(blk, swaps);
            if (extras) { // InternVL's
                const auto * q = typed(VECTOR, blk + "attn_q_norm.weight", false);
                const int64_t n = q && q->ne[0] == E/heads ? E/heads : E;
                if (n == E && find_tensor(blk + "attn_qkv.weight")) {
                    absent(blk + "attn_q_norm.weight");
                    absent(blk + "attn_k_norm.weight");
                }
                tensor(VECTOR, blk + "attn_q_norm.weight", { n }, false);
                tensor(VECTOR, blk + "attn_k_norm.weight", { n }, false);
                tensor(VECTOR, blk + "ls1.weight", { E }, false);
                tensor(VECTOR, blk + "ls2.weight", { E }, false);
            }
        }
    }

    // what llama.cpp would load and compute with although this family has none of it
    void no_others() const {
        for (int64_t i = 0; i < gguf_get_n_tensors(gguf); ++i) {
            const char * name = gguf_get_tensor_name(gguf, i);
            int il;
            if (known.count(name) == 0 && sscanf(name, "v.blk.%d.", &il) == 1 && il >= 0 && il < L) {
                fail(std::string("a tensor that this projector does not have: ") + name);
            }
        }
    }

    //
    // families
    //

    void qwen(projector_type type) {
        const bool is_3 = type == PROJECTOR_TYPE_QWEN3VL;

        number(KEY_SPATIAL_MERGE_SIZE, 2, 2, 2);
        if ((E/heads) % 4 != 0) {
            fail(string_format("a head has %" PRId64 " values: it must be a multiple of 4", E/heads));
        }
        const int64_t window = number(KEY_WIN_ATTN_PATTERN, 0, INT32_MAX, type == PROJECTOR_TYPE_QWEN25VL ? -1 : 0);
        if (window == 1) {
            fail(std::string(KEY_WIN_ATTN_PATTERN) + " is 1: without a layer of windows it must be 0");
        }

        embedding(is_3);
        tensor(KERNEL, TN_PATCH_EMBD_1, { patch, patch, 3, E });
        absent(TN_CLASS_EMBD);

        layers(is_3, !is_3, true, !is_3, false);

        const int64_t mid = linear("mm.0", 4*E, true);
        const int64_t out = linear("mm.2", mid, true);

        if (is_3) {
            const auto * pos = typed(VECTOR, "v.position_embd.weight", true);
            const int64_t n = std::lround(std::sqrt((double) pos->ne[1]));
            tensor(VECTOR, "v.position_embd.weight", { E, n*n });

            for (int64_t il = 0; il < L; ++il) {
                const std::string name = "v.deepstack." + std::to_string(il) + ".";
                if (find_tensor(name + "fc1.weight")) {
                    norm(name + "norm", 4*E);
                    linear(name + "fc2", linear(name + "fc1", 4*E, false), out, false);
                }
            }
        } else {
            absent(TN_PATCH_BIAS);
        }
        if (window > 0) {
            number("clip.vision.projection_dim", out, out);
        }
    }

    void internvl() {
        const int64_t merge = number(KEY_PROJ_SCALE_FACTOR, 1, 16, 1);
        const int64_t least = number(KEY_PREPROC_MIN_TILES, 1, MAX_TILES, 1);
        number(KEY_PREPROC_MAX_TILES, least, MAX_TILES, 12);
        const int64_t n = side();
        if (n % merge != 0) {
            fail(string_format("%" PRId64 " patches in a row are no multiple of %s, %" PRId64, n, KEY_PROJ_SCALE_FACTOR, merge));
        }

        embedding(false);
        tensor(VECTOR, TN_CLASS_EMBD, { E });
        tensor(VECTOR, "v.position_embd.weight", { E, n*n + 1 });
        layers(true, true, false, false, true);

        norm("mm.model.mlp.0", E*merge*merge, true);
        tensor(VECTOR, "mm.model.mlp.0.bias", { E*merge*merge });
        linear("mm.model.mlp.3", linear("mm.model.mlp.1", E*merge*merge, true), true);
    }

    void idefics3() {
        const int64_t merge = number(KEY_PROJ_SCALE_FACTOR, 2, 16);
        number(KEY_PREPROC_IMAGE_SIZE, 1, MAX_EDGE_TILES*image, 0);
        const int64_t n = side();
        if (n % merge != 0) {
            fail(string_format("%" PRId64 " patches in a row are no multiple of %s, %" PRId64, n, KEY_PROJ_SCALE_FACTOR, merge));
        }

        embedding(false);
        absent(TN_CLASS_EMBD);
        tensor(VECTOR, "v.position_embd.weight", { E, n*n });
        layers(false, true, false, true, false);
        linear("mm.model.fc", E*merge*merge, false);
    }

    void llava() {
        const int64_t n   = side();
        size_t n_points;
        const auto * points = array<int32_t>(KEY_IMAGE_GRID_PINPOINTS, GGUF_TYPE_INT32, n_points);
        for (size_t i = 0; i < n_points; ++i) {
            if (points[i] % image != 0 || points[i]/image > 32) {
                fail(string_format("%s: %d is no multiple of clip.vision.image_size, %" PRId64 ", up to 32", KEY_IMAGE_GRID_PINPOINTS, points[i], image));
            }
        }
        const int64_t cls = find_tensor(TN_CLASS_EMBD) ? 1 : 0;

        embedding(false);
        tensor(VECTOR, TN_CLASS_EMBD, { E }, false);
        const auto * pos = typed(MATRIX, "v.position_embd.weight", true);
        if (pos->ne[1] < n*n + cls) {
            fail(string_format("v.position_embd.weight has %" PRId64 " rows: the picture needs %" PRId64, pos->ne[1], n*n + cls));
        }
        tensor(MATRIX, "v.position_embd.weight", { E, pos->ne[1] });
        layers(false, true, false, true, false);

        // outputs of these layers beside each other
        size_t n_features;
        const auto * features = array<int32_t>("clip.vision.feature_layer", GGUF_TYPE_INT32, n_features);
        std::set<int32_t> taken;
        for (size_t i = 0; i < n_features; ++i) {
            if (features[i] < 0 || features[i] > L) {
                fail(string_format("clip.vision.feature_layer %d is outside of [0, %" PRId64 "]", features[i], L));
            }
            taken.insert(features[i]);
        }

        const int64_t mid = linear("mm.0", E*std::max<size_t>(1, taken.size()), true);
        if (find_tensor("mm.3.weight")) { // Yi's
            norm("mm.1", mid, true);
            tensor(VECTOR, "mm.1.bias", { mid });
            const int64_t out = linear("mm.3", mid, true);
            norm("mm.4", out, true);
            tensor(VECTOR, "mm.4.bias", { out });
        } else {
            linear("mm.2", mid, true);
        }
    }

    // the rest is in onevision_check
    void onevision() {
        side();
        embedding(false);
        tensor(VECTOR, TN_CLASS_EMBD, { E }, false);
        if (const auto * pos = typed(VECTOR, "v.position_embd.weight", false)) {
            tensor(VECTOR, "v.position_embd.weight", { E, pos->ne[1] });
        }
        layers(false, true, false, false, false);
        for (const char * name : { "mm.0", "mm.2" }) {
            const auto * w = typed(MATRIX, std::string(name) + ".weight", true);
            linear(name, w->ne[0], w->ne[1], false);
        }
    }

    void run(projector_type type) {
        size_t n;
        array<int32_t>(KEY_IMAGE_GRID_PINPOINTS, GGUF_TYPE_INT32, n);
        if (n > (size_t) MAX_POINTS) {
            fail(string_format("%s has %zu numbers: at most %" PRId64 " are taken", KEY_IMAGE_GRID_PINPOINTS, n, MAX_POINTS));
        }
        const auto * points = array<int32_t>(KEY_IMAGE_GRID_PINPOINTS, GGUF_TYPE_INT32, n);
        for (size_t i = 0; i < n; ++i) {
            if (points[i] < 1 || points[i] > 4*MAX_IMAGE) {
                fail(string_format("%s: %d is outside of [1, %" PRId64 "]", KEY_IMAGE_GRID_PINPOINTS, points[i], 4*MAX_IMAGE));
            }
        }
        for (const char * key : { KEY_IMAGE_MEAN, KEY_IMAGE_STD }) {
            const auto * values = array<float>(key, GGUF_TYPE_FLOAT32, n);
            for (size_t i = 0; i < n; ++i) {
                if (!std::isfinite(values[i]) || (std::string(key) == KEY_IMAGE_STD && values[i] <= 0.0f)) {
                    fail(string_format("%s: %g is no usable value", key, values[i]));
                }
            }
        }
        const int64_t eps = find("clip.vision.attention.layer_norm_epsilon", GGUF_TYPE_FLOAT32, true);
        if (const float value = gguf_get_val_f32(gguf, eps); !(value >= 0.0f && value < 1.0f)) {
            fail(string_format("clip.vision.attention.layer_norm_epsilon is %g: it must be in [0, 1)", value));
        }

        switch (type) {
            case PROJECTOR_TYPE_QWEN2VL:
            case PROJECTOR_TYPE_QWEN25VL:
            case PROJECTOR_TYPE_QWEN3VL:         sizes(); qwen(type);  break;
            case PROJECTOR_TYPE_INTERNVL:        sizes(); internvl();  break;
            case PROJECTOR_TYPE_IDEFICS3:        sizes(); idefics3();  break;
            case PROJECTOR_TYPE_MLP:             sizes(); llava();     break;
            case PROJECTOR_TYPE_LLAVA_NEXT:
            case PROJECTOR_TYPE_LLAVA_ONEVISION: sizes(); onevision(); break;
            default:
                number("clip.vision.embedding_length", 1, MAX_EMBD);
                number("clip.vision.block_count",      0, 1024);
                number("clip.vision.patch_size",       1, 1024);
                number("clip.vision.image_size",       0, MAX_IMAGE);
                return;
        }
        no_others();
    }
};

} // namespace

void aircache_check_projector(bool is_vision, const std::string & path, const gguf_context * gguf, ggml_context * tensors, projector_type type) {
    if (is_vision) {
        aircache_check_extent(path, gguf);
        checker{ { gguf, tensors, {} } }.run(type);
    }
}
