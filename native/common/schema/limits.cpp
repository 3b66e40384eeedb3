#include "common/schema/limits.h"

#include "json-schema.h"
#include "json.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <set>
#include <stdexcept>

namespace {

constexpr int    MAX_DEPTH      = 64;    // of brackets
constexpr int    MAX_NODES      = 10000; // values of all kinds, after lists of types and allOf have multiplied them
constexpr int    MAX_OBJECTS    = 3000;  // of these, objects: $refs can put all of them within each other, a KB of stack each
constexpr size_t MAX_PROPERTIES = 256;   // of one object: the rules grow with their square
constexpr size_t MAX_NAME       = 128;   // bytes of a property's name: each letter may become a nested group
constexpr size_t MAX_REF        = 1024;  // bytes: the converter's expressions recurse over its letters
constexpr double MAX_INTEGER    = 9007199254740992.0; // 2^53

[[noreturn]] void refuse(const std::string & why) {
    throw std::invalid_argument(why);
}

std::string with_number(const char * before, size_t n, size_t max) {
    return before + std::to_string(n) + ", more than " + std::to_string(max);
}

struct json_check {
    const std::function<void(const std::string &)> & on_pattern;

    int64_t n_nodes   = 0;
    int64_t n_objects = 0;

    // what an object's members are
    enum kind { SCHEMA, NAMES, DATA };

    static bool into_data(const std::string & ref) {
        return (ref + "/").find("/const/") != std::string::npos || (ref + "/").find("/enum/") != std::string::npos;
    }

    static void check_number(const std::string & name, double value) {
        const bool bound = name == "minimum" || name == "maximum" || name == "exclusiveMinimum" || name == "exclusiveMaximum";
        if (bound && !(std::abs(value) <= MAX_INTEGER)) {
            refuse(name + " is beyond 2^53");
        }
        const bool count = name == "minItems" || name == "maxItems" || name == "minLength" || name == "maxLength";
        if (count && !(value >= 0 && value <= INT32_MAX)) {
            refuse(name + " is not in [0, 2147483647]");
        }
    }

    void check_text(const std::string & name, const std::string & value) const {
        if (name == "pattern" && on_pattern) {
            on_pattern(value);
        }
        if (name == "$ref" && value.size() > MAX_REF) {
            refuse(with_number("the bytes of a $ref are ", value.size(), MAX_REF));
        }
        if (name == "$ref" && into_data(value)) {
            refuse("a $ref leads into const or enum, which are no schemas");
        }
    }

    // n: how many times the converter visits it
    void check(const common_json & node, int64_t n, kind where, int depth) {
        if (depth > MAX_DEPTH && (node.is_object() || node.is_array())) {
            refuse("it is nested more than " + std::to_string(MAX_DEPTH) + " levels deep");
        }
        n_nodes   += n;
        n_objects += node.is_object() ? n : 0;
        if (n_nodes > MAX_NODES || n_objects > MAX_OBJECTS) {
            refuse("it has more than " + std::to_string(MAX_OBJECTS) + " objects or " + std::to_string(MAX_NODES) + " values");
        }
        if (node.is_array()) {
            for (size_t i = 0; i < node.size(); ++i) {
                check(node.at(i), n, where, depth + 1);
            }
        }
        if (!node.is_object()) {
            return;
        }
        if (node.size() > MAX_PROPERTIES) {
            refuse(with_number("the members of an object in it are ", node.size(), MAX_PROPERTIES));
        }
        if (node.contains("type") && node.at("type").is_array()) {
            n *= std::max<int64_t>(1, node.at("type").size());
        }
        for (const auto & [name, value] : node.items()) {
            if (name.size() > MAX_NAME) {
                refuse(with_number("the bytes of a name in it are ", name.size(), MAX_NAME));
            }
            if (value.is_number()) {
                check_number(name, value.get<double>());
            }
            if (where != DATA && value.is_string()) {
                check_text(name, value.get<std::string>());
            }
            const bool names = where == SCHEMA && (name == "properties" || name == "$defs" || name == "definitions");
            const bool data  = where == DATA || (where == SCHEMA && (name == "enum" || name == "const"));
            check(value, n, names ? NAMES : data ? DATA : SCHEMA, depth + 1);
        }
    }
};

// Goes the converter's way: into a $ref's target once, but into what an allOf collects with each allOf.
struct visits {
    int n = 0;
    std::set<const common_chat_schema *> targets;

