#include "projector-check.h"

#include "clip-impl.h"
#include "ggml-cpp.h"

#include <cinttypes>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <initializer_list>
#include <set>
#include <stdexcept>

// More than any model has. A graph has room for 8192 nodes; a layer takes at most 50.
static constexpr int64_t MAX_LAYERS = 128;
static constexpr int64_t MAX_EMBD   = 1 << 16;
static constexpr int64_t MAX_PATCH  = 56; // a window of Qwen2.5-VL, 112 pixels, must hold one merged patch
static constexpr int64_t MAX_IMAGE  = 8192;
static constexpr int64_t MAX_TILES  = 64; // InternVL; its models use 12, at most 40
static constexpr int64_t MAX_EDGE_TILES = 16; // Idefics 3: beside each other; its models use 4 or 5
static constexpr int64_t MAX_POINTS = 2048;

[[noreturn]] static void fail(const std::string & what) {
    throw std::runtime_error(what);
}

void aircache_check_type(const gguf_context * gguf, int64_t key, gguf_type type) {
    const auto found = gguf_get_kv_type(gguf, key);
    if (found != type) {
        const char * name = gguf_type_name(found);
        fail(string_format("%s has the type %s, it must have %s", gguf_get_key(gguf, key), name ? name : "?", gguf_type_name(type)));
    }
}

namespace {

enum tensor_kind {
    MATRIX, // for products and for taking rows
    KERNEL, // of the convolution
    VECTOR, // added to or multiplied with activations
};

struct checker {
    const gguf_context * gguf;
    ggml_context       * tensors;

    std::set<std::string> known; // tensors that were asked for

    // of the vision tower
    int64_t E     = 0; // width
    int64_t F     = 0; // width of the feed-forward part
    int64_t L     = 0; // layers
    int64_t heads = 0;
    int64_t patch = 0;
    int64_t image = 0;

    //
    // metadata
    //

    int64_t find(const std::string & key, gguf_type type, bool required) const {
        const int64_t id = gguf_find_key(gguf, key.c_str());
        if (id < 0 && required) {
            fail(key + " is missing");
        }
        if (id >= 0) {
            aircache_check_type(gguf, id, type);
        }
        return id;
    }

    int64_t number(const std::string & key, int64_t lo, int64_t hi, int64_t otherwise = -1) const {
        const int64_t id  = find(key, GGUF_TYPE_UINT32, otherwise < 0);
        const int64_t res = id < 0 ? otherwise : gguf_get_val_u32(gguf, id);
        if (id >= 0 && (res < lo || res > hi)) {
            fail(string_format("%s is %" PRId64 ": it must be in [%" PRId64 ", %" PRId64 "]", key.c_str(), res, lo, hi));
        }
        return res;
    }

    // elements of an array, null when it is not there
    template <typename T>
    const T * array(const std::string & key, gguf_type type, size_t & n) const {
        n = 0;
        const int64_t id = find(key, GGUF_TYPE_ARRAY, false);
        if (id < 0) {
            return nullptr;
        }
        if (gguf_get_arr_type(gguf, id) != type) {
            fail(key + " has elements of another type than " + gguf_type_name(type));
        }
        n = gguf_get_arr_n(gguf, id);
        return (const T *) gguf_get_arr_data(gguf, id);
    }

    //
    // tensors
    //

    const ggml_tensor * find_tensor(const std::string & name) const {
        return ggml_get_tensor(tensors, name.c_str());
    }

    static bool can(tensor_kind kind, ggml_type type) {
        switch (kind) {
            case VECTOR: return type == GGML_TYPE_F32;
            case KERNEL: return type == GGML_TYPE_F32 || type == GGML_TYPE_F16;
            case MATRIX: return type == GGML_TYPE_F32 || type == GGML_TYPE_F16 || type == GGML_TYPE_BF16 ||
                                // these two are for intermediate results
                                (ggml_is_quantized(type) && type != GGML_TYPE_Q8_1 && type != GGML_TYPE_Q8_K);
        }
        return false;
    }

    static std::string shape(const int64_t * ne, int n) {
        std::string res;
        for (int i = 0; i < n; ++i) {
            res += (i ? ", " : "") + std::to_string(ne[i]);
        }
        return "[" + res + "]";
    }

    // of the type that its use asks for; null when it is not there and need not be
    const ggml_tensor * typed(tensor_kind kind, const std::string & name, bool required) {
        known.insert(name);
        const auto * t = find_tensor(name);
        if (!t && required) {
            fail("unable to find tensor " + name);
        }
        if (t && !can(kind, t->type)) {
            fail(string_format("%s has the type %s: %s", name.c_str(), ggml_type_name(t->type),
                    kind == VECTOR ? "it must be F32" : kind == KERNEL ? "it must be F32 or F16" : "it cannot be multiplied with"));
        }
        return t;
    }

    // and of this shape, in the order of ggml: fastest first
    bool tensor(tensor_kind kind, const std::string & name, std::initializer_list<int64_t> want, bool required = true) {
        const auto * t = typed(kind, name, required);
        if (!t) {
            return false;
        }
        int64_t ne[GGML_MAX_DIMS] = { 1, 1, 1, 1 };
        std::copy(want.begin(), want.end(), ne);
        if (!std::equal(ne, ne + GGML_MAX_DIMS, t->ne)) {
            fail(string_format("%s is %s: it must be %s", name.c_str(), shape(t->ne, ggml_n_dims(t)).c_str(), shape(ne, want.size()).c_str()));
        }
        return true;
    }

    void norm(const std::string & name, int64_t n, bool required = false) {
        if (!tensor(VECTOR, name + ".weight", { n }, required) && find_tensor(name + ".bias")) {
            fail(name + ".bias has no " + name + ".weight"); // not computed by all
        }
        tensor(VECTOR, name + ".bias", { n }, false);
    }

    // a matrix whose width of output is not known from the metadata: returns it
    int64_t linear(const std::string & name, int64_t n_in, bool bias_required) {
        const auto * t = typed(MATRIX, name + ".weight", true);
        tensor(MATRIX, name + ".weight", { n_in, t->ne[1] });
        tensor(VECTOR, name + ".bias", { t->ne[1] }, bias_required);
        return t->ne[1];
    }

    void linear(const std::string & name, int64_t n_in, int64_t n_out, bool bias_required) {
        tensor(MATRIX, name + ".weight", { n_in, n_out });
        tensor(VECTOR, name + ".bias",   { n_out }, bias_required);
    }

    void absent(const std::string & name) const {
        if (find_tensor(name)) {
            fail("a tensor that this projector does not have: " + name);
        }
    }

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

void check_extent(const std::string & path, const gguf_context * gguf) {
    std::ifstream file(path, std::ios::binary | std::ios::ate);
    if (!file) {
        fail("cannot open " + path);
    }
    const uint64_t size  = file.tellg();
    const uint64_t start = gguf_get_data_offset(gguf);
    for (int64_t i = 0; i < gguf_get_n_tensors(gguf); ++i) {
        const uint64_t offset = gguf_get_tensor_offset(gguf, i);
        const uint64_t length = gguf_get_tensor_size(gguf, i);
        if (start > size || offset > size - start || length > size - start - offset) {
            fail(string_format("the file ends at byte %" PRIu64 ", within or before the tensor %s: it was cut off", size, gguf_get_tensor_name(gguf, i)));
        }
    }
}

} // namespace

void aircache_check_projector(bool is_vision, const std::string & path, const gguf_context * gguf, ggml_context * tensors, projector_type type) {
    if (is_vision) {
        check_extent(path, gguf);
        checker{ gguf, tensors, {} }.run(type);
    }
}
