// Loading: every way a pair of files can be wrong gets its own message.
#include "model.h"
#include "engine.h"

#include "common.h"
#include "ggml-cpp.h"
#include "gguf.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <random>
#include <set>
#include <sstream>

#if defined(PAC_BACKEND_DL) && !defined(_WIN32)
#    include <dlfcn.h>
#endif

// With GGML_BACKEND_DL the backends are plugins that lie beside this library; ggml would look beside the executable.
static void load_backends() {
#if defined(PAC_BACKEND_DL) && !defined(_WIN32)
    Dl_info self;
    if (dladdr((void *) &load_backends, &self) && self.dli_fname) {
        const std::string path = self.dli_fname;
        ggml_backend_load_all_from_path(path.substr(0, path.rfind('/')).c_str());
        return;
    }
#endif
    ggml_backend_load_all();
}

// ggml's list of devices: read while models load, and no lock of its own
static std::shared_mutex devices;

std::shared_lock<std::shared_mutex> pac_lock_devices() {
    return std::shared_lock<std::shared_mutex>(devices);
}

static void add_rpc_servers(const char * servers) {
    static std::set<std::string> added; // a server can be registered once a process

    const std::unique_lock<std::shared_mutex> lock(devices);

    auto * reg = ggml_backend_reg_by_name("RPC");
    auto * add = reg ? (ggml_backend_reg_t (*)(const char *)) ggml_backend_reg_get_proc_address(reg, "ggml_backend_rpc_add_server") : nullptr;
    if (!add) {
        throw pac_error(PAC_ERR_UNSUPPORTED, "this build has no RPC backend: build with CMAKE_ARGS=-DGGML_RPC=ON");
    }

    std::istringstream list(servers);
    for (std::string server; std::getline(list, server, ','); ) {
        if (!server.empty() && added.count(server) == 0) {
            auto * dev = add(server.c_str());
            if (!dev) {
                throw pac_error(PAC_ERR_ARGUMENT, pac_format("no RPC server answers at %s", server.c_str()));
            }
            ggml_backend_register(dev);
            added.insert(server);
        }
    }
}

namespace {

constexpr uint32_t MAX_LAYERS = 512; // LLAMA_MAX_LAYERS

// metadata of a GGUF file
struct gguf_meta {
    gguf_context_ptr ctx;

    gguf_meta(const char * path) {
        FILE * file = fopen(path, "rb");
        if (!file) {
            throw pac_error(PAC_ERR_FILE, pac_format("cannot open %s: %s", path, strerror(errno)));
        }
        char magic[4] = {};
        const bool ok = fread(magic, 1, 4, file) == 4 && memcmp(magic, "GGUF", 4) == 0;
        fclose(file);
        if (!ok) {
            throw pac_error(PAC_ERR_MODEL, pac_format("%s is not a GGUF file", path));
        }
        ctx.reset(gguf_init_from_file(path, { /*.no_alloc =*/ true, /*.ctx =*/ nullptr }));
        if (!ctx) {
            throw pac_error(PAC_ERR_MODEL, pac_format("%s is a damaged GGUF file: %s", path, pac_take_logged_error().c_str()));
        }
    }

    std::string str(const char * key) const {
        const int64_t id = gguf_find_key(ctx.get(), key);
        return id >= 0 && gguf_get_kv_type(ctx.get(), id) == GGUF_TYPE_STRING ? gguf_get_val_str(ctx.get(), id) : "";
    }

    // of a tensor; 0: there is none
    int64_t tensor_bytes(const char * name) const {
        const int64_t id = gguf_find_tensor(ctx.get(), name);
        return id >= 0 ? gguf_get_tensor_size(ctx.get(), id) : 0;
    }

    // What llama.cpp answers with an assertion when it loads a text model; it refuses everything else itself. Found by
    // changing every value of a file: tests/engine/test_damaged_files.py.
    void check_text(const char * path, const std::string & arch) const {
        const int64_t blocks = gguf_find_key(ctx.get(), (arch + ".block_count").c_str());
        if (blocks >= 0 && gguf_get_kv_type(ctx.get(), blocks) == GGUF_TYPE_UINT32) {
            const uint32_t n = gguf_get_val_u32(ctx.get(), blocks);
            if (n < 1 || n > MAX_LAYERS) {
                throw pac_error(PAC_ERR_MODEL, pac_format("%s is damaged: %s.block_count is %u, it must be in [1, %u]", path, arch.c_str(), n, MAX_LAYERS));
            }
        }
        for (const char * name : { ".attention.layer_norm_epsilon", ".attention.layer_norm_rms_epsilon" }) {
            const int64_t eps = gguf_find_key(ctx.get(), (arch + name).c_str());
            if (eps >= 0 && gguf_get_kv_type(ctx.get(), eps) == GGUF_TYPE_FLOAT32 && !(gguf_get_val_f32(ctx.get(), eps) >= 0.0f)) {
                throw pac_error(PAC_ERR_MODEL, pac_format("%s is damaged: %s%s is %g", path, arch.c_str(), name, gguf_get_val_f32(ctx.get(), eps)));
            }
        }
        const int64_t sections = gguf_find_key(ctx.get(), (arch + ".rope.dimension_sections").c_str());
        if (sections >= 0 && gguf_get_kv_type(ctx.get(), sections) == GGUF_TYPE_ARRAY && gguf_get_arr_type(ctx.get(), sections) == GGUF_TYPE_INT32) {
            const auto * values = (const int32_t *) gguf_get_arr_data(ctx.get(), sections);
            if (std::any_of(values, values + gguf_get_arr_n(ctx.get(), sections), [](int32_t n) { return n < 0; })) {
                throw pac_error(PAC_ERR_MODEL, pac_format("%s is damaged: %s.rope.dimension_sections has a negative number", path, arch.c_str()));
            }
        }
    }
};

constexpr size_t MAX_TEMPLATE = 1 << 16;

struct load_progress {
    pac_progress_callback callback;
    void * user_data;
    bool   cancelled;
};

} // namespace

