// Runs a target's inputs from files, for builds without libFuzzer:   fuzz-NAME FILE...
#include "fuzz.h"

int main(int argc, char ** argv) {
    for (int i = 1; i < argc; ++i) {
        FILE * file = fopen(argv[i], "rb");
        REQUIRE(file, "cannot open %s", argv[i]);
        std::vector<uint8_t> bytes;
        uint8_t buf[4096];
        for (size_t n; (n = fread(buf, 1, sizeof(buf), file)) > 0; ) {
            bytes.insert(bytes.end(), buf, buf + n);
        }
        fclose(file);
        fprintf(stderr, "%s\n", argv[i]); // the last one named is the one that failed
        LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
    }
    return 0;
}
