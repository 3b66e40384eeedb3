"""The command line as a process, with the bundled model."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import pyaircache
from pyaircache import model_files
from pyaircache.cli import terminal


def process(*arguments: str, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "pyaircache", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def test_bundled_model(engine, samples, tmp_path):
    sample = samples[0]
    heatmap = tmp_path / "heatmap.png"
    out, err = process("ask", sample.picture, sample.question, "--keep", "1", "--heatmap", heatmap).communicate()
    assert (out, err) == (f"{sample.answer}\n", "")
    assert Image.open(heatmap).size == Image.open(sample.picture).size
    out, err = process("ask", sample.picture, sample.question, "--keep", "0.25", "--json").communicate()
    value = json.loads(out)
    assert err == "" and sum(value["budgets"]) == round(0.25 * value["layers"] * value["visual_tokens"])
    out, err = process("ask", sample.picture, sample.question, "--verbose").communicate()
    assert "llama" in err and "Report(" in err and "llama" not in out


def test_info_of_the_bundled_model(engine):
    files = [model_files.bundled_dir() / name for name in (model_files.BUNDLED_MODEL, model_files.BUNDLED_MMPROJ)]
    value = json.loads(process("info", *files, "--image-size", "560x280", "--json").communicate()[0])
    assert value["family"] == "Qwen2-VL" and value["n_layers"] == 6 and value["vision"] is True
    assert value["images"][0]["spans"] == [{"n_tokens": 200, "nx": 20, "ny": 10}]


def test_info_without_a_model_tells_what_is_installed(engine):
    lines = {line[:20].rstrip(): line[21:] for line in process("info").communicate()[0].splitlines()}
    assert lines["pyaircache"] == pyaircache.__version__ and "llama.cpp" in lines["engine"]
    assert lines["library"] == str(engine.path) and "cpu" in lines["backends"].split(", ")
    assert lines["model"].endswith(model_files.BUNDLED_MODEL) and lines["family"] == "Qwen2-VL"
    value = json.loads(process("info", "--json").communicate()[0])
    assert value["pyaircache"] == pyaircache.__version__ and value["n_layers"] == 6


posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals, pipes and shells")

ENDLESS = """
import sys
from pyaircache import engine
from pyaircache.cli.main import main
engine.Engine.sample = lambda *arguments: (5, False)  # an answer without an end
main(sys.argv[1:])
"""

DEAF = """
import signal, sys
from cffi import FFI
from pyaircache import engine
from pyaircache.cli.main import main
def encode(*arguments, **options):  # as a large picture is encoded: in C, where Python's own handler has to wait
    ffi = FFI()
    ffi.cdef("int pthread_mutex_lock(void *);")
    libc = ffi.dlopen(None)
    mutex = ffi.new("char[256]")  # zeros are an open one
    libc.pthread_mutex_lock(mutex)
    signal.signal(signal.SIGINT, lambda *arguments: None)  # also in the moment before the next call
    print("encoding", flush=True)
    libc.pthread_mutex_lock(mutex)
