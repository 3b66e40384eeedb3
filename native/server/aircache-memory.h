// The KV memory of all slots, counted in cells that are in use: --aircache-kv-memory. Without it nothing here does anything.
//
// Each slot has addresses for a whole prompt (-c, -np), but memory is taken as cells are written and given back as they are
// evicted (docs/memory.md), so that many compressed conversations live in the memory of few whole ones. What bounds it:
//
//   admit  A request starts when its whole prompt and the first step of its answer fit beside what the others hold. Idle
//          conversations make room, oldest first; they are saved in the host's prompt cache. Else it waits. Requests wait in
//          one line: who came first is asked first, and nobody starts before it, so that a large one gets its turn. Who
//          needs slots that are busy, for several answers (n) several, waits there, too; who names a busy one is passed over.
//   grow   An answer takes its memory in steps. Where the next one does not fit it waits for a prompt that is being
//          processed, since that is about to be compressed; where none is, it ends as at the end of the context. So what
//          waits always waits for something that goes on by itself.
//
// server-context.cpp alone knows what a slot is, therefore the templates. They run in its main loop, but for shown(), which
// may run while that decodes and so changes nothing.
#pragma once

#include "aircache-params.h"

#include "json.h"

#include <algorithm>
#include <cstdint>
#include <ostream>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

struct llama_context;
struct server_tokens;

// what a slot holds, or will hold at most until its request asks for more
struct server_aircache_share {
    int     id        = -1;
    bool    busy      = false;
    bool    in_prompt = false; // its prompt is not decoded yet
    bool    waits     = false; // its answer
    int64_t t_last_used = -1;
    int64_t n_bytes   = 0;
};

// What is decided on a request, or on an answer that grows.
struct server_aircache_verdict {
    enum { FITS, WAITS, NEVER } what = FITS;
    std::vector<int> drop; // slots whose idle conversations have to go, in this order
    std::string      why;
};

// aircache-memory.cpp
namespace server_aircache_memory {

// is there a bound? Throws std::invalid_argument when this cache cannot be counted.
void init(llama_context * ctx);
bool bounded();

bool fits_alone(size_t n_cells); // could they be held if nothing else were?

// cells that an answer takes at a time; n_predict: what is left of it, -1: no limit
int32_t step(int32_t n_predict);

// bytes of cells: those that a slot holds
int64_t held(const server_tokens & tokens);

// of a slot that holds `tokens` when it has decoded `prompt`: at most, and after the compression
int64_t at_prompt_end(const server_tokens & tokens, const server_tokens & prompt, bool cache_prompt);
int64_t when_compressed(const server_tokens & prompt, const common_params_aircache & wanted);

int64_t of_cells(int64_t n);

// n_bytes: of a request that goes to slot id, or that an answer in it shall have in all
server_aircache_verdict judge(std::vector<server_aircache_share> shares, int id, int64_t n_bytes, bool is_answer);

// the line
bool is_first(int id_task, const std::vector<bool> & busy); // by slot: who names a busy one is passed over; true also when nobody waits
void wait  (int id_task, int id_slot, int32_t n_tokens, int64_t n_bytes, const std::string & why); // id_slot: that it names, or -1
void leave (int id_task);
bool any_waits();

void count_dropped(size_t n);
void note_used(const std::vector<server_aircache_share> & shares); // for /metrics

common_json shown(const server_aircache_share & share, int64_t n_used); // of /slots
void write_metrics(std::ostream & out);

} // namespace server_aircache_memory

