// The cells of prompts up to their last image from before the compression, least recently used out first: another question
// about the images sees all of them, and they are neither encoded nor decoded again (--aircache-archive).
#include "aircache-limits.h"
#include "aircache-memory.h"
#include "aircache-server.h"
#include "aircache-tokens.h"

#include "log.h"

#include <list>
#include <mutex>

namespace {

struct archive_free {
    void operator()(llama_aircache_archive * archive) const { llama_aircache_archive_free(archive); }
};

struct entry {
    server_tokens tokens; // what it holds
    std::unique_ptr<llama_aircache_archive, archive_free> archive;
    int64_t n_bytes;
};

bool    enabled = false;
int64_t max_bytes = 0;

// Written by the thread that decodes alone, which locks to write; others lock to read: /slots and /metrics.
std::mutex mutex;
std::list<entry> entries; // most recently used first
int64_t  n_bytes    = 0;
uint64_t n_recalled = 0;

void remove(std::list<entry>::iterator it) {
    const std::lock_guard<std::mutex> lock(mutex);
    n_bytes -= it->n_bytes;
    entries.erase(it);
}

bool begins_with(const server_tokens & prompt, const server_tokens & prefix) {
    return prefix.size() <= prompt.size() && prefix.get_common_prefix_stock(prompt) == prefix.size();
}

// the longest that the prompt begins with and goes on behind
std::list<entry>::iterator find(const server_tokens & prompt) {
    auto res = entries.end();
    if (!enabled || entries.empty() || server_aircache_images(prompt, 0).empty()) {
        return res;
    }
    for (auto it = entries.begin(); it != entries.end(); ++it) {
        if (it->tokens.size() < prompt.size() && begins_with(prompt, it->tokens) &&
                (res == entries.end() || it->tokens.size() > res->tokens.size())) {
            res = it;
        }
    }
    // the whole prompt is decoded then, also where the slot's compressed one would go on in less memory
    return server_aircache_memory::fits_alone(prompt.size() + server_aircache_memory::step(-1)) ? res : entries.end();
}

} // namespace

void server_aircache_archives_init(bool possible) {
    while (!entries.empty()) {
        remove(entries.begin());
    }
    max_bytes = (int64_t) (common_aircache_get_limits().archive_mib*1024*1024);
    enabled   = possible && max_bytes > 0;
}

size_t server_aircache_archived(const server_tokens & prompt) {
    const std::lock_guard<std::mutex> lock(mutex);
    const auto it = find(prompt);
    return it == entries.end() ? 0 : it->tokens.size();
}

void server_aircache_observer::recall(llama_context * ctx, llama_seq_id seq, const mtmd_context * mctx,
        server_tokens & held, const server_tokens & prompt) {
    const auto it = find(prompt);
    if (it == entries.end()) {
        return;
    }
    end(ctx, seq, held);
    llama_memory_seq_rm(llama_get_memory(ctx), seq, -1, -1);
    held.clear();

    observe(ctx, seq, mctx, prompt, 0);
    if (observing && llama_aircache_archive_restore(ctx, seq, it->archive.get()) == LLAMA_AIRCACHE_OK) {
        held = it->tokens.clone();
        held.aircache.n_observed = n_recalled = held.size();
        const std::lock_guard<std::mutex> lock(mutex);
        entries.splice(entries.begin(), entries, it);
        ::n_recalled++;
        return;
    }
    // another method may ask for what was not observed: then all is decoded again, and archived anew
    LOG_WRN("slot %d: its images are decoded again: %s\n", seq, observing ? llama_aircache_error() : error.c_str());
    llama_memory_seq_rm(llama_get_memory(ctx), seq, -1, -1);
    end(ctx, seq, held);
}

void server_aircache_observer::archive(llama_context * ctx, llama_seq_id seq, const server_tokens & held) {
    const auto images = server_aircache_chunks(held);
    if (!enabled || held.aircache.compressed() || images.empty() || images.back().end() == n_recalled) {
        return; // an earlier turn's images are not whole any more, or it is there already
    }
    auto prefix = held.clone();
    prefix.keep_first(images.back().end());
    prefix.aircache = {};

    auto stats = llama_aircache_stats_empty();
    if (llama_aircache_stats(ctx, seq, &stats) != LLAMA_AIRCACHE_OK) {
        return;
    }
    const int64_t expected = stats.kv_bytes_cell*prefix.size();
    if (expected > max_bytes) {
        LOG_WRN("slot %d: its images are not archived, they take %.1f MiB (--aircache-archive)\n", seq, expected/(1024.0*1024.0));
        return;
    }
    for (auto it = entries.begin(); it != entries.end(); ) { // what it replaces
        const auto cur = it++;
        if (cur->tokens.size() == prefix.size() && begins_with(prefix, cur->tokens)) {
            remove(cur);
        }
    }
    while (!entries.empty() && n_bytes + expected > max_bytes) {
        remove(std::prev(entries.end()));
    }

    llama_aircache_archive * made = nullptr;
    if (llama_aircache_archive_make(ctx, seq, prefix.pos_next(), nullptr, &made) != LLAMA_AIRCACHE_OK) {
        LOG_WRN("slot %d: its images are not archived: %s\n", seq, llama_aircache_error());
        return;
    }
    const int64_t size = llama_aircache_archive_bytes(made);
    {
        const std::lock_guard<std::mutex> lock(mutex);
        entries.push_front({ std::move(prefix), std::unique_ptr<llama_aircache_archive, archive_free>(made), size });
        n_bytes += size;
    }
    while (n_bytes > max_bytes) { // observed queries take room, too
        remove(std::prev(entries.end()));
    }
}

void server_aircache_archives_write_metrics(std::ostream & out) {
    const std::lock_guard<std::mutex> lock(mutex);
    server_aircache_write_metric(out, "gauge",   "archive_bytes",          "Bytes of images' cells from before their compression", n_bytes);
    server_aircache_write_metric(out, "counter", "prompts_recalled_total", "Prompts whose images came from there",                 n_recalled);
}
