"""Paints onto the page what was kept of it: violet where no layer kept a token, yellow where all of them did.

Writes heatmap-10.png and heatmap-2.png into the current folder.

python examples/heatmap.py
"""

from pyaircache import Chat, sample

page = sample(1)

with Chat() as chat:
    for keep in (0.10, 0.02):
        answer = chat.ask(page.path, page.question, keep=keep)
        name = f"heatmap-{keep * 100:.0f}.png"
        answer.report.heatmap(page.path).save(name)
        share = answer.report.kept_per_token  # of every visual token: which share of the layers kept it
        print(f"{name}: {page.question} {answer}; {(share > 0).sum()} of {len(share)} tokens are left somewhere")
