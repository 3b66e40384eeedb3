#include "fuzz.h"

#include "ggml-backend.h"
#include "gguf.h"
#include "llama.h"

#include <algorithm>
#include <cstring>
#include <string>

uint8_t fuzz_input::byte() {
    if (size == 0) {
        return 0;
    }
    --size;
    return *data++;
}

uint32_t fuzz_input::word() {
    uint32_t res = 0;
    for (int i = 0; i < 4; ++i) {
        res = res << 8 | byte();
    }
    return res;
}

int32_t fuzz_input::number(int32_t lo, int32_t hi) {
    const uint32_t n = (uint32_t) hi - lo + 1;
    const uint32_t x = n > 256 ? byte() << 8 | byte() : byte();
    return lo + (int32_t) (x % n);
}

int32_t fuzz_input::any_number() {
    static const int32_t odd[] = { 0, 1, -1, 2, 3, INT32_MAX, INT32_MIN, INT32_MAX - 1, 0x10000, 0x7fff, 255, 256, -2, 1 << 30, 1000000, -1000000 };
    const uint8_t kind = byte();
    return kind < 16 ? odd[kind] : kind < 192 ? kind - 16 : (int32_t) word();
}

double fuzz_input::any_share() {
    static const double odd[] = { 0.0, 1.0, -1.0, 1e-30, 1e30, 2.0, __builtin_nan(""), __builtin_inf() };
    const uint8_t kind = byte();
    return kind < 8 ? odd[kind] : kind/255.0;
}

void fuzz_edit(std::vector<uint8_t> & bytes, fuzz_input & in) {
    while (!in.empty() && !bytes.empty()) {
        const uint8_t op = in.byte();
        const size_t  at = in.number(0, 65535) % bytes.size();
        if (op < 128) { // a number of the file's format
            const int32_t value = in.any_number();
            memcpy(bytes.data() + at, &value, std::min(sizeof(value), bytes.size() - at));
        } else if (op < 224) {
            bytes[at] = in.byte();
        } else if (op < 240) {
            bytes.resize(at);
        } else { // a piece twice
            const size_t n = std::min<size_t>(in.byte(), bytes.size() - at);
            const std::vector<uint8_t> piece(bytes.begin() + at, bytes.begin() + at + n);
            bytes.insert(bytes.begin() + at, piece.begin(), piece.end());
        }
    }
}

//
// the model
//

static void set_weights(ggml_tensor * tensor, void * /*user_data*/) {
    std::vector<float> values(ggml_nelements(tensor));
    uint32_t x = 1;
    for (const char * c = tensor->name; *c; ++c) {
        x = x*31 + *c;
    }
    const bool norm = strstr(tensor->name, "norm") != nullptr;
    for (auto & v : values) {
        x = x*1664525 + 1013904223;
        v = norm ? 1.0f : ((int32_t) x)/(float) INT32_MAX*0.4f;
    }
    ggml_backend_tensor_set(tensor, values.data(), 0, values.size()*sizeof(float));
}

static void set_vocabulary(gguf_context * meta) {
    std::vector<std::string> tokens = { "<unk>", "<s>", "</s>" };
    std::vector<int32_t>     types  = { 2, 3, 3 }; // unknown, control
    for (int i = 0; i < 256; ++i) {
        char name[8];
        snprintf(name, sizeof(name), "<0x%02X>", i);
        tokens.push_back(name);
        types .push_back(6); // byte
    }
    std::vector<const char *> names;
    for (const auto & token : tokens) {
        names.push_back(token.c_str());
    }
    const std::vector<float> scores(tokens.size(), 0.0f);
    gguf_set_val_str (meta, "tokenizer.ggml.model", "llama");
    gguf_set_arr_str (meta, "tokenizer.ggml.tokens", names.data(), names.size());
    gguf_set_arr_data(meta, "tokenizer.ggml.scores", GGUF_TYPE_FLOAT32, scores.data(), scores.size());
    gguf_set_arr_data(meta, "tokenizer.ggml.token_type", GGUF_TYPE_INT32, types.data(), types.size());
}

static llama_model * make_model(bool sliding) {
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);

    const std::string arch = sliding ? "gemma3" : "llama";
    const auto key = [&](const char * name) { return arch + "." + name; };

    gguf_context * meta = gguf_init_empty();
    gguf_set_val_str(meta, "general.architecture", arch.c_str());
    gguf_set_val_u32(meta, key("context_length").c_str(), 4096);
    gguf_set_val_u32(meta, key("embedding_length").c_str(), 64);
    gguf_set_val_u32(meta, key("feed_forward_length").c_str(), 64);
    gguf_set_val_u32(meta, key("block_count").c_str(), sliding ? 6 : 2);
    gguf_set_val_u32(meta, key("attention.head_count").c_str(), 4);
    gguf_set_val_u32(meta, key("attention.head_count_kv").c_str(), 2);
    gguf_set_val_u32(meta, key("attention.key_length").c_str(), 32);
    gguf_set_val_u32(meta, key("attention.value_length").c_str(), 32);
    gguf_set_val_u32(meta, key("rope.dimension_count").c_str(), 32);
    gguf_set_val_f32(meta, key("attention.layer_norm_rms_epsilon").c_str(), 1e-5f);
    if (sliding) {
        gguf_set_val_u32(meta, key("attention.sliding_window").c_str(), 16);
    }
    set_vocabulary(meta);

    llama_model * res = llama_model_init_from_user(meta, set_weights, nullptr, llama_model_default_params());
    gguf_free(meta);
    REQUIRE(res, "the tiny model does not load");
    return res;
}

llama_model * fuzz_model(bool sliding) {
    static llama_model * models[2];
    auto *& res = models[sliding];
    if (!res) {
        res = make_model(sliding);
    }
    return res;
}
