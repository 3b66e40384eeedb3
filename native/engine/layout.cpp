// From a text and images to the chunks of a prompt: tokens, spans, positions.
#include "engine.h"

#include "aircache-mtmd.h"
#include "common/template-tokens.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>

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

} // namespace

size_t pac_text_length(const char * text) {
    const size_t n = strnlen(text, MAX_TEXT + 1);
    if (n > (size_t) MAX_TEXT) {
        throw pac_error(PAC_ERR_ARGUMENT, pac_format("the text has more than %d bytes", MAX_TEXT));
    }
    return n;
}

static int32_t count_markers(const char * text) {
    const std::string & marker = pac_media_marker();
    int32_t res = 0;
    for (const char * cur = text; (cur = strstr(cur, marker.c_str())); cur += marker.size()) {
        res++;
    }
    return res;
}

// without pixels mtmd lays everything out by the sizes alone
mtmd::input_chunks_ptr pac_engine::tokenize(const char * text, const pac_image * images, int32_t n_images, bool begins, bool with_pixels) const {
    if (!model->vision) {
        if (n_images > 0) {
            throw pac_error(PAC_ERR_PROJECTOR, "the model was loaded without a projector (mmproj): it can only be asked about text");
        }
        throw std::logic_error("tokenize() is for models with a projector");
    }

    const mtmd_input_text input = { text, pac_text_length(text), /*.add_special =*/ begins, /*.parse_special =*/ true };

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
            aircache_check_picture(model->vision.get(), image.width, image.height);
        } catch (const std::exception & e) {
            throw pac_error(PAC_ERR_ARGUMENT, pac_format("image %d: %s", i, e.what()));
        }
        if (image.n_frames < 0 || image.n_frames > (1 << 30)/image.width/image.height) {
            throw pac_error(PAC_ERR_ARGUMENT, pac_format("image %d has %d frames of %d x %d: at most 2^30 pixels are taken", i, image.n_frames, image.width, image.height));
        }
        const std::string id = std::to_string(i); // which picture a tile belongs to
        if (image.n_frames > 0) {
            videos.push_back({ image, id, with_pixels });
            bitmaps.entries.emplace_back(mtmd_bitmap_init_lazy(model->vision.get(), id.c_str(), &videos.back(), next_frame));
        } else {
            bitmaps.entries.emplace_back(mtmd_bitmap_init(image.width, image.height, with_pixels ? image.rgb : nullptr));
            bitmaps.entries.back().set_id(id.c_str());
        }
    }

    const int32_t n_markers = count_markers(text);
    if (n_markers != n_images) {
        throw pac_error(PAC_ERR_ARGUMENT, pac_format("the text has %d image markers (pac_marker) for the %d images given", n_markers, n_images));
    }

    auto ptrs = bitmaps.c_ptr();
    pac_take_logged_error();
    if (mtmd_tokenize(model->vision.get(), chunks.get(), &input, ptrs.data(), ptrs.size()) != 0) {
        throw pac_error(PAC_ERR_ARGUMENT, pac_format("an image cannot be processed: %s", pac_take_logged_error().c_str()));
    }
    return chunks;
}

int64_t pac_engine::count_tokens(const char * text, const pac_image * images, int32_t n_images) const {
    const auto chunks = tokenize(text, images, n_images, n_pos == 0, /*with_pixels =*/ false);
    return mtmd_helper_get_n_tokens(chunks.get());
}

namespace {

std::vector<pac_chunk> list_chunks(const mtmd_input_chunks * chunks) {
    std::vector<pac_chunk> res;
    std::map<int32_t, int32_t> n_of; // chunks of an image so far
    int32_t n_media = 0;

    for (size_t i = 0; i < mtmd_input_chunks_size(chunks); ++i) {
        const auto * c = mtmd_input_chunks_get(chunks, i);

        pac_chunk cur;
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
                    // tiled models make several chunks of one picture, all with the picture's id
                    const char * id = mtmd_input_chunk_get_id(c);
                    cur.media = c;
                    cur.image = id ? atoi(id) : n_media;
                    cur.nth   = n_of[cur.image]++;
                    n_media++;
                } break;
            default: throw pac_error(PAC_ERR_UNSUPPORTED, "only images are supported");
        }
        res.push_back(std::move(cur));
    }
    return res;
}

} // namespace

std::vector<llama_token> pac_tokenize_text(const llama_vocab * vocab, const char * text, bool add_special, bool parse_special) {
    const int32_t len = pac_text_length(text);

    std::vector<llama_token> res(len + 8);
    int32_t n = llama_tokenize(vocab, text, len, res.data(), res.size(), add_special, parse_special);
    if (n < 0) {
        res.resize(-n);
        n = llama_tokenize(vocab, text, len, res.data(), res.size(), add_special, parse_special);
    }
    res.resize(std::max(0, n));
    return res;
}

static pac_chunk text_chunk(std::vector<llama_token> tokens) {
    pac_chunk res;
    res.n_tokens = res.n_pos = tokens.size();
    res.tokens   = std::move(tokens);
    return res;
}

// text goes on where the part before it ended, so that it is evaluated as if it were one
static void append(std::vector<pac_chunk> & to, std::vector<pac_chunk> chunks) {
    for (size_t i = 0; i < chunks.size(); ++i) {
        auto & c = chunks[i];
        if (i == 0 && !c.media && !to.empty() && !to.back().media) {
            to.back().tokens.insert(to.back().tokens.end(), c.tokens.begin(), c.tokens.end());
            to.back().n_tokens += c.n_tokens;
            to.back().n_pos    += c.n_pos;
        } else if (c.media || c.n_tokens > 0 || chunks.size() > 1) {
            to.push_back(std::move(c));
        }
    }
}

