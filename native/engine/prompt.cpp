// A prompt's life: tokenise, check that it fits, encode the images, prefill; then token by token.
#include "engine.h"

#include "aircache-mtmd.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <functional>

namespace {

struct video {
    const pac_image & image;
    const std::string id;
};

// hands out the frames of a video, behind an empty text: without it a video before this one would go on with them
int next_frame(size_t n, void * user_data, mtmd_bitmap ** out_bitmap, char ** out_text) {
    const auto & cur = *(const video *) user_data;
    if (n == 0) {
        *out_text = strdup("");
        return *out_text ? 0 : -2;
    }
    if (n > (size_t) cur.image.n_frames) {
        return -1;
    }
    *out_bitmap = mtmd_bitmap_init(cur.image.width, cur.image.height, cur.image.rgb + (n - 1)*3*cur.image.width*cur.image.height);
    mtmd_bitmap_set_id(*out_bitmap, cur.id.c_str());
    mtmd_bitmap_set_mergeable(*out_bitmap, true);
    return 0;
}

} // namespace

mtmd::input_chunks_ptr pac_engine::tokenize(const char * text, const pac_image * images, int32_t n_images) const {
    const mtmd_input_text input = { text, strlen(text), /*.add_special =*/ n_pos == 0, /*.parse_special =*/ true };

    mtmd::input_chunks_ptr chunks(mtmd_input_chunks_init());

    if (!vision) {
        if (n_images > 0) {
            throw pac_error(PAC_ERR_PROJECTOR, "the model was loaded without a projector (mmproj): it can only be asked about text");
        }
        throw std::logic_error("tokenize() is for models with a projector");
    }

    std::deque<video> videos; // they stay where they are
    mtmd::bitmaps bitmaps;
    for (int32_t i = 0; i < n_images; ++i) {
        const auto & image = images[i];
        if (!image.rgb || image.width < 1 || image.height < 1 || (int64_t) image.width*image.height > (1 << 28)) {
            throw pac_error(PAC_ERR_ARGUMENT, pac_format("image %d is %d x %d: it needs pixels, at least 1 x 1 and at most 2^28", i, image.width, image.height));
        }
        if (image.n_frames < 0 || image.n_frames > (1 << 30)/image.width/image.height) {
            throw pac_error(PAC_ERR_ARGUMENT, pac_format("image %d has %d frames of %d x %d: at most 2^30 pixels are taken", i, image.n_frames, image.width, image.height));
        }
        const std::string id = std::to_string(i); // which picture a tile belongs to
        if (image.n_frames > 0) {
            videos.push_back({ image, id });
            bitmaps.entries.emplace_back(mtmd_bitmap_init_lazy(vision.get(), id.c_str(), &videos.back(), next_frame));
        } else {
            bitmaps.entries.emplace_back(mtmd_bitmap_init(image.width, image.height, image.rgb));
            bitmaps.entries.back().set_id(id.c_str());
        }
    }

    auto ptrs = bitmaps.c_ptr();
    switch (mtmd_tokenize(vision.get(), chunks.get(), &input, ptrs.data(), ptrs.size())) {
        case 0:  return chunks;
        case 1:  throw pac_error(PAC_ERR_ARGUMENT, pac_format("the text has another number of image markers (%s) than the %d images given", mtmd_get_marker(vision.get()), n_images));
        default: throw pac_error(PAC_ERR_ARGUMENT, pac_format("an image cannot be processed: %s", pac_take_logged_error().c_str()));
    }
}

