"""LLaVA-OneVision against Hugging Face's own processor, tower, projector and packing, then the method behind it.

Errors could come from two places, and are told apart: the pixels, which are those of the processor to the last bit of
a colour, and what is computed from them.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aircache_ref as ref
import families
import gguf
import harness
import numpy as np
import pytest
import tiny_onevision as tov
import torch
from PIL import Image
from test_against_reference import check_scores, is_clear
from torch import Tensor
from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor

from pyaircache.engine.engine import Engine
from pyaircache.engine.structs import Message
from pyaircache.errors import ProjectorError

# Of a tile of 74 pixels: small, one tile, a little more, tall, wide, all grids' largest, above the reduction, no
# multiple of anything, much larger than all grids, as thin as can be
SIZES = [
    *((20, 30), (74, 74), (75, 75), (90, 300), (700, 80), (444, 444), (300, 299), (211, 137), (1000, 900)),
    *((1, 40), (600, 2), (148, 222), (1, 900), (999, 3), (5, 3000)),
]
GROUPS = [[(74, 74), (30, 20)], [(200, 90), (33, 150), (444, 444)]]

FEATURE_ERROR = 1e-4  # features reach 6; measured: 1e-5


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tov.Files:
    return tov.save_tiny(tmp_path_factory.mktemp("onevision"))


@pytest.fixture(scope="module")
def engine(files: tov.Files) -> Iterator[Engine]:
    opened = harness.open_engine(files.text, files.mmproj, n_ctx=2048)
    yield opened
    opened.close()


def pictures_of(sizes: Sequence[tuple[int, int]], seed: int = 0) -> list[Image.Image]:
    rng = np.random.default_rng([seed, *(n for size in sizes for n in size)])
    return [tov.random_picture(rng, *size) for size in sizes]


def name(sizes: Any) -> str:
    return "+".join(f"{w}x{h}" for w, h in sizes) if isinstance(sizes, list) else f"{sizes[0]}x{sizes[1]}"


def ask(engine: Engine, pictures: Sequence[Image.Image], **options: Any) -> tuple[Any, list[np.ndarray]]:
    """A prompt of these pictures; what is known of it, and the features of each."""
    engine.reset()
    text = "<|im_start|>user " + engine.marker() * len(pictures) + "\nHi<|im_end|>"
    info = engine.prompt(text, [np.asarray(picture) for picture in pictures], **options)
    cuts = np.cumsum([span.n_tokens for span in info.spans])[:-1]
    return info, np.split(harness.image_embeddings(engine).numpy(), cuts)


def rewrite(mmproj: Path, out: Path, keys: dict[str, Any], tensors: dict[str, np.ndarray | None]) -> Path:
    """A copy of a projector with other values or tensors; None leaves one out."""
    reader = gguf.GGUFReader(mmproj)
    writer = gguf.GGUFWriter(out, "clip")
    for key, field in reader.fields.items():
        value = keys.get(key, field.contents())
        if key.startswith("GGUF.") or key == "general.architecture" or value is None:
            continue
        writer.add_key_value(key, value, field.types[0], field.types[1] if len(field.types) > 1 else None)
    for tensor in reader.tensors:
        data = tensors.get(tensor.name, tensor.data)
        if data is not None:
            writer.add_tensor(tensor.name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


# -- pixels and tokens ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def probe(program: Callable[[str], Path]) -> Callable[..., bytes]:
    def run(mmproj: Path, *arguments: Any, stdin: bytes) -> bytes:
        command = [program("onevision-probe"), mmproj, *map(str, arguments)]
        done = subprocess.run(command, input=stdin, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    return run


@pytest.mark.parametrize("kind", ["single", "several"])
def test_pixels(files: tov.Files, probe: Callable[..., bytes], kind: str) -> None:
    for size in SIZES:
        (picture,) = pictures_of([size])
        group = [picture] if kind == "single" else [picture, picture]
        want = files.pixels(group)["pixel_values"][0].permute(0, 2, 3, 1).numpy()  # [tiles, tile, tile, 3]
        got = np.frombuffer(probe(files.mmproj, kind, *size, stdin=picture.tobytes()), dtype=np.float32)
        np.testing.assert_allclose(got.reshape(want.shape), want, atol=1e-6, rtol=0, err_msg=str(size))


def hf_count(pinpoints: list[list[int]], tile: int, width: int, height: int) -> int:
    """Placeholders that Hugging Face's processor writes for one picture."""
    processor = SimpleNamespace(
        image_processor=SimpleNamespace(image_grid_pinpoints=pinpoints),
        num_image_tokens=(tile // tov.PATCH) ** 2,
        vision_aspect_ratio=f"anyres_max_{tov.MAX_TILES}",
    )
    processor._get_unpadded_features = lambda *sizes: LlavaOnevisionProcessor._get_unpadded_features(processor, *sizes)
    return LlavaOnevisionProcessor._get_number_of_features(processor, height, width, tile, tile)


@pytest.mark.parametrize("tile", [tov.TILE, tov.REAL_TILE, 56])
def test_token_counts(files: tov.Files, tile: int, probe: Callable[..., bytes], tmp_path: Path) -> None:
    """Of 400 random sizes, and of those that fit a grid exactly."""
    pinpoints = tov.grids(tile)
    keys = {
        "clip.vision.image_size": tile,
        "clip.vision.image_grid_pinpoints": [n for height, width in pinpoints for n in (width, height)],
    }
    positions = np.zeros(((tile // tov.PATCH) ** 2, 64), np.float32)
    mmproj = rewrite(files.mmproj, tmp_path / "mmproj.gguf", keys, {"v.position_embd.weight": positions})
    rng = np.random.default_rng(tile)
    sizes = np.exp(rng.uniform(np.log(4), np.log(12 * tile), size=(400, 2))).astype(int).tolist()
    sizes += [[tile * x, tile * y] for x in range(1, 8) for y in range(1, 8)]
    lines = "".join(f"{width} {height}\n" for width, height in sizes)
    got = [int(n) for n in probe(mmproj, "tokens", stdin=lines.encode()).split()]
    assert got == [hf_count(pinpoints, tile, *size) for size in sizes]


# -- features ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[size] for size in SIZES] + GROUPS, ids=name)
def test_features(files: tov.Files, engine: Engine, sizes: list[tuple[int, int]]) -> None:
    """One run of tokens for each picture; alone a base and a grid, else one square tile."""
    pictures = pictures_of(sizes)
    info, got = ask(engine, pictures)
    assert [span.image for span in info.spans] == list(range(len(sizes)))
    for ours, theirs in zip(got, files.features(files.pixels(pictures)), strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), atol=FEATURE_ERROR, rtol=0)


def test_another_layer(tmp_path: Path, opened: Callable[..., Engine]) -> None:
    """A tower of which a block is not used is cut; an even number of tokens a side."""
    files = tov.save_tiny(tmp_path, seed=1, tile=56, layer=-2)
    assert gguf.GGUFReader(files.mmproj).fields["clip.vision.block_count"].contents() == 2
    engine = opened(files.text, files.mmproj, n_ctx=2048)
    for size in ((56, 56), (300, 100), (60, 400)):
        pictures = pictures_of([size])
        _, (got,) = ask(engine, pictures)
        (want,) = files.features(files.pixels(pictures))
        np.testing.assert_allclose(got, want.numpy(), atol=FEATURE_ERROR, rtol=0)


def test_video(files: tov.Files, engine: Engine) -> None:
    """A quarter of a tile's tokens for each frame, one newline behind the last; a picture beside it is still alone."""
    first, second = (np.stack([np.asarray(p) for p in pictures_of([(90, 60)] * n, seed=n)]) for n in (5, 1))
    (picture,) = pictures_of([(200, 90)])
    text = "<|im_start|>user {0}{0} {0}\nHi<|im_end|>".format(engine.marker())
    engine.reset()
    info = engine.prompt(text, [first, second, np.asarray(picture)])
    assert [(span.image, span.n_tokens) for span in info.spans[:2]] == [(0, 5 * 9 + 1), (1, 9 + 1)]
    frames = [[Image.fromarray(frame) for frame in video] for video in (first, second)]
    want = torch.cat([files.video(frames[0]), files.video(frames[1]), *files.features(files.pixels([picture]))])
    np.testing.assert_allclose(harness.image_embeddings(engine).numpy(), want.numpy(), atol=FEATURE_ERROR, rtol=0)


def test_video_is_compressed(engine: Engine) -> None:
    video = np.stack([np.asarray(p) for p in pictures_of([(90, 60)] * 6)])
    engine.reset()
    info = engine.prompt(f"<|im_start|>user {engine.marker()}\nHi<|im_end|>", [video], observe=True)
    assert info.n_visual == 55
    _, result = engine.compress(harness.engine_method(0.2))
    assert result.budgets.sum() == round(0.2 * 4 * 55)


# -- text -------------------------------------------------------------------------------------------------------------


def case(files: tov.Files, engine: Engine, sizes: Sequence[tuple[int, int]], seed: int) -> families.Case:
    """A question about pictures, with text before, between and behind them."""
    pictures = pictures_of(sizes, seed)
    between = (" and ", " Also this one: ", "")
    content = "Look: " + "".join(tov.IMAGE + text for _, text in zip(pictures, between, strict=False))
    text = f"<|im_start|>user {content}\nWhat is the value of KIWI?<|im_end|><|im_start|>assistant\n"
    marked, arrays = text.replace(tov.IMAGE, engine.marker()), [np.asarray(picture) for picture in pictures]
    engine.reset()
    info = engine.prompt(marked, arrays)
    embeddings = harness.image_embeddings(engine)
    spans = [(span.first, span.n_tokens) for span in info.spans]
    ids = tov.prompt_ids(files.tokenizer, text, [count for _, count in spans])
    language = SimpleNamespace(model=files.model.model.language_model, lm_head=files.model.lm_head)

    def forward(tokens: Tensor, visible: np.ndarray | None, later: Sequence[ref.Later]) -> ref.Capture:
        return ref.qwen2_forward(language, tokens, spans, embeddings, visible, torch.float32, later)

    return families.Case(marked, arrays, ids, forward(ids, None, ()), forward)


@pytest.mark.parametrize("sizes", [[(200, 90)], [(74, 74), (30, 20), (90, 300)]], ids=name)
def test_whole_model(files: tov.Files, engine: Engine, sizes: list[tuple[int, int]]) -> None:
    """Hugging Face's model from pixels to logits: tokens and pictures are where it has them."""
    asked, pixels = case(files, engine, sizes, 0), files.pixels(pictures_of(sizes))
    with torch.no_grad():
        want = files.model(input_ids=asked.ids[None], **pixels).logits[0]
    asked.ask(engine)
    np.testing.assert_allclose(engine.logits(), want[-1].numpy(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("keep", [0.05, 0.3, 0.9])
@pytest.mark.parametrize("sizes", [[(200, 90)], [(74, 74), (30, 20), (90, 300)]], ids=name)
def test_eviction(files: tov.Files, engine: Engine, sizes: list[tuple[int, int]], keep: float) -> None:
    clear = 0
    for seed in range(8):
        asked = case(files, engine, sizes, seed)
        if not is_clear(asked.capture, keep=keep):
            continue
        clear += 1
        asked.ask(engine)
        np.testing.assert_allclose(engine.logits(), asked.capture.logits[-1], atol=1e-3, rtol=0)
        scores, result = engine.compress(harness.engine_method(keep))
        want = ref.compress(asked.capture, keep)
        check_scores(scores.scores, want.scores)
        assert result.budgets.tolist() == want.budgets.tolist()
        assert harness.lists(result.kept) == harness.lists(want.kept)
        logits = asked.decode(want.kept, harness.TOKENS)
        np.testing.assert_allclose(harness.decode(engine, harness.TOKENS), logits, atol=1e-3, rtol=0)
        if clear == 2:
            return
    assert clear, "all questions have decisions that are too close: take other seeds"


def test_chat_template(files: tov.Files, engine: Engine) -> None:
    """A message's text with markers makes the tokens of Hugging Face's template, its newline behind the picture too."""
    (picture,) = pictures_of([(30, 20)])
    texts = ["What is KIWI?", "It is 7.", "And now?"]
    turns = [("user", [{"type": "image"}, {"type": "text", "text": texts[0]}])]
    turns += [("assistant", [{"type": "text", "text": texts[1]}]), ("user", [{"type": "text", "text": texts[2]}])]
    conversation = [{"role": role, "content": content} for role, content in turns]
    text = files.tokenizer.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
    assert text.startswith("<|im_start|>user <image>\nWhat")

    ours = [engine.marker() + texts[0], texts[1], texts[2]]
    messages = [Message(role, content) for (role, _), content in zip(turns, ours, strict=True)]
    rendered = engine.apply_template(messages)
    assert rendered.replace(engine.marker(), "<image>\n") == text
    engine.reset()
    info = engine.prompt(rendered, [np.asarray(picture)])
    ids = tov.prompt_ids(files.tokenizer, text, [info.n_visual])
    assert info.n_tokens == ids.numel()
    with torch.no_grad():
        want = files.model(input_ids=ids[None], **files.pixels([picture])).logits[0, -1]
    np.testing.assert_allclose(engine.logits(), want.numpy(), atol=1e-3, rtol=0)


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "tensors", "reason"),
    [
        ({"clip.vision.image_grid_pinpoints": [74, 148, 100, 74]}, {}, "multiples of the tile"),
        ({"clip.vision.image_grid_pinpoints": None}, {}, "image_grid_pinpoints is missing"),
        ({"clip.vision.image_grid_pinpoints": [74 * 33, 74 * 33]}, {}, "more than 1024 tiles"),
        ({"clip.vision.anyres_max_tiles": 0}, {}, "anyres_max_tiles must be at least 1"),
        ({"clip.vision.anyres_max_tiles": None}, {}, "anyres_max_tiles"),
        ({"clip.use_gelu": False}, {}, "use_gelu"),
        ({"clip.vision.image_size": 148, "clip.vision.image_grid_pinpoints": [148, 148]}, {}, "position embedding"),
        ({}, {"v.image_newline": None}, "v.image_newline"),
        ({}, {"v.image_newline": np.zeros(127, np.float32)}, "newline is not as wide"),
        ({}, {"mm.2.weight": None}, "mm.2.weight"),
        ({}, {"mm.0.weight": np.zeros((128, 63), np.float32)}, "matrices do not fit"),
        ({}, {"v.position_embd.weight": None}, "position embeddings are missing"),
    ],
)
def test_damaged_projector(
    files: tov.Files, tmp_path: Path, keys: dict[str, Any], tensors: dict[str, Any], reason: str
) -> None:
    broken = rewrite(files.mmproj, tmp_path / "broken.gguf", keys, tensors)
    with harness.llama_log() as lines, pytest.raises(ProjectorError, match="broken.gguf does not fit"):
        Engine(files.text, broken, n_threads=1)
    assert reason in "".join(lines)
