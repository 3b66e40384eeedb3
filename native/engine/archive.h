// What an engine keeps of a conversation's prompt for the next question: its full cells up to the last image.
#pragma once

#include "border.h"

#include "llama-aircache.h"

#include <memory>
#include <string>
#include <vector>

struct pac_engine;
struct pac_prompt_layout;

class pac_archive {
public:
    explicit pac_archive(const pac_engine_params & params);

    bool wanted() const { return mode != PAC_ARCHIVE_NONE; }

    // chunks at the beginning of a prompt that it holds
    size_t covers(const pac_prompt_layout & layout) const;

    // Of a sequence that is empty, and observed where the prompt is. False: it cannot serve this observation, or not at all any
    // more; the sequence and what is observed of it must be begun anew.
    bool restore(const pac_engine & engine);

    // of the engine's sequence, which holds the layout's first n_chunks; throws where a certain place was asked for and cannot be had
    void make(const pac_engine & engine, const pac_prompt_layout & layout, size_t n_chunks);

    // a conversation begins
    void begin();

    void forget();

    int32_t   n_tokens() const { return tokens.size(); }
    llama_pos n_pos()    const { return pos; }

    pac_archive_info info() const;

private:
    int32_t make_in(const pac_engine & engine, int32_t where);
    int32_t pick(const pac_engine & engine, int64_t bytes);

    int32_t     mode;
    std::string path;

    std::unique_ptr<llama_aircache_archive, void (*)(llama_aircache_archive *)> cells;
    int32_t   kind = PAC_ARCHIVE_NONE; // where
    llama_pos pos  = 0;

    std::vector<int32_t>     tokens; // -1: visual
    std::vector<std::string> media;  // keys of its chunks of images

    // of the last conversation
    int32_t     n_restored = 0;
    double      ms_make    = 0;
    double      ms_restore = 0;
    std::string why;
};