engine.Engine.conversation = encode
main(sys.argv[1:])
"""


def ask_with(code: str, sample) -> subprocess.Popen:
    command = [sys.executable, "-c", code, "ask", str(sample.picture), sample.question, "--max-tokens", "1000000"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@posix
def test_ctrl_c_while_answering(engine, samples):
    running = ask_with(ENDLESS, samples[0])
    assert running.stdout.read(1)  # it answers
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert (running.returncode, err.strip()) == (130, "")


@pytest.mark.skipif(sys.platform != "linux", reason="knows what a mutex looks like on Linux")
def test_a_second_ctrl_c_ends_at_once(engine, samples):
    running = ask_with(DEAF, samples[0])
    assert running.stdout.readline() == "encoding\n"
    running.send_signal(signal.SIGINT)
    assert running.stderr.readline() == f"pyaircache: {terminal.SLOW}\n"
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert (running.returncode, out, err) == (130, "", "")


@posix
def test_broken_pipe_is_quiet(engine, samples):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "pyaircache", "ask", samples[0].picture, samples[0].question, "--json"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert done.stderr == b"" and done.returncode == 1


def shell(line: str, *arguments: object, **options) -> subprocess.CompletedProcess[str]:
    """A line of sh, with PYTHON -m pyaircache ARGUMENTS as its "$@"."""
    command = ["sh", "-c", line, "sh", sys.executable, "-m", "pyaircache", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, **options)


@posix
@pytest.mark.parametrize("arguments", [["methods"], ["--help"], ["ask", "x.png", "What?"], ["nonsense"]])
def test_closed_stdout_is_one_line(engine, arguments):
    done = shell('"$@" >&-', *arguments)
    assert done.returncode == 1
    assert done.stderr == "pyaircache: error: standard output is closed, so there is nowhere to put the answer\n"


@posix
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this platform has no /dev/full")
@pytest.mark.parametrize("arguments", [["methods"], ["ASK"], ["ASK", "--json"]])
def test_full_disk_is_one_line(engine, samples, arguments):
    ask = ["ask", samples[0].picture, samples[0].question]
    done = shell('"$@" >/dev/full', *(ask + arguments[1:] if arguments[0] == "ASK" else arguments))
    assert done.returncode == 1
    assert done.stderr == "pyaircache: error: the output cannot be written: No space left on device\n"


@posix
@pytest.mark.parametrize("line", ['"$@" 2>&-', '"$@" 2>/dev/full', '"$@" <&-', '"$@" <&- 2>&-'])
def test_no_stderr_and_no_stdin_lose_no_answer(engine, samples, line):
    if "/dev/full" in line and not os.path.exists("/dev/full"):
        pytest.skip("this platform has no /dev/full")
    sample = samples[0]
    done = shell(line, "ask", sample.picture, sample.question, "--keep", "1")
    assert (done.returncode, done.stdout) == (0, f"{sample.answer}\n")
    assert shell(line, "ask", "none.png", sample.question).returncode == 1


@posix
def test_closed_stdin_is_named(engine):
    done = shell('"$@" <&-', "ask", "-", "What?")
    assert done.returncode == 2 and "standard input, which is closed" in done.stderr
    assert done.stderr.count("\n") == 1


def test_warnings_are_one_line(engine, samples):
    out, err = process("ask", samples[0].picture, samples[0].question, "--keep", "1", "--ctx", "300").communicate()
    assert (out, err) == (f"{samples[0].answer}\n", "pyaircache: warning: n_ctx=300 became 512: llama.cpp takes "
                          "multiples of 256\n")  # fmt: skip


def test_no_mmproj(engine, tmp_path):
    (tmp_path / "m.gguf").symlink_to(model_files.bundled_dir() / model_files.BUNDLED_MODEL)
    (tmp_path / "mmproj-m.gguf").write_bytes(b"no projector")
    model = tmp_path / "m.gguf"
    assert json.loads(process("info", model, "--no-mmproj", "--json").communicate()[0])["vision"] is False
    out, _ = process("ask", "What?", "--model", model, "--no-mmproj", "-n", "2", "--json").communicate()
    assert json.loads(out)["keep"] == 1.0


def test_demo(engine, tmp_path):
    running = process("demo", cwd=tmp_path, env=os.environ | {"OMP_WAIT_POLICY": "passive"})
    out, err = running.communicate()
    assert (running.returncode, err) == (0, "")
    rows = [line.split() for line in out.splitlines() if re.match(r" [01]\.\d\d ", line)]
    assert [row[:2] for row in rows[:4]] == [["1.00", "1.43"], ["0.50", "1.43"], ["0.25", "1.43"], ["0.10", "1.43"]]
    assert [row[0] for row in rows[4:]] == ["1.00", "0.10"]
    full, compressed = (int(row[1].replace(",", "")) for row in rows[4:])
    assert 3872 * 3072 < full < 4096 * 3072 and compressed < full / 5
    assert "trained so that a question looks at the whole of its answer" in out
    assert np.asarray(Image.open(tmp_path / "heatmap.png")).ndim == 3
