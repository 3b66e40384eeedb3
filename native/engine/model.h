// What is read from a pair of files: weights, vocabulary, projector, chat template. Engines share it.
#pragma once

#include "border.h"
#include "image-cache.h"

#include "chat.h"
#include "llama-cpp.h"
#include "mtmd.h"

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <string>

struct pac_engine;

// Stands for an image. Another one in every process, so that no text holds it by chance or on purpose.
const std::string & pac_media_marker();

// held while ggml's list of devices is read; it has no lock of its own
std::shared_lock<std::shared_mutex> pac_lock_devices();

int32_t pac_pick_threads(int32_t n_threads); // 0: physical cores

struct pac_model {
    explicit pac_model(const pac_model_params & params);

    pac_model(const pac_model &) = delete;
    pac_model & operator=(const pac_model &) = delete;

    const llama_vocab * vocab() const { return llama_model_get_vocab(weights.get()); }
    int32_t n_vocab() const { return llama_vocab_n_tokens(vocab()); }
    int32_t n_embd_inp() const { return llama_model_n_embd_inp(weights.get()); } // floats of one visual token

    struct pac_model_info info() const;
    std::string apply_template(const pac_message * messages, int32_t n_messages, bool add_generation_prompt) const;

    // The embeddings of a media chunk: kept ones (known is set), or by the vision tower, which serves one engine at a time.
    // Throws when the engine is cancelled, also while it waits for its turn.
    pac_embeddings encode(const pac_engine & engine, const mtmd_input_chunk * chunk, const std::string & key, bool & known);

    // lets an engine that waits for the vision tower see that it was cancelled
    void wake();

    std::shared_ptr<pac_model> self; // the caller's hold, until pac_model_free
    std::atomic<int32_t> n_engines{0};

    llama_model_ptr   weights;
    mtmd::context_ptr vision; // null: text only
    common_chat_templates_ptr templates; // null: they are broken
    std::string templates_error;         // why

    std::string description;
    std::string architecture;
    std::string projector;
    int64_t     embedding_bytes = 0; // of an embedding matrix that is not the output's, too: a step reads a row of it a token

    pac_image_cache images;

private:
    void load_text(const pac_model_params & params);
    void load_vision(const pac_model_params & params);
    void load_templates();

    std::mutex tower; // of encoding
    std::condition_variable tower_free;
    const pac_engine * encoding = nullptr; // whose turn it is
};
