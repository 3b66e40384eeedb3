"""The C border itself, through cffi: wrong arguments, failed calls, and calls from two threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from raw import Raw

MAX = 2**31 - 1
ENGINE_IS_ENOUGH = ("pac_reset", "pac_cancel", "pac_sampling_set")  # an engine alone is enough for them


@pytest.fixture(scope="module", params=[1, 2], ids=["1 thread", "2 threads"])
def opened(request: pytest.FixtureRequest) -> Iterator[Raw]:
    engine = Raw(n_threads=request.param, keep_embeddings=True)
    assert engine.status == 0, engine.error()
    yield engine
    engine.close()


@pytest.fixture
def raw(opened: Raw) -> Raw:
    assert opened.lib.pac_reset(opened.ptr) == 0
    return opened


# -- arguments --------------------------------------------------------------------------------------------------------


def test_null_pointers(raw: Raw) -> None:
    """Of every function that gives a status: with all pointers null, and with the engine alone."""
    ffi, lib = raw.ffi, raw.lib
    for name in dir(lib):
        function = getattr(lib, name)
        if not name.startswith("pac_") or not isinstance(function, ffi.CData):
            continue
        kind = ffi.typeof(function)
        if kind.kind != "function" or kind.result.cname != "int32_t" or name in ENGINE_IS_ENOUGH:
            continue
        for first in (ffi.NULL, raw.ptr):
            values = [ffi.NULL if arg.kind == "pointer" or arg.kind == "function" else 0 for arg in kind.args]
            if kind.args[0].cname == "pac_engine *" or kind.args[0].cname == "const pac_engine *":
                values[0] = first
            elif first != ffi.NULL:
                continue
            if len(values) > 1 and not (name == "pac_decode" and first != ffi.NULL):
                status = function(*values)
                assert status < 0 and raw.error(), name
    assert lib.pac_reset(ffi.NULL) == lib.PAC_ERR_ARGUMENT
    assert lib.pac_cancel(ffi.NULL) == lib.PAC_ERR_ARGUMENT
    assert lib.pac_sampling_set(ffi.NULL, ffi.NULL) == lib.PAC_ERR_ARGUMENT
    assert lib.pac_sampling_set(raw.ptr, ffi.NULL) == 0
    assert lib.pac_model_forget_images(ffi.NULL) == lib.PAC_ERR_ARGUMENT
    lib.pac_model_free(ffi.NULL)
    lib.pac_engine_free(ffi.NULL)
    lib.pac_string_free(ffi.NULL)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"n_threads": 513}, "n_threads is 513: it must be in [0, 512]"),
        ({"n_threads": -1}, "n_threads is -1"),
        ({"n_ctx": MAX}, f"n_ctx is {MAX}"),
        ({"n_batch": -1}, "n_batch is -1"),
        ({"n_ubatch": MAX}, "n_ubatch"),
        ({"n_gpu_layers": -2}, "n_gpu_layers is -2"),
        ({"flash_attn": 2}, "flash_attn"),
        ({"cache_type_k": "q9"}, '"q9"'),
        ({"cache_type_v": "\udc80".encode("utf-8", "surrogateescape").decode("latin-1") * 5000}, "cache type"),
    ],
)
def test_parameters(fields: dict[str, Any], said: str) -> None:
    engine = Raw(**fields)
    assert engine.status == engine.lib.PAC_ERR_ARGUMENT
    assert said in engine.error()
    assert engine.ptr == engine.ffi.NULL


def test_numbers_that_overflow(raw: Raw) -> None:
    for reserve in (MAX, MAX - 5, 2048):
        assert raw.prompt("Hello", reserve=reserve) == raw.lib.PAC_ERR_CONTEXT
        assert "-" not in raw.error().replace("n_ctx", ""), raw.error()
        assert str(reserve) in raw.error()
    assert raw.prompt("Hello", reserve=-1) == raw.lib.PAC_ERR_ARGUMENT
    for size in ((MAX, MAX), (0, 5), (5, -1), (65536, 65536)):
        assert raw.layout(raw.marker + "?", size, pixels=False)[0] == raw.lib.PAC_ERR_ARGUMENT
        assert f"{size[0]} x {size[1]}" in raw.error()
    assert raw.layout(raw.marker + "?", (8, 8), pixels=False, frames=MAX)[0] == raw.lib.PAC_ERR_ARGUMENT


def test_text_that_is_no_utf8(raw: Raw) -> None:
    out = raw.ffi.new("struct pac_prompt_info *")
    text = bytes(range(128, 256)) + b"\xed\xa0\x80"
    assert raw.lib.pac_prompt(raw.ptr, text, raw.ffi.NULL, 0, 0, raw.ffi.NULL, raw.ffi.NULL, raw.ffi.NULL, out) == 0
    message = raw.ffi.new("struct pac_message *")
    role, content = raw.ffi.new("char[]", b"user"), raw.ffi.new("char[]", text)
    message.role, message.content = role, content
    rendered = raw.ffi.new("char **")
    status = raw.lib.pac_apply_template(raw.ptr, message, 1, True, rendered)
    assert status in (0, raw.lib.PAC_ERR_MODEL, raw.lib.PAC_ERR_INTERNAL)
    raw.lib.pac_string_free(rendered[0])


# -- results of earlier prompts ---------------------------------------------------------------------------------------


def test_embeddings_are_those_of_the_last_prompt(raw: Raw) -> None:
    text = raw.marker + "What?"
    assert raw.embeddings()[0] == raw.lib.PAC_ERR_STATE
    assert raw.prompt(text, (120, 90)) == 0
    status, n, width = raw.embeddings()
    assert (status, n, width) == (0, 12, 256)

    @raw.ffi.callback("pac_progress_callback")
    def stop(stage: int, done: int, total: int, _: Any) -> bool:
        return stage != 2 or done < total

    assert raw.prompt(text, (200, 200), progress=stop) == raw.lib.PAC_ERR_CANCELLED
    assert raw.embeddings() == (0, n, width)
    assert raw.lib.pac_reset(raw.ptr) == 0
    assert raw.embeddings()[0] == raw.lib.PAC_ERR_STATE
    assert raw.prompt("Hello") == 0
    assert raw.embeddings()[0] == raw.lib.PAC_ERR_STATE


def test_layout_needs_no_pixels(raw: Raw) -> None:
    for sizes in ([(120, 90)], [(300, 200), (33, 90)], [(2000, 1500)]):
        text = raw.marker * len(sizes) + "What?"
        assert raw.layout(text, *sizes, pixels=False) == raw.layout(text, *sizes)
        count = raw.ffi.new("int32_t *")
        assert raw.lib.pac_count_tokens(raw.ptr, text.encode(), *raw.images(*sizes, pixels=False), count) == 0
        assert count[0] > 0
    out = raw.ffi.new("struct pac_prompt_info *")
    null = raw.ffi.NULL
    pictures = raw.images((120, 90), pixels=False)
    status = raw.lib.pac_prompt(raw.ptr, (raw.marker + "?").encode(), *pictures, 0, null, null, null, out)
    assert status == raw.lib.PAC_ERR_ARGUMENT and "no pixels" in raw.error()


def test_marker(raw: Raw) -> None:
    """It cannot be guessed, and llama.cpp's own is plain text."""
    assert raw.marker != "<__media__>" and len(raw.marker) > 32
    assert raw.prompt("What is <__media__> here?") == 0
    assert raw.prompt(raw.marker + "?") == raw.lib.PAC_ERR_ARGUMENT
    assert "1 image markers" in raw.error()


