#include "cache/archive.h"

#include "cache/failure.h"
#include "llama-hparams.h"

#include <algorithm>
#include <cinttypes>
#include <numeric>

namespace {

struct llama_aircache_run { uint32_t first; uint32_t n; };

// neighbours are taken at once
std::vector<llama_aircache_run> find_runs(const std::vector<uint32_t> & index) {
    std::vector<llama_aircache_run> res;
    for (const uint32_t i : index) {
        if (!res.empty() && res.back().first + res.back().n == i) {
            res.back().n++;
        } else {
            res.push_back({ i, 1 });
        }
    }
    return res;
}

std::vector<uint32_t> first_cells(uint32_t n) {
    std::vector<uint32_t> res(n);
    std::iota(res.begin(), res.end(), 0);
    return res;
}

} // namespace

llama_aircache_store::pieces llama_aircache_archive::rows(ggml_tensor * t, const std::vector<uint32_t> & index) {
    llama_aircache_store::pieces res;
    size_t at = 0;
    for (const auto & run : find_runs(index)) {
        const size_t size = run.n*t->nb[1];
        res.push_back({ t, run.first*t->nb[1], size, at, size, size, 1 });
        at += size;
    }
    return res;
}

// of a tensor whose channels are rows of ne[1] cells
llama_aircache_store::pieces llama_aircache_archive::columns(ggml_tensor * t, const std::vector<uint32_t> & index) {
    const size_t cell = ggml_type_size(t->type);

    llama_aircache_store::pieces res;
    size_t at = 0;
    for (const auto & run : find_runs(index)) {
        const size_t size = run.n*cell;
        res.push_back({ t, run.first*cell, t->ne[1]*cell, at, index.size()*cell, size, (size_t) t->ne[0] });
        at += size;
    }
    return res;
}

llama_aircache_store::pieces llama_aircache_archive::values(const llama_aircache & air, uint32_t ikv, uint32_t stream, const std::vector<uint32_t> & index) {
    ggml_tensor * v = air.kv.v(ikv, stream);
    return air.kv.v_trans() ? columns(v, index) : rows(v, index);
}

uint64_t llama_aircache_archive::shape_of(const llama_aircache & air) {
    uint64_t res = 1469598103934665603ull;
    const auto mix = [&](uint64_t value) { res = (res ^ value)*1099511628211ull; };
    mix((uintptr_t) &air.kv.hparams()); // of the very model: another one may have the same shape
    mix(air.kv.v_trans());
    mix(air.kv.n_layer());
    for (uint32_t l = 0; l < air.kv.n_layer(); ++l) {
        const auto * k = air.kv.k(l);
        const auto * v = air.kv.v(l);
        for (const uint64_t value : { (uint64_t) k->type, (uint64_t) k->ne[0], (uint64_t) v->type, (uint64_t) v->ne[0],
                (uint64_t) llama_aircache_observers::query_spec(air.kv, l, 1).ne0 }) {
            mix(value);
        }
    }
    return res;
}

llama_aircache_archive::llama_aircache_archive(const llama_aircache & air, llama_seq_id seq, llama_pos p1, const make_store & make) :
        p1(p1), shape(shape_of(air)) {
    const uint32_t s     = air.kv.stream(seq);
    const auto   & table = air.kv.cells(s);
    const auto   * obs   = air.observers.find(seq);

    if (air.zone_of(s, seq)) {
        throw llama_aircache_failure(LLAMA_AIRCACHE_STATE, "sequence %d is compressed already: make the archive before the eviction", seq);
    }

    std::vector<uint32_t> index;
    bool more = false; // what lies behind was decoded, too
    for (const auto & [pos, i] : table.seq_pos_get(seq)) {
        if (pos < p1) {
            index.push_back(i);
        } else {
            more = true;
        }
    }
    if (index.empty()) {
        throw llama_aircache_failure(LLAMA_AIRCACHE_STATE, "sequence %d has no cells before position %d", seq, p1);
    }
    std::sort(index.begin(), index.end());

    for (const uint32_t i : index) {
        cells.push_back({ table.pos_get(i), table.ext_get(i) });
    }

    // what was observed
    std::vector<uint32_t> query_rows;
    if (obs) {
        std::vector<llama_pos> positions;
        for (const auto & c : cells) {
            positions.push_back(c.pos);
        }
        std::sort(positions.begin(), positions.end());
        for (const llama_pos pos : positions) {
            const int32_t query = obs->text_query(pos);
            if (query >= (int32_t) obs->first_query && obs->seen[query]) {
                text.push_back(pos);
                query_rows.push_back(obs->row(query));
            }
        }
        const uint32_t n_ring = std::min(obs->n_ring, obs->n_last);
        for (uint32_t k = obs->n_ring - n_ring; k < obs->n_ring; ++k) {
            const auto at = std::lower_bound(index.begin(), index.end(), obs->last_cell[k % obs->n_last]);
            if (at != index.end() && *at == obs->last_cell[k % obs->n_last]) {
                visual.push_back(at - index.begin());
                query_rows.push_back(obs->row(obs->n_text + k % obs->n_last));
            }
        }
        sums = obs->sum() && !more;
    }

    std::vector<llama_aircache_store::section> sections;
    std::vector<llama_aircache_store::pieces>  pieces;
    for (uint32_t l = 0; l < air.kv.n_layer(); ++l) {
        pieces.push_back(rows(air.kv.k(l, s), index));
        pieces.push_back(values(air, l, s, index));
        pieces.push_back(query_rows.empty() ? llama_aircache_store::pieces() : rows(air.observers.queries(l), query_rows));
        pieces.push_back({});
        if (sums) { // F32 [n_cells]
            size_t at = 0;
            for (const auto & run : find_runs(index)) {
                const size_t size = run.n*sizeof(float);
                pieces.back().push_back({ obs->sums[l], run.first*sizeof(float), size, at, size, size, 1 });
                at += size;
            }
        }
        for (int what = 0; what < N_PARTS; ++what) {
            size_t bytes = 0;
            for (const auto & p : pieces[section(l, (part) what)]) {
                bytes += p.size*p.n;
            }
            sections.push_back({ bytes, ggml_backend_buffer_get_type(air.kv.k(l)->buffer) });
            n_bytes += bytes;
        }
    }

    store = make(sections, shape);
    for (size_t i = 0; i < sections.size(); ++i) {
        store->save(i, pieces[i]);
    }
    store->finish();
}

