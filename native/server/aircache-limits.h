// Flags of llama-server that bound its memory. They are the process's, and no request sets them.
#pragma once

#include <cstdint>
#include <string>
#include <utility>

struct common_aircache_limits {
    double  kv_mib   = 0; // of KV cells in use in all slots: so many MiB,
    int64_t kv_cells = 0; // or so many cells; both 0: no bound
    double  archive_mib = 0; // of archives; 0: none are made

    // Each throws std::invalid_argument where the text is no such size: MiB, or a number of cells as in 16384cells.
    void set_kv_memory(const std::string & value);
    void set_archive(const std::string & value); // MiB alone
};

common_aircache_limits & common_aircache_get_limits();

struct common_aircache_limit_flag {
    const char * name;
    const char * env;
    const char * hint;
    std::string  help;
};

const common_aircache_limit_flag & common_aircache_kv_memory_flag();
const common_aircache_limit_flag & common_aircache_archive_flag();

// add(flag, handler) for each; P: common_params, which this header cannot know
template <class P, class Add>
void common_aircache_add_limits(Add add) {
    add(common_aircache_kv_memory_flag(), +[](P &, const std::string & value) { common_aircache_get_limits().set_kv_memory(value); });
    add(common_aircache_archive_flag(),   +[](P &, const std::string & value) { common_aircache_get_limits().set_archive(value); });
}
