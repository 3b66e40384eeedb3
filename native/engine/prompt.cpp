// A prompt's life: tokenise, check that it fits, encode the images, prefill; then token by token.
#include "engine.h"

#include "aircache-mtmd.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <functional>

namespace {

struct video {
    const pac_image & image;
    const std::string id;
    const bool with_pixels;
};

constexpr int32_t MAX_PIXELS = 1 << 28; // of a picture or frame
constexpr int32_t MAX_TEXT   = 1 << 28; // bytes

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
    *out_bitmap = mtmd_bitmap_init(cur.image.width, cur.image.height,
            cur.with_pixels ? cur.image.rgb + (n - 1)*3*cur.image.width*cur.image.height : nullptr);
    mtmd_bitmap_set_id(*out_bitmap, cur.id.c_str());
    mtmd_bitmap_set_mergeable(*out_bitmap, true);
    return 0;
}

size_t text_length(const char * text) {
    const size_t n = strnlen(text, MAX_TEXT + 1);
    if (n > (size_t) MAX_TEXT) {
        throw pac_error(PAC_ERR_ARGUMENT, pac_format("the text has more than %d bytes", MAX_TEXT));
    }
    return n;
}

} // namespace

// without pixels mtmd lays everything out by the sizes alone
mtmd::input_chunks_ptr pac_engine::tokenize(const char * text, const pac_image * images, int32_t n_images, bool with_pixels) const {
    if (!vision) {
        if (n_images > 0) {
            throw pac_error(PAC_ERR_PROJECTOR, "the model was loaded without a projector (mmproj): it can only be asked about text");
        }
        throw std::logic_error("tokenize() is for models with a projector");
    }

    const mtmd_input_text input = { text, text_length(text), /*.add_special =*/ n_pos == 0, /*.parse_special =*/ true };

    mtmd::input_chunks_ptr chunks(mtmd_input_chunks_init());

    std::deque<video> videos; // they stay where they are
    mtmd::bitmaps bitmaps;
    for (int32_t i = 0; i < n_images; ++i) {
        const auto & image = images[i];
        if (with_pixels && !image.rgb) {
            throw pac_error(PAC_ERR_ARGUMENT, pac_format("image %d has no pixels", i));
        }
        if (image.width < 1 || image.height < 1 || (int64_t) image.width*image.height > MAX_PIXELS) {
            throw pac_error(PAC_ERR_ARGUMENT, pac_format("image %d is %d x %d: at least 1 x 1 and at most 2^28 pixels are taken", i, image.width, image.height));
        }
        try {
            aircache_check_picture(vision.get(), image.width, image.height);
        } catch (const std::exception & e) {
            throw pac_error(PAC_ERR_ARGUMENT, pac_format("image %d: %s", i, e.what()));
        }
        if (image.n_frames < 0 || image.n_frames > (1 << 30)/image.width/image.height) {
            throw pac_error(PAC_ERR_ARGUMENT, pac_format("image %d has %d frames of %d x %d: at most 2^30 pixels are taken", i, image.n_frames, image.width, image.height));
        }
        const std::string id = std::to_string(i); // which picture a tile belongs to
        if (image.n_frames > 0) {
            videos.push_back({ image, id, with_pixels });
            bitmaps.entries.emplace_back(mtmd_bitmap_init_lazy(vision.get(), id.c_str(), &videos.back(), next_frame));
        } else {
            bitmaps.entries.emplace_back(mtmd_bitmap_init(image.width, image.height, with_pixels ? image.rgb : nullptr));
            bitmaps.entries.back().set_id(id.c_str());
        }
    }

    const std::string & marker = pac_media_marker();
    int32_t n_markers = 0;
    for (const char * cur = text; (cur = strstr(cur, marker.c_str())); cur += marker.size()) {
        n_markers++;
    }
    if (n_markers != n_images) {
        throw pac_error(PAC_ERR_ARGUMENT, pac_format("the text has %d image markers (pac_marker) for the %d images given", n_markers, n_images));
    }

    auto ptrs = bitmaps.c_ptr();
    pac_take_logged_error();
    if (mtmd_tokenize(vision.get(), chunks.get(), &input, ptrs.data(), ptrs.size()) != 0) {
        throw pac_error(PAC_ERR_ARGUMENT, pac_format("an image cannot be processed: %s", pac_take_logged_error().c_str()));
    }
    return chunks;
}

