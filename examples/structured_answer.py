"""An answer of a given form, and how sure the model was of each of its tokens.

python examples/structured_answer.py
"""

import json
import math

from pyaircache import Chat, sample

page = sample()

with Chat(keep=0.10) as chat:
    answer = chat.ask(page.path, page.question, json_schema={"type": "integer"}, logprobs=3)
    print(page.question, json.loads(answer) + 0)  # a number

    for token in answer.logprobs:
        others = ", ".join(f"{other.text!r} {math.exp(other.logprob):.1%}" for other in token.top)
        print(f"{token.text!r:>6} {math.exp(token.logprob):.1%}; most likely: {others}")

    digits = chat.ask(page.path, page.question, grammar="root ::= [0-9] [0-9]", max_tokens=8)
    print(f"two digits, by a grammar: {digits}")
    print(f"up to the first 5: {chat.ask(page.path, page.question, stop='5')!r}")
