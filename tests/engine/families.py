"""Questions for the engine and the reference about models of several families, and what must agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import aircache_ref as ref
import harness
import methods_ref
import numpy as np
import tiny
import tiny_internvl
import torch
from torch import Tensor

from pyaircache.engine.engine import Engine
from pyaircache.engine.structs import EngineMethod, PromptInfo

WINDOWS = ("elite", "last", "text", "visual", "all")
KEYS = ("window", "causal")
POOLS = ("none", "avg", "max")
ALLOCATIONS = (*harness.ALLOCATIONS, "vl")
SCORES = ("attention", "random", "stride")
WORDS = {"window": WINDOWS, "keys": KEYS, "pool": POOLS, "allocation": ALLOCATIONS, "score": SCORES}

SEEDS = range(12)  # of questions to choose from
MARGIN = 3e-5  # a decision closer than this may go either way

# Of the tokenizer of tiny, which all of these models have
CONTROL = set(range(tiny.FIRST_SPECIAL, tiny.FIRST_SPECIAL + len(tiny.SPECIAL)))
ENDS = {tiny.FIRST_SPECIAL + tiny.SPECIAL.index(token) for token in ("<|endoftext|>", "<|im_end|>")}
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def engine_method(**fields: object) -> EngineMethod:
    """The engine's method with words for numbers: engine_method(keep=0.3, window="last:8", pool="avg")."""
    window, _, count = str(fields.get("window", "elite")).partition(":")
    numbers = {name: WORDS[name].index(fields[name]) for name in WORDS if name in fields and name != "window"}
    if "window" in fields:
        numbers["window"] = WINDOWS.index(window)
    if count:
        numbers["window_n"] = int(count)
    return EngineMethod(**(fields | numbers))


def reference_method(method: EngineMethod) -> methods_ref.Method:
    """The same for the reference; how the scores come about, if not from attention, is not its business."""
    values = {name: value for name, value in vars(method).items() if value is not None}
    for name, words in WORDS.items():
        if name in values:
            values[name] = words[values[name]]
    if values.get("window") in ("last", "visual"):
        values["window"] += f":{values.get('window_n', 32)}"
    return methods_ref.Method(**{k: v for k, v in values.items() if k not in ("window_n", "score", "seed")})


Forward = Callable[[Tensor, np.ndarray | None, Sequence[ref.Later]], ref.Capture]


@dataclass(frozen=True)
class Case:
    """A question and what the reference makes of it, with the image embeddings of the engine."""

    text: str  # with the engine's markers
    pictures: list[np.ndarray]
    ids: Tensor
    capture: ref.Capture
    forward: Forward

    def ask(self, engine: Engine, observe: EngineMethod | bool = True) -> PromptInfo:
        """Evaluates it in a new conversation."""
        engine.reset()
        info = engine.prompt(self.text, self.pictures, observe=observe)
        assert info.n_tokens == self.ids.numel()
        return info

    @property
    def template(self) -> np.ndarray:
        """[T] bool: the chat template's tokens."""
        return methods_ref.template_tokens(self.ids.tolist(), self.capture.text, CONTROL, ENDS)

    def decode(self, kept: Sequence[np.ndarray], tokens: Sequence[int], merge: float = 0.0) -> np.ndarray:
        """The reference's logits [len(tokens), vocabulary] after each token fed behind the compressed prompt."""
        n_prompt = self.ids.numel()
        ids = torch.cat([self.ids, torch.tensor(tokens)])
        visible = ref.visible_after(self.capture.visual, n_prompt, ids.numel(), kept)
        later = methods_ref.merged(self.capture.visual, n_prompt, kept, merge)
        return self.forward(ids, visible, later).logits[n_prompt:]


