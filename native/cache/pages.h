// Memory that follows what is kept: cells that hold nothing give their pages back to the system.
//
// A cache on the CPU is a mapping (mapping.h) that reads as zeros until it is written: so pages that are given back are
// again what they were in the beginning. Addresses stay as they are: a later prompt writes there as before, and pays a page
// fault a page.
#pragma once

#include "ggml.h"

#include <cstddef>
#include <cstdint>

// Tensors may be null, as V of an MLA cache: there is nothing to give back then.

// Gives back the pages that lie wholly in rows [i0, i1) of one stream's K or V; transposed: V by channel, [n_cells, n_embd]
// in memory. What cannot be given back stays. Reads as zeros afterwards, or as before.
void llama_aircache_pages_release(ggml_tensor * t, bool transposed, uint32_t i0, uint32_t i1) noexcept;

// all of it
void llama_aircache_pages_release(ggml_tensor * t) noexcept;

// Bytes of the tensor's memory that are in RAM, by pages; its whole size where the system does not tell.
size_t llama_aircache_pages_resident(const ggml_tensor * t);