// with_pixels: of each image; without them a part is laid out by the sizes of its images
pac_prompt_layout pac_engine::lay_out(const pac_pieces & pieces, const std::vector<bool> & with_pixels) const {
    pac_prompt_layout res;

    int32_t first_image = 0;
    for (const auto & part : pieces.parts) {
        const bool begins = (pieces.whole || n_pos == 0) && &part == &pieces.parts[0];
        if (!part.text) {
            for (int32_t i = 0; i < part.n_tokens; ++i) {
                pac_check_range("a token", part.tokens[i], 0, model->n_vocab() - 1);
            }
            append(res.chunks, { text_chunk({ part.tokens, part.tokens + part.n_tokens }) });
            continue;
        }
        // all that are left for the last part, so that it can tell how many do not belong
        const int32_t n_left   = pieces.n_images - first_image;
        const int32_t n_images = &part == &pieces.parts.back() ? n_left : std::min(n_left, count_markers(part.text));
        if (model->vision || n_images > 0) {
            const auto from   = with_pixels.begin() + first_image;
            const bool pixels = std::find(from, from + n_images, true) != from + n_images;
            res.owners.push_back(tokenize(part.text, pieces.images + first_image, n_images, begins, pixels));
            auto chunks = list_chunks(res.owners.back().get());
            for (auto & c : chunks) {
                c.image += first_image;
            }
            append(res.chunks, std::move(chunks));
        } else {
            append(res.chunks, { text_chunk(pac_tokenize_text(model->vocab(), part.text, begins, true)) });
        }
        first_image += n_images;
    }
    if (first_image < pieces.n_images) { // the last part is no text, which would have told
        throw pac_error(PAC_ERR_ARGUMENT, pac_format("%d images were given, but the parts of the conversation name %d", pieces.n_images, first_image));
    }

    aircache_template_tokens template_tokens(model->vocab());
    llama_pos pos = pieces.whole ? 0 : n_pos;
    for (const auto & c : res.chunks) {
        const int32_t first = res.tokens.size();
        if (c.media) {
            const auto [nx, ny] = aircache_token_grid(model->vision.get(), c.media);
            res.spans.push_back({ c.image, first, c.n_tokens, nx, ny, pos, pos + c.n_pos });
            res.air_spans.push_back({ pos, pos + c.n_pos, nx });
            res.tokens.insert(res.tokens.end(), c.n_tokens, -1);
            res.n_visual += c.n_tokens;
            res.n_media++;
            template_tokens.image();
        } else {
            for (int32_t i = 0; i < c.n_tokens && !res.spans.empty(); ++i) {
                res.text.push_back(first + i);
                res.is_template.push_back(template_tokens.text(c.tokens[i]));
            }
            res.tokens.insert(res.tokens.end(), c.tokens.begin(), c.tokens.end());
        }
        pos += c.n_pos;
    }
    res.pos_end = pos;
    return res;
}

void pac_engine::layout(const char * text, const pac_image * images, int32_t n_images, pac_prompt_info & out) {
    auto res = lay_out({ { { text, nullptr, 0 } }, images, n_images, false }, std::vector<bool>(n_images, false));

    planned = std::move(res.spans);
    out = {};
    out.n_tokens = res.tokens.size();
    out.n_visual = res.n_visual;
    out.n_past   = n_cells + out.n_tokens;
    out.n_spans  = planned.size();
    out.spans    = planned.data();
}

// With the embeddings that are kept. Of images that have none, and that the archive does not stand for, the pixels are read;
// of no others.
pac_prompt_layout pac_engine::prepare(const pac_pieces & pieces, bool use_archive) const {
    const std::vector<bool> all(pieces.n_images, true);

    if (pieces.n_images == 0 || !model->vision || !(model->images.enabled() || (pieces.whole && archive.wanted()))) {
        return lay_out(pieces, all);
    }
    for (int32_t i = 0; i < pieces.n_images; ++i) {
        if (!pieces.images[i].rgb) {
            throw pac_error(PAC_ERR_ARGUMENT, pac_format("image %d has no pixels", i));
        }
    }

    std::vector<std::string> contents;
    const auto find_missing = [&](pac_prompt_layout & layout) {
        for (int32_t i = contents.size(); i < pieces.n_images; ++i) {
            contents.push_back(pac_image_content(pieces.images[i]));
        }
        for (auto & c : layout.chunks) {
            if (c.media) {
                // the number of tokens tells apart what a model makes of a picture that is alone, and of one among others
                c.key  = contents.at(c.image) + "/" + std::to_string(c.nth) + "/" + std::to_string(c.n_tokens);
                c.embd = model->images.enabled() ? model->images.find(c.key) : nullptr;
            }
        }
        std::vector<bool> res(pieces.n_images, false);
        for (size_t i = use_archive && pieces.whole ? archive.covers(layout) : 0; i < layout.chunks.size(); ++i) {
            const auto & c = layout.chunks[i];
            if (c.media && !c.embd) {
                res.at(c.image) = true;
            }
        }
        return res;
    };

    std::vector<bool> missing = all;
    if (!model->images.empty() || (use_archive && archive.n_tokens() > 0)) {
        auto res = lay_out(pieces, std::vector<bool>(pieces.n_images, false)); // checks the sizes, too
        missing = find_missing(res);
        if (std::find(missing.begin(), missing.end(), true) == missing.end()) {
            return res;
        }
    }
    auto res = lay_out(pieces, missing);
    find_missing(res);
    return res;
}