namespace {

struct chunk {
    std::vector<llama_token> tokens; // text, or:
    const mtmd_input_chunk * media = nullptr;
    int32_t n_tokens = 0;
    llama_pos n_pos  = 0;
};

std::vector<chunk> list_chunks(const mtmd_input_chunks * chunks) {
    std::vector<chunk> res;
    for (size_t i = 0; i < mtmd_input_chunks_size(chunks); ++i) {
        const auto * c = mtmd_input_chunks_get(chunks, i);

        chunk cur;
        cur.n_tokens = mtmd_input_chunk_get_n_tokens(c);
        cur.n_pos    = mtmd_input_chunk_get_n_pos(c);

        switch (mtmd_input_chunk_get_type(c)) {
            case MTMD_INPUT_CHUNK_TYPE_TEXT:
                {
                    size_t n;
                    const auto * tokens = mtmd_input_chunk_get_tokens_text(c, &n);
                    cur.tokens.assign(tokens, tokens + n);
                } break;
            case MTMD_INPUT_CHUNK_TYPE_IMAGE:
                {
                    cur.media = c;
                } break;
            default: throw pac_error(PAC_ERR_UNSUPPORTED, "only images are supported");
        }
        res.push_back(std::move(cur));
    }
    return res;
}

// the run of a media chunk: the n-th of the prompt, its first token and position there
pac_span make_span(const mtmd_context * vision, const chunk & c, int32_t n, int32_t first, llama_pos pos) {
    const auto [nx, ny] = aircache_token_grid(vision, c.media);
    // tiled models make several chunks of one picture, all with the picture's id
    const char * id = mtmd_input_chunk_get_id(c.media);
    return { id ? atoi(id) : n, first, c.n_tokens, nx, ny, pos, pos + c.n_pos };
}

std::vector<llama_token> tokenize_text(const llama_vocab * vocab, const char * text, bool add_special) {
    const int32_t len = strlen(text);

    std::vector<llama_token> res(len + 8);
    int32_t n = llama_tokenize(vocab, text, len, res.data(), res.size(), add_special, true);
    if (n < 0) {
        res.resize(-n);
        n = llama_tokenize(vocab, text, len, res.data(), res.size(), add_special, true);
    }
    res.resize(std::max(0, n));
    return res;
}

} // namespace

void pac_engine::layout(const char * text, const pac_image * images, int32_t n_images, pac_prompt_info & out) {
    const auto mtmd_chunks = tokenize(text, images, n_images);

    out = {};
    planned.clear();
    llama_pos pos = n_pos;
    for (const auto & c : list_chunks(mtmd_chunks.get())) {
        if (c.media) {
            planned.push_back(make_span(vision.get(), c, planned.size(), out.n_tokens, pos));
            out.n_visual += c.n_tokens;
        }
        out.n_tokens += c.n_tokens;
        pos          += c.n_pos;
    }
    out.n_past  = n_cells + out.n_tokens;
    out.n_spans = planned.size();
    out.spans   = planned.data();
}

void pac_engine::roll_back(llama_pos pos, int32_t cells) {
    llama_aircache_clear(ctx.get(), 0);

    // what was compressed before lies behind pos, so this removes only the failed prompt
    if (pos == 0 || !llama_memory_seq_rm(llama_get_memory(ctx.get()), 0, pos, -1)) {
        llama_memory_clear(llama_get_memory(ctx.get()), false);
        pos   = 0;
        cells = 0;
    }

    n_pos   = pos;
    n_cells = cells;

    has_logits = false;
    observed   = false;
}

void pac_engine::decode_text(const llama_token * tokens, size_t n, bool last, const std::function<void(int32_t)> & done) {
    const int32_t n_batch = llama_n_batch(ctx.get());

    llama_batch batch = llama_batch_init(std::min<size_t>(n, n_batch), 0, 1);
    const std::unique_ptr<llama_batch, void (*)(llama_batch *)> guard(&batch, [](llama_batch * b) { llama_batch_free(*b); });

    for (size_t i = 0; i < n; ) {
        batch.n_tokens = 0;
        for (; i < n && batch.n_tokens < n_batch; ++i, ++batch.n_tokens) {
            const int32_t j = batch.n_tokens;
            batch.token   [j]    = tokens[i];
            batch.pos     [j]    = n_pos + j;
            batch.n_seq_id[j]    = 1;
            batch.seq_id  [j][0] = 0;
            batch.logits  [j]    = last && i + 1 == n;
        }
        const int32_t res = llama_decode(ctx.get(), batch);
        if (res == 1) {
            throw pac_error(PAC_ERR_CONTEXT, pac_format("no %d free cells in the KV cache of %u", batch.n_tokens, llama_n_ctx(ctx.get())));
        }
        if (res != 0) {
            throw pac_error(res == -2 ? PAC_ERR_MEMORY : PAC_ERR_COMPUTE, pac_format("decoding failed (%d): %s", res, pac_take_logged_error().c_str()));
        }
        n_pos   += batch.n_tokens;
        n_cells += batch.n_tokens;
        done(batch.n_tokens);
    }
}

