"""A conversation: a question about a page, then one without it, which sees the whole page again.

The page's full cells come from the archive, and only the text behind them is evaluated. The bundled model was trained
on single questions: what it says to a second one means little; a real model answers it.

python examples/follow_up.py
"""

from pyaircache import Chat, sample

page = sample(1)

with Chat(keep=0.25) as chat:
    first = chat.ask(page.path, page.question)
    print(f"{page.question} {first}")

    second = chat.ask(None, "And the one below it?", max_tokens=8)
    print(f"And the one below it? {second}")
    print(f"prompt of the first question: {first.report.prompt_tokens} tokens, {first.report.visual_tokens} visual")
    known = second.report.n_restored
    print(f"prompt of the second question: {second.report.prompt_tokens} tokens, {known} from the archive")

    again = chat.ask(page.path, "Total?")  # with a page: a new conversation, compressed for this question
    print(f"Total? {again}")

    chat.reset()  # forgets everything; the model stays loaded
