// What answers, /slots and /metrics say of the compression.
#include "aircache-server.h"

#include "server-common.h"
#include "server-task.h"

#include <algorithm>
#include <mutex>

//
// slots and timings
//

int64_t server_prompt_aircache::kv_bytes_now(size_t n_tokens_now) const {
    return kv_bytes + ((int64_t) n_tokens_now - (int64_t) n_tokens)*kv_bytes_cell;
}

common_json server_prompt_aircache::to_json(size_t n_tokens_now) const {
    return common_json {
        {"n_tokens_compressed", n_tokens},
        {"visual_tokens",       n_visual},
        {"kept_tokens",         n_kept},
        {"keep",                params.resolve().keep},
        {"method",              params.method},
        {"n_cells",             n_cells + (int64_t) n_tokens_now - (int64_t) n_tokens},
        {"kv_bytes_full",       (int64_t) n_tokens_now*kv_bytes_cell},
        {"kv_bytes",            kv_bytes_now(n_tokens_now)},
    };
}

void server_aircache_tokens::add_to(common_json & slot, size_t n_tokens_now) const {
    if (compressed() && n_tokens_now >= cells.n_tokens) { // fewer: another prompt is about to replace it
        slot["aircache"] = cells.to_json(n_tokens_now);
    }
}

void server_aircache_stats::add_to(common_json & timings) const {
    if (!set) {
        return;
    }
    common_json res = {
        {"visual_tokens", n_visual},
        {"kept_tokens",   n_kept},
        {"keep",          keep},
        {"method",        method},
        {"ms",            ms},
        {"kv_bytes_full", kv_bytes_full},
        {"kv_bytes",      kv_bytes},
        {"kv_bytes_allocated", kv_bytes_allocated},
        {"kv_bytes_reserved",  kv_bytes_reserved},
    };
    if (n_recalled > 0) {
        res["recalled_tokens"] = n_recalled;
    }
    if (!error.empty()) {
        res["error"] = error;
    }
    timings["aircache"] = res;
}

void server_aircache_add_timings(const server_slot_stats & stats, common_json & res) {
    if (stats.is_set()) {
        res["timings"] = stats.to_json();
    }
}

//
// metrics
//

static struct {
    std::mutex mutex; // /metrics is answered by another thread
    bool     shown    = false;
    uint64_t n_visual = 0;
    double   n_kept   = 0;
    double   ms       = 0;
} counters;

void server_aircache_count(int32_t n_visual, double n_kept, double ms) {
    const std::lock_guard<std::mutex> lock(counters.mutex);
    counters.n_visual += n_visual;
    counters.n_kept   += n_kept;
    counters.ms       += ms;
}

void server_aircache_show_metrics(bool shown) {
    const std::lock_guard<std::mutex> lock(counters.mutex);
    counters.shown = shown;
}

void server_aircache_write_metric(std::ostream & out, const char * type, const char * name, const char * description, double value) {
    out << "# HELP llamacpp:aircache_" << name << " " << description << "\n"
        << "# TYPE llamacpp:aircache_" << name << " " << type << "\n"
        << "llamacpp:aircache_"        << name << " " << value << "\n";
}

void server_aircache_write_metrics(std::ostream & out) {
    server_aircache_memory::write_metrics(out);

    const std::lock_guard<std::mutex> lock(counters.mutex);
    const auto counter = [&](const char * name, const char * description, double value) {
        server_aircache_write_metric(out, "counter", name, description, value);
    };
    if (counters.shown) {
        counter("visual_tokens_total", "Visual tokens of the images that were compressed",       counters.n_visual);
        counter("kept_tokens_total",   "Of these, the tokens kept, as a mean over the layers",   counters.n_kept);
        counter("milliseconds_total",  "Time spent choosing and moving KV cells",                counters.ms);
        counter("images_reused_total", "Images whose embeddings were kept from another request", server_aircache_embds_reused());
        server_aircache_archives_write_metrics(out);
    }
}

//
// several answers to a request
//

void server_aircache_sum_usage(common_json & answers, const std::vector<std::unique_ptr<server_task_result>> & results) {
    const auto result = [&](size_t i) -> const server_task_result_cmpl_final & {
        return static_cast<const server_task_result_cmpl_final &>(*results[i]);
    };
    const size_t n_same = std::max(1, result(0).generation_params.n_cmpl); // answers to each prompt, one after another

    auto stats = result(0).stats;
    stats.n_gen = stats.n_prompt_processed = stats.n_prompt_cached = 0;
    int64_t n_prompt  = 0;
    int64_t n_decoded = 0;
    int64_t n_cached  = 0;
    for (size_t i = 0; i < results.size(); ++i) {
        const auto & r = result(i);
        n_decoded        += r.n_decoded;
        stats.n_gen      += r.stats.n_gen;
        stats.t_gen_last  = std::max(stats.t_gen_last, r.stats.t_gen_last);
        if (i % n_same == 0) {
            n_prompt += r.n_prompt_tokens;
            n_cached += r.n_prompt_tokens_cache;
            stats.n_prompt_processed += r.stats.n_prompt_processed;
            stats.n_prompt_cached    += r.stats.n_prompt_cached;
        }
    }
    answers[0]["usage"] = common_json {
        {"completion_tokens", n_decoded},
        {"prompt_tokens",     n_prompt},
        {"total_tokens",      n_decoded + n_prompt},
        {"prompt_tokens_details", common_json { {"cached_tokens", n_cached} }},
    };
    if (stats.is_set()) {
        answers[0]["timings"] = stats.to_json();
    }
}

void server_aircache_sum_usage(server_task_result & result, int32_t & n_decoded, bool is_last) {
    auto * res = dynamic_cast<server_task_result_cmpl_final *>(&result);
    if (!res || res->generation_params.n_cmpl <= 1 || !res->include_usage) {
        return;
    }
    n_decoded += res->n_decoded;
    res->n_decoded     = n_decoded;
    res->include_usage = is_last;
}
