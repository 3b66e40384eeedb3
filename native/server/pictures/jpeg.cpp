#include "jpeg-bits.h"

#include <algorithm>
#include <cstring>

namespace aircache_pictures {

// stb_image fills what is missing of a cut or damaged JPEG with grey and says nothing. So the file is looked through
// first: every code of every block must be there. No coefficient is computed; only where progressive files refine
// earlier ones is it noted which are not zero.

static constexpr int MAX_SCANS = 100; // of a progressive file; encoders make about ten

namespace {

struct scan {
    std::vector<component *> components;
    int ss, se, ah, al;
};

class walker {
public:
    explicit walker(std::string_view file) : file(file), in(JPEG, file) {}

    metadata meta;
    int64_t nx = 0;
    int64_t ny = 0;

    void walk();

private:
    std::string_view file;
    reader in;
    bool progressive = false;
    bool jfif  = false;
    int  adobe = -1; // its colour transform
    int  restart_interval = 0;
    int  n_scans = 0;
    bool quantized[4] = {};
    huffman dc[4];
    huffman ac[4];
    std::vector<component> components;
    int hmax = 1;
    int vmax = 1;
    uint32_t eob_run = 0;

    void read_frame(reader c);
    void read_huffman(reader c);
    void read_app(int marker, std::string_view data);
    void read_scan(reader c);
    void walk_scan(const scan & s);
    void walk_block(bits & b, const scan & s, component & c, uint64_t & nonzero);
};

} // namespace

void walker::walk() {
    in.take(2);
    while (true) {
        int marker = 0;
        while (marker == 0) { // some encoders leave zeros between the segments
            marker = in.u8();
        }
        if (marker != 0xff) {
            refuse(JPEG, "is damaged: a segment does not end where it should");
        }
        while (marker == 0xff) {
            marker = in.u8();
        }
        if (marker == 0x00 || marker == 0x01 || (marker >= 0xd0 && marker <= 0xd8)) {
            continue;
        }
        if (marker == 0xd9) {
            break;
        }
        const size_t n = in.be16();
        if (n < 2) {
            refuse(JPEG, "is damaged: a segment has an impossible size");
        }
        const auto data = in.take(n - 2);
        switch (marker) {
            case 0xc0: case 0xc1: case 0xc2:
                progressive = marker == 0xc2;
                read_frame(reader(JPEG, data));
                break;
            case 0xc3: case 0xc5: case 0xc6: case 0xc7: case 0xc9: case 0xca: case 0xcb: case 0xcd: case 0xce: case 0xcf:
                refuse(JPEG, "is of a kind that cannot be read (lossless, arithmetic or hierarchical), send it as baseline JPEG or PNG");
            case 0xc4:
                read_huffman(reader(JPEG, data));
                break;
            case 0xda:
                read_scan(reader(JPEG, data));
                break;
            case 0xdb:
                for (reader c(JPEG, data); c.left() > 0; ) {
                    const int pq = c.u8();
                    c.take(pq >> 4 ? 128 : 64);
                    quantized[pq & 3] = true;
                }
                break;
            case 0xdd:
                restart_interval = reader(JPEG, data).be16();
                break;
            default:
                read_app(marker, data);
        }
    }
    for (const auto & c : components) {
        if (!c.seen || !quantized[c.tq]) {
            refuse(JPEG, "is damaged: a colour is missing");
        }
        if (std::any_of(std::begin(c.unknown), std::end(c.unknown), [](int8_t n) { return n != 0; })) {
            // decoders smooth such a picture, each in its own way
            refuse(JPEG, "is cut: its details are missing");
        }
    }
    if (components.empty()) {
        refuse(JPEG, "holds no picture");
    }
}

void walker::read_app(int marker, std::string_view data) {
    const std::string_view exif("Exif\0\0", 6);
    const std::string_view xmp("http://ns.adobe.com/xap/1.0/\0", 29);
    if ((marker == 0xe0 && data.substr(0, 4) == "JFIF" && (data.size() < 14 || data[4])) ||
        (marker == 0xee && data.substr(0, 5) == "Adobe" && (data.size() < 12 || data[5]))) {
        refuse(JPEG, "is damaged: it does not say clearly which colours it has");
    }
    if (marker == 0xe0 && data.substr(0, 4) == "JFIF") {
        jfif = true;
    } else if (marker == 0xe1 && data.substr(0, exif.size()) == exif) {
        meta.exif += meta.exif.empty() ? data : data.substr(exif.size());
    } else if (marker == 0xe1 && data.substr(0, xmp.size()) == xmp) {
        meta.xmp = data.substr(xmp.size());
    } else if (marker == 0xee && data.substr(0, 5) == "Adobe") {
        adobe = (uint8_t) data[11];
    }
}

void walker::read_frame(reader c) {
    const int precision = c.u8();
    ny = c.be16();
    nx = c.be16();
    const int n = c.u8();
    if (!components.empty()) {
        refuse(JPEG, "is damaged: it holds two pictures");
    }
    if (precision != 8) {
        refuse(JPEG, "has " + std::to_string(precision) + " bits per channel, only 8 can be read");
    }
    check_size(JPEG, nx, ny);
    if (n != 1 && n != 3 && n != 4) {
        refuse(JPEG, "has " + std::to_string(n) + " channels, which are no known colours");
    }
    components.resize(n);
    std::string ids;
    for (auto & k : components) {
        std::fill(std::begin(k.unknown), std::end(k.unknown), -1);
        k.id = c.u8();
        const int hv = c.u8();
        k.h  = hv >> 4;
        k.v  = hv & 15;
        k.tq = c.u8();
        if (k.h < 1 || k.h > 4 || k.v < 1 || k.v > 4 || k.tq > 3) {
            refuse(JPEG, "is damaged: its header makes no sense");
        }
        hmax = std::max(hmax, k.h);
        vmax = std::max(vmax, k.v);
        ids += (char) k.id;
    }
    int64_t n_bits = 0; // of all blocks at least: a progressive file may say that many are flat in one code
    for (auto & k : components) {
        if (hmax % k.h || vmax % k.v) {
            refuse(JPEG, "has a rare subsampling of colours that is not read");
        }
        if (k.h < hmax && (nx*k.h + hmax - 1)/hmax == 2) { // where libjpeg does not interpolate
            refuse(JPEG, "is too narrow for subsampled colours, send PNG");
        }
        k.n_across = ((nx*k.h + hmax - 1)/hmax + 7)/8;
        k.n_down   = ((ny*k.v + vmax - 1)/vmax + 7)/8;
        k.stride   = (nx + 8*hmax - 1)/(8*hmax)*k.h;
        n_bits    += k.n_across*k.n_down*(progressive ? 1 : 2); // a code for its mean, and one for the end of the others
    }
    if (n_bits/8 > (int64_t) in.left()) {
        refuse(JPEG, "is cut: it ends before the picture does");
    }
    for (auto & k : components) {
        if (progressive) {
            k.nonzero.resize(k.stride*((ny + 8*vmax - 1)/(8*vmax))*k.v);
        }
    }
    // where decoders do not agree about the colours
    if ((n == 4 && adobe != 0 && adobe != 2) || (n == 3 && adobe > 1) || (ids == "RGB" && (jfif || adobe > 0))) {
        refuse(JPEG, "does not say which colours its channels are, send it as RGB");
    }
}

void walker::read_huffman(reader c) {
    while (c.left() > 0) {
        const int  which  = c.u8();
        const auto counts = c.take(16);
        if ((which & 15) > 3 || which >> 4 > 1) {
            refuse(JPEG, "is damaged: a table has an impossible number");
        }
        huffman & t = (which >> 4 ? ac : dc)[which & 15];
        t = {};
        t.set = true;
        int32_t code = 0;
        size_t  n    = 0;
        for (int length = 1; length <= 16; ++length, code <<= 1) {
            const uint8_t count = counts[length - 1];
            if (n + count > 256 || code + count > 1 << length) {
                refuse(JPEG, "is damaged: a table has too many codes");
            }
            t.shift[length] = (int32_t) n - code;
            for (int i = 0; i < count; ++i, ++code) {
                t.values[n] = c.u8();
                if ((which >> 4 ? t.values[n] & 15 : t.values[n]) > (which >> 4 ? 10 : 11)) { // bits of a value
                    refuse(JPEG, "is damaged: a table makes no sense");
                }
                for (int fill = 0; length <= 8 && fill < 1 << (8 - length); ++fill) {
                    t.fast[(code << (8 - length)) + fill] = { (uint8_t) length, t.values[n] };
                }
                ++n;
            }
            t.end[length] = code;
        }
    }
}

void walker::read_scan(reader c) {
    scan s;
    const int n = c.u8();
    for (int i = 0; i < n; ++i) {
        const int  id     = c.u8();
        const int  tables = c.u8();
        const auto k = std::find_if(components.begin(), components.end(), [&](const component & k) { return k.id == id; });
        if (k == components.end() || (tables & 15) > 3 || tables >> 4 > 3) {
            refuse(JPEG, "is damaged: a scan makes no sense");
        }
        k->dc = &dc[tables >> 4];
        k->ac = &ac[tables & 15];
        s.components.push_back(&*k);
    }
    s.ss = c.u8();
    s.se = c.u8();
    s.ah = c.u8();
    s.al = s.ah & 15;
    s.ah = s.ah >> 4;
    if (!progressive) {
        s.ss = 0;
        s.se = 63;
        s.ah = s.al = 0;
    }
    const bool with_dc = s.ss == 0;
    const bool with_ac = s.se > 0;
    if (n < 1 || n > 4 || s.ss > s.se || s.se > 63 || (progressive && ((with_dc && with_ac) || s.al > 13 || (s.ah && s.al != s.ah - 1))) || (!with_dc && n > 1) || ++n_scans > MAX_SCANS) {
        refuse(JPEG, "is damaged: a scan makes no sense");
    }
    for (auto * k : s.components) {
        if ((with_dc && s.ah == 0 && !k->dc->set) || (with_ac && !k->ac->set)) {
            refuse(JPEG, "is damaged: a table is missing");
        }
        k->seen |= with_dc;
        for (int i = s.ss; i <= s.se; ++i) {
            if (progressive && k->unknown[i] != (s.ah ? s.ah : -1)) {
                refuse(JPEG, "is damaged: its scans do not follow upon each other");
            }
            k->unknown[i] = s.al;
        }
    }
    walk_scan(s);
}

void walker::walk_scan(const scan & s) {
    const bool mixed = s.components.size() > 1;
    component & first = *s.components[0];
    const int64_t across = mixed ? (nx + 8*hmax - 1)/(8*hmax) : first.n_across;
    const int64_t down   = mixed ? (ny + 8*vmax - 1)/(8*vmax) : first.n_down;

    bits b(file, in.pos);
    uint64_t none = 0;
    eob_run = 0;
    for (int64_t i = 0; i < across*down; ++i) {
        if (restart_interval && i > 0 && i % restart_interval == 0) {
            b.restart(i/restart_interval - 1);
            eob_run = 0;
        }
        for (auto * k : s.components) {
            for (int j = 0; j < (mixed ? k->h*k->v : 1); ++j) {
                const int64_t x = mixed ? i % across*k->h + j % k->h : i % across;
                const int64_t y = mixed ? i / across*k->v + j / k->h : i / across;
                walk_block(b, s, *k, progressive ? k->nonzero[y*k->stride + x] : none);
            }
        }
    }
    in.pos = b.pos;
}

void walker::walk_block(bits & b, const scan & s, component & c, uint64_t & nonzero) {
    int k = s.ss;
    if (k == 0) {
        b.get(s.ah ? 1 : std::min(16, b.code(*c.dc)));
        k = 1;
    }
    if (s.se == 0) {
        return;
    }
    const auto is_set = [&](int i) { return nonzero >> i & 1; };
    const bool refine = s.ah > 0;
    while (eob_run == 0 && k <= s.se) {
        const int rs = b.code(*c.ac);
        const int size = rs & 15;
        int run = rs >> 4;
        if (size == 0 && run < 15) {
            eob_run = progressive ? (1u << run) + b.get(run) : 1;
            break;
        }
        b.get(refine ? size > 0 : size);
        if (refine) {
            for (; k <= s.se; ++k) {
                if (is_set(k)) {
                    b.one();
                } else if (run-- == 0) {
                    break;
                }
            }
        } else {
            k += run;
        }
        if (size > 0) {
            if (k > s.se) {
                refuse(JPEG, "is damaged: a block has too many values");
            }
            nonzero |= 1ull << k;
        }
        ++k;
    }
    if (eob_run > 0) {
        for (; refine && k <= s.se; ++k) {
            if (is_set(k)) {
                b.one();
            }
        }
        --eob_run;
    }
}

aircache_picture decode_jpeg(std::string_view file) {
    walker w(file);
    w.walk();
    auto res = stb_jpeg(file);
    if (res.nx != w.nx || res.ny != w.ny) {
        refuse(JPEG, "is damaged: it holds two pictures");
    }
    return turn(std::move(res), w.meta.orientation());
}

} // namespace aircache_pictures
