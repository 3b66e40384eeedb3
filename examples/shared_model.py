"""One model, several conversations: loaded once, asked from several threads at the same time.

Another question about a picture that was asked about a moment ago does not encode it again.

python examples/shared_model.py
"""

from concurrent.futures import ThreadPoolExecutor

from pyaircache import Chat, Model, sample


def read(number: int) -> str:
    """A conversation of its own: a cache of its own, on the same weights."""
    page = sample(number)
    with Chat(model, keep=0.10, n_ctx=1024) as chat:
        return f"{page.question} {chat.ask(page.path, page.question)}"


with Model(n_threads=1) as model:  # a model of your own: Model("model.gguf")
    with ThreadPoolExecutor(2) as pool:
        for line in pool.map(read, range(5)):
            print(line)

    page = sample(1)
    with Chat(model) as chat:
        for keep in (0.10, 0.02):
            answer = chat.ask(page.path, page.question, keep=keep)
            print(f"keep {keep}: {answer}, {answer.report.ms_encode:.0f} ms of encoding")