# -- two threads ------------------------------------------------------------------------------------------------------


def cancelling(raw: Raw, call: Callable[[], int]) -> int:
    """The status of a call that another thread cancels for as long as it runs."""
    done = threading.Event()

    def cancel() -> None:
        while not done.is_set():
            assert raw.lib.pac_cancel(raw.ptr) == 0

    thread = threading.Thread(target=cancel)
    thread.start()
    try:
        return call()
    finally:
        done.set()
        thread.join()


@pytest.fixture(params=["nothing", "a compressed picture", "text"])
def history(request: pytest.FixtureRequest, raw: Raw) -> str:
    """What the conversation holds before."""
    if request.param == "text":
        assert raw.prompt("Hello there.") == 0
    elif request.param == "a compressed picture":
        assert raw.prompt(raw.marker + "What is this?", (200, 150), observe=True) == 0
        assert raw.compress() == 0
        assert raw.lib.pac_decode(raw.ptr, 5) == 0
    return str(request.param)


def test_cancelled_prompt(raw: Raw, history: str) -> None:
    text = raw.marker + "And what is this? " * 12
    before = raw.n_past()
    for sizes in ([(400, 300)], []):
        question = text if sizes else text.replace(raw.marker, "")
        status = cancelling(raw, lambda question=question, sizes=sizes: raw.prompt(question, *sizes))  # type: ignore[misc]
        assert status == raw.lib.PAC_ERR_CANCELLED and raw.error() == "cancelled"
        assert raw.n_past() == before

    # the same question then gives what it gives without all this
    assert raw.prompt(text, (400, 300)) == 0
    got = raw.logits()
    assert raw.lib.pac_reset(raw.ptr) == 0
    if history == "text":
        assert raw.prompt("Hello there.") == 0
    elif history == "a compressed picture":
        assert raw.prompt(raw.marker + "What is this?", (200, 150), observe=True) == 0
        assert raw.compress() == 0
        assert raw.lib.pac_decode(raw.ptr, 5) == 0
    assert raw.prompt(text, (400, 300)) == 0
    np.testing.assert_allclose(got, raw.logits(), atol=1e-3, rtol=0)


