"""The conversion: checks first, then the converter and llama-quantize as processes of their own, then two renames.

A process, because the converter keeps its state in class attributes and its words in the log, changes ``sys.path``,
and must be stoppable in the middle of anything. Everything is written into a folder inside the target folder, and moved
from there when all of it is complete: whatever happens before leaves nothing behind.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from .. import checks, model_files
from ..checks import flag, named, one_of, shown
from ..engine import library
from ..errors import ArgumentError, ConversionError, EngineError
from ..progress import STAGE_MMPROJ, STAGE_QUANTIZE, STAGE_TEXT, ProgressLine
from .source import open_source
from .types import DIRECT, mmproj_type, text_type, unquantised

PARTS = ("both", "text", "mmproj")
NEEDED = ("torch", "transformers", "sentencepiece", "yaml")
INSTALL = "pip install 'pyaircache[convert]'"

_STAGES = {"text": STAGE_TEXT, "mmproj": STAGE_MMPROJ}
_QUANTIZED = re.compile(rb"^\[ *(\d+)/ *(\d+)\]")
_LAST_LINES = 8


class Converted(NamedTuple):
    """The files that `convert` wrote."""

    model: Path | None
    """The language model; None when only the projector was asked for."""
    mmproj: Path | None
    """Its projector; None when the model has no vision part, or only the language model was asked for."""


def convert(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    outtype: str = "f16",
    mmproj_outtype: str = "f16",
    only: str = "both",
    name: str | None = None,
    pre_tokenizer: str | None = None,
    force: bool = False,
    verbose: bool = False,
) -> Converted:
    """Converts a Hugging Face model folder to GGUF: ``out/NAME-TYPE.gguf`` and ``out/mmproj-NAME-TYPE.gguf``.

    Weights are read from safetensors only, no code of the folder is run, nothing is downloaded. Files appear under
    their names when all of them are complete; an error or Ctrl-C leaves none.

    Args:
        source: The folder, with config.json, model*.safetensors and the tokenizer's files.
        out: Folder to write to; made if need be.
        outtype: Type of the language model's weights, one of `TEXT_TYPES`; vectors stay f32.
        mmproj_outtype: Type of the projector's weights, one of `MMPROJ_TYPES`.
        only: "both", "text" (the language model) or "mmproj" (the projector).
        name: NAME, and the model's name in the files; None: the folder's.
        pre_tokenizer: llama.cpp's name of the word splitter, such as "qwen2"; None: found by the tokenizer itself.
        force: Overwrite files that are there.
        verbose: Show the converter's log on stderr.

    Raises:
        ModelNotFoundError: There is no such folder.
        ConversionError: The folder cannot be converted, or the files cannot be written; the message says why.
        ArgumentError: A value is not one of those allowed.
        EngineError: This installation lacks the converter or llama-quantize.
    """
    types = {"text": text_type(outtype), "mmproj": mmproj_type(mmproj_outtype)}
    one_of("only", only, PARTS)
    flag("force", force)
    flag("verbose", verbose)
    folder = open_source(source)
    if name is not None and (not isinstance(name, str) or not name or Path(name).name != name or name.startswith(".")):
        raise ArgumentError(f"name must be a name for files, without folders, got {shown(name)}")
    title = name or folder.name
    parts = [part for part in _STAGES if only in ("both", part)]
    if not title.isprintable() or (pre_tokenizer is not None and not isinstance(pre_tokenizer, str)):
        wrong = pre_tokenizer if title.isprintable() else title
        raise ArgumentError(f"name and pre_tokenizer must be printable texts, got {shown(wrong)}")
    target = Path(os.path.abspath(checks.path("the folder to write to", out)))
    final = {part: target / _file_name(part, title, types[part]) for part in parts}
    try:
        _refuse_existing(final, target, force)
    except OSError as exc:  # a name that is too long
        raise ConversionError(f"{named(str(target))} cannot be written to: {exc.strerror or exc}") from exc
    _require_modules()
    converter = find_converter()
    quantize = model_files.find_program("llama-quantize") if "text" in parts and types["text"] not in DIRECT else None

    with _work_folder(target) as work, _log(work, verbose) as log, ProgressLine() as progress:
        jobs = [
            {"part": part, "type": types[part] if types[part] in DIRECT else unquantised(folder.types),
             "path": str(work / f"{part}.gguf"), "required": only == part}
            for part in parts
        ]  # fmt: skip
        order = {
            "source": str(folder.folder),
            "converter": str(converter),
            "name": name or (folder.name if folder.from_cache else None),
            "pre_tokenizer": pre_tokenizer,
            "has_mtp": folder.has_mtp,
            "jobs": jobs,
        }
        written = _work(order, work, log, progress)
        if quantize is not None:
            _quantize(quantize, work, types["text"], log, progress)
        for part in written:
            os.replace(work / f"{part}.gguf", final[part])
    return Converted(*(final[part] if part in written else None for part in _STAGES))


def find_converter() -> Path:
    """Folder of llama.cpp's converter, which lies beside the engine library.

    Raises:
        EngineError: It is not there.
    """
    folder = library.find_library().parent / "converter"
    if not (folder / "conversion" / "__init__.py").is_file():
        raise EngineError(f"llama.cpp's converter was not found in {folder}; reinstall pyaircache")
    return folder


def _file_name(part: str, title: str, kind: str) -> str:
    return f"{'mmproj-' if part == 'mmproj' else ''}{title}-{kind.upper()}.gguf"


def _refuse_existing(final: dict[str, Path], target: Path, force: bool) -> None:
    if target.exists() and not target.is_dir():
        raise ConversionError(f"{target} is a file; name a folder to write to")
    for path in final.values():
        if path.is_dir():
            raise ConversionError(f"{path} is a folder")
        if path.exists() and not force:
            raise ConversionError(f"{path} exists already; force=True (--force) overwrites it")


def _require_modules() -> None:
    missing = [one for one in NEEDED if importlib.util.find_spec(one) is None]
    if missing:
        raise ConversionError(f"converting needs {', '.join(missing)}, not installed here: {INSTALL}")


@contextmanager
def _work_folder(target: Path) -> Iterator[Path]:
    """A folder inside the target's, so that a rename is enough in the end; what was made is removed again."""
    made = [path for path in (target, *target.parents) if not path.exists()]
    try:
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target, prefix=".converting-") as folder:
            yield Path(folder)
    except OSError as exc:
        raise ConversionError(f"{target} cannot be written to: {exc.strerror or exc}") from exc
    finally:
        for path in made:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()


