// What llama-server's flags and the fields of a request say about compression: the same five names in both.
#pragma once

#include "llama-aircache.h"

#include <string>

struct common_params_aircache {
    float       keep   = 1.0f;       // kept share of the visual cells, (0, 1]; 1: nothing is done
    std::string method = "aircache"; // llama_aircache_method_by_name
    float       alpha  = 0.0f;       // threshold of an elite window, (0, 1]; 0: the method's own
    std::string window;              // elite[:ALPHA][:content][:last], last[:N], text[:weighted], visual[:N], all; "": the method's own
    std::string allocation;          // strength+skewness, uniform, ...; "": the method's own

    // anything to do? false: requests behave exactly as without compression
    bool active() const { return keep < 1.0f && method != "full"; }

    // Each checks its value and throws std::invalid_argument.
    void set_keep      (double value);
    void set_method    (const std::string & value);
    void set_alpha     (double value);
    void set_window    (const std::string & value);
    void set_allocation(const std::string & value);

    // The same by a field's name; value: the text of a flag.
    void set(const std::string & field, const std::string & value);

    // The method that all of this asks for. Throws std::invalid_argument naming the field where parts do not fit together.
    llama_aircache_method resolve() const;

    // as one reads them back: the parts of the resolved method
    std::string window_name() const;
    std::string allocation_name() const;

    bool operator==(const common_params_aircache & other) const;
};

// of a request; the method first, because it brings parts of its own that the others replace
inline constexpr const char * COMMON_AIRCACHE_FIELDS[] = {
    "aircache_keep", "aircache_method", "aircache_alpha", "aircache_window", "aircache_allocation",
};

std::string common_aircache_methods(); // known names, separated by ", "
