// How llama-server reads the words for a part of a method, for comparison with Python's.
//
// stdin: a line each: a field of requests without "aircache_", a space, the text in hexadecimal; stdout: a line each, the
// part as it is read back, or "-" when it is refused.
#include "aircache-params.h"

#include <cstdio>
#include <iostream>
#include <stdexcept>
#include <string>

int main() {
    for (std::string line; std::getline(std::cin, line); ) {
        const size_t      space = line.find(' ');
        const std::string part  = line.substr(0, space);
        std::string text;
        for (size_t i = space + 1; i + 1 < line.size(); i += 2) {
            text += (char) std::stoi(line.substr(i, 2), nullptr, 16);
        }
        common_params_aircache params;
        try {
            params.set("aircache_" + part, text);
            puts(params.part(part.c_str()).c_str());
        } catch (const std::invalid_argument &) {
            puts("-");
        }
        fflush(stdout);
    }
    return 0;
}
