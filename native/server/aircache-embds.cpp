// Image embeddings by content, least recently used out first: another question on an image costs no vision encode.
#include "aircache-server.h"
#include "aircache-tokens.h"

#include <atomic>
#include <list>
#include <unordered_map>

static constexpr size_t MAX_BYTES = 256ull*1024*1024;

namespace {

struct entry {
    std::string        key;
    std::vector<float> embd;
};

// used by one thread at a time: that which decodes
std::list<entry> entries; // most recently used first
std::unordered_map<std::string, std::list<entry>::iterator> by_key;
size_t n_bytes = 0;

std::atomic<uint64_t> n_reused = 0; // read by /metrics from another thread

std::string id_of(const mtmd_input_chunk * chunk) {
    const char * id = mtmd_input_chunk_get_id(chunk);
    return id ? id : "";
}

// Tiles of a picture share its id, so they are told apart by their order. Empty: the chunk has no id.
std::string key_of(const server_tokens & prompt, size_t idx) {
    const mtmd_input_chunk * chunk = prompt.find_chunk(idx).get();
    const auto id = id_of(chunk);
    if (id.empty()) {
        return "";
    }
    int32_t nth = 0;
    for (const auto & m : server_aircache_chunks(prompt)) {
        nth += m.idx < idx && id_of(m.chunk) == id;
    }
    return id + "/" + std::to_string(nth) + "/" + std::to_string(mtmd_input_chunk_get_n_tokens(chunk));
}

void keep(const std::string & key, const float * embd, size_t n) {
    if (key.empty() || by_key.count(key) || n*sizeof(float) > MAX_BYTES) {
        return;
    }
    entries.push_front({ key, { embd, embd + n } });
    by_key[key] = entries.begin();
    n_bytes += n*sizeof(float);
    while (n_bytes > MAX_BYTES) {
        n_bytes -= entries.back().embd.size()*sizeof(float);
        by_key.erase(entries.back().key);
        entries.pop_back();
    }
}

} // namespace

float * server_aircache_embd(llama_context * ctx, mtmd_batch * batch, const server_tokens & prompt, size_t idx) {
    const mtmd_input_chunk * chunk = prompt.find_chunk(idx).get();
    float * embd = batch ? mtmd_batch_get_output_embd(batch, chunk) : nullptr;
    if (!prompt.aircache.wanted.active()) {
        return embd;
    }
    const auto key = key_of(prompt, idx);
    if (embd) {
        keep(key, embd, mtmd_input_chunk_get_n_tokens(chunk)*llama_model_n_embd_inp(llama_get_model(ctx)));
        return embd;
    }
    const auto it = by_key.find(key);
    if (it == by_key.end()) {
        return nullptr;
    }
    entries.splice(entries.begin(), entries, it->second);
    n_reused++;
    return it->second->embd.data();
}

bool server_aircache_embd_kept(const server_tokens & prompt, size_t idx) {
    return prompt.aircache.wanted.active() && by_key.count(key_of(prompt, idx)) > 0;
}

void server_aircache_embds_clear() {
    entries.clear();
    by_key.clear();
    n_bytes = 0;
}

uint64_t server_aircache_embds_reused() {
    return n_reused;
}