void llama_aircache_archive::check(const llama_aircache & air, llama_seq_id seq) const {
    const uint32_t s     = air.kv.stream(seq);
    const auto   & table = air.kv.cells(s);
    const auto   * obs   = air.observers.find(seq);

    if (shape != shape_of(air)) {
        throw llama_aircache_failure(LLAMA_AIRCACHE_ARGUMENT, "the archive belongs to another model, or to a cache of another type");
    }
    if (cells.size() > air.kv.n_cells()) {
        throw llama_aircache_failure(LLAMA_AIRCACHE_ARGUMENT, "the archive has %zu cells, and the sequence's stream %u", cells.size(), air.kv.n_cells());
    }
    for (uint32_t i = 0; i < table.used_max_p1(); ++i) {
        if (!table.is_empty(i) && (!table.seq_has(i, seq) || table.seq_count(i) != 1)) {
            throw llama_aircache_failure(LLAMA_AIRCACHE_UNSUPPORTED,
                    "several sequences share this cache stream: use one stream per sequence (kv_unified = false)");
        }
    }
    store->check();
    if (!obs) {
        return;
    }

    const char * lacks = nullptr;

    uint32_t n_visual = 0;
    for (const auto & c : cells) {
        const int32_t query = obs->text_query(c.pos);
        n_visual += obs->is_visual(c.pos);
        if (query >= (int32_t) obs->first_query && !std::binary_search(text.begin(), text.end(), c.pos)) {
            lacks = "all text between the images";
        }
    }
    if (visual.size() < std::min(obs->n_last, n_visual)) {
        lacks = "as many visual tokens";
    }
    if (obs->sum() && !sums) {
        lacks = "the attention of all tokens";
    }
    if (lacks) {
        throw llama_aircache_failure(LLAMA_AIRCACHE_STATE, "the archive does not hold what this method observes: when it was made, "
                "%s had not been observed; evaluate the prompt again", lacks);
    }
}

void llama_aircache_archive::restore(llama_aircache & air, llama_seq_id seq) const {
    const uint32_t s     = air.kv.stream(seq);
    const auto     index = first_cells(cells.size());

    auto * obs = air.observers.find(seq);

    llama_kv_cells table;
    table.resize(air.kv.n_rows());
    for (const uint32_t i : index) {
        table.pos_set(i, cells[i].pos);
        table.ext_set(i, cells[i].ext);
        table.seq_add(i, seq);
    }

    // only those queries that the observer keeps
    std::vector<std::pair<uint32_t, uint32_t>> queries; // nth archived query, row
    std::vector<uint32_t> seen;
    if (obs) {
        for (size_t i = 0; i < text.size(); ++i) {
            const int32_t query = obs->text_query(text[i]);
            if (query >= (int32_t) obs->first_query) {
                queries.emplace_back(i, obs->row(query));
                seen.push_back(query);
            }
        }
        for (const auto & c : cells) {
            const int32_t query = obs->text_query(c.pos);
            if (obs->sum() && query >= 0) {
                seen.push_back(query);
            }
        }
        obs->n_ring = 0;
        for (size_t i = visual.size() - std::min<size_t>(visual.size(), obs->n_last); i < visual.size(); ++i) {
            queries.emplace_back(text.size() + i, obs->row(obs->next_query(visual[i])));
        }
    }

    for (uint32_t l = 0; l < air.kv.n_layer(); ++l) {
        store->load(section(l, K), rows(air.kv.k(l, s), index));
        store->load(section(l, V), values(air, l, s, index));

        llama_aircache_store::pieces pieces;
        for (const auto & [nth, row] : queries) {
            ggml_tensor * t = air.observers.queries(l);
            pieces.push_back({ t, row*t->nb[1], t->nb[1], nth*t->nb[1], t->nb[1], t->nb[1], 1 });
        }
        if (!pieces.empty()) {
            store->load(section(l, QUERIES), pieces);
        }
        if (obs && obs->sum()) {
            const size_t size = cells.size()*sizeof(float);
            store->load(section(l, SUMS), { { obs->sums[l], 0, size, 0, size, size, 1 } });
        }
    }

    for (const uint32_t query : seen) {
        obs->seen[query] = 1;
    }
    air.kv.set_cells(s, std::move(table), cells.size());
}