template <class Slot>
server_aircache_share server_aircache_share_of(const Slot & slot) {
    namespace memory = server_aircache_memory;
    using state = std::decay_t<decltype(slot.state)>;

    server_aircache_share res;
    res.id          = slot.id;
    res.busy        = slot.is_processing();
    res.t_last_used = slot.t_last_used;
    if (!res.busy) {
        res.n_bytes = memory::held(slot.prompt.tokens);
        return res;
    }
    const auto & task = *slot.task;
    const int32_t n_answer = task.need_sampling() ? std::max(slot.aircache.n_granted, memory::step(slot.n_predict_max)) : 0;

    res.in_prompt = slot.state != state::SLOT_STATE_GENERATING;
    res.waits     = slot.aircache.waits;
    switch (slot.state) {
        case state::SLOT_STATE_GENERATING: // what is sampled stands in the tokens when it is decoded
            res.n_bytes = memory::held(slot.prompt.tokens) + memory::of_cells(std::max<int64_t>(0, n_answer - (int64_t) slot.stats.n_gen));
            break;
        case state::SLOT_STATE_WAIT_OTHER:
            res.n_bytes = memory::when_compressed(task.tokens, task.params.aircache) + memory::of_cells(n_answer);
            break;
        case state::SLOT_STATE_STARTED:
            res.n_bytes = memory::at_prompt_end(slot.prompt.tokens, task.tokens, task.params.cache_prompt) + memory::of_cells(n_answer);
            break;
        default:
            res.n_bytes = memory::held(slot.prompt.tokens) +
                memory::of_cells(std::max<int64_t>(0, (int64_t) task.tokens.size() - (int64_t) slot.prompt.tokens.size()) + n_answer);
    }
    return res;
}

template <class Slots>
std::vector<server_aircache_share> server_aircache_shares(const Slots & slots) {
    std::vector<server_aircache_share> res;
    for (const auto & slot : slots) {
        res.push_back(server_aircache_share_of(slot));
    }
    server_aircache_memory::note_used(res);
    return res;
}

// drop(slot) saves what an idle slot holds and empties it
template <class Slots, class Drop>
void server_aircache_drop(Slots & slots, const std::vector<int> & ids, Drop drop) {
    for (const int id : ids) {
        for (auto & slot : slots) {
            if (slot.id == id) {
                drop(slot);
            }
        }
    }
    server_aircache_memory::count_dropped(ids.size());
}

// Those that wait are asked again, the first of them first: call when memory may have become free. The queue hands out its
// deferred tasks one by one; is_first() keeps their order.
template <class Queue>
void server_aircache_wake(Queue & queue) {
    if (!server_aircache_memory::any_waits()) {
        return;
    }
    for (size_t n = queue.queue_tasks_deferred_size(); n > 0; --n) {
        queue.pop_deferred_task(-2); // no slot's
    }
}

// The slot that the request names, or -1. llama.cpp wraps the number.
template <class Slots, class Task>
int server_aircache_named_slot(const Slots & slots, const Task & task) {
    return task.id_slot == -1 ? -1 : (int) ((size_t) task.id_slot % slots.size());
}

// Before a slot is chosen, so that nothing is dropped and nobody woken for what cannot start. false: others came first, or
// slots that it needs are busy, and so it waits now. Who starts and who ends wakes the others: they are asked again whenever
// a slot gets busy or free.
template <class Slots, class Task, class Queue>
bool server_aircache_in_turn(const Slots & slots, Task & task, Queue & queue) {
    namespace memory = server_aircache_memory;
    if (!memory::bounded()) {
        return true;
    }
    std::vector<bool> busy;
    for (const auto & slot : slots) {
        busy.push_back(slot.is_processing());
    }
    const size_t n_free   = std::count(busy.begin(), busy.end(), false);
    const size_t n_needed = 1 + task.child_tasks.size();
    const int    id_slot  = server_aircache_named_slot(slots, task);
    std::string why;
    if (id_slot != -1 && busy[id_slot]) {
        why = "the slot that it names is busy: " + std::to_string(id_slot);
    } else if (!memory::is_first(task.id, busy)) {
        why = "other requests that came before it wait for KV memory or slots";
    } else if (n_free < n_needed) {
        why = "needs " + std::to_string(n_needed) + " free slots, and there are " + std::to_string(n_free);
    } else {
        return true;
    }
    memory::wait(task.id, id_slot, task.n_tokens(), 0, why);
    queue.defer(std::move(task));
    return false;
}

