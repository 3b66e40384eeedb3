"""Projector and text files with one thing changed: refused with a message or answered, never the end of the process,
and never at a cost that the file's size does not explain."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path

import damaged
import pytest
import tiny_onevision as tov
from damaged import Contents, Kind, Loader
from vlm import make_vlm

from pyaircache.model_files import bundled_dir

FAMILIES = (
    *("qwen2vl", "qwen2.5vl", "qwen3vl", "internvl-chat qwen2", "llava llama", "llava-next", "smolvlm", "onevision"),
)
SIZES = [(90, 70)]
EVERY = 6  # of the changed tensors, so that the test takes seconds; all of them were tried once
ROOM = 150 << 20  # bytes above what the unchanged file takes, which are 100 MB with Python

Files = tuple[Path, Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Files]:
    done: dict[str, Files] = {}

    def get(name: str) -> Files:
        if name not in done:
            folder = tmp_path_factory.mktemp("vlm")
            vlm = tov.save_tiny(folder) if name == "onevision" else make_vlm(name, folder)
            done[name] = (vlm.text, vlm.mmproj)
        return done[name]

    return get


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest, made: Callable[[str], Files]) -> Files:
    return made(request.param)


@pytest.fixture
def loader() -> Iterator[Loader]:
    child = Loader()
    yield child
    child.close()


def check(loader: Loader, text: Path, whole: Path, changed: Iterator[tuple[str, Contents]], out: Path) -> None:
    """Loads them all; at least some must be refused."""
    before = loader.load(text, whole, SIZES)
    assert before["error"] is None and before["tokens"][0] > 0
    crashes, refused = {}, 0
    for name, contents in changed:
        answer = loader.load(text, contents.write(out), SIZES)
        if "signal" in answer:
            crashes[name] = answer["signal"]
            continue
        assert answer["peak"] < before["peak"] + ROOM, name
        if answer["error"] is not None:
            refused += 1
            assert answer["error"][0] in ("ProjectorError", "ModelError", "ContextError"), (name, answer["error"])
            assert answer["error"][1], name
    assert not crashes
    assert refused > 0


def test_other_values(family: Files, loader: Loader, tmp_path: Path) -> None:
    text, mmproj = family
    check(loader, text, mmproj, damaged.other_values(Contents.read(mmproj), "clip."), tmp_path / "mmproj.gguf")


def test_other_tensors(family: Files, loader: Loader, tmp_path: Path) -> None:
    text, mmproj = family
    file = Contents.read(mmproj)
    width = file.keys["clip.vision.embedding_length"][0]
    changed = chain(damaged.other_tensors(file), damaged.more_tensors(file, width))
    check(loader, text, mmproj, islice(changed, 0, None, EVERY), tmp_path / "mmproj.gguf")


def test_cut_files(made: Callable[[str], Files], loader: Loader, tmp_path: Path) -> None:
    text, mmproj = made("qwen2vl")
    for name, path in damaged.cut(mmproj, tmp_path / "cut.gguf"):
        answer = loader.load(text, path, SIZES)
        assert "signal" not in answer, name
        assert answer["error"], name
        answer = loader.load(path, None)
        assert "signal" not in answer and answer["error"], name
    for name, path in damaged.cut(text, tmp_path / "cut.gguf"):
        answer = loader.load(path, None)
        assert "signal" not in answer, name
        assert answer["error"], name


@pytest.mark.parametrize(
    ("name", "key", "value", "reason"),
    [
        ("qwen2vl", "clip.vision.patch_size", 0, r"patch_size is 0: it must be in \[1, 56\]"),
        ("qwen2vl", "clip.vision.attention.head_count", 0, r"head_count is 0"),
        ("qwen2vl", "clip.vision.block_count", 4, r"unable to find tensor v.blk.3"),
        ("qwen2vl", "clip.vision.embedding_length", 32, r"v.patch_embd.weight is \[.*\]: it must be \[14, 14, 3, 32\]"),
        ("qwen2.5vl", "clip.vision.projection_dim", 7, r"projection_dim is 7"),
        ("internvl-chat qwen2", "clip.vision.preproc_max_tiles", 1_000_000, r"preproc_max_tiles is 1000000: .* 64\]"),
        (
            "internvl-chat qwen2",
            "clip.vision.preproc_min_tiles",
            50,
            r"preproc_max_tiles is \d+: it must be in \[50, 64\]",
        ),
        ("smolvlm", "clip.vision.preproc_image_size", 1_000_000, r"preproc_image_size is 1000000: .* 1792\]"),
        ("smolvlm", "clip.vision.projector.scale_factor", 3, r"8 patches in a row are no multiple of .*, 3"),
        ("llava llama", "clip.vision.image_size", 4096, r"v.position_embd.weight has \d+ rows"),
    ],
)
def test_what_is_said(
    made: Callable[[str], Files], loader: Loader, tmp_path: Path, name: str, key: str, value: int, reason: str
) -> None:
    text, mmproj = made(name)
    changed = Contents.read(mmproj).having(key, (value, Kind.UINT32, None)).write(tmp_path / "mmproj.gguf")
    answer = loader.load(text, changed, SIZES)
    error, message = answer["error"]
    assert error == "ProjectorError"
    assert re.search(reason, message), message
    assert "mmproj.gguf" in message


# -- text models ------------------------------------------------------------------------------------------------------

TEMPLATES = {
    "no end": "{% for m in messages %}",
    "nonsense": "{{ messages[0] ** }}",
    "refuses": "{{ raise_exception('only in French') }}",
    "loops": "{% for i in range(1000000000) %}{% endfor %}",
    "loops in loops": "{% for i in range(9999) %}{% for j in range(9999) %}{{ j }}{% endfor %}{% endfor %}",
    "calls itself": "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "doubles": "{% set n = namespace(x='ab') %}{% for i in range(64) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
    "repeats": "{{ 'ab' * 1000000000000 }}",
    "nested": "{{ " + "(" * 20000 + "1" + ")" * 20000 + " }}",
    "signs": "{{ " + "not " * 15000 + "1 }}",
    "ifs": "{% if 1 %}" * 4000 + "{% endif %}" * 4000,
    "long": "{# " + "x" * 70000 + " #}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_chat_templates(loader: Loader, tmp_path: Path, name: str) -> None:
    """A broken one does not keep a model from loading; what uses it says so, and it comes to an end."""
    whole = Contents.read(next(bundled_dir().glob("pages-vl-Q8_0.gguf")))
    key = "tokenizer.chat_template"
    changed = whole.having(key, (TEMPLATES[name], Kind.STRING, None)).write(tmp_path / "text.gguf")
    answer = loader.load(changed, None)
    assert "signal" not in answer
    assert answer["error"] and answer["error"][0] == "ModelError" and "chat template" in answer["error"][1], answer
    assert answer["peak"] < 1 << 30