const std::string & pac_media_marker() {
    static const std::string marker = [] {
        std::random_device random;
        return pac_format("<__media_%08x%08x%08x%08x__>", random(), random(), random(), random());
    }();
    return marker;
}

int32_t pac_pick_threads(int32_t n_threads) {
    return n_threads > 0 ? n_threads : std::clamp(common_cpu_get_num_physical_cores(), 1, GGML_MAX_N_THREADS);
}

pac_model::pac_model(const pac_model_params & params) : images(params.image_cache_bytes) {
    if (!params.model) {
        throw pac_error(PAC_ERR_ARGUMENT, "no model given");
    }
    pac_check_range("n_threads",         params.n_threads,          0, GGML_MAX_N_THREADS);
    pac_check_range("n_gpu_layers",      params.n_gpu_layers,      -1, INT32_MAX);
    pac_check_range("image_cache_bytes", params.image_cache_bytes,  0, INT64_MAX);
    if (params.flash_attn < -1 || params.flash_attn > 1) {
        throw pac_error(PAC_ERR_ARGUMENT, "flash_attn must be -1 (auto), 0 (off) or 1 (on)");
    }

    static const bool init = [] { load_backends(); llama_backend_init(); return true; }();
    (void) init;

    if (params.rpc_servers && *params.rpc_servers) {
        add_rpc_servers(params.rpc_servers);
    }
    const auto lock = pac_lock_devices();

    pac_take_logged_error();

    const gguf_meta meta(params.model);
    architecture = meta.str("general.architecture");
    if (architecture == "clip") {
        throw pac_error(PAC_ERR_MODEL, pac_format("%s is a projector (mmproj), not a text model", params.model));
    }
    meta.check_text(params.model, architecture);
    embedding_bytes = meta.tensor_bytes("output.weight") > 0 ? meta.tensor_bytes("token_embd.weight") : 0;
    if (params.mmproj) {
        const gguf_meta mm(params.mmproj);
        if (mm.str("general.architecture") != "clip") {
            throw pac_error(PAC_ERR_PROJECTOR, pac_format("%s is not a projector (mmproj): its architecture is \"%s\"",
                    params.mmproj, mm.str("general.architecture").c_str()));
        }
        projector = mm.str("clip.projector_type");
        if (projector.empty()) {
            projector = mm.str("clip.vision.projector_type");
        }
    }

    load_text(params);
    if (params.mmproj) {
        load_vision(params);
    }
    load_templates();

    char buf[256];
    llama_model_desc(weights.get(), buf, sizeof(buf));
    description = buf;
}

void pac_model::load_text(const pac_model_params & params) {
    load_progress progress = { params.progress, params.user_data, false };

    llama_model_params mparams = llama_model_default_params();
    mparams.n_gpu_layers = params.n_gpu_layers;
    mparams.progress_callback_user_data = &progress;
    mparams.progress_callback = [](float done, void * user_data) {
        auto & p = *(load_progress *) user_data;
        p.cancelled = p.callback && !p.callback(0, (int32_t) (done*1000), 1000, p.user_data);
        return !p.cancelled;
    };

    weights.reset(llama_model_load_from_file(params.model, mparams));
    if (progress.cancelled) {
        throw pac_error(PAC_ERR_CANCELLED, "loading was cancelled");
    }
    if (!weights) {
        throw pac_error(PAC_ERR_MODEL, pac_format("cannot load %s: %s", params.model, pac_take_logged_error().c_str()));
    }
}

