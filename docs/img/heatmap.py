"""Makes heatmap.png beside this file: a sample page, and what the bundled model kept of it at keep 0.10.

python docs/img/heatmap.py
"""

from pathlib import Path

from PIL import Image

from pyaircache import Chat, sample

asked = sample(1)
page = asked.image
with Chat(n_threads=1) as chat:
    answer = chat.ask(page, asked.question, keep=0.10)
gap = 24
figure = Image.new("RGB", (2 * page.width + gap, page.height), "white")
figure.paste(page, (0, 0))
figure.paste(answer.report.heatmap(page), (page.width + gap, 0))
figure.quantize(128).save(Path(__file__).with_suffix(".png"), optimize=True)
print(f"{asked.question} {answer}\n{answer.report!r}")
