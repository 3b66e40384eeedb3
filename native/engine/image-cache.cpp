#include "image-cache.h"

#include "hash/hash.h"

#include <algorithm>

std::string pac_image_content(const pac_image & image) {
    const size_t n = (size_t) image.width*image.height*3*std::max(image.n_frames, 1);
    return hash_sha256_hex(image.rgb, n) + "/" + std::to_string(image.width) + "x" + std::to_string(image.height) + "/" +
        std::to_string(image.n_frames);
}

pac_embeddings pac_image_cache::find(const std::string & key) {
    const std::lock_guard<std::mutex> lock(mutex);
    const auto it = index.find(key);
    if (it == index.end()) {
        return nullptr;
    }
    entries.splice(entries.begin(), entries, it->second);
    return it->second->embd;
}

void pac_image_cache::store(const std::string & key, const pac_embeddings & embd) {
    const std::lock_guard<std::mutex> lock(mutex);
    if ((int64_t) (embd->size()*sizeof(float)) > max_bytes || index.count(key)) {
        return;
    }
    entries.push_front({ key, embd });
    try {
        index[key] = entries.begin();
    } catch (...) {
        entries.pop_front();
        throw;
    }
    bytes += size_of(entries.front());
    while (bytes > max_bytes) {
        bytes -= size_of(entries.back());
        index.erase(entries.back().key);
        entries.pop_back();
    }
}

void pac_image_cache::clear() {
    const std::lock_guard<std::mutex> lock(mutex);
    entries.clear();
    index.clear();
    bytes = 0;
}

bool pac_image_cache::empty() const {
    const std::lock_guard<std::mutex> lock(mutex);
    return entries.empty();
}

void pac_image_cache::sizes(int32_t & n_entries, int64_t & n_bytes) const {
    const std::lock_guard<std::mutex> lock(mutex);
    n_entries = entries.size();
    n_bytes   = bytes;
}