void pac_engine::prompt(const char * text, const pac_image * images, int32_t n_images, int32_t reserve, const pac_method * observe,
        pac_progress_callback progress, void * user_data, pac_prompt_info & out) {
    const llama_vocab * vocab = llama_model_get_vocab(model.get());

    mtmd::input_chunks_ptr mtmd_chunks; // owns what the image chunks point to
    std::vector<chunk> chunks;
    if (vision) {
        mtmd_chunks = tokenize(text, images, n_images);
        chunks = list_chunks(mtmd_chunks.get());
    } else {
        if (n_images > 0) {
            tokenize(text, images, n_images); // throws
        }
        chunks.emplace_back();
        chunks[0].tokens   = tokenize_text(vocab, text, n_pos == 0);
        chunks[0].n_tokens = chunks[0].n_pos = chunks[0].tokens.size();
    }

    // lay out the prompt
    std::vector<pac_span> new_spans;
    std::vector<llama_aircache_span> air_spans;
    std::vector<int32_t> new_text;
    std::vector<uint8_t> is_template; // of new_text
    int32_t   n_tokens = 0;
    int32_t   n_vis    = 0;
    int32_t   n_media  = 0;
    llama_pos pos      = n_pos;

    for (const auto & c : chunks) {
        if (c.media) {
            new_spans.push_back(make_span(vision.get(), c, n_media++, n_tokens, pos));
            air_spans.push_back({ pos, pos + c.n_pos, new_spans.back().nx });
            n_vis += c.n_tokens;
        } else if (!new_spans.empty()) {
            // of the template: control tokens, and all from the end of the user's turn on
            bool tail = false;
            for (int32_t i = 0; i < c.n_tokens; ++i) {
                new_text.push_back(n_tokens + i);
                tail |= llama_vocab_is_eog(vocab, c.tokens[i]);
                is_template.push_back(tail || llama_vocab_is_control(vocab, c.tokens[i]));
            }
        }
        n_tokens += c.n_tokens;
        pos      += c.n_pos;
    }

    if (chunks.empty() || n_tokens == 0) {
        throw pac_error(PAC_ERR_ARGUMENT, "the prompt is empty");
    }
    if (chunks.back().media) {
        throw pac_error(PAC_ERR_ARGUMENT, "the prompt ends in an image: it must end in text");
    }

    const int32_t n_ctx = llama_n_ctx(ctx.get());
    if (n_cells + n_tokens + reserve > n_ctx) {
        throw pac_error(PAC_ERR_CONTEXT, pac_format("the prompt needs %d tokens (%d of them visual), the conversation holds %d and %d are "
                "wanted for the answer: %d, but the context has %d cells. Use a larger n_ctx (at least %d), a smaller image, or a new conversation",
                n_tokens, n_vis, n_cells, reserve, n_cells + n_tokens + reserve, n_ctx, (n_cells + n_tokens + reserve + 255)/256*256));
    }

    const llama_pos pos_before   = n_pos;
    const int32_t   cells_before = n_cells;

    try {
        observed   = false;
        has_logits = false;
        llama_aircache_clear(ctx.get(), 0); // of a prompt that was never compressed

        if (observe && n_vis > 0) {
            const auto m = pac_to_llama(*observe);
            pac_check(llama_aircache_observe(ctx.get(), 0, air_spans.data(), air_spans.size(), pos, &m, is_template.data()));
            observed = true;
        }

        embeddings.clear();

        int32_t n_done    = 0;
        int32_t n_encoded = 0;
        double  us_encode = 0;

        const auto report = [&](int32_t stage, int32_t done, int32_t total) {
            if (progress && !progress(stage, done, total, user_data)) {
                throw pac_error(PAC_ERR_CANCELLED, "cancelled");
            }
        };
        const auto prefilled = [&](int32_t n) {
            n_done += n;
            report(2, n_done, n_tokens);
        };

        const int64_t t_start = llama_time_us();

        for (size_t i = 0; i < chunks.size(); ++i) {
            const auto & c = chunks[i];
            if (!c.media) {
                decode_text(c.tokens.data(), c.tokens.size(), i + 1 == chunks.size(), prefilled);
                continue;
            }

            llama_synchronize(ctx.get());
            const int64_t t_encode = llama_time_us();
            report(1, n_encoded, n_media);
            if (mtmd_encode_chunk(vision.get(), c.media) != 0) {
                throw pac_error(PAC_ERR_COMPUTE, pac_format("encoding an image failed: %s", pac_take_logged_error().c_str()));
            }
            report(1, ++n_encoded, n_media);

            float * embd = mtmd_get_output_embd(vision.get());
            if (keep_embeddings) {
                embeddings.insert(embeddings.end(), embd, embd + (size_t) c.n_tokens*llama_model_n_embd_inp(model.get()));
            }
            us_encode += llama_time_us() - t_encode;

            struct { const std::function<void(int32_t)> done; std::exception_ptr error; } state = { prefilled, nullptr };
            llama_pos pos_new = n_pos;
            const int32_t res = mtmd_helper_decode_image_chunk(vision.get(), ctx.get(), c.media, embd,
                    n_pos, 0, llama_n_batch(ctx.get()), &pos_new,
                    [](const mtmd_helper_embd_batch * batch, void * user_data) {
                        auto & s = *(decltype(state) *) user_data;
                        try {
                            s.done(batch->n_tokens);
                        } catch (...) {
                            s.error = std::current_exception(); // not through mtmd
                        }
                        return s.error ? 1 : 0;
                    }, &state);
            if (state.error) {
                std::rethrow_exception(state.error);
            }
            if (res != 0) {
                throw pac_error(PAC_ERR_COMPUTE, pac_format("decoding an image failed (%d): %s", res, pac_take_logged_error().c_str()));
            }
            n_pos    = pos_new;
            n_cells += c.n_tokens;
        }

        llama_synchronize(ctx.get());

        out = {};
        out.ms_encode  = us_encode/1000;
        out.ms_prefill = (llama_time_us() - t_start - us_encode)/1000;
    } catch (...) {
        roll_back(pos_before, cells_before);
        throw;
    }

    has_logits  = true;
    spans       = std::move(new_spans);
    text_tokens = std::move(new_text);
    n_visual    = n_vis;

    sampler.reset();
    n_decodes      = 0;
    n_reused_start = llama_perf_context(ctx.get()).n_reused;

    out.n_tokens = n_tokens;
    out.n_visual = n_visual;
    out.n_past   = n_cells;
    out.n_spans  = spans.size();
    out.spans    = spans.data();
}