void pac_model::load_vision(const pac_model_params & params) {
    mtmd_context_params vparams = mtmd_context_params_default();
    vparams.use_gpu         = params.n_gpu_layers != 0;
    vparams.n_threads       = pac_pick_threads(params.n_threads);
    vparams.print_timings   = false;
    vparams.warmup          = false;
    vparams.flash_attn_type = (llama_flash_attn_type) params.flash_attn;
    vparams.media_marker    = pac_media_marker().c_str();
    // The tower is evaluated layer by layer, so that it can be stopped: asked first which results are wanted, then
    // with each of them, where false ends it.
    vparams.cb_eval_user_data = this;
    vparams.cb_eval = [](ggml_tensor * t, bool ask, void * user_data) {
        const auto * engine = ((const pac_model *) user_data)->encoding;
        return ask ? strncmp(t->name, "layer_out", strlen("layer_out")) == 0 : !(engine && engine->must_stop());
    };

    pac_take_logged_error();
    vision.reset(mtmd_init_from_file(params.mmproj, weights.get(), vparams));
    if (!vision) {
        throw pac_error(PAC_ERR_PROJECTOR, pac_format("%s does not fit the text model: %s", params.mmproj, pac_take_logged_error().c_str()));
    }
    if (!mtmd_support_vision(vision.get())) {
        throw pac_error(PAC_ERR_PROJECTOR, pac_format("%s has no vision tower", params.mmproj));
    }
}

// prompts can be made without them
void pac_model::load_templates() {
    try {
        const char * source = llama_model_chat_template(weights.get(), nullptr);
        if (source && strlen(source) > MAX_TEMPLATE) {
            throw std::runtime_error(pac_format("it has %zu bytes, more than %zu", strlen(source), MAX_TEMPLATE));
        }
        templates = common_chat_templates_init(weights.get(), "");
    } catch (const std::exception & e) {
        templates_error = e.what();
    }
}

struct pac_model_info pac_model::info() const {
    struct pac_model_info res = {};
    res.description  = description.c_str();
    res.architecture = architecture.c_str();
    res.projector    = projector.c_str();
    res.n_layers     = llama_model_n_layer(weights.get());
    res.n_embd       = llama_model_n_embd(weights.get());
    res.n_heads      = llama_model_n_head(weights.get());
    res.n_heads_kv   = llama_model_n_head_kv(weights.get());
    res.n_vocab      = n_vocab();
    res.n_ctx_train  = llama_model_n_ctx_train(weights.get());
    res.n_params     = llama_model_n_params(weights.get());
    res.model_bytes  = llama_model_size(weights.get());
    res.vision       = vision != nullptr;
    res.n_engines    = n_engines;
    images.sizes(res.n_kept_images, res.image_cache_bytes);
    return res;
}

std::string pac_model::apply_template(const pac_message * messages, int32_t n_messages, bool add_generation_prompt) const {
    common_chat_templates_inputs inputs;
    inputs.add_generation_prompt = add_generation_prompt;
    inputs.use_jinja = true;

    for (int32_t i = 0; i < n_messages; ++i) {
        common_chat_msg msg;
        msg.role    = messages[i].role;
        msg.content = messages[i].content;
        inputs.messages.push_back(std::move(msg));
    }

    if (!templates) {
        throw pac_error(PAC_ERR_MODEL, pac_format("the model's chat template is broken: %s", templates_error.c_str()));
    }
    try {
        return common_chat_templates_apply(templates.get(), inputs).prompt;
    } catch (const std::bad_alloc &) {
        throw;
    } catch (const std::exception & e) {
        throw pac_error(PAC_ERR_MODEL, pac_format("the model's chat template cannot be applied: %s", e.what()));
    }
}

//
// encoding
//

pac_embeddings pac_model::encode(const pac_engine & engine, const mtmd_input_chunk * chunk, const std::string & key, bool & known) {
    std::unique_lock<std::mutex> lock(tower);
    tower_free.wait(lock, [&] { return !encoding || engine.must_stop(); });
    if (engine.must_stop()) {
        throw pac_error(PAC_ERR_CANCELLED, "cancelled");
    }
    if (!key.empty()) {
        if (auto res = images.find(key)) { // another engine's, while this one waited
            known = true;
            return res;
        }
    }

    encoding = &engine;
    lock.unlock();
    const auto end = [&] {
        lock.lock();
        encoding = nullptr;
        tower_free.notify_all();
    };

    std::shared_ptr<std::vector<float>> res;
    try {
        const int32_t status = mtmd_encode_chunk(vision.get(), chunk);
        if (engine.must_stop()) {
            throw pac_error(PAC_ERR_CANCELLED, "cancelled"); // the features are not complete
        }
        if (status != 0) {
            throw pac_error(PAC_ERR_COMPUTE, pac_format("encoding an image failed: %s", pac_take_logged_error().c_str()));
        }
        const float * embd = mtmd_get_output_embd(vision.get());
        res = std::make_shared<std::vector<float>>(embd, embd + mtmd_input_chunk_get_n_tokens(chunk)*(size_t) n_embd_inp());
    } catch (...) {
        end();
        throw;
    }
    end();

    if (!key.empty()) {
        images.store(key, res);
    }
    return res;
}

void pac_model::wake() {
    const std::lock_guard<std::mutex> lock(tower);
    tower_free.notify_all();
}
