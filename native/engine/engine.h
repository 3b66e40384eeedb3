// What stands behind pyaircache.h: one conversation (sequence 0) on a model.
#pragma once

#include "border.h"
#include "model.h"
#include "sampling.h"

#include "llama-aircache.h"

#include "llama-cpp.h"
#include "mtmd-helper.h"
#include "mtmd.h"

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

llama_aircache_method pac_to_llama(const pac_method & m);
pac_method            pac_from_llama(const llama_aircache_method & m);

// A part of a prompt: text, or a picture, a tile of one, some frames of a video.
struct pac_chunk {
    std::vector<llama_token> tokens; // text, or:
    const mtmd_input_chunk * media = nullptr;
    int32_t   n_tokens = 0;
    llama_pos n_pos    = 0;
    int32_t   image    = 0; // media: index into the prompt's images
    int32_t   nth      = 0; // of the image's chunks
    std::string key;        // media: what its embeddings are kept by; "": they are not
    pac_embeddings embd;    // media: those that are kept, or null
};

// A prompt as it is evaluated.
struct pac_prompt_layout {
    mtmd::input_chunks_ptr owner; // of what the chunks point to
    std::vector<pac_chunk> chunks;

    std::vector<pac_span>            spans;
    std::vector<llama_aircache_span> air_spans;
    std::vector<int32_t> tokens;      // -1: visual
    std::vector<int32_t> text;        // index of every text token behind the first image
    std::vector<uint8_t> is_template; // of text
    int32_t   n_visual = 0;
    int32_t   n_media  = 0;
    llama_pos pos_end  = 0;
};

struct pac_engine {
    pac_engine(std::shared_ptr<pac_model> model, const pac_engine_params & params);
    ~pac_engine();

    pac_engine(const pac_engine &) = delete;
    pac_engine & operator=(const pac_engine &) = delete;

    // engine.cpp
    static void check(const pac_engine_params & params); // throws
    pac_info  info() const;
    pac_stats stats() const;
    void reset();
    const float * logits() const;
    int32_t sample();

    // layout.cpp
    int64_t count_tokens(const char * text, const pac_image * images, int32_t n_images) const;
    void layout(const char * text, const pac_image * images, int32_t n_images, pac_prompt_info & out);

    // prompt.cpp
    void prompt(const char * text, const pac_image * images, int32_t n_images, int32_t reserve, const pac_method * observe,
            pac_progress_callback progress, void * user_data, pac_prompt_info & out);
    void decode(int32_t token);

    // compress.cpp
    void score(const pac_method & method, pac_scores & out);
    void evict(const int32_t * budgets, const int32_t * kept, double merge, bool mask_only, pac_compression & out);
    void compress(const pac_method & method, bool mask_only, pac_scores * scores_out, pac_compression & out);

    // set by pac_cancel, from any thread; it counts while a prompt or a token is evaluated
    std::atomic<bool> cancelled{false};
    std::atomic<bool> cancellable{false};

    bool must_stop() const { return cancelled && cancellable; }

    std::shared_ptr<pac_model> model;
    llama_context_ptr ctx;
    std::string why_not; // reason why nothing can be compressed, "" if it can

    // the conversation
    llama_pos n_pos   = 0; // next position
    int32_t   n_cells = 0; // cells in use
    bool      has_logits = false;
    bool      observed   = false; // the last prompt can still be scored and compressed
    pac_sampler sampler;

    // the last prompt
    std::vector<pac_span> spans;
    std::vector<int32_t>  prompt_tokens; // -1: visual
    std::vector<int32_t>  text_tokens;   // prompt token index of every text token behind the first image
    bool keep_embeddings = false;
    std::vector<float>    embeddings;  // of its images
    int32_t n_visual       = 0;
    int32_t n_reused_start = 0; // graph reuse count when it was over
    int32_t n_decodes      = 0;

    // results handed out
    std::vector<pac_span> planned;
    std::vector<float>   scores;
    std::vector<double>  alive;
    std::vector<int32_t> n_elite;
    std::vector<int32_t> elite;
    std::vector<int32_t> budgets;
    std::vector<int32_t> kept;
    std::vector<double>  strength;
    std::vector<double>  skewness;

private:
    // layout.cpp
    mtmd::input_chunks_ptr tokenize(const char * text, const pac_image * images, int32_t n_images, bool with_pixels) const;
    pac_prompt_layout lay_out(const char * text, const pac_image * images, int32_t n_images, bool with_pixels) const;
    pac_prompt_layout prepare(const char * text, const pac_image * images, int32_t n_images) const;

    // prompt.cpp
    template <typename F> void evaluate(F && f);
    bool roll_back(llama_pos pos, int32_t cells);
    void list_elite(const std::vector<uint8_t> & observers, int32_t n_layer);
    void evicted(int32_t status);
    void decode_text(const llama_token * tokens, size_t n, bool last, const std::function<void(int32_t)> & done);
    void decode_media(const pac_chunk & c, const pac_embeddings & embd, const std::function<void(int32_t)> & done);
};

ggml_type pac_cache_type(const char * name); // null: f16; throws when it is none of those that are supported

size_t pac_text_length(const char * text); // throws when it is longer than what is taken
std::vector<llama_token> pac_tokenize_text(const llama_vocab * vocab, const char * text, bool add_special, bool parse_special);