int64_t pac_engine::count_tokens(const char * text, const pac_image * images, int32_t n_images) const {
    const auto chunks = tokenize(text, images, n_images, /*with_pixels =*/ false);
    return mtmd_helper_get_n_tokens(chunks.get());
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
    const int32_t len = text_length(text);

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
    const auto mtmd_chunks = tokenize(text, images, n_images, /*with_pixels =*/ false);

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

// false: what was before is lost as well
bool pac_engine::roll_back(llama_pos pos, int32_t cells) {
    llama_aircache_clear(ctx.get(), 0);

    has_logits = false;
    observed   = false;

    // what was compressed before lies behind pos, so this removes only what failed
    if (pos == 0 || llama_memory_seq_rm(llama_get_memory(ctx.get()), 0, pos, -1)) {
        if (pos == 0) {
            llama_memory_clear(llama_get_memory(ctx.get()), false);
        }
        n_pos   = pos;
        n_cells = cells;
        return true;
    }
    reset();
    return false;
}

// runs f, which appends to the conversation; if that fails, all is as before
template <typename F>
void pac_engine::evaluate(F && f) {
    const llama_pos pos   = n_pos;
    const int32_t   cells = n_cells;

    cancelled   = false;
    cancellable = true;
    try {
        f();
        llama_synchronize(ctx.get());
        cancellable = false;
    } catch (const std::exception & e) {
        cancellable = false;
        const auto * known = dynamic_cast<const pac_error *>(&e);
        if (!roll_back(pos, cells)) {
            throw pac_error(known ? known->status : PAC_ERR_INTERNAL, std::string(e.what()) + "; the conversation was reset");
        }
        throw;
    } catch (...) {
        cancellable = false;
        roll_back(pos, cells);
        throw;
    }
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
        if (must_stop()) {
            throw pac_error(PAC_ERR_CANCELLED, "cancelled");
        }
        const int32_t res = llama_decode(ctx.get(), batch);
        if (must_stop()) {
            throw pac_error(PAC_ERR_CANCELLED, "cancelled"); // what an interrupted evaluation says does not matter
        }
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
        mtmd_chunks = tokenize(text, images, n_images, /*with_pixels =*/ true);
        chunks = list_chunks(mtmd_chunks.get());
    } else {
        if (n_images > 0) {
            tokenize(text, images, n_images, /*with_pixels =*/ true); // throws
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
    const int64_t n_all = (int64_t) n_cells + n_tokens + reserve;
    if (n_all > n_ctx) {
        throw pac_error(PAC_ERR_CONTEXT, pac_format("the prompt needs %d tokens (%d of them visual), the conversation holds %d and %d are "
                "wanted for the answer: %lld, but the context has %d cells. Use a larger n_ctx (at least %lld), a smaller image, or a new conversation",
                n_tokens, n_vis, n_cells, reserve, (long long) n_all, n_ctx, (long long) (n_all + 255)/256*256));
    }

    std::vector<float> new_embeddings;

    evaluate([&] {
        observed   = false;
        has_logits = false;
        llama_aircache_clear(ctx.get(), 0); // of a prompt that was never compressed

        if (observe && n_vis > 0) {
            const auto m = pac_to_llama(*observe);
            pac_check(llama_aircache_observe(ctx.get(), 0, air_spans.data(), air_spans.size(), pos, &m, is_template.data()));
            observed = true;
        }

        int32_t n_done    = 0;
        int32_t n_encoded = 0;
        double  us_encode = 0;

        const auto report = [&](int32_t stage, int32_t done, int32_t total) {
            if ((progress && !progress(stage, done, total, user_data)) || must_stop()) {
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
            const int32_t encoded = mtmd_encode_chunk(vision.get(), c.media);
            if (must_stop()) {
                throw pac_error(PAC_ERR_CANCELLED, "cancelled"); // the features are not complete
            }
            if (encoded != 0) {
                throw pac_error(PAC_ERR_COMPUTE, pac_format("encoding an image failed: %s", pac_take_logged_error().c_str()));
            }
            report(1, ++n_encoded, n_media);

            float * embd = mtmd_get_output_embd(vision.get());
            if (keep_embeddings) {
                new_embeddings.insert(new_embeddings.end(), embd, embd + (size_t) c.n_tokens*llama_model_n_embd_inp(model.get()));
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
            if (must_stop()) {
                throw pac_error(PAC_ERR_CANCELLED, "cancelled");
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
    });

    has_logits  = true;
    embeddings  = std::move(new_embeddings);
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

    evaluate([&] { decode_text(&token, 1, true, [](int32_t) {}); });
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

    if (!(temperature >= 0.0f && std::isfinite(temperature))) {
        throw pac_error(PAC_ERR_ARGUMENT, pac_format("temperature is %g: it must be finite and not negative", temperature));
    }

    // llama.cpp's samplers end the process over these
    const int32_t n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(model.get()));
    const int32_t best    = std::max_element(cur, cur + n_vocab) - cur;
    if (!std::isfinite(cur[best]) || std::any_of(cur, cur + n_vocab, [](float x) { return std::isnan(x); })) {
        throw pac_error(PAC_ERR_COMPUTE, "the model's logits are no numbers: its weights are damaged, or the cache type is too narrow for it");
    }
    if (temperature == 0.0f) {
        return best;
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
    text_tokens.clear();
    embeddings.clear();
}

pac_stats pac_engine::stats() const {
    pac_stats res = {};
    res.n_ctx           = llama_n_ctx(ctx.get());
    res.n_past          = n_cells;
    res.n_free          = res.n_ctx - n_cells;
    res.n_decodes       = n_decodes;
    res.n_graphs_reused = llama_perf_context(ctx.get()).n_reused - n_reused_start;

    auto air = llama_aircache_stats_empty();
    if (why_not.empty()) {
        pac_check(llama_aircache_stats(ctx.get(), 0, &air));
        res.n_past = air.n_cells;
        res.n_free = air.n_free;
        res.kv_bytes = air.kv_bytes;
        res.kv_bytes_allocated = (int64_t) (air.n_cells + air.n_free)*air.kv_bytes_cell;
    }
    return res;
}
