"""llama.cpp's log: the logger `pyaircache.llama`, stderr while a verbose Chat is open, many threads at once."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading

import pytest

from pyaircache import Chat
from pyaircache.engine import library, log, marshal, status

PATIENCE = 120

INFO, WARN, ERROR, CONTINUED = 2, 3, 4, 5


@pytest.fixture
def write(engine):
    """Calls the callback as C does."""
    ffi, callback = engine.ffi, log.install()

    def write(level: int, text: bytes) -> None:
        callback(level, ffi.new("char[]", text), ffi.NULL)

    yield write
    write(ERROR, b"\n")  # no test leaves half a line


def test_there_is_one_callback_for_ever(engine):
    callback = log.install()
    with Chat(n_threads=1, verbose=True), Chat(n_threads=1):
        assert log.install() is callback
    assert log.install() is callback


FIRST = """
import sys, threading
from pyaircache.engine import library, log
sys.setswitchinterval(1e-6)
start = threading.Barrier(8)
found = []
def install():
    start.wait(60)
    found.append((log.install(), library.load()))
threads = [threading.Thread(target=install) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(len(found), len({id(callback) for callback, _ in found}), len({id(binding) for _, binding in found}))
"""


def test_threads_that_come_first_at_once_install_one_callback(engine):
    command = [sys.executable, "-X", "faulthandler", "-c", FIRST]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stdout) == (0, "8 1 1\n"), done.stderr[-3000:]


def test_lines_become_records(write, caplog):
    caplog.set_level(logging.DEBUG, "pyaircache")
    for level, text in [(1, b"debug\n"), (INFO, b"one "), (CONTINUED, b"line\ntw"), (CONTINUED, b"o\n"), (WARN, b"w\n"),
                        (ERROR, b"\xff\n"), (INFO, b"\n")]:  # fmt: skip
        write(level, text)
    records = [(record.name, record.levelno, record.getMessage()) for record in caplog.records]
    assert records == [
        ("pyaircache.llama", logging.DEBUG, "debug"),
        ("pyaircache.llama", logging.INFO, "one line"),
        ("pyaircache.llama", logging.INFO, "two"),
        ("pyaircache.llama", logging.WARNING, "w"),
        ("pyaircache.llama", logging.ERROR, "\ufffd"),
    ]


def test_nobody_listens_and_nothing_is_decoded(write, monkeypatch, capfd):
    def fail(*arguments: object) -> None:
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr(log, "_write", fail)
        write(INFO, b"hello\n")
    write(ERROR, b"hello\n")
    assert capfd.readouterr() == ("", "")


def test_a_second_chat_does_not_silence_the_first(write, capfd):
    first = Chat(n_threads=1, verbose=True)
    with Chat(n_threads=1):
        pass
    capfd.readouterr()
    write(INFO, b"still here\n")
    assert capfd.readouterr().err == "still here\n"
    second = Chat(n_threads=1, verbose=True)
    first.close()
    capfd.readouterr()
    write(INFO, b"still here\n")
    write(1, b"for developers\n")
    assert capfd.readouterr().err == "still here\n"
    second.close()
    write(INFO, b"not here\n")
    assert capfd.readouterr().err == ""


def test_a_verbose_chat_that_cannot_be_loaded_leaves_no_listener(engine, tmp_path, write, capfd):
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + b"\0" * 100)
    for _ in range(2):
        with pytest.raises(Exception, match=r"m\.gguf"):
            Chat(tmp_path / "m.gguf", verbose=True)
    capfd.readouterr()
    write(INFO, b"hello\n")
    assert capfd.readouterr().err == ""


def test_an_interrupt_in_the_callback_comes_out_of_the_call(write, monkeypatch):
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(log, "_wanted", interrupt)
        write(INFO, b"hello\n")
    assert log.interrupted()
    progress = marshal.ProgressCallback(library.load().ffi, lambda *done: None)
    assert not progress.pointer(0, 0, 0, library.load().ffi.NULL)  # the engine is told to stop
    threads = [threading.Thread(target=status.check, args=(0,))]  # it belongs to the main thread
    for thread in threads:
        thread.start()
        thread.join(PATIENCE)
    with pytest.raises(KeyboardInterrupt):
        status.check(0)
    assert not log.interrupted() and status.check(3) == 3


def test_a_handler_that_fails_does_no_harm(write, monkeypatch):
    class Broken:
        def write(self, text: str) -> int:
            raise OSError("full")

    with Chat(n_threads=1, verbose=True):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", Broken())
            write(INFO, b"hello\n")
        assert not log.interrupted()


STORM = """
import threading
from pyaircache import Chat, ModelError
from pyaircache.model_files import bundled_dir
import pathlib, sys
start = threading.Barrier(5)
failed = []
def load(verbose):
    start.wait(60)
    for _ in range(8):
        try:
            Chat(n_threads=1, n_ctx=256, verbose=verbose).close()
        except Exception as exc:
            failed.append(exc)
def log():  # much faster than loading
    from pyaircache.engine import library
    ffi, lib, _ = library.load()
    params = ffi.new("struct pac_model_params *", lib.pac_model_default_params())
    path = ffi.new("char[]", sys.argv[1].encode())
    params.model = path
    out = ffi.new("pac_model **")
    start.wait(60)
    for _ in range(2000):
        lib.pac_model_new(params, out)
threads = [threading.Thread(target=load, args=(i % 2 == 0,)) for i in range(3)]
threads += [threading.Thread(target=log) for _ in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(failed)
"""


def test_threads_log_while_chats_open_and_close(engine, tmp_path):
    """In a process of its own, whose end is a part of the test."""
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + b"\xff" * 64)
    command = [sys.executable, "-X", "faulthandler", "-c", STORM, str(broken)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE * 4, check=False)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr[-3000:]
    assert "llama" in done.stderr


def test_pythons_end_while_a_thread_loads(engine):
    code = """
import threading
from pyaircache import Chat
begun = threading.Event()
def load():
    while True:
        begun.set()
        Chat(n_threads=1, n_ctx=256, verbose=True)
threading.Thread(target=load, daemon=True).start()
begun.wait(60)
"""
    command = [sys.executable, "-X", "faulthandler", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
