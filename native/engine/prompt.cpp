// A prompt's life: check that it fits, encode the images, prefill; then token by token.
#include "engine.h"

#include <algorithm>
#include <exception>

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

namespace {

// while it lives, pac_cancel counts
struct cancel_scope {
    pac_engine & engine;

    explicit cancel_scope(pac_engine & engine) : engine(engine) {
        engine.cancelled   = false;
        engine.cancellable = true;
    }
    ~cancel_scope() { engine.cancellable = false; }
};

} // namespace

// runs f, which appends to the conversation; if that fails, all is as before
template <typename F>
void pac_engine::evaluate(F && f) {
    const llama_pos pos   = n_pos;
    const int32_t   cells = n_cells;

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

void pac_engine::decode_media(const pac_chunk & c, const pac_embeddings & embd, const std::function<void(int32_t)> & done) {
    struct { const std::function<void(int32_t)> & done; std::exception_ptr error; } state = { done, nullptr };

    llama_pos pos = n_pos;
    const int32_t res = mtmd_helper_decode_image_chunk(model->vision.get(), ctx.get(), c.media, const_cast<float *>(embd->data()),
            n_pos, 0, llama_n_batch(ctx.get()), &pos,
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
    n_pos    = pos;
    n_cells += c.n_tokens;
}

static void check_fits(const pac_prompt_layout & layout, int32_t n_cells, int32_t reserve, int32_t n_ctx) {
    const int32_t n_tokens = layout.tokens.size();
    if (n_tokens == 0) {
        throw pac_error(PAC_ERR_ARGUMENT, "the prompt is empty");
    }
    if (layout.chunks.back().media) {
        throw pac_error(PAC_ERR_ARGUMENT, "the prompt ends in an image: it must end in text");
    }
    const int64_t n_all = (int64_t) n_cells + n_tokens + reserve;
    if (n_all > n_ctx) {
        throw pac_error(PAC_ERR_CONTEXT, pac_format("the prompt needs %d tokens (%d of them visual), the conversation holds %d and %d are "
                "wanted for the answer: %lld, but the context has %d cells. Use a larger n_ctx (at least %lld), a smaller image, or a new conversation",
                n_tokens, layout.n_visual, n_cells, reserve, (long long) n_all, n_ctx, (long long) (n_all + 255)/256*256));
    }
}

void pac_engine::prompt(const char * text, const pac_image * images, int32_t n_images, int32_t reserve, const pac_method * observe,
        pac_progress_callback progress, void * user_data, pac_prompt_info & out) {
    const cancel_scope scope(*this);

    auto layout = prepare(text, images, n_images);
    if (must_stop()) {
        throw pac_error(PAC_ERR_CANCELLED, "cancelled");
    }
    check_fits(layout, n_cells, reserve, llama_n_ctx(ctx.get()));

    const int32_t n_tokens = layout.tokens.size();
    std::vector<float>   new_embeddings;
    std::vector<uint8_t> encoded(n_images); // something of the image was

    evaluate([&] {
        observed   = false;
        has_logits = false;
        llama_aircache_clear(ctx.get(), 0); // of a prompt that was never compressed

        if (observe && layout.n_visual > 0) {
            const auto m = pac_to_llama(*observe);
            pac_check(llama_aircache_observe(ctx.get(), 0, layout.air_spans.data(), layout.air_spans.size(), layout.pos_end, &m,
                    layout.is_template.data()));
            observed = true;
        }

        int32_t n_done    = 0;
        int32_t n_media   = 0;
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

        for (auto & c : layout.chunks) {
            if (!c.media) {
                decode_text(c.tokens.data(), c.tokens.size(), &c == &layout.chunks.back(), prefilled);
                continue;
            }

            llama_synchronize(ctx.get());
            const int64_t t_encode = llama_time_us();
            report(1, n_media, layout.n_media);
            pac_embeddings embd = std::move(c.embd); // no longer held than needed
            if (!embd) {
                bool known = false; // by now: another engine may have asked about the same image
                embd = model->encode(*this, c.media, c.key, known);
                encoded.at(c.image) |= !known;
            }
            report(1, ++n_media, layout.n_media);
            if (keep_embeddings) {
                new_embeddings.insert(new_embeddings.end(), embd->begin(), embd->end());
            }
            us_encode += llama_time_us() - t_encode;

            decode_media(c, embd, prefilled);
        }

        llama_synchronize(ctx.get());

        out = {};
        out.ms_encode  = us_encode/1000;
        out.ms_prefill = (llama_time_us() - t_start - us_encode)/1000;
    });

    has_logits    = true;
    embeddings    = std::move(new_embeddings);
    spans         = std::move(layout.spans);
    prompt_tokens = std::move(layout.tokens);
    text_tokens   = std::move(layout.text);
    n_visual      = layout.n_visual;

    sampler.begin_answer(prompt_tokens);
    n_decodes      = 0;
    n_reused_start = llama_perf_context(ctx.get()).n_reused;

    out.n_tokens  = n_tokens;
    out.n_visual  = n_visual;
    out.n_past    = n_cells;
    out.n_spans   = spans.size();
    out.spans     = spans.data();
    out.n_encoded = std::count(encoded.begin(), encoded.end(), 1);
    out.n_reused  = n_images - out.n_encoded;
}

void pac_engine::decode(int32_t token) {
    if (token < 0 || token >= model->n_vocab()) {
        throw pac_error(PAC_ERR_ARGUMENT, pac_format("token %d does not exist", token));
    }
    if (n_cells + 1 > (int32_t) llama_n_ctx(ctx.get())) {
        throw pac_error(PAC_ERR_CONTEXT, pac_format("the context is full: %d of %u cells are in use. Use a larger n_ctx", n_cells, llama_n_ctx(ctx.get())));
    }
    sampler.check(token);

    const cancel_scope scope(*this);
    evaluate([&] {
        decode_text(&token, 1, true, [](int32_t) {});
        sampler.accept(token);
    });
    has_logits = true;
    n_decodes++;
}
