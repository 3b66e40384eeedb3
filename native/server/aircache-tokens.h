// The media in a prompt's tokens: for the files here that look into them.
#pragma once

#include "server-common.h"

#include <vector>

struct server_aircache_chunk {
    size_t idx; // of its first token
    const mtmd_input_chunk * chunk;

    bool   is_image() const { return mtmd_input_chunk_get_type(chunk) == MTMD_INPUT_CHUNK_TYPE_IMAGE; }
    size_t end()      const { return idx + mtmd_input_chunk_get_n_tokens(chunk); }
};

inline std::vector<server_aircache_chunk> server_aircache_chunks(const server_tokens & tokens) {
    std::vector<server_aircache_chunk> res;
    for (size_t i = 0; i < tokens.size(); ) {
        if (tokens[i] != LLAMA_TOKEN_NULL) {
            ++i;
            continue;
        }
        res.push_back({ i, tokens.find_chunk(i).get() });
        i = res.back().end();
    }
    return res;
}

// Images at and behind token `from` that are to be compressed. With sound in the prompt none are: its tokens are
// neither text that observes nor cells that can be dropped.
std::vector<server_aircache_chunk> server_aircache_images(const server_tokens & prompt, size_t from);
