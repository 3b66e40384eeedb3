// A prompt's life: check that it fits, encode the images, prefill; then token by token.
#include "engine.h"

#include <algorithm>
#include <exception>
#include <utility>

// false: what was before is lost as well
bool pac_engine::roll_back(llama_pos pos, int32_t cells) {
    llama_aircache_clear(ctx, seq);

    has_logits = false;
    observed   = false;

    // what was compressed before lies behind pos, so this removes only what failed
    if (llama_memory_seq_rm(llama_get_memory(ctx), seq, pos > 0 ? pos : -1, -1)) {
        n_pos   = pos;
        n_cells = cells;
        return true;
    }
    forget();
    return false;
}

pac_cancel_scope::pac_cancel_scope(std::vector<pac_engine *> engines_) : engines(std::move(engines_)) {
    for (auto * engine : engines) {
        engine->cancelled   = false;
        engine->cancellable = true;
    }
}

pac_cancel_scope::~pac_cancel_scope() {
    for (auto * engine : engines) {
        engine->cancellable = false;
    }
}

void pac_batch::add(llama_token token, llama_pos pos, llama_seq_id seq, bool logits) {
    const int32_t i = batch.n_tokens++;
    batch.token   [i]    = token;
    batch.pos     [i]    = pos;
    batch.n_seq_id[i]    = 1;
    batch.seq_id  [i][0] = seq;
    batch.logits  [i]    = logits;
}

