// JSON schemas as grammars, by llama.cpp's converter. It recurses and multiplies without limits of its own, so what could
// end the process or go on for ever is refused first.
#include "sampling.h"

#include "json-schema-to-grammar.h"
#include "json-schema.h"
#include "json.h"

#include <cmath>
#include <cstring>

namespace {

constexpr int    MAX_DEPTH      = 64;    // of brackets
constexpr int    MAX_NODES      = 10000; // values of all kinds, after lists of types have multiplied them
constexpr int    MAX_OBJECTS    = 3000;  // of these, objects: $refs can put all of them within each other, a KB of stack each
constexpr size_t MAX_PROPERTIES = 256;   // of one object: the rules grow with their square
constexpr size_t MAX_NAME       = 128;   // bytes of a property's name: each letter may become a nested group
constexpr double MAX_INTEGER    = 9007199254740992.0; // 2^53

[[noreturn]] void refuse(const std::string & why) {
    throw pac_error(PAC_ERR_ARGUMENT, "the JSON schema cannot be used: " + pac_shorten(why, 240));
}

// before it is parsed
void check_depth(const char * text) {
    int  depth     = 0;
    bool in_string = false;
    for (; *text; ++text) {
        if (in_string) {
            in_string = *text != '"';
            text     += *text == '\\' && text[1];
        } else if (*text == '"') {
            in_string = true;
        } else if ((*text == '{' || *text == '[') && ++depth > MAX_DEPTH) {
            refuse("it is nested more than " + std::to_string(MAX_DEPTH) + " levels deep");
        } else if (*text == '}' || *text == ']') {
            depth--;
        }
    }
}

// A $ref to a schema that is nothing but a $ref, and so on in a circle.
void check_refs(const common_chat_schema_document & schema) {
    for (const auto & [name, node] : schema.refs) {
        const common_chat_schema * cur = node.get();
        for (size_t n = 0; cur && cur->kind() == common_chat_schema::KIND_REF; ++n) {
            if (n > schema.refs.size()) {
                refuse("its $ref \"" + name + "\" leads to nothing but further ones");
            }
            cur = static_cast<const common_chat_schema_ref *>(cur)->target;
        }
    }
}

struct checker {
    int64_t n_nodes   = 0;
    int64_t n_objects = 0;

    // The converter lets any string pass where it cannot follow a pattern: then the answer would not follow the schema.
    static void check_pattern(const common_json & pattern) {
        const common_json alone = { {"type", "string"}, {"pattern", pattern} };
        if (json_schema_to_grammar(alone, /*force_gbnf =*/ true).find("root ::= string\n") != std::string::npos) {
            refuse("its pattern \"" + pattern.get<std::string>() + "\" is not among those that are supported: it must begin with ^ and "
                "end with $, without lookaround, back references or classes like \\d");
        }
    }

    static bool into_data(const std::string & ref) {
        return (ref + "/").find("/const/") != std::string::npos || (ref + "/").find("/enum/") != std::string::npos;
    }

    // n: how many times the converter visits it. where: what its members are.
    enum kind { SCHEMA, NAMES, DATA };

    void check(const common_json & node, int64_t n, kind where) {
        n_nodes   += n;
        n_objects += node.is_object() ? n : 0;
        if (n_nodes > MAX_NODES || n_objects > MAX_OBJECTS) {
            refuse("it has more than " + std::to_string(MAX_OBJECTS) + " objects or " + std::to_string(MAX_NODES) + " values");
        }
        if (node.is_array()) {
            for (size_t i = 0; i < node.size(); ++i) {
                check(node.at(i), n, where);
            }
        }
        if (!node.is_object()) {
            return;
        }
        if (node.size() > MAX_PROPERTIES) {
            refuse("an object in it has " + std::to_string(node.size()) + " members, more than " + std::to_string(MAX_PROPERTIES));
        }
        if (node.contains("type") && node.at("type").is_array()) {
            n *= std::max<int64_t>(1, node.at("type").size());
        }
        for (const auto & [name, value] : node.items()) {
            if (name.size() > MAX_NAME) {
                refuse("a name in it has " + std::to_string(name.size()) + " bytes, more than " + std::to_string(MAX_NAME));
            }
            const bool bound = name == "minimum" || name == "maximum" || name == "exclusiveMinimum" || name == "exclusiveMaximum";
            if (bound && value.is_number() && !(std::abs(value.get<double>()) <= MAX_INTEGER)) {
                refuse(name + " is beyond 2^53");
            }
            const bool count = name == "minItems" || name == "maxItems" || name == "minLength" || name == "maxLength";
            if (count && value.is_number() && !(value.get<double>() >= 0 && value.get<double>() <= INT32_MAX)) {
                refuse(name + " is not in [0, 2147483647]");
            }
            if (where != DATA && name == "pattern" && value.is_string()) {
                check_pattern(value);
            }
            if (where != DATA && name == "$ref" && value.is_string() && into_data(value.get<std::string>())) {
                refuse("a $ref leads into const or enum, which are no schemas");
            }
            const bool names = where == SCHEMA && (name == "properties" || name == "$defs" || name == "definitions");
            const bool data  = where == DATA || (where == SCHEMA && (name == "enum" || name == "const"));
            check(value, n, names ? NAMES : data ? DATA : SCHEMA);
        }
    }
};

} // namespace

std::string pac_schema_to_grammar(const char * schema) {
    check_depth(schema);
    try {
        const auto json = common_json::parse(schema);
        checker().check(json, 1, checker::SCHEMA);
        const auto document = common_chat_schema_from_json(json);
        check_refs(document);
        return json_schema_to_grammar(document);
    } catch (const pac_error &) {
        throw;
    } catch (const std::bad_alloc &) {
        throw;
    } catch (const std::exception & e) {
        refuse(e.what());
    }
}
