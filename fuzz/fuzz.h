// What the fuzz targets share: bytes that become choices, edits of a valid input, a tiny random model.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

struct llama_model;

// called by libFuzzer, or by replay.cpp
extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size);

#define REQUIRE(cond, ...) do { if (!(cond)) { fprintf(stderr, "%s:%d: %s failed: ", __FILE__, __LINE__, #cond); fprintf(stderr, __VA_ARGS__); fputc('\n', stderr); abort(); } } while (0)

// Reads choices from the input; zeros when it has ended.
struct fuzz_input {
    const uint8_t * data;
    size_t          size;

    bool     empty() const { return size == 0; }
    uint8_t  byte();
    uint32_t word();                            // 4 bytes
    int32_t  number(int32_t lo, int32_t hi);    // [lo, hi], one or two bytes
    int32_t  any_number();                      // often one that programs stumble over
    double   any_share();                       // mostly in (0, 1], sometimes not
};

// Changes bytes of a valid input where the fuzzer says: until the fuzzer's bytes end.
void fuzz_edit(std::vector<uint8_t> & bytes, fuzz_input & in);

// Two layers of 64 with random weights and a vocabulary of 259: bytes and three control tokens. sliding: Gemma 3's, six
// layers, with a window of 16 in five. Lives as long as the process; nothing is logged from now on.
llama_model * fuzz_model(bool sliding = false);
