// Decodes picture files as the server does. Reads from standard input: a length in 4 bytes (little-endian), a file, and
// so on; writes for each: 'P', nx, ny and the pixels, or 'E', a length and the message. One process for thousands of files.
#include "pictures/picture.h"

#include <cstdio>
#include <stdexcept>
#include <vector>

static void write(const void * data, size_t size) {
    fwrite(data, 1, size, stdout);
}

int main() {
    uint32_t n;
    while (fread(&n, 4, 1, stdin) == 1) {
        // exactly as large as the file: sanitizers see every byte that is read behind it
        std::vector<char> file(n);
        if (fread(file.data(), 1, n, stdin) != n) {
            return 1;
        }
        try {
            const auto p = aircache_picture_decode({ file.data(), n });
            fputc('P', stdout);
            write(&p.nx, 4);
            write(&p.ny, 4);
            write(p.rgb.data(), p.rgb.size());
        } catch (const std::invalid_argument & e) {
            const std::string what = e.what();
            const uint32_t size = what.size();
            fputc('E', stdout);
            write(&size, 4);
            write(what.data(), size);
        }
        fflush(stdout);
    }
    return 0;
}
