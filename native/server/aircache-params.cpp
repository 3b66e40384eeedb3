#include "aircache-params.h"

#include "api/grammar.h"

#include <algorithm>
#include <sstream>
#include <stdexcept>
#include <tuple>

static const std::string PREFIX         = "aircache_";
static const std::string REQUEST_FIELDS = "request_fields"; // of flags alone

[[noreturn]] static void refuse(const std::string & field, const std::string & why) {
    throw std::invalid_argument(field + " " + why);
}

std::string common_aircache_shown(const std::string & text) {
    return aircache::shown(text);
}

// a field is named as its part is, behind aircache_; so are the grammar's messages
static void set_part(llama_aircache_method & m, const std::string & part, const std::string & text) {
    try {
        aircache::method_set(m, part, text);
    } catch (const std::invalid_argument & e) {
        throw std::invalid_argument(PREFIX + e.what());
    }
}

//
// fields
//

const std::vector<common_aircache_field> & common_aircache_fields() {
    static const std::vector<common_aircache_field> FIELDS = [] {
        std::vector<common_aircache_field> res;
        for (const auto & part : aircache::method_parts()) {
            using kind = aircache::part_kind;
            using field = common_aircache_field;
            res.push_back({ part.kind == kind::number ? field::NUMBER : part.kind == kind::whole ? field::WHOLE :
                part.kind == kind::on_off ? field::ON_OFF : field::WORDS, PREFIX + part.name, part.name });
        }
        return res;
    }();
    return FIELDS;
}

// its index; their number where there is none of this name
static size_t field_at(const std::string & name) {
    const auto & fields = common_aircache_fields();
    return std::find_if(fields.begin(), fields.end(), [&](const auto & field) { return field.name == name; }) - fields.begin();
}

void common_params_aircache::set(const std::string & field, const std::string & value) {
    const auto part = field.substr(std::min(PREFIX.size(), field.size()));
    if (part == REQUEST_FIELDS) {
        set_request_fields(value);
        return;
    }
    if (field_at(field) == common_aircache_fields().size()) {
        refuse(field, "does not exist");
    }
    auto m = llama_aircache_method_default();
    set_part(m, part, value); // by itself; resolve() sees whether all of them fit together
    if (part == "keep") {
        keep = m.keep;
    } else if (part == "method") {
        method = value;
    } else {
        parts[part] = aircache::method_get(m, part);
    }
}

// all, none, or names with commas between them: keep,method
void common_params_aircache::set_request_fields(const std::string & value) {
    const auto & fields = common_aircache_fields();
    uint32_t res = value == "all" ? ~0u : 0;
    std::istringstream in(value == "none" || value == "all" ? "" : value + ",");
    for (std::string word; std::getline(in, word, ','); ) {
        const size_t i = field_at(PREFIX + word);
        if (i == fields.size()) {
            std::string known;
            for (const auto & field : fields) {
                known += (known.empty() ? "" : ",") + field.part;
            }
            refuse(PREFIX + REQUEST_FIELDS, "must be all, none, or some of " + known + ", got '" + common_aircache_shown(value) + "'");
        }
        res |= 1u << i;
    }
    request_fields = res;
}

void common_params_aircache::check_allowed(const std::string & field) const {
    if (!(request_fields >> field_at(field) & 1)) {
        refuse(field, "cannot be set by requests to this server (--aircache-request-fields)");
    }
}

llama_aircache_method common_params_aircache::resolve() const {
    auto m = llama_aircache_method_default();
    set_part(m, "method", method);
    m.keep = keep;
    for (const auto & field : common_aircache_fields()) {
        if (const auto it = parts.find(field.part); it != parts.end()) {
            set_part(m, field.part, it->second);
        }
    }
    return m;
}

std::string common_params_aircache::part(const std::string & name) const {
    return name == "method" ? method : aircache::method_get(resolve(), name);
}

bool common_params_aircache::operator==(const common_params_aircache & other) const {
    return std::tie(keep, method, parts) == std::tie(other.keep, other.method, other.parts);
}

//
// flags
//

// llama.cpp keeps pointers to the texts of a flag
struct flag_texts {
    std::string field, name, env, hint, help;
};

static flag_texts texts_of(const std::string & part, const std::string & hint, const std::string & help) {
    flag_texts res = { PREFIX + part, "--" + PREFIX + part, "LLAMA_ARG_" + PREFIX + part, hint, help };
    std::replace(res.name.begin(), res.name.end(), '_', '-');
    std::transform(res.env.begin(), res.env.end(), res.env.begin(), [](unsigned char c) { return c >= 'a' && c <= 'z' ? c - 'a' + 'A' : c; });
    return res;
}

const common_aircache_flag * common_aircache_get_flag(size_t i) {
    static const std::vector<flag_texts> TEXTS = [] {
        std::vector<flag_texts> res;
        for (const auto & part : aircache::method_parts()) {
            const auto & name = part.name;
            const std::string without = name == "keep" ? "1, keep all" : name == "method" ? "aircache" : "the method's";
            res.push_back(texts_of(name, part.hint, part.help + " (default: " + without + ")"));
        }
        res.push_back(texts_of(REQUEST_FIELDS, "LIST", "what a request may set as aircache_...: names of these flags with "
            "commas (keep,method,uniform_share), all or none (default: all)"));
        return res;
    }();
    static const std::vector<common_aircache_flag> FLAGS = [] {
        std::vector<common_aircache_flag> res;
        for (const auto & t : TEXTS) {
            res.push_back({ t.field.c_str(), t.name.c_str(), t.env.c_str(), t.hint.c_str(), t.help });
        }
        return res;
    }();
    return i < FLAGS.size() ? &FLAGS[i] : nullptr;
}
