// Where an archive's bytes lie: in host memory, on the devices of the layers, or in a file.
#pragma once

#include "ggml-backend.h"

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

// n blocks of `size` bytes: in a tensor from `offset` on with a stride, in a section likewise
struct llama_aircache_piece {
    ggml_tensor * t;
    size_t offset;
    size_t stride;
    size_t at; // in the section
    size_t at_stride;
    size_t size;
    size_t n;
};

class llama_aircache_store {
public:
    using pieces = std::vector<llama_aircache_piece>;

    // buft: of the device that the section's tensors lie on
    struct section { size_t bytes; ggml_backend_buffer_type_t buft; };

    virtual ~llama_aircache_store() = default;

    // Both throw: std::bad_alloc, or a llama_aircache_failure.
    virtual void save(size_t section, const pieces & from)     = 0; // each section once, in order
    virtual void load(size_t section, const pieces & to) const = 0;

    // after the last save
    virtual void finish() {}

    // before the first load: throws when what was saved is not there any more
    virtual void check() const {}

    static std::unique_ptr<llama_aircache_store> in_memory (const std::vector<section> & sections);
    static std::unique_ptr<llama_aircache_store> on_devices(const std::vector<section> & sections);

    // A file of this one archive, which goes with it. shape: of model and cache, for the file's head.
    static std::unique_ptr<llama_aircache_store> in_file(const std::string & path, const std::vector<section> & sections, uint64_t shape);

protected:
    // between a tensor and a section on the host
    static void get(const llama_aircache_piece & p, uint8_t * section);
    static void set(const llama_aircache_piece & p, const uint8_t * section);
};
