// What stands for pictures, sound and films in a request: URLs, base64, the files themselves. What cannot be used is
// refused with std::invalid_argument, which the server answers with 400. docs/server.md lists what is read.
#pragma once

#include "mtmd-helper.h"

#include "json.h"

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

struct common_remote_params;

// part["image_url"]["url"] of an OpenAI content part; name: "image_url", also of its inner object
std::string server_aircache_url(const common_json & part, const std::string & name);

// The file in a data: URI or a bare base64 text. false: it is an address that llama.cpp fetches (http, https, file).
bool server_aircache_data(const std::string & url, std::vector<std::vector<uint8_t>> & files);

// common_remote_get_content, with its failures as the sender's
std::pair<long, std::vector<char>> server_aircache_fetch(const std::string & url, const common_remote_params & params);

// Throws unless block["source"] of an Anthropic image block is base64 data or an URL.
void server_aircache_check_source(const common_json & block);

// The files of { "prompt_string": "...", "multimodal_data": [ "base64" ] }.
std::vector<std::vector<uint8_t>> server_aircache_files(const common_json & prompt);

// mtmd_helper_bitmap_init_from_buf, with pictures read as the Python package reads them and refused when the model cannot
// take their shape. Never null.
mtmd_helper_bitmap_wrapper server_aircache_bitmap(const mtmd_context * mctx, const std::vector<uint8_t> & file,
        bool placeholder, const mtmd_helper_init_opt & opt);

// Throws unless mtmd_tokenize succeeded.
void server_aircache_check_tokenized(int32_t status, size_t n_files);
