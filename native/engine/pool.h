// Several conversations on one context: each its own sequence and stream, and one graph for a token of each.
#pragma once

#include "context.h"
#include "engine.h"

#include <memory>
#include <vector>

struct pac_pool {
    pac_pool(std::shared_ptr<pac_model> model, const pac_engine_params & params, int32_t n_engines);

    pac_pool(const pac_pool &) = delete;
    pac_pool & operator=(const pac_pool &) = delete;

    static void check(const pac_engine_params & params, int32_t n_engines); // throws

    pac_engine * make() const; // throws when all sequences are in use

    // One token for each engine. What fails for one does not concern the others: its step says so.
    void decode(pac_step * steps, int32_t n) const;

private:
    void check_steps(pac_step * steps, int32_t n) const;
    bool decode_together(const std::vector<pac_step *> & steps) const;

    const std::shared_ptr<pac_model>   model;
    const std::shared_ptr<pac_context> context;
    const pac_engine_params params; // without its texts
};
