// Is a projector file what its metadata says? llama.cpp answers most faults of such a file with an assertion, which ends
// the process, when it loads the file or at the first picture. patches/0006 asks here before anything is allocated.
#pragma once

#include "clip-model.h"
#include "gguf.h"

#include <string>

// throws std::runtime_error unless the value has this type
void aircache_check_type(const gguf_context * gguf, int64_t key, gguf_type type);

// Throws std::runtime_error with the fault found. All files: numbers within reason, every tensor lies within the file.
// Of the families in docs/models.md (qwen2vl_merger, qwen2.5vl_merger, qwen3vl_merger, internvl, mlp, llava_onevision) also:
// every tensor is there, in the shape that the numbers ask for and of a type that can be computed with.
// tensors: of the file, without data. type: of the vision tower; the other towers are not checked (is_vision).
void aircache_check_projector(bool is_vision, const std::string & path, const gguf_context * gguf, ggml_context * tensors, projector_type type);
