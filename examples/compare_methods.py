"""Named methods side by side, on the five sample pages, with one cell in fifty kept.

Five pages show how it is done, not which method is best: docs/quality.md has hundreds, and says what the bundled model
was trained for. Every method keeps the same number of cells.

python examples/compare_methods.py
"""

from pyaircache import Chat, Method, Pool, sample

KEEP = 0.02
PAGES = [sample(number) for number in range(5)]
METHODS: dict[str, str | Method] = {name: name for name in ("full", "aircache", "snapkv", "last", "random")}
METHODS["last, pooled"] = Method(window=Method.named("last").window, allocation="uniform", pool=Pool("max", 5))

print(f"{'method':<14} {'right':>6} {'cells':>6}")
with Chat(keep=KEEP) as chat:
    for name, method in METHODS.items():
        right, cells = 0, 0
        for page in PAGES:
            answer = chat.ask(page.path, page.question, method=method, max_tokens=16)
            right += answer == page.answer
            cells += answer.report.cells_kept
        print(f"{name:<14} {right:>4}/{len(PAGES)} {cells:>6}")