def test_cancelled_while_the_prompt_is_prepared(raw: Raw) -> None:
    """Before the first stage begins, which is when the picture has been made ready for the tower."""
    stages = []

    @raw.ffi.callback("pac_progress_callback")
    def progress(stage: int, *_: Any) -> bool:
        stages.append(stage)
        return True

    for _ in range(20):  # the other thread may be late
        stages.clear()
        status = cancelling(raw, lambda: raw.prompt(raw.marker + "What?", (2000, 1500), progress=progress))
        assert status == raw.lib.PAC_ERR_CANCELLED and raw.error() == "cancelled" and raw.n_past() == 0
        if not stages:
            break
    assert not stages
    assert raw.prompt(raw.marker + "What?", (120, 90)) == 0


def test_cancelled_at_each_stage(raw: Raw) -> None:
    """By another thread, while the callback of a stage holds the call up."""
    text = raw.marker * 2 + "What?"
    seen = []

    def cancel_at(n: int) -> Any:
        seen.clear()

        @raw.ffi.callback("pac_progress_callback")
        def progress(stage: int, done: int, total: int, _: Any) -> bool:
            seen.append((stage, done, total))
            if len(seen) == n:
                thread = threading.Thread(target=raw.lib.pac_cancel, args=(raw.ptr,))
                thread.start()
                thread.join()
            return True

        return progress

    assert raw.prompt(text, (200, 100), (100, 300), progress=cancel_at(0)) == 0
    n_stages = len(seen)
    assert n_stages > 6 and {stage for stage, _, _ in seen} == {1, 2}
    assert raw.lib.pac_reset(raw.ptr) == 0
    for n in range(1, n_stages + 1):
        assert raw.prompt(text, (200, 100), (100, 300), progress=cancel_at(n)) == raw.lib.PAC_ERR_CANCELLED, seen[-1]
        assert len(seen) == n and raw.n_past() == 0


def test_cancelled_token(raw: Raw, history: str) -> None:
    assert raw.prompt("Hello") == 0
    before = raw.n_past()
    n_done = 0

    def decode_all() -> int:
        """A token is evaluated in a moment: one of many is caught."""
        nonlocal n_done
        while (status := raw.lib.pac_decode(raw.ptr, 7)) == 0:
            n_done += 1
        return int(status)

    assert cancelling(raw, decode_all) == raw.lib.PAC_ERR_CANCELLED, raw.error()
    assert raw.n_past() == before + n_done
    assert raw.lib.pac_decode(raw.ptr, 7) == 0


def test_an_idle_engine_is_not_cancelled(raw: Raw) -> None:
    assert raw.lib.pac_cancel(raw.ptr) == 0
    assert raw.prompt(raw.marker + "What?", (120, 90), observe=True) == 0
    # compression is not cancelled: what it moves could not be moved back
    assert cancelling(raw, raw.compress) == 0
    assert raw.lib.pac_decode(raw.ptr, 7) == 0


def test_log_callback(raw: Raw, tmp_path: Path) -> None:
    """It may be replaced while it runs, and from within itself."""
    ffi, lib = raw.ffi, raw.lib
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(100))
    started, release, order = threading.Event(), threading.Event(), []

    @ffi.callback("pac_log_callback")
    def first(level: int, text: Any, _: Any) -> None:
        started.set()
        release.wait()
        order.append("called")

    @ffi.callback("pac_log_callback")
    def second(level: int, text: Any, _: Any) -> None:
        lib.pac_log_set(ffi.NULL, ffi.NULL)
        order.append("second")

    def replace() -> None:
        lib.pac_log_set(ffi.NULL, ffi.NULL)
        order.append("replaced")

    lib.pac_log_set(first, ffi.NULL)
    threads = [threading.Thread(target=Raw, kwargs={"model": str(broken)}, daemon=True)]
    threads[0].start()
    assert started.wait(60)
    threads.append(threading.Thread(target=replace, daemon=True))
    threads[1].start()
    release.set()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert len(order) > 1 and order.index("replaced") == len(order) - 1

    order.clear()
    lib.pac_log_set(second, ffi.NULL)
    thread = threading.Thread(target=Raw, kwargs={"model": str(broken)}, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive() and order == ["second"]
