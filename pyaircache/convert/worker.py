"""Runs llama.cpp's converter, in a process of its own: ``python -m pyaircache.convert.worker ORDER``.

ORDER is what `run` wrote, as JSON. Answers are lines of JSON on stdout: ``{"part", "done", "total"}`` (bytes written),
at the end ``{"written": [parts]}`` or ``{"error": text}``. The log goes to stderr.

A family the converter lacks is a module of this package, with classes that register as the converter's own do::

    from conversion.base import MmprojModel, ModelBase

    @ModelBase.register("NameInConfigJson")
    class NameModel(MmprojModel): ...

A class of a language model with ``of_whole = True`` is taken for that name, whatever the configuration inside says.
These modules are imported after the converter's own one for the architecture, so they go before it. They are imported
here only, where ``conversion`` and ``gguf`` are the pinned ones.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import logging
import os
import pkgutil
import re
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

from . import families

_PARTS = {"text": "language model", "mmproj": "vision part"}
_REPORT_S = 0.1  # between two reports of progress


class Refusal(Exception):
    """A reason in words for the user; also for modules that add a family."""


def main() -> None:
    """Does what the order says."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches the parent too, which does the talking
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the converter prints belongs to the log

    def answer(**message: Any) -> None:
        print(json.dumps(message), file=answers, flush=True)

    order = json.loads(sys.argv[1])
    try:
        answer(written=_convert(order, answer))
    except BrokenPipeError:
        sys.exit(1)  # the parent is gone
    except Exception as exc:
        traceback.print_exc()
        answer(error=_in_words(exc, Path(order["source"])))
        sys.exit(1)


def _convert(order: dict[str, Any], answer: Any) -> list[str]:
    """Writes the files of the order; returns the parts written."""
    source = Path(order["source"])
    sys.path[:0] = [order["converter"], str(Path(order["converter"]) / "gguf-py")]
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    _forbid_code(source)

    import gguf
    import torch
    from conversion.base import ModelBase, ModelType, TextModel

    _choose_pre_tokenizer(TextModel, source, order["pre_tokenizer"])
    hparams = ModelBase.load_hparams(source, False)
    kinds = {"text": ModelType.TEXT, "mmproj": ModelType.MMPROJ}
    classes = {}
    for job in order["jobs"]:  # all of them before the first is written
        part = job["part"]
        if part == "text" or job["required"] or _has_vision(hparams):
            classes[part] = _model_class(hparams, kinds[part], source)

    written = []
    with torch.inference_mode():
        for job in order["jobs"]:
            if job["part"] not in classes:
                continue
            _report_progress(lambda done, total, part=job["part"]: answer(part=part, done=done, total=total))
            if getattr(classes[job["part"]], "supports_mtp_export", False):
                classes[job["part"]].no_mtp = not order["has_mtp"]  # else the converter insists on them
            kind = {"f32": "ALL_F32"}.get(job["type"], f"MOSTLY_{job['type'].upper()}")
            model = classes[job["part"]](
                source,
                gguf.LlamaFileType[kind],
                Path(job["path"]),
                model_name=order["name"],
                hparams=json.loads(json.dumps(hparams)),  # the converter changes it
            )
            model.write()
            written.append(job["part"])
    return written


def _has_vision(hparams: dict[str, Any]) -> bool:
    """Whether there is a projector to write: the converter's own names of that part of a configuration."""
    return any(hparams.get(key) for key in ("vision_config", "vision_encoder", "vit_config", "vt_config"))


# -- which class ------------------------------------------------------------------------------------------------------


def _model_class(hparams: dict[str, Any], kind: Any, source: Path) -> Any:
    """The class that writes this part of the model.

    Raises:
        Refusal: Nobody knows the architecture.
    """
    import conversion
    from conversion.base import ModelBase, ModelType

    try:
        architecture = conversion.get_model_architecture(hparams, kind)
    except ValueError:
        raise Refusal(f'{source / "config.json"} names no architecture ("architectures")') from None
    names = [architecture]
    text = hparams.get("text_config") or {}
    if kind == ModelType.TEXT and (plain := _causal_lm(text.get("model_type"))):
        names.append(plain)
    for name in names:
        with contextlib.suppress(NotImplementedError):
            conversion.get_model_class(name, mmproj=kind == ModelType.MMPROJ)
    for module in pkgutil.iter_modules(families.__path__):
        importlib.import_module(f"{families.__name__}.{module.name}")
    registered = ModelBase._model_classes[kind]
    whole = registered.get((hparams.get("architectures") or [None])[0])
    if getattr(whole, "of_whole", False):  # goes before what the text model inside is called
        return whole
    for name in names:
        if name in registered:
            if name != architecture:
                text["architectures"] = [name]  # classes look there, too
            return registered[name]
    maps = {ModelType.TEXT: conversion.TEXT_MODEL_MAP, ModelType.MMPROJ: conversion.MMPROJ_MODEL_MAP}
    known = sorted({*maps[kind], *registered})
    part = _PARTS["text" if kind == ModelType.TEXT else "mmproj"]
    raise Refusal(f"the {part} of {architecture} cannot be converted; known are {', '.join(known)}")


