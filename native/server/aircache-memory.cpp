#include "aircache-memory.h"

#include "aircache-limits.h"
#include "aircache-server.h"
#include "aircache-tokens.h"

#include "log.h"

#include <map>
#include <mutex>
#include <stdexcept>

static constexpr int32_t STEP = 64; // cells

namespace {

struct waiting {
    int         id_slot; // that it names, or -1
    int32_t     n_tokens;
    int64_t     n_bytes; // 0: not known yet
    std::string why;
};

int64_t budget     = 0; // bytes; 0: no bound
int64_t cell_bytes = 0; // of a cell in all layers

std::mutex mutex; // of all below: /slots and /metrics are answered by other threads
std::map<int, waiting> line; // by task: earlier ones have smaller numbers
int64_t  used      = 0;
uint64_t n_dropped = 0;

std::string mib(int64_t bytes) {
    char buf[32];
    snprintf(buf, sizeof(buf), "%.1f MiB", bytes/(1024.0*1024.0));
    return buf;
}

} // namespace

void server_aircache_memory::init(llama_context * ctx) {
    const auto & limits = common_aircache_get_limits();
    {
        const std::lock_guard<std::mutex> lock(mutex);
        line.clear();
        used = 0;
    }
    budget = cell_bytes = 0;
    if (limits.kv_mib == 0 && limits.kv_cells == 0) {
        return;
    }
    auto stats = llama_aircache_stats_empty();
    if (llama_aircache_stats(ctx, 0, &stats) != LLAMA_AIRCACHE_OK) {
        throw std::invalid_argument(std::string("aircache_kv_memory cannot be set for this model: ") + llama_aircache_error());
    }
    cell_bytes = stats.kv_bytes_cell;
    budget     = limits.kv_cells > 0 ? limits.kv_cells*cell_bytes : (int64_t) (limits.kv_mib*1024*1024);
    LOG_INF("KV memory: %s, %lld cells, for all slots together\n", mib(budget).c_str(), (long long) (budget/cell_bytes));
}

bool server_aircache_memory::bounded() {
    return budget > 0;
}

bool server_aircache_memory::fits_alone(size_t n_cells) {
    return !bounded() || of_cells(n_cells) <= budget;
}

int32_t server_aircache_memory::step(int32_t n_predict) {
    return n_predict < 0 ? STEP : std::clamp(n_predict, 1, STEP);
}

int64_t server_aircache_memory::of_cells(int64_t n) {
    return n*cell_bytes;
}

int64_t server_aircache_memory::held(const server_tokens & tokens) {
    return tokens.aircache.compressed() && tokens.size() >= tokens.aircache.cells.n_tokens ?
        tokens.aircache.cells.kv_bytes_now(tokens.size()) : of_cells(tokens.size());
}

int64_t server_aircache_memory::at_prompt_end(const server_tokens & tokens, const server_tokens & prompt, bool cache_prompt) {
    if (!cache_prompt || server_aircache_archived(prompt) > 0) {
        return of_cells(prompt.size());
    }
    const int64_t n = tokens.get_common_prefix(prompt);
    if (tokens.aircache.compressed() && n > 0) { // all of the compressed part is used, else none
        return tokens.aircache.cells.kv_bytes_now(n) + of_cells((int64_t) prompt.size() - n);
    }
    return of_cells(prompt.size());
}

int64_t server_aircache_memory::when_compressed(const server_tokens & prompt, const common_params_aircache & wanted) {
    int64_t n = prompt.size();
    if (wanted.active()) {
        int64_t n_visual = 0;
        for (const auto & chunk : server_aircache_chunks(prompt)) {
            n_visual += chunk.end() - chunk.idx;
        }
        n -= (int64_t) ((1.0 - wanted.resolve().keep)*n_visual);
    }
    return of_cells(n);
}

//
// decisions
//

