// The triggers of lazy grammars: std::regex recurses over them, and over the text that they match.
#include "harness.h"

#include "llama-grammar.h"

#include <stdexcept>

static size_t find(const std::string & pattern, const std::string & text) {
    const llama_grammar_trigger_pattern trigger = { pattern, std::regex(pattern) };
    return trigger.find(text);
}

static void long_answers_before_a_trigger() {
    const std::string prose(200000, 'x');

    CHECK(find("<call>", prose) == std::string::npos);
    CHECK(find("<call>", prose + "<call>") == prose.size()); // of the whole text
    CHECK(find("x(<call>)", prose + "<call>") == prose.size());

    const std::string whole = "^[\\s\\S]*?(<call>)[\\s\\S]*$";
    CHECK(find(whole, "some <call> more") == 5);
    CHECK(find(whole, prose + "<call>") == std::string::npos); // no error: the answer goes on as text
    CHECK(find("^x", prose) == std::string::npos); // what is looked through begins in the middle of a line
}

cases cases_of_grammars = {
    { "long_answers_before_a_trigger", long_answers_before_a_trigger },
};
