"""A conversation: a question about a page, then questions without the page, which is still in the cache.

The bundled model was trained on single questions: what it says to the second one here means nothing. A real model
answers it from the visual cells that the first question kept. For quite another question, ask with the page again.

python examples/follow_up.py
"""

from pyaircache import Chat, sample

page = sample(1)

with Chat(keep=0.25) as chat:
    first = chat.ask(page.path, page.question)
    print(f"{page.question} {first}")

    second = chat.ask(None, "And the one below it?", max_tokens=8)  # only the new words are evaluated
    print(f"And the one below it? {second}")
    print(f"prompt of the first question: {first.report.prompt_tokens} tokens, {first.report.visual_tokens} visual")
    print(f"prompt of the second question: {second.report.prompt_tokens} tokens, none visual")

    again = chat.ask(page.path, "Total?")  # with a page: a new conversation, compressed for this question
    print(f"Total? {again}")

    chat.reset()  # forgets everything; the model stays loaded
