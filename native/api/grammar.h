// The words for the parts of a method: what flags, request fields, the command line and Python take (docs/methods.md).
//
//   keep, alpha, merge, uniform_share   a number in (0, 1], or [0, 1]      last_term   a number in [0, 1000000]
//   window       elite[:ALPHA][:content][:last], last[:N], text[:weighted], visual[:N], all
//   pool         none, max:N, avg:N, max:NxN, avg:NxN (on the grid); N odd
//   allocation   strength+skewness, uniform, pyramid, strength, skewness, prefix, vl
//   score        attention, random, stride          keys         window, causal
//   value_norm, diversity   on, off                 min_keep, rank, seed   a whole number
//   method       a named method: every part but keep becomes its own
#pragma once

#include "llama-aircache.h"

#include <string>
#include <vector>

namespace aircache {

// what a part's values are: JSON has numbers, true and false for all but words
enum class part_kind { number, whole, on_off, words };

struct part_info {
    std::string name;
    part_kind   kind;
    std::string hint; // one word for its values, of usage texts
    std::string help; // what it is and may be, in one line
};

// All parts, the method first, then in an order in which a set of them can be read: a part that others ask about comes
// before them. Whatever lists flags, fields or options does so by this list.
LLAMA_API const std::vector<part_info> & method_parts();

// Reads a part's text; the other parts stay. Throws std::invalid_argument with a message that begins with the part's name,
// and leaves the method as it was.
LLAMA_API void method_set(llama_aircache_method & method, const std::string & part, const std::string & text);

// The text that method_set reads back to the very same values. "method": the first name whose parts these are, "" without
// one. Throws std::invalid_argument where the part or its value does not exist.
LLAMA_API std::string method_get(const llama_aircache_method & method, const std::string & part);

// the shortest text with 6 digits or more that is the same number
LLAMA_API std::string number_text(double value);

// for messages: 80 characters of a text at most, all of them printable
LLAMA_API std::string shown(const std::string & text);

} // namespace aircache