// May the task go to the slot? false: it waits, or refuse(why) has told its client.
template <class Slots, class Slot, class Task, class Queue, class Drop, class Refuse>
bool server_aircache_admit(Slots & slots, const Slot & slot, Task & task, Queue & queue, Drop drop, Refuse refuse) {
    namespace memory = server_aircache_memory;
    if (!memory::bounded()) {
        return true;
    }
    const int32_t n_answer = task.need_sampling() ? memory::step(task.params.n_predict) : 0;
    int64_t n_bytes = memory::at_prompt_end(slot.prompt.tokens, task.tokens, task.params.cache_prompt) + memory::of_cells(n_answer);
    for (const auto & child : task.child_tasks) { // once the prompt is there and compressed
        n_bytes += memory::when_compressed(child.tokens, child.params.aircache) + memory::of_cells(n_answer);
    }
    const auto verdict = memory::judge(server_aircache_shares(slots), slot.id, n_bytes, false);

    server_aircache_drop(slots, verdict.drop, drop);
    if (verdict.what == verdict.WAITS) {
        memory::wait(task.id, server_aircache_named_slot(slots, task), task.n_tokens(), n_bytes, verdict.why);
        queue.defer(std::move(task));
        return false;
    }
    if (verdict.what == verdict.NEVER) {
        refuse(verdict.why);
    }
    memory::leave(task.id);
    server_aircache_wake(queue); // the next one may fit, too
    return verdict.what == verdict.FITS;
}

// Before an answer's next token is decoded. false: not now, it waits. Where nothing that could make room goes on, the answer
// ends behind that token.
template <class Slots, class Slot, class Queue, class Drop>
bool server_aircache_grow(Slots & slots, Slot & slot, Queue & queue, Drop drop) {
    namespace memory = server_aircache_memory;
    const int32_t n_gen = slot.stats.n_gen;
    if (!memory::bounded() || n_gen < std::max(slot.aircache.n_granted, memory::step(slot.n_predict_max))) {
        return true;
    }
    const int32_t n_more = memory::step(slot.n_remaining());

    const auto verdict = memory::judge(server_aircache_shares(slots), slot.id, memory::held(slot.prompt.tokens) + memory::of_cells(n_more), true);
    server_aircache_drop(slots, verdict.drop, drop);
    const bool waited = std::exchange(slot.aircache.waits, verdict.what == verdict.WAITS);
    if (waited && !slot.aircache.waits) {
        server_aircache_wake(queue); // requests wait as long as an answer does
    }
    if (verdict.what == verdict.FITS) {
        slot.aircache.n_granted = n_gen + n_more;
    } else if (verdict.what == verdict.NEVER) {
        slot.n_predict_max = n_gen + 1;
        slot.truncated     = true;
    }
    return !slot.aircache.waits;
}

// What was restored from a file counts like any other idle conversation. Throws std::runtime_error when it does not fit.
template <class Slots, class Slot, class Drop>
void server_aircache_settle(Slots & slots, const Slot & slot, Drop drop) {
    namespace memory = server_aircache_memory;
    if (memory::bounded()) {
        const auto verdict = memory::judge(server_aircache_shares(slots), slot.id, memory::held(slot.prompt.tokens), false);
        if (verdict.what != verdict.FITS) {
            throw std::runtime_error(verdict.why);
        }
        server_aircache_drop(slots, verdict.drop, drop);
    }
}

// Adds to each slot what it holds, and who waits for memory.
template <class Slots>
void server_aircache_show_memory(const Slots & slots, common_json & data) {
    if (!server_aircache_memory::bounded()) {
        return;
    }
    const auto shares = server_aircache_shares(slots);
    int64_t n_used = 0;
    for (const auto & share : shares) {
        n_used += share.n_bytes;
    }
    for (size_t i = 0; i < shares.size(); ++i) {
        data[i]["aircache_memory"] = server_aircache_memory::shown(shares[i], n_used);
    }
}
