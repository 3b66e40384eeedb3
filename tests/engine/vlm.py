"""The families of tiny_vlm for the tests: made once by name, and asked like those of families."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import aircache_ref as ref
import harness
import numpy as np
import tiny_idefics3
import tiny_internvl_hf
import tiny_llava
import tiny_llava_next
import tiny_qwen
import torch
from families import DTYPES, Case, Family, tokens_per_picture
from PIL import Image
from tiny_vlm import TinyVlm, random_picture
from torch import Tensor

from pyaircache.engine.engine import Engine
from pyaircache.engine.structs import PromptInfo

MODULES = (tiny_qwen, tiny_internvl_hf, tiny_llava, tiny_llava_next, tiny_idefics3)
NAMES = tuple(name for module in MODULES for name in module.NAMES)


def make_vlm(name: str, folder: Path, seed: int = 0) -> TinyVlm:
    """One of NAMES."""
    module = next(m for m in MODULES if name in m.NAMES)
    return module.make(name, folder, seed)


class VlmFamily(Family):
    """A model of tiny_vlm."""

    def __init__(self, name: str, folder: Path) -> None:
        self.files = None
        self.vlm = make_vlm(name, folder)
        self.model = harness.Model(self.vlm.model, self.vlm.text, self.vlm.mmproj)
        self._cases = {}

    def prompt(self, engine: Engine, content: Sequence[str | Image.Image]) -> tuple[str, list[np.ndarray]]:
        """One user turn as the engine takes it."""
        parts = "".join(part if isinstance(part, str) else engine.marker() for part in content)
        pictures = [np.asarray(part) for part in content if not isinstance(part, str)]
        return f"<|im_start|>user\n{parts}<|im_end|>\n<|im_start|>assistant\n", pictures

    def embed(self, picture: Image.Image) -> Tensor:
        """What the engine's vision tower and projector make of one picture."""
        engine = self.engine()
        engine.prompt(*self.prompt(engine, [picture, "?"]))
        return harness.image_embeddings(engine)

    def _make_case(self, seed: int, n_images: int, cache: str, flash: bool) -> Case:
        """One picture, or three of which one is tall; none of them has the size that the tower wants."""
        rng, engine = np.random.default_rng(seed), self.engine(cache, flash)
        sizes = [(170, 115)] if n_images == 1 else [(140, 106), (60, 119), (112, 112)]
        pictures = [random_picture(rng, *size) for size in sizes]
        between = (" and ", " Also this one: ", "")
        content = ["Look: ", *(part for pair in zip(pictures, between, strict=False) for part in pair)]
        text, arrays = self.prompt(engine, [*content, "\nWhat is the value of KIWI?"])
        info: PromptInfo = engine.prompt(text, arrays)
        embeddings = harness.image_embeddings(engine)
        counts = tokens_per_picture(info)
        assert counts == [self.vlm.count(*picture.size) for picture in pictures]
        spans = [(span.first, span.n_tokens) for span in info.spans]

        def forward(ids: Tensor, visible: np.ndarray | None, later: Sequence[ref.Later]) -> ref.Capture:
            return self.vlm.forward(ids, pictures, spans, embeddings, visible, DTYPES[cache], later=later)

        ids = self.vlm.ids(text.replace(engine.marker(), self.vlm.image), sizes)
        return Case(text, arrays, ids, forward(ids, None, ()), forward)


GELUS = ("GELU", "GELUActivation", "GELUTanh", "QuickGELUActivation")


@contextmanager
def ggml_rounding(model: torch.nn.Module) -> Iterator[None]:
    """Lets a model of Hugging Face's round where ggml does on a CPU, also in a model of F32: patches are convolved in
    F16, and GELU, always in its tanh form, is looked up in a table of F16."""

    def rounded(_: torch.nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0].half().float(), *inputs[1:])

    def looked_up(module: torch.nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> Tensor:
        x = inputs[0].half().float()
        if type(module).__name__ == "QuickGELUActivation":
            y = x * torch.sigmoid(1.702 * x)
        else:
            y = torch.where(inputs[0].abs() < 10, torch.nn.functional.gelu(x, approximate="tanh"), x.clamp(min=0))
        return y.half().float()

    hooks, weights = [], {}
    for module in model.modules():
        if type(module).__name__ in GELUS:
            hooks.append(module.register_forward_hook(looked_up))
        elif isinstance(module, (torch.nn.Conv2d, torch.nn.Conv3d)):
            hooks.append(module.register_forward_pre_hook(rounded))
            weights[module] = module.weight.data
            module.weight.data = module.weight.data.half().float()
    assert weights and len(hooks) > len(weights)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module, weight in weights.items():
            module.weight.data = weight