server_aircache_verdict server_aircache_memory::judge(std::vector<server_aircache_share> shares, int id, int64_t n_bytes, bool is_answer) {
    const auto own = std::find_if(shares.begin(), shares.end(), [&](const auto & share) { return share.id == id; });
    server_aircache_share now; // what slot id holds as long as nothing is granted
    if (own != shares.end()) {
        now = *own;
        shares.erase(own);
    }
    std::sort(shares.begin(), shares.end(), [](const auto & a, const auto & b) { return a.t_last_used < b.t_last_used; });

    int64_t busy = 0, idle = 0;
    bool any_prompt = false, any_waits = false;
    for (const auto & share : shares) {
        (share.busy ? busy : idle) += share.n_bytes;
        any_prompt |= share.in_prompt;
        any_waits  |= share.waits;
    }

    server_aircache_verdict res;
    const bool fits = busy + n_bytes <= budget;
    if (is_answer) {
        res.what = fits ? res.FITS : any_prompt ? res.WAITS : res.NEVER;
    } else if (n_bytes > budget) {
        res.what = res.NEVER;
        res.why  = "the prompt does not fit the KV memory of this server: it needs " + mib(n_bytes) + " until its images are compressed, "
            "and all slots together have " + mib(budget) + " (--aircache-kv-memory)";
    } else if (any_waits) {
        res.what = res.WAITS;
        res.why  = "answers wait for KV memory to go on";
    } else if (!fits) {
        res.what = res.WAITS;
        res.why  = "needs " + mib(n_bytes) + " of KV memory until its images are compressed, and running requests leave " +
            mib(std::max<int64_t>(0, budget - busy)) + " of " + mib(budget);
    }
    // what waits takes nothing yet, but idle conversations must fit beside the running ones; its own goes last
    const bool    granted = res.what == res.FITS;
    const int64_t wanted  = granted ? n_bytes : now.busy ? now.n_bytes : 0;
    if (!granted && !now.busy) {
        idle += now.n_bytes;
        shares.push_back(now);
    }
    for (const auto & share : shares) {
        if (busy + wanted + idle <= budget) {
            break;
        }
        if (!share.busy && share.n_bytes > 0) {
            idle -= share.n_bytes;
            res.drop.push_back(share.id);
        }
    }
    return res;
}

bool server_aircache_memory::is_first(int id_task, const std::vector<bool> & busy) {
    const std::lock_guard<std::mutex> lock(mutex);
    const auto first = std::find_if(line.begin(), line.end(), [&](const auto & task) {
        return task.second.id_slot == -1 || !busy[task.second.id_slot];
    });
    return first == line.end() || id_task <= first->first;
}

void server_aircache_memory::wait(int id_task, int id_slot, int32_t n_tokens, int64_t n_bytes, const std::string & why) {
    const std::lock_guard<std::mutex> lock(mutex);
    line[id_task] = { id_slot, n_tokens, n_bytes, why };
}

void server_aircache_memory::leave(int id_task) {
    const std::lock_guard<std::mutex> lock(mutex);
    line.erase(id_task);
}

bool server_aircache_memory::any_waits() {
    const std::lock_guard<std::mutex> lock(mutex);
    return !line.empty();
}

//
// what is shown
//

void server_aircache_memory::count_dropped(size_t n) {
    const std::lock_guard<std::mutex> lock(mutex);
    n_dropped += n;
}

void server_aircache_memory::note_used(const std::vector<server_aircache_share> & shares) {
    const std::lock_guard<std::mutex> lock(mutex);
    used = 0;
    for (const auto & share : shares) {
        used += share.n_bytes;
    }
}

common_json server_aircache_memory::shown(const server_aircache_share & share, int64_t n_used) {
    common_json res = {
        {"kv_bytes",        share.n_bytes},
        {"kv_bytes_used",   n_used},
        {"kv_bytes_budget", budget},
    };
    if (share.waits) {
        res["waits"] = "its answer waits for KV memory until another request's prompt is compressed";
    }
    res["waiting"] = common_json::array();
    const std::lock_guard<std::mutex> lock(mutex);
    for (const auto & [id, task] : line) {
        res["waiting"].push_back(common_json {
            {"id_task",         id},
            {"n_prompt_tokens", task.n_tokens},
            {"kv_bytes",        task.n_bytes},
            {"reason",          task.why},
        });
    }
    return res;
}

void server_aircache_memory::write_metrics(std::ostream & out) {
    if (!bounded()) {
        return;
    }
    const std::lock_guard<std::mutex> lock(mutex);
    server_aircache_write_metric(out, "gauge",   "kv_bytes_budget",             "KV memory of all slots (--aircache-kv-memory)", budget);
    server_aircache_write_metric(out, "gauge",   "kv_bytes_used",               "Of these, bytes that slots hold or have claimed", used);
    server_aircache_write_metric(out, "gauge",   "requests_waiting",            "Requests that wait for KV memory or slots", line.size());
    server_aircache_write_metric(out, "counter", "conversations_dropped_total", "Idle conversations that made room for requests", n_dropped);
}