    template <typename T>
    static const T & as(const common_chat_schema & node) {
        return static_cast<const T &>(node);
    }

    template <typename Nodes>
    void visit_all(const Nodes & nodes) {
        for (const auto & node : nodes) {
            visit(*node);
        }
    }

    void visit_properties(const common_chat_schema_object & object) {
        for (const auto & property : object.properties) {
            visit(*property.schema);
        }
    }

    // what a chain of $refs leads to
    static const common_chat_schema * end_of(const common_chat_schema * node) {
        const auto * cur = node;
        for (int i = 0; cur && cur->kind() == common_chat_schema::KIND_REF; ++i) {
            if (i > MAX_OBJECTS) {
                refuse("its $ref \"" + as<common_chat_schema_ref>(*node).ref + "\" leads to nothing but further ones");
            }
            cur = as<common_chat_schema_ref>(*cur).target;
        }
        return cur;
    }

    void visit_all_of(const common_chat_schema_all_of & node) {
        size_t n_properties = 0;
        const auto add = [&](const common_chat_schema & part) {
            const auto * end = end_of(&part);
            if (end && end->kind() == common_chat_schema::KIND_OBJECT) {
                const auto & object = as<common_chat_schema_object>(*end);
                n_properties += object.properties.size();
                visit_properties(object);
            }
        };
        for (const auto & child : node.children) {
            if (child->kind() == common_chat_schema::KIND_ANY_OF) {
                for (const auto & other : as<common_chat_schema_any_of>(*child).children) {
                    add(*other);
                }
            } else {
                add(*child);
            }
        }
        if (n_properties > MAX_PROPERTIES) {
            refuse(with_number("the properties that an allOf in it collects are ", n_properties, MAX_PROPERTIES));
        }
    }

    void visit(const common_chat_schema & node) {
        const aircache_grammar_step step(aircache_grammar_step::SCHEMA);
        if (++n > MAX_NODES) {
            refuse("its allOf and $ref make more than " + std::to_string(MAX_NODES) + " values");
        }
        switch (node.kind()) {
            case common_chat_schema::KIND_REF: {
                const auto * target = as<common_chat_schema_ref>(node).target;
                end_of(&node);
                if (target && targets.insert(target).second) {
                    visit(*target);
                }
                break;
            }
            case common_chat_schema::KIND_ANY_OF: visit_all(as<common_chat_schema_any_of>(node).children); break;
            case common_chat_schema::KIND_ALL_OF: visit_all_of(as<common_chat_schema_all_of>(node));       break;
            case common_chat_schema::KIND_ARRAY:  visit(*as<common_chat_schema_array>(node).items);        break;
            case common_chat_schema::KIND_TUPLE:  visit_all(as<common_chat_schema_tuple>(node).items);     break;
            case common_chat_schema::KIND_OBJECT: {
                const auto & object = as<common_chat_schema_object>(node);
                visit_properties(object);
                if (object.additional_properties) {
                    visit(*object.additional_properties);
                }
                break;
            }
            default: break;
        }
    }
};

} // namespace

void aircache_check_schema(const common_json & schema, const std::function<void(const std::string &)> & on_pattern) {
    json_check check = { on_pattern };
    check.check(schema, 1, json_check::SCHEMA, 1);
}

void aircache_check_schema(const common_chat_schema_document & schema) {
    visits().visit(*schema.root);
}
