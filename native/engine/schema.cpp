// JSON schemas as grammars, by llama.cpp's converter; native/common/schema/limits.h refuses what could end the process or go
// on for ever.
#include "sampling.h"

#include "common/schema/limits.h"
#include "json-schema-to-grammar.h"
#include "json-schema.h"
#include "json.h"

static constexpr int MAX_BRACKETS = 64;

[[noreturn]] static void refuse(const std::string & why) {
    throw pac_error(PAC_ERR_ARGUMENT, "the JSON schema cannot be used: " + pac_shorten(why, 240));
}

// before it is parsed, which recurses
static void check_depth(const char * text) {
    int  depth     = 0;
    bool in_string = false;
    for (; *text; ++text) {
        if (in_string) {
            in_string = *text != '"';
            text     += *text == '\\' && text[1];
        } else if (*text == '"') {
            in_string = true;
        } else if ((*text == '{' || *text == '[') && ++depth > MAX_BRACKETS) {
            refuse("it is nested more than " + std::to_string(MAX_BRACKETS) + " levels deep");
        } else if (*text == '}' || *text == ']') {
            depth--;
        }
    }
}

// The converter lets any string pass where it cannot follow a pattern: then the answer would not follow the schema.
static void check_pattern(const std::string & pattern) {
    const common_json alone = { {"type", "string"}, {"pattern", pattern} };
    if (json_schema_to_grammar(alone, /*force_gbnf =*/ true).find("root ::= string\n") != std::string::npos) {
        refuse("its pattern \"" + pattern + "\" is not among those that are supported: it must begin with ^ and "
            "end with $, without lookaround, back references or classes like \\d");
    }
}

std::string pac_schema_to_grammar(const char * schema) {
    check_depth(schema);
    try {
        const auto json = common_json::parse(schema);
        aircache_check_schema(json, check_pattern);
        return json_schema_to_grammar(common_chat_schema_from_json(json));
    } catch (const pac_error &) {
        throw;
    } catch (const std::bad_alloc &) {
        throw;
    } catch (const std::exception & e) {
        refuse(e.what());
    }
}
