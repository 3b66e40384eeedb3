// Which of a prompt's text tokens belong to the chat template, for windows that leave those out: control tokens, and
// after an image all from the end of the user's turn on.
#pragma once

#include "llama.h"

class aircache_template_tokens {
public:
    explicit aircache_template_tokens(const llama_vocab * vocab) : vocab(vocab) {}

    // an image comes next
    void image() { tail = false; }

    // a text token comes next: is it the template's?
    bool text(llama_token token) {
        tail = tail || llama_vocab_is_eog(vocab, token);
        return tail || llama_vocab_is_control(vocab, token);
    }

private:
    const llama_vocab * vocab;
    bool tail = false; // the user's turn is over
};
