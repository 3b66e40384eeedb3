#include "archive.h"

#include "engine.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#if defined(__unix__) || defined(__APPLE__)
#    include <unistd.h>
#endif

pac_archive::pac_archive(const pac_engine_params & params) :
        mode(params.archive), path(params.archive_path ? params.archive_path : ""), cells(nullptr, llama_aircache_archive_free) {}

size_t pac_archive::covers(const pac_prompt_layout & layout) const {
    if (!cells || layout.tokens.size() <= tokens.size() || !std::equal(tokens.begin(), tokens.end(), layout.tokens.begin())) {
        return 0;
    }
    size_t n_tokens = 0;
    size_t n_media  = 0;
    for (size_t i = 0; i < layout.chunks.size() && n_tokens < tokens.size(); ++i) {
        const auto & c = layout.chunks[i];
        n_tokens += c.n_tokens;
        if (c.media && (n_media >= media.size() || c.key.empty() || media[n_media++] != c.key)) {
            return 0;
        }
        if (n_tokens == tokens.size()) {
            return c.media && n_media == media.size() ? i + 1 : 0;
        }
    }
    return 0;
}

bool pac_archive::restore(const pac_engine & engine) {
    const int64_t t_start = llama_time_us();
    const int32_t status  = llama_aircache_archive_restore(engine.ctx, engine.seq, cells.get());
    ms_restore = (llama_time_us() - t_start)/1000.0;

    if (status == LLAMA_AIRCACHE_OK) {
        n_restored = tokens.size();
        return true;
    }
    const std::string message = llama_aircache_error();
    if (status != LLAMA_AIRCACHE_STATE) { // another method may find all that it needs
        forget();
    }
    why = message;
    return false;
}

void pac_archive::begin() {
    n_restored = 0;
    ms_make    = 0;
    ms_restore = 0;
    why.clear();
}

void pac_archive::forget() {
    cells.reset();
    kind = PAC_ARCHIVE_NONE;
    pos  = 0;
    tokens.clear();
    media.clear();
    begin();
}

//
// what fits
//

static int64_t read_number(const char * path, const char * key) {
    FILE * f = fopen(path, "r");
    if (!f) {
        return -1;
    }
    char    line[256];
    int64_t res = -1;
    const size_t n = strlen(key);
    while (res < 0 && fgets(line, sizeof(line), f)) {
        if (strncmp(line, key, n) == 0 && line[n] >= ' ') {
            char * end;
            const long long value = strtoll(line + n, &end, 10);
            res = end == line + n ? -1 : value; // "max" is no number
        }
    }
    fclose(f);
    return res;
}

// bytes of RAM that are free for us; -1: not known
static int64_t free_ram() {
    int64_t res = -1;
#if defined(__linux__)
    const int64_t kib = read_number("/proc/meminfo", "MemAvailable:");
    res = kib < 0 ? -1 : kib*1024;

    // of a container
    const int64_t limit = read_number("/sys/fs/cgroup/memory.max", "");
    const int64_t used  = read_number("/sys/fs/cgroup/memory.current", "");
    if (limit >= 0 && used >= 0) {
        const int64_t cache = std::max<int64_t>(0, read_number("/sys/fs/cgroup/memory.stat", "inactive_file")); // given back when needed
        const int64_t left  = std::max<int64_t>(0, limit - used + cache);
        res = res < 0 ? left : std::min(res, left);
    }
#endif
#if defined(_SC_AVPHYS_PAGES) && defined(_SC_PAGESIZE)
    if (res < 0) {
        res = (int64_t) sysconf(_SC_AVPHYS_PAGES)*sysconf(_SC_PAGESIZE);
    }
#endif
    return res;
}

// twice as much must be free
static bool fits(int64_t bytes, int64_t free) {
    return free < 0 || bytes <= free/2;
}

// where an archive of so many bytes goes
int32_t pac_archive::pick(const pac_engine & engine, int64_t bytes) {
    if (mode != PAC_ARCHIVE_AUTO) {
        return mode;
    }

    int64_t device = -1;
    pac_check(llama_aircache_device_free(engine.ctx, &device));
    if (device >= 0 && fits(bytes, device)) {
        return PAC_ARCHIVE_DEVICE;
    }
    const int64_t ram = free_ram();
    if (fits(bytes, ram)) {
        return PAC_ARCHIVE_RAM;
    }
    why = pac_format("an archive takes %lld MB, and only %lld MB of memory are free: at least twice as much must be", (long long) bytes/1000000,
            (long long) ram/1000000);
    return PAC_ARCHIVE_NONE;
}

//
// making one
//

int32_t pac_archive::make_in(const pac_engine & engine, int32_t where) {
    llama_aircache_archive * res = nullptr;
    const int32_t status = where == PAC_ARCHIVE_DEVICE ? llama_aircache_archive_make_on_device(engine.ctx, engine.seq, engine.n_pos, &res) :
        llama_aircache_archive_make(engine.ctx, engine.seq, engine.n_pos, where == PAC_ARCHIVE_FILE ? path.c_str() : nullptr, &res);
    cells.reset(res);
    return status;
}

void pac_archive::make(const pac_engine & engine, const pac_prompt_layout & layout, size_t n_chunks) {
    cells.reset(); // first: there is no room for two
    kind = PAC_ARCHIVE_NONE;
    pos  = 0;
    tokens.clear();
    media.clear();

    const int64_t t_start = llama_time_us();

    auto stats = llama_aircache_stats_empty();
    pac_check(llama_aircache_stats(engine.ctx, engine.seq, &stats));

    std::vector<int32_t>     new_tokens;
    std::vector<std::string> new_media;
    for (size_t i = 0; i < n_chunks; ++i) {
        const auto & c = layout.chunks[i];
        if (c.media) {
            new_media.push_back(c.key);
        }
        new_tokens.insert(new_tokens.end(), layout.tokens.begin() + new_tokens.size(), layout.tokens.begin() + new_tokens.size() + c.n_tokens);
    }

    int32_t where  = pick(engine, stats.kv_bytes_cell*engine.n_cells);
    int32_t status = where == PAC_ARCHIVE_NONE ? LLAMA_AIRCACHE_OK : make_in(engine, where);
    if (mode == PAC_ARCHIVE_AUTO && where == PAC_ARCHIVE_DEVICE && status != LLAMA_AIRCACHE_OK) {
        status = make_in(engine, where = PAC_ARCHIVE_RAM);
    }
    if (status != LLAMA_AIRCACHE_OK && mode == PAC_ARCHIVE_AUTO) {
        why = llama_aircache_error();
        return;
    }
    pac_check(status);
    if (cells) {
        kind   = where;
        pos    = engine.n_pos;
        tokens = std::move(new_tokens);
        media  = std::move(new_media);
    }
    ms_make = (llama_time_us() - t_start)/1000.0;
}

pac_archive_info pac_archive::info() const {
    pac_archive_info res = {};
    res.size       = sizeof(res);
    res.kind       = kind;
    res.bytes      = llama_aircache_archive_bytes(cells.get());
    res.n_tokens   = tokens.size();
    res.n_restored = n_restored;
    res.ms_make    = ms_make;
    res.ms_restore = ms_restore;
    res.why        = why.c_str();
    return res;
}