@contextmanager
def _log(work: Path, verbose: bool) -> Iterator[IO[bytes]]:
    """Where the processes' words go: stderr, or a file whose end is quoted when something goes wrong."""
    if verbose:
        with os.fdopen(os.dup(2), "wb", buffering=0) as stream:
            yield stream
    else:
        with (work / "log").open("w+b", buffering=0) as stream:
            yield stream


def _work(order: dict[str, Any], work: Path, log: IO[bytes], progress: ProgressLine) -> list[str]:
    """Runs the converter: returns the parts it wrote."""
    package = Path(__file__).resolve().parents[2]
    paths = [str(package), *filter(None, [os.environ.get("PYTHONPATH")])]
    # No network, whatever a file in the folder names. The work folder is the current one: Python looks there first.
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1",
        "NO_LOCAL_GGUF": "1", "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    command = [sys.executable, "-m", "pyaircache.convert.worker", json.dumps(order)]
    error = None
    written: list[str] = []
    progress(_STAGES[order["jobs"][0]["part"]], 0, 1)  # PyTorch takes its time to start
    with _process(command, stdout=subprocess.PIPE, stderr=log, cwd=work, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            message = json.loads(line)
            if "error" in message:
                error = message["error"]
            elif "written" in message:
                written = message["written"]
            else:
                progress(_STAGES[message["part"]], message["done"], message["total"])
    if error is not None:
        raise ConversionError(error)
    if process.returncode != 0 or not written:
        raise ConversionError(f"the converter {_ended(process.returncode)}{_last_lines(log)}")
    return written


def _quantize(program: Path, work: Path, kind: str, log: IO[bytes], progress: ProgressLine) -> None:
    """Has llama-quantize replace text.gguf."""
    done = work / "quantized.gguf"
    threads = os.environ.get("OMP_NUM_THREADS", "")
    command = [str(program), "text.gguf", done.name, kind.upper(), *([threads] if threads.isdecimal() else [])]
    with _process(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=work) as process:
        assert process.stdout is not None
        for line in process.stdout:
            log.write(line)
            if match := _QUANTIZED.match(line):
                progress(STAGE_QUANTIZE, int(match[1]), int(match[2]))
    if process.returncode != 0 or not done.is_file():
        raise ConversionError(f"llama-quantize {_ended(process.returncode)}{_last_lines(log)}")
    os.replace(done, work / "text.gguf")


@contextmanager
def _process(command: list[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process that does not outlive the block."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, **options)
    try:
        yield process
        process.wait()
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _ended(code: int) -> str:
    return f"was stopped by signal {-code}" if code < 0 else f"failed (exit code {code})"


def _last_lines(log: IO[bytes]) -> str:
    """The log's end, for an error nobody foresaw."""
    if not log.seekable() or not log.readable():  # verbose: they were shown
        return ""
    log.seek(0)
    lines = log.read().decode("utf-8", "replace").strip().splitlines()
    return f"; its last words: {' | '.join(lines[-_LAST_LINES:])}" if lines else ""
