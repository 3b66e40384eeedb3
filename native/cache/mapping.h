// The buffers of K and V. On the CPU (Linux) they are a mapping of our own: addresses for the whole context window, whose
// pages come with what is written and go with what is evicted (pages.h). llama.cpp's own memory is asked for at once and
// filled with zeros, so that it is all there from the beginning.
#pragma once

#include "ggml-backend.h"

// A buffer for all tensors of a context, as ggml_backend_alloc_ctx_tensors_from_buft makes it; reads as zeros after
// ggml_backend_buffer_clear(buffer, 0), which gives all pages back. Of its own kind on devices. Null: no memory.
//
// Nothing is set aside for addresses (MAP_NORESERVE), so that a window may be larger than the machine's memory, unless the
// system is told to count them anyway (vm.overcommit_memory = 2). Pages are small ones where the system would use huge
// ones by itself: a huge page is 2 MiB, which would come with a single row and stay with it.
ggml_backend_buffer_t llama_aircache_alloc(ggml_context * ctx, ggml_backend_buffer_type_t buft);

// Can pages of the tensor be given back, and do new ones come by themselves?
bool llama_aircache_is_mapped(const ggml_tensor * t);
