// What goes wrong: the message of the last failure, and llama.cpp's log, whose errors know best why a file does not load.
#include "engine.h"

#include <algorithm>
#include <condition_variable>
#include <cstdarg>
#include <cstring>
#include <memory>
#include <mutex>

// fixed sizes: to keep a message must not fail for want of memory
static thread_local char last_error[4096];
static thread_local char logged_error[1024];

// as much of the text as fits, cut between two characters
template <size_t N>
static void keep(char (&buf)[N], const char * text) {
    size_t n = strnlen(text, N);
    if (n == N) {
        n--;
        while (n > 0 && ((unsigned char) text[n] & 0xc0) == 0x80) {
            n--;
        }
    }
    memcpy(buf, text, n);
    buf[n] = 0;
}

std::string pac_format(const char * fmt, ...) {
    va_list args;
    va_start(args, fmt);
    va_list again;
    va_copy(again, args);
    const int n = vsnprintf(nullptr, 0, fmt, args);
    va_end(args);

    std::string res(std::max(n, 0) + 1, 0);
    vsnprintf(&res[0], res.size(), fmt, again);
    va_end(again);
    res.pop_back();
    return res;
}

std::string pac_shorten(std::string text, size_t n) {
    std::replace(text.begin(), text.end(), '\n', ' ');
    if (text.size() <= n) {
        return text;
    }
    while (n > 0 && ((unsigned char) text[n] & 0xc0) == 0x80) {
        n--;
    }
    return text.substr(0, n) + "...";
}

void pac_check(int32_t status) {
    switch (status) {
        case LLAMA_AIRCACHE_OK:          return;
        case LLAMA_AIRCACHE_ARGUMENT:    throw pac_error(PAC_ERR_ARGUMENT,    llama_aircache_error());
        case LLAMA_AIRCACHE_UNSUPPORTED: throw pac_error(PAC_ERR_UNSUPPORTED, llama_aircache_error());
        case LLAMA_AIRCACHE_STATE:       throw pac_error(PAC_ERR_STATE,       llama_aircache_error());
        case LLAMA_AIRCACHE_MEMORY:      throw pac_error(PAC_ERR_MEMORY,      llama_aircache_error());
        case LLAMA_AIRCACHE_FILE:        throw pac_error(PAC_ERR_FILE,        llama_aircache_error());
        default:                         throw pac_error(PAC_ERR_COMPUTE,     llama_aircache_error());
    }
}

void pac_begin() {
    logged_error[0] = 0;
}

int32_t pac_fail(int32_t status, const char * message) {
    keep(last_error, message);
    return status;
}

const char * pac_last_error(void) {
    return last_error;
}

//
// log: passed on, and the last error is kept for our own messages
//

namespace {

struct log_sink {
    pac_log_callback callback  = nullptr;
    void           * user_data = nullptr;
    int32_t          n_running = 0; // calls under way
};

} // namespace

static std::mutex                log_mutex; // of what follows; never held while a callback runs
static std::condition_variable   log_returned;
static std::shared_ptr<log_sink> log_current;
static thread_local bool         log_inside; // this thread is in a callback

static void on_log(ggml_log_level level, const char * text, void * /*user_data*/) {
    // the first says what is wrong, those behind it what fails in consequence
    if (level == GGML_LOG_LEVEL_ERROR && logged_error[0] == 0) {
        keep(logged_error, text);
        for (size_t n = strlen(logged_error); n > 0 && (logged_error[n - 1] == '\n' || logged_error[n - 1] == ' '); --n) {
            logged_error[n - 1] = 0;
        }
    }

    std::shared_ptr<log_sink> sink;
    {
        const std::lock_guard<std::mutex> lock(log_mutex);
        sink = log_current;
        if (!sink || !sink->callback) {
            return;
        }
        sink->n_running++;
    }

    const bool nested = log_inside;
    log_inside = true;
    sink->callback(level, text, sink->user_data);
    log_inside = nested;

    const std::lock_guard<std::mutex> lock(log_mutex);
    if (--sink->n_running == 0) {
        log_returned.notify_all();
    }
}

// of this thread: others may load something at the same time
std::string pac_take_logged_error() {
    std::string res = logged_error;
    logged_error[0] = 0;
    return res;
}

void pac_route_log() {
    static const bool once = [] { // not while another thread logs
        llama_log_set(on_log, nullptr);
        mtmd_helper_log_set(on_log, nullptr);
        return true;
    }();
    (void) once;
}

void pac_log_set(pac_log_callback callback, void * user_data) {
    pac_guarded([&] {
        auto sink = std::make_shared<log_sink>();
        sink->callback  = callback;
        sink->user_data = user_data;
        {
            std::unique_lock<std::mutex> lock(log_mutex);
            log_current.swap(sink);
            // from within a callback there would be no end to it
            if (sink && !log_inside) {
                log_returned.wait(lock, [&] { return sink->n_running == 0; });
            }
        }
        pac_route_log();
    });
}
