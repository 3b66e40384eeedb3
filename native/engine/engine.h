// What stands behind pyaircache.h: one model, one conversation (sequence 0).
#pragma once

#include "pyaircache.h"

#include "llama-aircache.h"

#include "chat.h"
#include "llama-cpp.h"
#include "mtmd-helper.h"
#include "mtmd.h"

#include <atomic>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

// carries a pac_status to the C border
struct pac_error : std::runtime_error {
    int32_t status;
    pac_error(int32_t status, const std::string & message) : std::runtime_error(message), status(status) {}
};

std::string pac_format(const char * fmt, ...) __attribute__((format(printf, 1, 2)));

llama_aircache_method pac_to_llama(const pac_method & m);
pac_method            pac_from_llama(const llama_aircache_method & m);

// throws the error of the last llama_aircache_* call when status is one
void pac_check(int32_t aircache_status);

// first error that llama.cpp logged since this was last asked, or since the C call began; "" if none: it knows best why a
// file does not load
std::string pac_take_logged_error();

// Stands for an image. Another one in every process, so that no text holds it by chance or on purpose.
const std::string & pac_media_marker();

struct pac_engine {
    pac_engine(const pac_engine_params & params);
    ~pac_engine();

    pac_engine(const pac_engine &) = delete;
    pac_engine & operator=(const pac_engine &) = delete;

    // model.cpp
    void load(const pac_engine_params & params);
    pac_info info() const;
    std::string apply_template(const pac_message * messages, int32_t n_messages, bool add_generation_prompt) const;

    // prompt.cpp
    mtmd::input_chunks_ptr tokenize(const char * text, const pac_image * images, int32_t n_images, bool with_pixels) const;
    int64_t count_tokens(const char * text, const pac_image * images, int32_t n_images) const;
    void prompt(const char * text, const pac_image * images, int32_t n_images, int32_t reserve, const pac_method * observe,
            pac_progress_callback progress, void * user_data, pac_prompt_info & out);
    void layout(const char * text, const pac_image * images, int32_t n_images, pac_prompt_info & out);
    void decode(int32_t token);
    int32_t sample(float temperature, uint32_t seed);
    const float * logits() const;
    void reset();
    pac_stats stats() const;

    // compress.cpp
    void score(const pac_method & method, pac_scores & out);
    void evict(const int32_t * budgets, const int32_t * kept, double merge, bool mask_only, pac_compression & out);
    void compress(const pac_method & method, bool mask_only, pac_scores * scores_out, pac_compression & out);

    // set by pac_cancel, from any thread; it counts while a prompt or a token is evaluated
    std::atomic<bool> cancelled{false};
    std::atomic<bool> cancellable{false};

    bool must_stop() const { return cancelled && cancellable; }

    llama_model_ptr   model;
    llama_context_ptr ctx;
    mtmd::context_ptr vision; // null: text only
    common_chat_templates_ptr templates; // null: they are broken
    std::string templates_error;         // why

    std::string description;
    std::string architecture;
    std::string projector;
    std::string why_not; // reason why nothing can be compressed, "" if it can

    // the conversation
    llama_pos n_pos   = 0; // next position
    int32_t   n_cells = 0; // cells in use
    bool      has_logits = false;
    bool      observed   = false; // the last prompt can still be scored and compressed

    // the last prompt
    std::vector<pac_span> spans;
    std::vector<int32_t>  text_tokens; // prompt token index of every text token behind the first image
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
    template <typename F> void evaluate(F && f);
    bool roll_back(llama_pos pos, int32_t cells);
    void list_elite(const std::vector<uint8_t> & observers, int32_t n_layer);
    void evicted(int32_t status);
    void decode_text(const llama_token * tokens, size_t n, bool last, const std::function<void(int32_t)> & done);

    llama_sampler_ptr sampler;
    float    sampler_temperature = 0.0f;
    uint32_t sampler_seed        = 0;
};
