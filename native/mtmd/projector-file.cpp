#include "projector-file.h"

#include "projector-check.h"

#include <algorithm>
#include <cinttypes>
#include <fstream>
#include <stdexcept>

void aircache_projector_file::fail(const std::string & what) {
    throw std::runtime_error(what);
}

void aircache_check_type(const gguf_context * gguf, int64_t key, gguf_type type) {
    const auto found = gguf_get_kv_type(gguf, key);
    if (found != type) {
        const char * name = gguf_type_name(found);
        aircache_projector_file::fail(string_format("%s has the type %s, it must have %s", gguf_get_key(gguf, key), name ? name : "?", gguf_type_name(type)));
    }
}

//
// metadata
//

int64_t aircache_projector_file::find(const std::string & key, gguf_type type, bool required) const {
    const int64_t id = gguf_find_key(gguf, key.c_str());
    if (id < 0 && required) {
        fail(key + " is missing");
    }
    if (id >= 0) {
        aircache_check_type(gguf, id, type);
    }
    return id;
}

int64_t aircache_projector_file::number(const std::string & key, int64_t lo, int64_t hi, int64_t otherwise) const {
    const int64_t id  = find(key, GGUF_TYPE_UINT32, otherwise < 0);
    const int64_t res = id < 0 ? otherwise : gguf_get_val_u32(gguf, id);
    if (id >= 0 && (res < lo || res > hi)) {
        fail(string_format("%s is %" PRId64 ": it must be in [%" PRId64 ", %" PRId64 "]", key.c_str(), res, lo, hi));
    }
    return res;
}

const void * aircache_projector_file::elements(const std::string & key, gguf_type type, size_t & n) const {
    n = 0;
    const int64_t id = find(key, GGUF_TYPE_ARRAY, false);
    if (id < 0) {
        return nullptr;
    }
    if (gguf_get_arr_type(gguf, id) != type) {
        fail(key + " has elements of another type than " + gguf_type_name(type));
    }
    n = gguf_get_arr_n(gguf, id);
    return gguf_get_arr_data(gguf, id);
}

//
// tensors
//

const ggml_tensor * aircache_projector_file::find_tensor(const std::string & name) const {
    return ggml_get_tensor(tensors, name.c_str());
}

using kinds = aircache_projector_file;

static bool can(kinds::tensor_kind kind, ggml_type type) {
    switch (kind) {
        case kinds::VECTOR: return type == GGML_TYPE_F32;
        case kinds::KERNEL: return type == GGML_TYPE_F32 || type == GGML_TYPE_F16;
        case kinds::MATRIX: return type == GGML_TYPE_F32 || type == GGML_TYPE_F16 || type == GGML_TYPE_BF16 ||
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

const ggml_tensor * aircache_projector_file::typed(tensor_kind kind, const std::string & name, bool required) {
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

bool aircache_projector_file::tensor(tensor_kind kind, const std::string & name, std::initializer_list<int64_t> want, bool required) {
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

void aircache_projector_file::norm(const std::string & name, int64_t n, bool required) {
    if (!tensor(VECTOR, name + ".weight", { n }, required) && find_tensor(name + ".bias")) {
        fail(name + ".bias has no " + name + ".weight"); // not computed by all
    }
    tensor(VECTOR, name + ".bias", { n }, false);
}

int64_t aircache_projector_file::linear(const std::string & name, int64_t n_in, bool bias_required) {
    const auto * t = typed(MATRIX, name + ".weight", true);
    tensor(MATRIX, name + ".weight", { n_in, t->ne[1] });
    tensor(VECTOR, name + ".bias", { t->ne[1] }, bias_required);
    return t->ne[1];
}

void aircache_projector_file::linear(const std::string & name, int64_t n_in, int64_t n_out, bool bias_required) {
    tensor(MATRIX, name + ".weight", { n_in, n_out });
    tensor(VECTOR, name + ".bias",   { n_out }, bias_required);
}

void aircache_projector_file::absent(const std::string & name) const {
    if (find_tensor(name)) {
        fail("a tensor that this projector does not have: " + name);
    }
}

//
// the file
//

void aircache_check_extent(const std::string & path, const gguf_context * gguf) {
    std::ifstream file(path, std::ios::binary | std::ios::ate);
    if (!file) {
        aircache_projector_file::fail("cannot open " + path);
    }
    const uint64_t size  = file.tellg();
    const uint64_t start = gguf_get_data_offset(gguf);
    for (int64_t i = 0; i < gguf_get_n_tensors(gguf); ++i) {
        const uint64_t offset = gguf_get_tensor_offset(gguf, i);
        const uint64_t length = gguf_get_tensor_size(gguf, i);
        if (start > size || offset > size - start || length > size - start - offset) {
            aircache_projector_file::fail(string_format("the file ends at byte %" PRIu64 ", within or before the tensor %s: it was cut off", size, gguf_get_tensor_name(gguf, i)));
        }
    }
}
