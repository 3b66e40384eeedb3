// Embeddings of images by content: another question on an image costs no vision encode.
#pragma once

#include "pyaircache.h"

#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

// [n_tokens, n_embd] of one media chunk; whoever reads them holds them
using pac_embeddings = std::shared_ptr<const std::vector<float>>;

// What an image is: a hash of its pixels, its size, and whether it is a video.
std::string pac_image_content(const pac_image & image);

// Least recently used out first. Its functions may be called from any thread.
class pac_image_cache {
public:
    explicit pac_image_cache(int64_t max_bytes) : max_bytes(max_bytes) {}

    bool enabled() const { return max_bytes > 0; }

    pac_embeddings find(const std::string & key); // null: not kept
    void store(const std::string & key, const pac_embeddings & embd);
    void clear();

    bool empty() const;
    void sizes(int32_t & n_entries, int64_t & n_bytes) const;

private:
    struct entry {
        std::string    key;
        pac_embeddings embd;
    };

    static int64_t size_of(const entry & e) { return e.embd->size()*sizeof(float); }

    const int64_t max_bytes;

    mutable std::mutex mutex; // of what follows
    std::list<entry> entries; // most recently used first
    std::unordered_map<std::string, std::list<entry>::iterator> index;
    int64_t bytes = 0;
};
