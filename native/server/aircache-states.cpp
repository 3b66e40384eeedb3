// Compressed slots in files: what llama-server knows of the compression, behind the tokens of a saved slot.
//
// The cells themselves are llama.cpp's state of the sequence (native/cache/states.cpp). A slot that is not compressed is
// saved with stock's bytes. The record of a compressed one is JSON, and behind it four words:
//   size of the text, number of the format, hash of all before, magic
// Nothing in it is trusted: it is taken over only when it says of the restored cells what they are.
#include "aircache-server.h"

#include "server-common.h"

#include "hash/hash.h"

#include <array>
#include <cstring>
#include <stdexcept>

static constexpr uint32_t MAGIC   = 0x53524941; // "AIRS"; no token has such a number
static constexpr uint32_t VERSION = 1;
static constexpr size_t   MAX_TEXT = 1u << 16;

using tail = std::array<uint32_t, 4>; // size, version, hash, magic

[[noreturn]] static void refuse(const std::string & why) {
    throw std::runtime_error("the record of its compression " + why);
}

static uint32_t hash_of(const void * data, size_t size) {
    return std::stoul(hash_sha256_hex(data, size).substr(0, 8), nullptr, 16);
}

// what common_params_aircache::set() takes back, in the order in which it has to take them
static std::vector<std::pair<std::string, std::string>> fields_of(const common_params_aircache & params) {
    std::vector<std::pair<std::string, std::string>> res;
    for (const auto & field : common_aircache_fields()) {
        if (field.part == "keep" || field.part == "method" || params.parts.count(field.part) > 0) {
            res.emplace_back(field.name, params.part(field.part));
        }
    }
    return res;
}

std::vector<char> server_aircache_pack(const server_aircache_tokens & aircache, std::vector<char> packed) {
    if (!aircache.compressed()) {
        return packed;
    }
    const auto & cells = aircache.cells;

    common_json params = common_json::object();
    for (const auto & [field, value] : fields_of(cells.params)) {
        params[field] = value;
    }
    std::string text = common_json {
        {"n_tokens",      cells.n_tokens},
        {"params",        params},
        {"n_visual",      cells.n_visual},
        {"n_kept",        cells.n_kept},
        {"n_cells",       cells.n_cells},
        {"kv_bytes",      cells.kv_bytes},
        {"kv_bytes_cell", cells.kv_bytes_cell},
    }.dump();
    text.resize((text.size() + sizeof(llama_token) - 1)/sizeof(llama_token)*sizeof(llama_token), ' ');

    packed.insert(packed.end(), text.begin(), text.end());
    const uint32_t size = text.size();
    const tail end = { size, VERSION, hash_of(packed.data(), packed.size()), MAGIC };
    const auto * bytes = reinterpret_cast<const char *>(end.data());
    packed.insert(packed.end(), bytes, bytes + sizeof(end));
    return packed;
}

static server_prompt_aircache parse(const std::string & text) {
    const auto json = common_json::parse(text);

    server_prompt_aircache res;
    auto params = json.at("params");
    for (const auto & item : params.items()) {
        res.params.set(item.key(), item.value().get<std::string>());
    }
    res.params.resolve();
    res.n_tokens = json.at("n_tokens").get<size_t>();
    res.n_visual = json.at("n_visual").get<int32_t>();
    res.n_kept   = json.at("n_kept").get<double>();
    res.n_cells  = json.at("n_cells").get<int64_t>();
    res.kv_bytes = json.at("kv_bytes").get<int64_t>();
    res.kv_bytes_cell = json.at("kv_bytes_cell").get<int64_t>();
    return res;
}

server_prompt_aircache server_aircache_unpack(std::vector<llama_token> & packed) {
    static_assert(sizeof(tail) % sizeof(llama_token) == 0);
    constexpr size_t n_end = sizeof(tail)/sizeof(llama_token);

    if (packed.empty() || (uint32_t) packed.back() != MAGIC) {
        return {};
    }
    if (packed.size() < n_end) {
        refuse("is damaged");
    }
    tail end;
    std::memcpy(end.data(), packed.data() + packed.size() - n_end, sizeof(end));
    packed.resize(packed.size() - n_end);

    const auto [size, version, hash, magic] = end;
    if (version != VERSION) {
        refuse("has format " + std::to_string(version) + ", this version reads " + std::to_string(VERSION) +
            ": it was saved by another version of pyaircache");
    }
    if (size > MAX_TEXT || size % sizeof(llama_token) != 0 || size/sizeof(llama_token) > packed.size() ||
            hash != hash_of(packed.data(), packed.size()*sizeof(llama_token))) {
        refuse("is damaged");
    }
    const auto * text = reinterpret_cast<const char *>(packed.data() + packed.size()) - size;
    try {
        auto res = parse(std::string(text, size));
        packed.resize(packed.size() - size/sizeof(llama_token));
        return res;
    } catch (const std::exception & e) {
        refuse(std::string("cannot be read: ") + e.what());
    }
}

void server_aircache_take(llama_context * ctx, llama_seq_id seq, server_tokens & restored, server_prompt_aircache cells) {
    auto stats = llama_aircache_stats_empty();
    const bool known = llama_aircache_stats(ctx, seq, &stats) == LLAMA_AIRCACHE_OK; // else: a memory that cannot be compressed

    if (cells.n_tokens == 0) {
        if (known && stats.n_zone > 0) {
            refuse("is missing");
        }
        return;
    }
    size_t n_media = 0;
    for (size_t i = 0; i < restored.size(); ++i) {
        n_media += restored[i] == LLAMA_TOKEN_NULL;
    }
    const int64_t n_later = (int64_t) restored.size() - (int64_t) cells.n_tokens; // text, which has a cell in every layer
    const bool fits = known && stats.n_zone > 0 && cells.params.active() && cells.n_tokens <= restored.size() &&
        cells.n_visual > 0 && (size_t) cells.n_visual <= n_media && cells.n_kept > 0 && cells.n_kept <= cells.n_visual &&
        cells.kv_bytes_cell == stats.kv_bytes_cell && cells.kv_bytes == stats.kv_bytes - n_later*stats.kv_bytes_cell &&
        cells.n_cells == stats.n_cells - n_later;
    if (!fits) {
        refuse("does not fit its cells");
    }
    restored.aircache.cells = std::move(cells);
}
