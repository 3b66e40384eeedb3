// How llama-server reads a window's text, for comparison with Python's Window.parse.
//
// stdin: texts in hexadecimal, a line each; stdout: a line each, the window as it is read back, or "-" when it is refused.
#include "aircache-params.h"

#include <cstdio>
#include <iostream>
#include <stdexcept>
#include <string>

int main() {
    for (std::string line; std::getline(std::cin, line); ) {
        std::string text;
        for (size_t i = 0; i + 1 < line.size(); i += 2) {
            text += (char) std::stoi(line.substr(i, 2), nullptr, 16);
        }
        common_params_aircache params;
        try {
            params.set_window(text);
            puts(params.part("window").c_str());
        } catch (const std::invalid_argument &) {
            puts("-");
        }
        fflush(stdout);
    }
    return 0;
}
