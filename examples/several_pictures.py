"""Pictures in all forms, and several of them in one question, where they compete for the same cells.

The bundled model was trained on one picture to a question: the answer about two means nothing, the report does.

python examples/several_pictures.py
"""

import numpy as np
from PIL import Image

from pyaircache import Chat, sample

page, other = sample(0), sample(1)
forms = {
    "a path": page.path,
    "a file's bytes": page.path.read_bytes(),
    "a Pillow image": Image.open(page.path),
    "a NumPy array": np.asarray(page.image),  # uint8 [height, width, 3]
}

with Chat(keep=0.10) as chat:
    for what, picture in forms.items():
        print(f"{what}: {chat.ask(picture, page.question)}")

    answer = chat.ask([page.path, other.path], page.question, max_tokens=8)
    report = answer.report
    print(f"two pictures: {report.visual_tokens} visual tokens, {report.cells_kept} cells kept")
    for index, span in enumerate(report.spans):
        print(f"picture {index + 1}: a grid of {span.nx} x {span.ny}")
    report.heatmap([page.path, other.path], 1).save("heatmap-second.png")
