// The words for the parts of a method (api/grammar.h) at the C border: the very parser of llama-server's flags.
#include "border.h"
#include "engine.h"

#include "api/grammar.h"

#include <cstring>
#include <stdexcept>
#include <string>

static const aircache::part_info * part_at(int32_t index) {
    const auto & parts = aircache::method_parts();
    return index >= 0 && index < (int32_t) parts.size() ? &parts[index] : nullptr;
}

const char * pac_method_part(int32_t index) {
    const auto * part = part_at(index);
    return part ? part->name.c_str() : nullptr;
}

const char * pac_method_part_hint(int32_t index) {
    const auto * part = part_at(index);
    return part ? part->hint.c_str() : nullptr;
}

const char * pac_method_part_help(int32_t index) {
    const auto * part = part_at(index);
    return part ? part->help.c_str() : nullptr;
}

int32_t pac_method_set(struct pac_method * method, const char * part, const char * text) {
    return pac_guarded([&] {
        pac_require(method && part && text, "method, part or text is null");
        auto res = pac_to_llama(*method);
        try {
            aircache::method_set(res, part, text);
        } catch (const std::invalid_argument & e) {
            throw pac_error(PAC_ERR_ARGUMENT, e.what());
        }
        *method = pac_from_llama(res);
    });
}

int32_t pac_method_get(const struct pac_method * method, const char * part, char * buffer, int32_t size) {
    int32_t n = 0;
    const int32_t status = pac_guarded([&] {
        pac_require(method && part && buffer && size > 0, "method, part or buffer is null");
        std::string text;
        try {
            text = aircache::method_get(pac_to_llama(*method), part);
        } catch (const std::invalid_argument & e) {
            throw pac_error(PAC_ERR_ARGUMENT, e.what());
        }
        if ((int64_t) text.size() >= size) {
            throw pac_error(PAC_ERR_ARGUMENT, pac_format("the text has %zu bytes and a NUL, the buffer %d", text.size(), size));
        }
        n = text.size();
        memcpy(buffer, text.c_str(), n + 1);
    });
    return status == PAC_OK ? n : status;
}