void pac_engine::decode(int32_t token) {
    if (token < 0 || token >= llama_vocab_n_tokens(llama_model_get_vocab(model.get()))) {
        throw pac_error(PAC_ERR_ARGUMENT, pac_format("token %d does not exist", token));
    }
    if (n_cells + 1 > (int32_t) llama_n_ctx(ctx.get())) {
        throw pac_error(PAC_ERR_CONTEXT, pac_format("the context is full: %d of %u cells are in use. Use a larger n_ctx", n_cells, llama_n_ctx(ctx.get())));
    }

    const llama_pos pos   = n_pos;
    const int32_t   cells = n_cells;
    try {
        decode_text(&token, 1, true, [](int32_t) {});
        llama_synchronize(ctx.get());
    } catch (...) {
        roll_back(pos, cells);
        throw;
    }
    has_logits = true;
    n_decodes++;
}

const float * pac_engine::logits() const {
    const float * res = has_logits ? llama_get_logits_ith(ctx.get(), -1) : nullptr;
    if (!res) {
        throw pac_error(PAC_ERR_STATE, "no logits: nothing was evaluated yet");
    }
    return res;
}

int32_t pac_engine::sample(float temperature, uint32_t seed) {
    const float * cur = logits();

    if (!(temperature >= 0.0f)) {
        throw pac_error(PAC_ERR_ARGUMENT, pac_format("temperature is %g: it must not be negative", temperature));
    }
    if (temperature == 0.0f) {
        const int32_t n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(model.get()));
        return std::max_element(cur, cur + n_vocab) - cur;
    }

    if (!sampler || sampler_temperature != temperature || sampler_seed != seed) {
        sampler.reset(llama_sampler_chain_init(llama_sampler_chain_default_params()));
        llama_sampler_chain_add(sampler.get(), llama_sampler_init_temp(temperature));
        llama_sampler_chain_add(sampler.get(), llama_sampler_init_dist(seed));
        sampler_temperature = temperature;
        sampler_seed        = seed;
    }
    return llama_sampler_sample(sampler.get(), ctx.get(), -1);
}

void pac_engine::reset() {
    llama_aircache_clear(ctx.get(), 0);
    llama_memory_clear(llama_get_memory(ctx.get()), false);
    n_pos      = 0;
    n_cells    = 0;
    has_logits = false;
    observed   = false;
    n_visual   = 0;
    spans.clear();
}

pac_stats pac_engine::stats() const {
    pac_stats res = {};
    res.n_ctx           = llama_n_ctx(ctx.get());
    res.n_past          = n_cells;
    res.n_free          = res.n_ctx - n_cells;
    res.n_decodes       = n_decodes;
    res.n_graphs_reused = llama_perf_context(ctx.get()).n_reused - n_reused_start;

    llama_aircache_seq_stats air = {};
    if (why_not.empty()) {
        pac_check(llama_aircache_stats(ctx.get(), 0, &air));
        res.n_past = air.n_cells;
        res.n_free = air.n_free;
        res.kv_bytes = air.kv_bytes;
        res.kv_bytes_allocated = (int64_t) (air.n_cells + air.n_free)*air.kv_bytes_cell;
    }
    return res;
}
