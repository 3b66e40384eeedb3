// A projector file as the checks of projector-check.cpp read it: numbers within limits, tensors of a shape and a type that
// can be computed with. Each of these throws std::runtime_error, naming the key or tensor, where the file is otherwise.
#pragma once

#include "clip-impl.h"
#include "ggml.h"
#include "gguf.h"

#include <cstdint>
#include <initializer_list>
#include <set>
#include <string>

struct aircache_projector_file {
    enum tensor_kind {
        MATRIX, // for products and for taking rows
        KERNEL, // of the convolution
        VECTOR, // added to or multiplied with activations
    };

    const gguf_context * gguf;
    ggml_context       * tensors; // without data

    std::set<std::string> known; // tensors that were asked for

    [[noreturn]] static void fail(const std::string & what);

    //
    // metadata
    //

    // of this type; -1 when it is not there and need not be
    int64_t find(const std::string & key, gguf_type type, bool required) const;

    // in [lo, hi]; `otherwise` when it is not there, which is an error below 0
    int64_t number(const std::string & key, int64_t lo, int64_t hi, int64_t otherwise = -1) const;

    // elements of an array, null when it is not there
    template <typename T>
    const T * array(const std::string & key, gguf_type type, size_t & n) const {
        return (const T *) elements(key, type, n);
    }

    //
    // tensors
    //

    const ggml_tensor * find_tensor(const std::string & name) const;

    // of the type that its use asks for; null when it is not there and need not be
    const ggml_tensor * typed(tensor_kind kind, const std::string & name, bool required);

    // and of this shape, in the order of ggml: fastest first
    bool tensor(tensor_kind kind, const std::string & name, std::initializer_list<int64_t> want, bool required = true);

    void norm(const std::string & name, int64_t n, bool required = false);

    // a matrix whose width of output is not known from the metadata: returns it
    int64_t linear(const std::string & name, int64_t n_in, bool bias_required);
    void    linear(const std::string & name, int64_t n_in, int64_t n_out, bool bias_required);

    void absent(const std::string & name) const;

private:
    const void * elements(const std::string & key, gguf_type type, size_t & n) const;
};

// every tensor lies within the file
void aircache_check_extent(const std::string & path, const gguf_context * gguf);