def _causal_lm(model_type: str | None) -> str | None:
    """The architecture of a plain language model: many a vision model names only the type of the one inside it."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type or "")
    return name if isinstance(name, str) else None


# -- what must not happen ---------------------------------------------------------------------------------------------


def _forbid_code(source: Path) -> None:
    """Makes sure that nothing of the folder is executed: neither its Python files nor pickles.

    The converter asks for `trust_remote_code` with some tokenizers. It gets the class of transformers instead, and
    where there is none a refusal.
    """
    import torch
    from transformers import AutoConfig, AutoTokenizer, dynamic_module_utils

    def refuse_code(*args: Any, **options: Any) -> NoReturn:
        raise Refusal(_CODE.format(source=source))

    def refuse_pickle(*args: Any, **options: Any) -> NoReturn:
        raise Refusal(f"{source} has a part as pickle, which can run any code when it is opened")

    for name in ("get_class_in_module", "get_cached_module_file", "get_class_from_dynamic_module"):
        setattr(dynamic_module_utils, name, refuse_code)
    torch.load = refuse_pickle
    for auto in (AutoConfig, AutoTokenizer):
        original = auto.from_pretrained

        def trusting_nobody(*args: Any, original: Any = original, **options: Any) -> Any:
            return original(*args, **(options | {"trust_remote_code": False}))

        auto.from_pretrained = trusting_nobody


_CODE = (
    "{source} needs Python code of its own to be run (auto_map), which convert never does. Where a version of the "
    "model for transformers itself exists (often called ...-hf), convert that"
)


# -- the converter's seams --------------------------------------------------------------------------------------------


def _choose_pre_tokenizer(text_model: Any, source: Path, wanted: str | None) -> None:
    """Makes the word splitter the wanted one; else the converter's choice, else what tokenizer.json says."""
    from .tokenizer import detect

    original = text_model.get_vocab_base_pre
    known = sorted(set(re.findall(r'res = "([^"]+)"', inspect.getsource(original))))
    if wanted is not None and wanted not in known:
        raise Refusal(f"pre_tokenizer must be one of {', '.join(known)}; got {wanted!r}")

    def choose(self: Any, tokenizer: Any) -> str:
        if wanted is not None:
            return wanted
        try:
            return original(self, tokenizer)
        except NotImplementedError:
            found = detect(source / "tokenizer.json")
            if found is None:
                raise Refusal(
                    f"{source / 'tokenizer.json'}: how this tokenizer splits words is not known. If llama.cpp has a "
                    f"name for it, give that as pre_tokenizer (--pre-tokenizer): {', '.join(known)}"
                ) from None
            return found

    text_model.get_vocab_base_pre = choose


def _report_progress(report: Any) -> None:
    """Puts itself in the place of the bar that the GGUF writer draws."""
    import tqdm

    class Bar:
        def __init__(self, *args: Any, total: int | None = None, **options: Any) -> None:
            self.done, self.total, self.last = 0, total or 1, 0.0

        def update(self, count: int) -> None:
            self.done += count
            if self.done >= self.total or time.monotonic() - self.last > _REPORT_S:
                self.last = time.monotonic()
                report(self.done, self.total)

    tqdm.tqdm = Bar


def _in_words(exc: Exception, source: Path) -> str:
    """An error as a sentence: ours as it is, the converter's with what it is about."""
    if isinstance(exc, Refusal):
        return str(exc)
    if "custom code" in str(exc) or "trust_remote_code" in str(exc):
        return _CODE.format(source=source)
    if isinstance(exc, MemoryError):
        return f"{source} does not fit into memory while it is converted"
    if isinstance(exc, OSError):
        reason = str(exc.strerror or exc) + (f": {exc.filename}" if exc.filename else "")
    elif isinstance(exc, (ValueError, NotImplementedError)):  # a sentence already
        reason = str(exc)
    elif isinstance(exc, AssertionError) and not str(exc):
        reason = f"the converter expects: {traceback.extract_tb(exc.__traceback__)[-1].line}"
    else:
        reason = f"{type(exc).__name__}: {exc}"
    return f"{source} cannot be converted: {reason}"


if __name__ == "__main__":
    main()
