#include "aircache-media.h"

#include "aircache-params.h"
#include "pictures/picture.h"

#include "aircache-mtmd.h"

#include "download.h"
#include "hash/hash.h"
#include "log.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <stdexcept>
#include <string_view>

[[noreturn]] static void refuse(const std::string & why) {
    throw std::invalid_argument(why);
}

//
// base64
//

static int8_t base64_value(unsigned char c) {
    static const auto table = [] {
        std::array<int8_t, 256> res;
        res.fill(-1);
        const std::string_view alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        for (size_t i = 0; i < alphabet.size(); ++i) {
            res[(unsigned char) alphabet[i]] = i;
        }
        res['-'] = 62; // the alphabet for URLs
        res['_'] = 63;
        return res;
    }();
    return table[c];
}

// both alphabets; white space and missing padding are accepted as encoders write them
static server_aircache_bytes decode_base64(std::string_view text) {
    std::vector<uint8_t> res;
    res.reserve(text.size()/4*3 + 3);
    uint32_t held = 0;
    size_t n   = 0; // characters that count
    size_t pad = 0;
    for (const unsigned char c : text) {
        if (isspace(c)) {
            continue;
        }
        if (c == '=') {
            ++pad;
            continue;
        }
        const int v = base64_value(c);
        if (v < 0 || pad > 0) {
            refuse("the base64 data is not valid: " + (v < 0 ? "'" + common_aircache_shown(std::string(1, c)) + "' is no character of it" :
                std::string("it goes on behind its padding")));
        }
        held = held << 6 | v;
        if (++n % 4 == 0) {
            res.insert(res.end(), { (uint8_t) (held >> 16), (uint8_t) (held >> 8), (uint8_t) held });
        }
    }
    if (n == 0) {
        refuse("the base64 data is empty");
    }
    if (n % 4 == 1 || pad > 2 || (pad > 0 && (n + pad) % 4 != 0)) {
        refuse("the base64 data is cut: its length is impossible");
    }
    if (n % 4 == 2) {
        res.push_back(held >> 4);
    } else if (n % 4 == 3) {
        res.push_back(held >> 10);
        res.push_back(held >> 2);
    }
    return res;
}

//
// URLs
//

static std::string lower(std::string_view text) {
    std::string res(text);
    std::transform(res.begin(), res.end(), res.begin(), [](unsigned char c) { return tolower(c); });
    return res;
}

static bool begins(std::string_view text, std::string_view with) {
    return text.substr(0, with.size()) == with;
}

static const char * kind_of(const common_json & value) {
    return value.is_null() ? "null" : value.is_boolean() ? "a boolean" : value.is_number() ? "a number" :
        value.is_string() ? "a string" : value.is_array() ? "an array" : "an object";
}

std::string server_aircache_url(const common_json & part, const std::string & name) {
    const std::string form = "\"" + name + "\" must be an object like {\"url\": \"data:image/png;base64,...\"}";
    if (!part.contains(name)) {
        refuse(form + ", it is missing");
    }
    const common_json & value = part.at(name);
    if (!value.is_object()) {
        refuse(form + ", not " + kind_of(value));
    }
    if (!value.contains("url") || !value.at("url").is_string()) {
        refuse(form + ", its \"url\" is " + (value.contains("url") ? kind_of(value.at("url")) : "missing"));
    }
    const auto url = value.at("url").get<std::string>();
    if (url.empty()) {
        refuse(form + ", its \"url\" is empty");
    }
    return url;
}

// %2B and the like, as browsers write them
static std::string decode_percent(std::string_view text) {
    std::string res;
    res.reserve(text.size());
    for (size_t i = 0; i < text.size(); ++i) {
        if (text[i] == '%' && i + 2 < text.size() && isxdigit((unsigned char) text[i + 1]) && isxdigit((unsigned char) text[i + 2])) {
            res += (char) std::stoi(std::string(text.substr(i + 1, 2)), nullptr, 16);
            i += 2;
        } else {
            res += text[i];
        }
    }
    return res;
}

