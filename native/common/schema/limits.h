// JSON schemas come from whoever asks. llama.cpp's converter to grammars recurses over them and multiplies them without
// limits of its own, so what could end the process or go on for ever is refused before. patches/0007 calls this where a
// schema is read; part of libllama-common.
#pragma once

#include "common/grammar-limits.h"

#include <functional>
#include <string>

struct common_chat_schema_document;
class  common_json;

// Throws std::invalid_argument. on_pattern: called with every "pattern" of it.
void aircache_check_schema(const common_json & schema, const std::function<void(const std::string &)> & on_pattern = {});

// The same of what it was read into: what $refs make of it.
void aircache_check_schema(const common_chat_schema_document & schema);
