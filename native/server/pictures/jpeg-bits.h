// The entropy-coded data of a JPEG file: codes and bits.
#pragma once

#include "impl.h"

namespace aircache_pictures {

inline constexpr char JPEG[] = "JPEG";

struct huffman {
    bool    set = false;
    int32_t end[18];   // first code of this length that is none any more, by length
    int32_t shift[18]; // from a code to its place in values
    uint8_t values[256];
    struct { uint8_t length, value; } fast[256]; // by the next 8 bits; length 0: the code is longer
};

struct component {
    int id, h, v, tq;
    int64_t n_across, n_down; // blocks that hold pixels
    int64_t stride;           // blocks of a row, with those that fill up the last MCU
    std::vector<uint64_t> nonzero; // progressive: a bit for each coefficient of each block
    const huffman * dc;
    const huffman * ac;
    bool seen = false;
    int8_t unknown[64]; // lowest bits of each coefficient that are still to come, 0: it is whole; -1: all of it
};

class bits {
public:
    bits(std::string_view data, size_t pos) : pos(pos), data(data) {}

    size_t pos;

    int one() {
        need(1);
        return held >> --n & 1;
    }

    uint32_t get(int count) { // up to 16
        if (count == 0) {
            return 0;
        }
        need(count);
        n -= count;
        return held >> n & ((1u << count) - 1);
    }

    int code(const huffman & table) {
        fill(8);
        if (n >= 8) {
            const auto & f = table.fast[held >> (n - 8) & 255];
            if (f.length) {
                n -= f.length;
                return f.value;
            }
        }
        int32_t code = 0;
        for (int length = 1; length <= 16; ++length) {
            code = code << 1 | one();
            if (code < table.end[length]) {
                return table.values[(code + table.shift[length]) & 255];
            }
        }
        refuse(JPEG, "is damaged: a code is unknown");
    }

    // the next restart marker, which must be the nth
    void restart(int nth) {
        n = 0;
        if (pos + 2 > data.size() || (uint8_t) data[pos] != 0xff || (uint8_t) data[pos + 1] != 0xd0 + (nth & 7)) {
            refuse(JPEG, "is damaged: a restart marker is missing");
        }
        pos += 2;
    }

private:
    void fill(int count) {
        while (n < count && pos < data.size()) {
            const uint8_t b = data[pos];
            if (b == 0xff) {
                if (pos + 1 >= data.size() || data[pos + 1] != 0) {
                    return; // a marker
                }
                ++pos;
            }
            ++pos;
            held = held << 8 | b;
            n += 8;
        }
    }

    void need(int count) {
        fill(count);
        if (n < count) {
            refuse(JPEG, "is cut or damaged: parts of its pixels are missing");
        }
    }

    std::string_view data;
    uint64_t held = 0;
    int      n    = 0;
};

} // namespace aircache_pictures
