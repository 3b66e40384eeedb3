// What stands for pictures, sound and films in a request: URLs, base64, the files themselves. What cannot be used is
// refused with std::invalid_argument, which the server answers with 400. docs/server.md lists what is read.
#pragma once

#include "mtmd-helper.h"
#include "mtmd.h"

#include "json.h"

#include <cstdint>
#include <string>
#include <vector>

using server_aircache_bytes = std::vector<uint8_t>;

// Throws unless every image_url part of an OpenAI content array has an address. Contents of other kinds pass.
void server_aircache_check_content(const common_json & content, bool allow_image);

// part["image_url"]["url"] of such a part; name: "image_url", also of its inner object
std::string server_aircache_url(const common_json & part, const std::string & name);

// What becomes of an Anthropic request's body: an object with its aircache_* fields, for llama.cpp to fill. Throws unless
// the source of every image in it is base64 data or an URL.
common_json server_aircache_from_anthropic(const common_json & body);
void        server_aircache_check_source(const common_json & block); // of one image

// The file in a data: URI or a bare base64 text. false: it is an address (http, https, file).
bool server_aircache_data(const std::string & url, std::vector<server_aircache_bytes> & files);

// The same, and what http and https addresses hold. false: it is a local file, which llama.cpp reads.
bool server_aircache_media(const std::string & url, std::vector<server_aircache_bytes> & files);

// One entry of "multimodal_data" in { "prompt_string": "...", "multimodal_data": [ "base64" ] }.
server_aircache_bytes server_aircache_file(const common_json & prompt, const common_json & entry);

// Reads all files of a prompt: pictures as the Python package reads them, refused when the model cannot take their shape;
// sound and films as llama.cpp reads them. true: nothing is left to do.
bool server_aircache_load(mtmd_context * mctx, const std::vector<server_aircache_bytes> & files, bool placeholder,
        const mtmd_helper_init_opt & opt, mtmd::bitmaps & bitmaps, std::vector<mtmd_helper::video_ptr> & videos);

// Throws unless mtmd_tokenize succeeded.
void server_aircache_check_tokenized(int32_t status, size_t n_files);