// runs f, which appends to the conversation, or begins it anew; if that fails, all is as before, or empty
template <typename F>
void pac_engine::evaluate(bool anew, F && f) {
    pac_turn mine(*context, { this });

    if (anew) {
        forget();
    }
    const llama_pos pos   = n_pos;
    const int32_t   cells = n_cells;

    try {
        f(mine);
        llama_synchronize(ctx);
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

int32_t pac_engine::n_batch() const {
    return context->shared() ? llama_n_ubatch(ctx) : llama_n_batch(ctx);
}

void pac_engine::keep_logits(int32_t i) {
    if (context->shared()) {
        const float * logits = llama_get_logits_ith(ctx, i);
        kept_logits.assign(logits, logits + model->n_vocab());
    }
}

void pac_engine::decode_text(const llama_token * tokens, size_t n, bool last, const std::function<void(int32_t)> & done) {
    pac_batch batch(std::min<size_t>(n, n_batch()));

    for (size_t i = 0; i < n; ) {
        batch.clear();
        for (; i < n && batch.size() < n_batch(); ++i) {
            batch.add(tokens[i], n_pos + batch.size(), seq, last && i + 1 == n);
        }
        if (must_stop()) {
            throw pac_error(PAC_ERR_CANCELLED, "cancelled");
        }
        const int32_t res = llama_decode(ctx, batch.get());
        if (must_stop()) {
            throw pac_error(PAC_ERR_CANCELLED, "cancelled"); // what an interrupted evaluation says does not matter
        }
        if (res == 1) {
            throw pac_error(PAC_ERR_CONTEXT, pac_format("no %d free cells in the KV cache of %d", batch.size(), n_ctx()));
        }
        if (res != 0) {
            throw pac_error(res == -2 ? PAC_ERR_MEMORY : PAC_ERR_COMPUTE, pac_format("decoding failed (%d): %s", res, pac_take_logged_error().c_str()));
        }
        if (last && i == n) {
            keep_logits(batch.size() - 1);
        }
        n_pos   += batch.size();
        n_cells += batch.size();
        done(batch.size());
    }
}

void pac_engine::decode_media(const pac_chunk & c, const pac_embeddings & embd, const std::function<void(int32_t)> & done) {
    struct {
        const std::function<void(int32_t)> & done;
        int32_t left; // tokens to come
        bool    causal;
        int32_t untold;
        std::exception_ptr error;
    } state = { done, c.n_tokens, !mtmd_decode_use_non_causal(model->vision.get(), c.media), 0, nullptr };

    llama_pos pos = n_pos;
    const int32_t res = mtmd_helper_decode_image_chunk(model->vision.get(), ctx, c.media, const_cast<float *>(embd->data()),
            n_pos, seq, n_batch(), &pos,
            [](const mtmd_helper_embd_batch * batch, void * user_data) {
                auto & s = *(decltype(state) *) user_data;
                s.left   -= batch->n_tokens;
                s.untold += batch->n_tokens;
                if (s.left == 0 || !s.causal) {
                    return 0; // mtmd puts the context right first: others may have their turn then
                }
                try {
                    s.done(std::exchange(s.untold, 0));
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
    done(state.untold);
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

struct pac_engine::job {
    pac_turn          & turn;
    const pac_pieces  & pieces;
    pac_prompt_layout & layout;
    const pac_method  * method; // observed; null: none

    pac_progress_callback progress;
    void * user_data;

    std::vector<float>   embeddings;
    std::vector<uint8_t> encoded; // [n_images] something of the image was
    double us_encode = 0;
};

void pac_engine::observe(const pac_prompt_layout & layout, const pac_method * method) {
    observed = false;
    llama_aircache_clear(ctx, seq); // of a prompt that was never compressed

    if (method && layout.n_visual > 0) {
        const auto m = pac_to_llama(*method);
        pac_check(llama_aircache_observe(ctx, seq, layout.air_spans.data(), layout.air_spans.size(), layout.pos_end, &m,
                layout.is_template.data()));
        observed = true;
    }
}

// the chunks at the beginning that need not be evaluated
size_t pac_engine::restore(job & now) {
    const size_t res = archive.covers(now.layout);
    const auto   end = now.layout.chunks.begin() + res;
    const bool known = !keep_embeddings || // which are to be handed out
        std::all_of(now.layout.chunks.begin(), end, [](const pac_chunk & c) { return !c.media || c.embd; });
    if (res > 0 && known && archive.restore(*this)) {
        n_pos   = archive.n_pos();
        n_cells = archive.n_tokens();
        return res;
    }
    if (res > 0) {
        llama_memory_seq_rm(llama_get_memory(ctx), seq, -1, -1);
        now.turn.pause([&] { now.layout = prepare(now.pieces, /*use_archive =*/ false); });
        observe(now.layout, now.method);
    }
    return 0;
}

void pac_engine::run(job & now, size_t first) {
    auto & chunks = now.layout.chunks;

    const int32_t n_tokens = now.layout.tokens.size();
    int32_t n_done  = 0;
    int32_t n_media = 0;

    const auto report = [&](int32_t stage, int32_t done, int32_t total) {
        if ((now.progress && !now.progress(stage, done, total, now.user_data)) || must_stop()) {
            throw pac_error(PAC_ERR_CANCELLED, "cancelled");
        }
    };
    const auto prefilled = [&](int32_t n) {
        n_done += n;
        now.turn.pause([&] { report(2, n_done, n_tokens); });
    };
    const auto take = [&](const pac_embeddings & embd) {
        if (keep_embeddings && embd) {
            now.embeddings.insert(now.embeddings.end(), embd->begin(), embd->end());
        }
    };

    for (size_t i = 0; i < chunks.size(); ++i) {
        auto & c = chunks[i];
        if (i < first) {
            n_done  += c.n_tokens;
            n_media += c.media != nullptr;
            take(c.embd);
            continue;
        }
        if (!c.media) {
            decode_text(c.tokens.data(), c.tokens.size(), i + 1 == chunks.size(), prefilled);
            continue;
        }

        llama_synchronize(ctx);
        pac_embeddings embd = std::move(c.embd); // no longer held than needed
        now.turn.pause([&] {
            const int64_t t_encode = llama_time_us();
            report(1, n_media, now.layout.n_media);
            if (!embd) {
                bool known = false; // by now: another engine may have asked about the same image
                embd = model->encode(*this, c.media, c.key, known);
                now.encoded.at(c.image) |= !known;
            }
            report(1, ++n_media, now.layout.n_media);
            take(embd);
            now.us_encode += llama_time_us() - t_encode;
        });

        decode_media(c, embd, prefilled);

        if (now.pieces.whole && observed && archive.wanted() && n_media == now.layout.n_media) {
            archive.make(*this, now.layout, i + 1);
        }
    }
    llama_synchronize(ctx);
}

void pac_engine::prompt(const char * text, const pac_image * images, int32_t n_images, int32_t reserve, const pac_method * method,
        pac_progress_callback progress, void * user_data, pac_prompt_info & out) {
    prompt({ { { text, nullptr, 0 } }, images, n_images, /*whole =*/ false }, reserve, method, progress, user_data, out);
}

void pac_engine::conversation(std::vector<pac_part> parts, const pac_image * images, int32_t n_images, int32_t reserve, const pac_method * method,
        pac_progress_callback progress, void * user_data, pac_prompt_info & out) {
    archive.begin();
    prompt({ std::move(parts), images, n_images, /*whole =*/ true }, reserve, method, progress, user_data, out);
}

void pac_engine::prompt(const pac_pieces & pieces, int32_t reserve, const pac_method * method, pac_progress_callback progress, void * user_data,
        pac_prompt_info & out) {
    const pac_cancel_scope scope({ this });

    auto layout = prepare(pieces, /*use_archive =*/ true);
    if (must_stop()) {
        throw pac_error(PAC_ERR_CANCELLED, "cancelled");
    }
    check_fits(layout, pieces.whole ? 0 : n_cells, reserve, n_ctx());

    std::vector<float>   new_embeddings;
    std::vector<uint8_t> encoded(pieces.n_images);

    evaluate(pieces.whole, [&](pac_turn & mine) {
        context->make_room(n_cells + (int32_t) layout.tokens.size() + reserve);

        job now = { mine, pieces, layout, method, progress, user_data, {}, std::move(encoded) };

        has_logits = false;
        observe(layout, method);

        const int64_t t_start = llama_time_us();
        run(now, pieces.whole ? restore(now) : 0);

        const auto kept = archive.info();
        out = {};
        out.ms_encode  = now.us_encode/1000;
        out.ms_prefill = (llama_time_us() - t_start - now.us_encode)/1000 - (pieces.whole ? kept.ms_make + kept.ms_restore : 0);

        encoded        = std::move(now.encoded);
        new_embeddings = std::move(now.embeddings);
    });

    has_logits    = true;
    embeddings    = std::move(new_embeddings);
    spans         = std::move(layout.spans);
    prompt_tokens = std::move(layout.tokens);
    text_tokens   = std::move(layout.text);
    n_visual      = layout.n_visual;

    sampler.begin_answer(prompt_tokens);
    n_decodes      = 0;
    n_reused_start = llama_perf_context(ctx).n_reused;

    out.n_tokens  = prompt_tokens.size();
    out.n_visual  = n_visual;
    out.n_past    = n_cells;
    out.n_spans   = spans.size();
    out.spans     = spans.data();
    out.n_encoded = std::count(encoded.begin(), encoded.end(), 1);
    out.n_reused  = pieces.n_images - out.n_encoded;
}

void pac_engine::check_step(int32_t token) {
    if (token < 0 || token >= model->n_vocab()) {
        throw pac_error(PAC_ERR_ARGUMENT, pac_format("token %d does not exist", token));
    }
    if (n_cells + 1 > n_ctx()) {
        throw pac_error(PAC_ERR_CONTEXT, pac_format("the context is full: %d of %d cells are in use. Use a larger n_ctx", n_cells, n_ctx()));
    }
    sampler.check(token);
}

void pac_engine::decode(int32_t token) {
    check_step(token);

    const pac_cancel_scope scope({ this });
    evaluate(false, [&](pac_turn &) {
        decode_text(&token, 1, true, [](int32_t) {});
        sampler.accept(token);
    });
    has_logits = true;
    n_decodes++;
}

void pac_engine::end_step(int32_t token, int32_t i, bool ok) {
    const auto failed = [&](int32_t status, std::string message) {
        throw pac_error(status, message + (roll_back(n_pos, n_cells) ? "" : "; the conversation was reset"));
    };
    if (must_stop()) {
        failed(PAC_ERR_CANCELLED, "cancelled");
    }
    if (!ok) {
        if (!roll_back(n_pos, n_cells)) {
            throw pac_error(PAC_ERR_COMPUTE, "decoding failed; the conversation was reset");
        }
        return; // again, alone
    }
    try {
        keep_logits(i);
        sampler.accept(token);
    } catch (const pac_error & e) {
        failed(e.status, e.what());
    }
    n_pos++;
    n_cells++;
    n_decodes++;
    has_logits = true;
}