bool server_aircache_data(const std::string & url, std::vector<server_aircache_bytes> & files) {
    std::string_view rest = url;
    while (!rest.empty() && isspace((unsigned char) rest.front())) {
        rest.remove_prefix(1);
    }
    const std::string scheme = lower(rest.substr(0, std::min<size_t>(rest.find(':'), 32)));
    if (rest.find(':') > 32) { // base64 has no colon
        files.push_back(decode_base64(rest));
        return true;
    }
    if (scheme == "http" || scheme == "https" || scheme == "file") {
        if (url.size() > 2048 || !begins(url, scheme + "://")) {
            refuse("this address cannot be fetched: it must begin with " + scheme + ":// and have no more than 2048 characters");
        }
        return false;
    }
    if (scheme != "data") {
        refuse("this address cannot be used: '" + common_aircache_shown(url) + "'; send a data: URI, or base64 alone");
    }

    rest.remove_prefix(5);
    const size_t comma = rest.find(',');
    if (comma == std::string_view::npos) {
        refuse("the data: URI has no comma between its type and its data");
    }
    auto head = lower(rest.substr(0, comma));
    head.erase(std::remove_if(head.begin(), head.end(), [](unsigned char c) { return isspace(c); }), head.end());
    rest.remove_prefix(comma + 1);
    if (!begins(head, "image/") && !begins(head, "video/") && !begins(head, "audio/")) {
        refuse("the data: URI must be of type image/..., audio/... or video/..., got '" + common_aircache_shown(head) + "'");
    }
    if (head.size() < 7 || head.substr(head.size() - 7) != ";base64") {
        refuse("the data: URI must be base64 encoded: data:image/png;base64,...");
    }
    files.push_back(rest.find('%') == std::string_view::npos ? decode_base64(rest) : decode_base64(decode_percent(rest)));
    return true;
}

// failures are the sender's
static server_aircache_bytes fetch(const std::string & url) {
    common_remote_params params;
    params.max_size = 10*1024*1024;
    params.timeout  = 10; // seconds

    const std::string what = "'" + common_aircache_shown(url) + "' cannot be fetched: ";
    LOG_INF("fetching '%s'\n", common_aircache_shown(url).c_str());
    std::pair<long, std::vector<char>> res;
    try {
        res = common_remote_get_content(url, params);
    } catch (const std::exception & e) {
        refuse(what + common_aircache_shown(e.what()));
    }
    if (res.first < 200 || res.first >= 300) {
        refuse(what + "status " + std::to_string(res.first));
    }
    return { res.second.begin(), res.second.end() };
}

bool server_aircache_media(const std::string & url, std::vector<server_aircache_bytes> & files) {
    if (server_aircache_data(url, files)) {
        return true;
    }
    if (!begins(lower(url.substr(0, 4)), "http")) {
        return false;
    }
    files.push_back(fetch(url));
    return true;
}

//
// parts of messages
//

static bool is_part(const common_json & part, const char * type) {
    return part.is_object() && part.contains("type") && part.at("type").is_string() && part.at("type").get<std::string>() == type;
}

void server_aircache_check_content(const common_json & content, bool allow_image) {
    if (!allow_image || !content.is_array()) {
        return;
    }
    for (const auto & part : content) {
        if (is_part(part, "image_url")) {
            server_aircache_url(part, "image_url");
        }
    }
}

void server_aircache_check_source(const common_json & block) {
    const std::string form = "\"source\" of an image must be {\"type\": \"base64\", \"media_type\": \"image/png\", \"data\": \"...\"} "
        "or {\"type\": \"url\", \"url\": \"...\"}";
    const auto text = [](const common_json & object, const char * name) {
        return object.contains(name) && object.at(name).is_string() ? object.at(name).get<std::string>() : std::string();
    };
    if (!block.contains("source") || !block.at("source").is_object()) {
        refuse(form);
    }
    const common_json & source = block.at("source");
    const auto type = text(source, "type");
    const auto kind = text(source, "media_type");
    if (!(type == "base64" && !text(source, "data").empty()) && !(type == "url" && !text(source, "url").empty())) {
        refuse(form);
    }
    if (type == "base64" && source.contains("media_type") && (!begins(kind, "image/") || kind.find_first_of(";, ") != std::string::npos)) {
        refuse("\"media_type\" of an image must be like \"image/png\", got '" + common_aircache_shown(kind) + "'");
    }
}

// of the images among the parts, and in the results of tools
static void check_sources(const common_json & object) {
    if (!object.is_object() || !object.contains("content") || !object.at("content").is_array()) {
        return;
    }
    for (const auto & part : object.at("content")) {
        if (is_part(part, "image")) {
            server_aircache_check_source(part);
        } else if (is_part(part, "tool_result")) {
            check_sources(part);
        }
    }
}

