// How llama-server reads the words for the parts of a method, for comparison with Python's.
//
// stdin: lines of words: a part's name, its text in hexadecimal ("-": empty), and so on; stdout: a line each, the parts as
// they are read back with tabs between them, or "-" when they are refused.
#include "aircache-params.h"

#include <cstdio>
#include <iostream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

int main() {
    for (std::string line; std::getline(std::cin, line); ) {
        common_params_aircache params;
        std::vector<std::string> names;
        std::string out;
        std::istringstream words(line);
        try {
            for (std::string name, hex; words >> name >> hex; ) {
                std::string text;
                for (size_t i = 0; i + 1 < hex.size(); i += 2) {
                    text += (char) std::stoi(hex.substr(i, 2), nullptr, 16);
                }
                params.set("aircache_" + name, text);
                names.push_back(name);
            }
            for (const auto & name : names) {
                out += (out.empty() ? "" : "\t") + params.part(name);
            }
        } catch (const std::invalid_argument &) {
            out = "-";
        }
        puts(out.c_str());
        fflush(stdout);
    }
    return 0;
}
