// What can be asked for: flags and the fields of requests.
#include "aircache-server.h"
#include "aircache-limits.h"

#include "common.h"
#include "log.h"
#include "src/llama-ext.h"

#include <mutex>
#include <stdexcept>

// Why no request can be compressed by this server, naming the option that is in the way; empty: they can.
static std::string find_refusal(const common_params & params, llama_context * ctx_tgt, const llama_context * ctx_dft) {
    if (params.kv_unified && params.n_parallel > 1) {
        return "--kv-unified with " + std::to_string(params.n_parallel) + " slots: every slot needs a stream of its own "
            "(use --no-kv-unified, or -np 1)";
    }
    if (ctx_dft && llama_get_ctx_other(const_cast<llama_context *>(ctx_dft)) == ctx_tgt) {
        return "--spec-type: this draft model works on the cells of the target model";
    }
    if (llama_aircache_supported(ctx_tgt) != LLAMA_AIRCACHE_OK) {
        return llama_aircache_error();
    }
    return "";
}

// Throws std::invalid_argument, naming the field, where this server cannot do it.
static void check(const common_params & params, const common_params_aircache & wanted) {
    const auto method = wanted.resolve();
    if (!wanted.active()) {
        return;
    }
    if (!params.aircache.refused.empty()) {
        throw std::invalid_argument("aircache_keep cannot be less than 1 here: " + params.aircache.refused);
    }
    if (method.window == LLAMA_AIRCACHE_WINDOW_ALL && params.n_parallel > 1) {
        throw std::invalid_argument("aircache_window 'all'" + (wanted.parts.count("window") == 0 ? " (of aircache_method '" + wanted.method + "')" : "") +
            " needs a server with one slot (-np 1), this one has " + std::to_string(params.n_parallel));
    }
}

//
// flags
//

static std::mutex             flags_mutex; // written while another thread answers /props
static common_params_aircache flags;

bool server_aircache_init(common_params & params, llama_context * ctx_tgt, const llama_context * ctx_dft, bool has_images) {
    server_aircache_embds_clear();
    params.aircache.refused = has_images ? find_refusal(params, ctx_tgt, ctx_dft) : "";
    server_aircache_show_metrics(has_images && params.aircache.refused.empty());
    if (!has_images && params.aircache.active()) {
        LOG_WRN("without --mmproj there are no images to compress, --aircache-keep has no effect\n");
        params.aircache.keep = 1.0;
    }
    try {
        check(params, params.aircache);
        server_aircache_memory::init(ctx_tgt);
    } catch (const std::invalid_argument & e) {
        LOG_ERR("%s\n", e.what());
        return false;
    }
    // a draft model has cells of its own, and adapters change those of the target
    const bool archives = has_images && params.aircache.refused.empty() && !ctx_dft && params.lora_adapters.empty();
    if (!archives && common_aircache_get_limits().archive_mib > 0) {
        LOG_WRN("--aircache-archive has no effect: it needs images, slots that can be compressed, no draft model and no adapters\n");
    }
    server_aircache_archives_init(archives);

    const std::lock_guard<std::mutex> lock(flags_mutex);
    flags = params.aircache;
    return true;
}

void server_aircache_set_streams(common_params & params) {
    if (params.aircache.active() && !params.mmproj.path.empty()) {
        LOG_TRC("images are compressed: every slot gets a stream of its own, kv_unified = false\n");
        params.kv_unified = false;
    }
}

//
// requests
//

// The text that a field's value stands for. Numbers, true and false are JSON's own, so that a text is no number.
static std::string text_of(const common_aircache_field & field, const common_json & value) {
    switch (field.kind) {
        case common_aircache_field::NUMBER:
            if (!value.is_number()) {
                throw std::invalid_argument("must be a number");
            }
            return value.dump();
        case common_aircache_field::WHOLE:
            if (!value.is_number_integer()) {
                throw std::invalid_argument("must be a whole number");
            }
            return value.dump();
        case common_aircache_field::ON_OFF:
            if (!value.is_boolean()) {
                throw std::invalid_argument("must be true or false");
            }
            return value.get<bool>() ? "on" : "off";
        default:
            if (!value.is_string()) {
                throw std::invalid_argument("must be a string");
            }
            return value.get<std::string>();
    }
}

static void read_field(common_params_aircache & params, const common_aircache_field & field, const common_json & value) {
    params.check_allowed(field.name);
    const auto text = text_of(field, value);
    if (field.part == "method") {
        params.parts.clear(); // another method brings parts of its own
    } else if (field.part == "window") {
        params.parts.erase("alpha"); // a window says its threshold itself
    }
    params.set(field.name, text);
}

common_params_aircache server_aircache_read(const common_params & params, const common_json & body) {
    auto res = params.aircache;
    res.of_request = true;
    for (const auto & field : common_aircache_fields()) {
        if (!body.contains(field.name) || body.at(field.name).is_null()) {
            continue;
        }
        try {
            read_field(res, field, body.at(field.name));
        } catch (const std::exception & e) {
            throw std::invalid_argument("Field '" + field.name + "': " + e.what());
        }
    }
    check(params, res);
    return res;
}

common_json server_aircache_add_params(const common_params_aircache & params, common_json res) {
    if (!params.of_request) {
        const std::lock_guard<std::mutex> lock(flags_mutex);
        auto defaults = flags;
        defaults.of_request = true;
        return server_aircache_add_params(defaults, std::move(res));
    }
    for (const auto & field : common_aircache_fields()) {
        const auto text = params.part(field.part);
        switch (field.kind) {
            case common_aircache_field::NUMBER:
            case common_aircache_field::WHOLE:  res[field.name] = common_json::parse(text); break;
            case common_aircache_field::ON_OFF: res[field.name] = text == "on";             break;
            default:                            res[field.name] = text;
        }
    }
    return res;
}