common_json server_aircache_from_anthropic(const common_json & body) {
    if (body.contains("messages") && body.at("messages").is_array()) {
        for (const auto & message : body.at("messages")) {
            check_sources(message);
        }
    }
    common_json res = common_json::object();
    for (const auto & field : common_aircache_fields()) {
        if (body.contains(field.name)) {
            res[field.name] = body.at(field.name);
        }
    }
    return res;
}

//
// files
//

server_aircache_bytes server_aircache_file(const common_json & prompt, const common_json & entry) {
    const common_json & data = prompt.at("multimodal_data");
    if (!prompt.at("prompt_string").is_string() || !data.is_array()) {
        refuse("\"prompt_string\" must be a string and \"multimodal_data\" an array of base64 texts, got " +
            std::string(kind_of(prompt.at("prompt_string"))) + " and " + kind_of(data));
    }
    if (!entry.is_string()) {
        refuse(std::string("\"multimodal_data\" must hold base64 texts, not ") + kind_of(entry));
    }
    return decode_base64(entry.get<std::string>());
}

// Sound and films by how they begin: nothing else is given to decoders that guess.
static bool is_sound_or_film(std::string_view file) {
    const auto has = [&](std::string_view magic, size_t at = 0) {
        return file.size() > at && file.substr(at, magic.size()) == magic;
    };
    const bool mpeg = file.size() > 1 && (uint8_t) file[0] == 0xff && ((uint8_t) file[1] & 0xe0) == 0xe0;
    return mpeg || has("ID3") || has("fLaC") || has("OggS") || has("FLV") || has("WAVE", 8) || has("AVI ", 8) ||
        has("ftyp", 4) || has("moov", 4) || has("mdat", 4) || has("free", 4) || has("wide", 4) || has("\x1a\x45\xdf\xa3") ||
        has("\x30\x26\xb2\x75") || has(std::string_view("\0\0\1\xba", 4)) || has(std::string_view("\0\0\1\xb3", 4)) ||
        (has("\x47") && has("\x47", 188)); // packets of a transport stream
}

// never null
static mtmd_helper_bitmap_wrapper load(mtmd_context * mctx, const server_aircache_bytes & file, bool placeholder,
        const mtmd_helper_init_opt & opt) {
    const std::string_view bytes((const char *) file.data(), file.size());
    if (!aircache_picture_is(bytes) && is_sound_or_film(bytes)) {
        const auto res = mtmd_helper_bitmap_init_from_buf(mctx, file.data(), file.size(), placeholder, opt);
        if (!res.bitmap) {
            refuse("a file cannot be read as sound or film by this server and model");
        }
        return res;
    }
    const auto picture = aircache_picture_decode(bytes);
    try {
        aircache_check_picture(mctx, picture.nx, picture.ny); // mtmd_tokenize only says that it failed
    } catch (const std::exception & e) {
        refuse(e.what());
    }
    mtmd_helper_bitmap_wrapper res = {};
    res.bitmap = mtmd_bitmap_init(picture.nx, picture.ny, placeholder ? nullptr : picture.rgb.data());
    mtmd_bitmap_set_id(res.bitmap, placeholder ? nullptr : hash_sha256_hex(file.data(), file.size()).c_str());
    return res;
}

bool server_aircache_load(mtmd_context * mctx, const std::vector<server_aircache_bytes> & files, bool placeholder,
        const mtmd_helper_init_opt & opt, mtmd::bitmaps & bitmaps, std::vector<mtmd_helper::video_ptr> & videos) {
    for (const auto & file : files) {
        const auto media = load(mctx, file, placeholder, opt);
        bitmaps.entries.emplace_back(media.bitmap);
        if (media.video_ctx) {
            videos.emplace_back(media.video_ctx);
        }
    }
    return true;
}

void server_aircache_check_tokenized(int32_t status, size_t n_files) {
    if (status == 1) {
        refuse("the prompt's media markers do not match its " + std::to_string(n_files) + " media files: one marker for each is needed");
    }
    if (status != 0) {
        refuse("a picture cannot be used by this model: its size or shape may be out of range (the server's log says more)");
    }
}