class Family:
    """One tiny model, Qwen2-VL or InternVL; its engines and questions are made once."""

    def __init__(self, name: str, folder: Path) -> None:
        self.files: tiny_internvl.Files | None = None
        name, two, _ = name.partition(harness.TWO_THREADS)
        if name.startswith("internvl"):
            self.files = tiny_internvl.save_tiny(folder, int(name.partition("-")[2]))
            self.model = harness.Model(self.files.model, self.files.text, self.files.mmproj)
        else:
            self.model = harness.make_model(name, folder)
        if two:
            self.model = harness.two_threads(self.model)
        self._cases: dict[tuple[int, int, str, bool], Case] = {}

    def engine(self, cache: str = "f32", flash: bool = False) -> Engine:
        """An engine without a conversation."""
        return self.model.engine(cache, flash)

    def case(self, seed: int, n_images: int, cache: str = "f32", flash: bool = False) -> Case:
        """A random question by the reference with a cache of this type."""
        key = (seed, n_images, cache, flash)
        if key not in self._cases:
            self._cases[key] = self._make_case(*key)
        return self._cases[key]

    def _make_case(self, seed: int, n_images: int, cache: str, flash: bool) -> Case:
        return (self._internvl if self.files else self._qwen2vl)(seed, n_images, cache, flash)

    def _qwen2vl(self, seed: int, n_images: int, cache: str, flash: bool) -> Case:
        asked, model = self.model.asked(seed, n_images, cache, flash), self.model.reference
        prompt = asked.question.prompt

        def forward(ids: Tensor, visible: np.ndarray | None, later: Sequence[ref.Later]) -> ref.Capture:
            return ref.qwen2vl_forward(model, ids, *asked.vision, visible, DTYPES[cache], later=later)

        text = prompt.text.replace(harness.IMAGE, self.engine(cache, flash).marker())
        pictures = [np.asarray(picture) for picture in asked.question.pictures]
        return Case(text, pictures, prompt.input_ids, asked.capture, forward)

    def _internvl(self, seed: int, n_images: int, cache: str, flash: bool) -> Case:
        """One picture of a single tile; of three, one is cut into two tiles and its overview."""
        rng = np.random.default_rng(seed)
        sizes = [(4, 4)] if n_images == 1 else [(4, 4), (4, 8), (4, 4)][:n_images]
        pictures = [tiny.random_image(rng, *size) for size in sizes]
        between = (" and ", " Also this one: ", "")
        content = ["Look: ", *(part for pair in zip(pictures, between, strict=False) for part in pair)]
        text = tiny_internvl.chat_text([*content, "\nWhat is the value of KIWI?"])
        engine = self.engine(cache, flash)
        arrays = [np.asarray(picture) for picture in pictures]
        marked = text.replace(tiny_internvl.IMAGE, engine.marker())
        info = engine.prompt(marked, arrays)
        embeddings = harness.image_embeddings(engine)
        counts = tokens_per_picture(info)
        assert counts == [16, 48, 16][:n_images]
        tiles = [(span.first, span.n_tokens) for span in info.spans]

        def forward(ids: Tensor, visible: np.ndarray | None, later: Sequence[ref.Later]) -> ref.Capture:
            return ref.qwen2_forward(self.files.model, ids, tiles, embeddings, visible, DTYPES[cache], later)

        ids = tiny_internvl.prompt_ids(self.files.tokenizer, text, counts)
        return Case(marked, arrays, ids, forward(ids, None, ()), forward)


def with_keep(method: EngineMethod, keep: float) -> EngineMethod:
    """A named method at another share kept; the one that keeps everything stays."""
    return method if method.keep == 1.0 else replace(method, keep=keep)


def tokens_per_picture(info: PromptInfo) -> list[int]:
    """Visual tokens of each picture, whose tiles are spans of their own."""
    counts: dict[int, int] = {}
    for span in info.spans:
        counts[span.image] = counts.get(span.image, 0) + span.n_tokens
    return list(counts.values())


def check_scores(got: np.ndarray, want: np.ndarray, rtol: float = 1e-4) -> None:
    """As shares of the layer's highest score, and relative."""
    top = want.max(axis=1, keepdims=True)
    np.testing.assert_allclose(got / top, want / top, rtol=rtol, atol=rtol / 100)


def check_method(family: Family, method: EngineMethod, n_images: int) -> None:
    """Scores, windows, budgets, kept sets and the logits that follow, on two questions with clear decisions."""
    known = reference_method(method)
    clear = 0
    for seed in SEEDS:
        case = family.case(seed, n_images)
        margins = methods_ref.margins(case.capture, known, case.template)
        if (margins.alive if method.score else margins.least) < MARGIN:  # random, stride: the engine's own scores
            continue
        clear += 1
        engine = family.engine()
        check_case(engine, case, method)
        if clear == 2:
            return
    assert clear, f"all {len(SEEDS)} questions have decisions that are too close: take other seeds"


def check_case(engine: Engine, case: Case, method: EngineMethod) -> None:
    known = reference_method(method)
    case.ask(engine, observe=method)
    np.testing.assert_allclose(engine.logits(), case.capture.logits[-1], atol=1e-3, rtol=0)
    scores, result = engine.compress(method)

    if method.score:  # random, stride: the scores are the engine's own
        assert [window.size for window in scores.elite] == [0] * case.capture.n_layers
        living = methods_ref.alive(case.capture) if known.allocation == "vl" else np.empty(0)
        cells = methods_ref.budgets(scores.scores, known, living)
        kept = methods_ref.select(scores.scores, cells)
    else:
        want = methods_ref.compress(case.capture, known, case.template)
        check_scores(scores.scores, want.scores)
        text = [] if known.window == "all" else case.capture.text  # summed up: nobody to list
        assert harness.lists(scores.elite) == [window[np.isin(window, text)].tolist() for window in want.observers]
        np.testing.assert_allclose(result.strength, want.strength, rtol=1e-4)
        np.testing.assert_allclose(result.skewness, want.skewness, rtol=1e-3, atol=1e-4)
        cells, kept, living = want.budgets, want.kept, want.alive
    np.testing.assert_allclose(scores.alive, living, rtol=1e-12)
    assert result.budgets.tolist() == cells.tolist()
    assert harness.lists(result.kept) == harness.lists(kept)
    logits = case.decode(kept, harness.TOKENS, known.merge)
    np.testing.assert_allclose(harness.decode(engine, harness.TOKENS), logits, atol=1e-3, rtol=0)
