"""The command line: options and errors, with a fake engine."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from fake_engine import FakeModel
from PIL import Image

from pyaircache import ArgumentError, Span
from pyaircache.cli import ask, describe, main

pytestmark = pytest.mark.usefixtures("engine")  # with a fake engine, too: the library reads the words of options


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "page.png"
    Image.new("RGB", (30, 20)).save(path)
    return str(path)


def run(*arguments: str, **options):
    return CliRunner().invoke(main.main, [str(one) for one in arguments], **options)


def test_answer_streams_to_stdout(fake, picture):
    result = run("ask", picture, "What?")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "hello\n", "")


def test_json_is_one_object(fake, picture):
    result = run("ask", picture, "What?", "--json", "--keep", "0.5")
    assert result.exit_code == 0 and result.stderr == ""
    value = json.loads(result.stdout)
    assert value["answer"] == "hello" and value["budgets"] == [2, 3] and value["keep"] == 0.5
    assert {"method", "visual_tokens", "kv_bytes", "kv_bytes_full", "ms_first_token", "tokens_per_second"} <= set(value)
    assert "scores" not in value


def test_options_reach_the_engine(fake, picture, monkeypatch):
    seen = {}
    for kind in (FakeModel, fake):

        def spy(self, model, mmproj=None, make=kind.__init__, **options):
            seen.update(options, **({} if isinstance(model, FakeModel) else {"model": str(model)}))
            make(self, model, mmproj, **options)

        monkeypatch.setattr(kind, "__init__", spy)
    result = run("ask", picture, "What?", "--model", "m.gguf", "--ctx", "2048", "--n-gpu-layers", "3", "--threads", "2",
                 "--cache-type-k", "q8_0", "--cache-type-v", "q4_0", "--max-tokens", "2")  # fmt: skip
    assert result.stdout == "he\n"
    seen.pop("progress")
    assert seen == {"model": "m.gguf", "n_ctx": 2048, "n_gpu_layers": 3, "n_threads": 2, "cache_type_k": "q8_0",
                    "cache_type_v": "q4_0", "rpc_servers": None, "image_cache_bytes": None, "archive": 1}  # fmt: skip


@pytest.mark.parametrize(
    ("options", "method", "alpha"),
    [
        (["--method", "snapkv"], "snapkv", None),
        (["--seed", "3"], "aircache", 0.9),
        (["--alpha", "0.3"], "aircache", 0.3),
        (["--method", "random", "--seed", "3"], "score=random allocation=uniform seed=3", None),
        (["--method", "snapkv", "--pool", "none"], "window=last:32 keys=causal allocation=uniform", None),
        (["--merge", "1", "--alpha", "0.3"], "window=elite:0.3 keys=window allocation=strength+skewness merge=1", 0.3),
        (
            ["--method", "snapkv", "--window", "elite:0.5", "--pool", "max:3x3", "--allocation", "vl"],
            "window=elite:0.5 keys=causal pool=max:3x3 allocation=vl",
            0.5,
        ),
    ],
)
def test_methods_are_composed(fake, picture, options, method, alpha):
    value = json.loads(run("ask", picture, "What?", "--json", *options).stdout)
    assert (value["method"], value["alpha"]) == (method, alpha)


def test_methods_are_listed(fake):
    lines = run("methods").stdout.splitlines()
    assert lines == [
        "aircache   window=elite:0.9 keys=window allocation=strength+skewness",
        "snapkv     window=last:32 keys=causal pool=avg:5 allocation=uniform",
        "random     score=random allocation=uniform",
        "full       no compression: keep=1",
    ]


def test_the_question_is_the_last_argument_or_an_option(fake, picture):
    for arguments in ([picture, picture, "Which?"], ["-q", "Which?", picture, picture], [picture, picture, "-q", "W?"]):
        assert json.loads(run("ask", *arguments, "--json").stdout)["visual_tokens"] == 12
    for arguments in (["--question", "Which?"], ["Which is larger, a.png or b.png"], ["--", "-q is what?"]):
        assert json.loads(run("ask", "--json", *arguments).stdout)["visual_tokens"] == 0
    assert run("ask", picture, "--", "--keep is what?").stdout == "hello\n"
    assert run("ask", "--", picture, "-5 degrees in which month?").stdout == "hello\n"


class Recorder:
    """In the place of Chat: notes what it is asked, and stops."""

    asked: dict = {}

    def __init__(self, *arguments, **options):
        Recorder.asked = {"chat": options}

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        pass

    def cancel(self):
        pass

    def ask(self, images, question, **options):
        Recorder.asked |= options
        raise ArgumentError("enough")


def test_options_of_the_answer_are_passed_when_they_are_given(fake, picture, monkeypatch, tmp_path):
    monkeypatch.setattr(ask, "Chat", Recorder)
    always = {"max_tokens": 256, "temperature": 0.0, "seed": None, "stream": True}
    run("ask", picture, "What?")
    loading = Recorder.asked.pop("chat")
    assert Recorder.asked == always
    (tmp_path / "a.gbnf").write_text("root ::= [0-9]+\n")
    (tmp_path / "schema.json").write_text('{"type": "object"}')
    numbers = {"top_k": 5, "top_p": 0.5, "min_p": 0.25, "repeat_penalty": 1.5, "seed": 3}
    assert not {"keep", "system"} & set(loading)
    given = [word for name, value in numbers.items() for word in (f"--{name.replace('_', '-')}", value)]
    given += ["--stop", "a", "--stop", "b", "--system", "Be brief.", "--grammar", tmp_path / "a.gbnf"]
    run("ask", picture, "What?", *given, "--json-schema", tmp_path / "schema.json", "--keep", "0.5")
    loading = Recorder.asked.pop("chat")
    assert [loading[name] for name in ("keep", "system")] == [0.5, "Be brief."]
    texts = {"grammar": "root ::= [0-9]+\n", "json_schema": '{"type": "object"}'}
    assert Recorder.asked == always | numbers | texts | {"stop": ("a", "b")}
    run("ask", picture, "What?", "--json-schema", ' {"type": "number"}')
    assert Recorder.asked["json_schema"] == ' {"type": "number"}'


def test_addresses_where_they_are_allowed(fake, picture, monkeypatch):
    seen = []

    def fetch(url: str, allowed: bool) -> bytes:
        seen.append((url, allowed))
        return Path(picture).read_bytes()

    monkeypatch.setattr("pyaircache.images.urls.fetch", fetch)
    assert run("ask", "http://a.org/b.png", "What?", "--image-urls").stdout == "hello\n"
    refused = run("ask", "http://a.org/b.png", "What?")
    assert refused.exit_code == 2 and "--image-urls allows addresses" in refused.stderr
    assert seen == [("http://a.org/b.png", True)]


def test_several_images_and_stdin(fake, picture):
    with open(picture, "rb") as file:
        result = run("ask", picture, "-", "Which?", "--json", input=file.read())
    assert json.loads(result.stdout)["visual_tokens"] == 12
    assert run("ask", "What is 2 + 2?").stdout == "hello\n"


def test_heatmaps(fake, picture, tmp_path):
    assert run("ask", picture, "What?", "--keep", "0.5", "--heatmap", tmp_path / "out.png").exit_code == 0
    assert Image.open(tmp_path / "out.png").size == (30, 20)
    assert run("ask", picture, picture, "What?", "--keep", "1", "--heatmap", tmp_path / "two.jpg").exit_code == 0
    assert (tmp_path / "two-1.jpg").is_file() and (tmp_path / "two-2.jpg").is_file()


def test_heatmaps_of_pages_and_of_stdin(fake, picture, tmp_path):
    pages = io.BytesIO()
    two = [Image.new("RGB", size) for size in ((30, 20), (20, 30))]
    two[0].save(pages, "TIFF", save_all=True, append_images=two[1:])
    out = tmp_path / "out.png"
    assert run("ask", "-", "What?", "--keep", "1", "--heatmap", out, input=pages.getvalue()).exit_code == 0
    assert [Image.open(tmp_path / f"out-{i}.png").size for i in (1, 2)] == [(30, 20), (20, 30)]


@pytest.mark.parametrize("json_too", [[], ["--json"]])
def test_a_heatmap_that_cannot_be_written_costs_no_answer(fake, picture, tmp_path, json_too):
    (tmp_path / "out.png").mkdir()
    result = run("ask", picture, "What?", "--heatmap", tmp_path / "out.png", *json_too)
    assert result.exit_code == 1 and "hello" in result.stdout and result.stderr.startswith("pyaircache: error: ")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["ask"], 2, "Missing argument 'QUESTION'"),
        (["ask", "PICTURE"], 2, "what is the question about"),
        (["ask", "PICTURE", "PICTURE"], 2, 'last argument, or --question "..."'),
        (["ask", "What?", "PICTURE"], 2, "what is the question about"),
        (["ask", "PICTURE", "missing.jpg"], 2, "what is the question about missing.jpg?"),
        (["ask", "PICTURE", "missing.pdf"], 2, "what is the question about missing.pdf?"),
        (["ask", "PICTURE", "-"], 2, "what is the question about -?"),
        (["ask", "-", "-", "Which?"], 2, "standard input holds one image"),
        (["ask", "PICTURE", "What", "is", "it?"], 2, "no image 'What': put the question in quotation marks"),
        (["ask", "PICTURE", "What?", "-q", "What?"], 2, "no image 'What?': put the question in quotation marks"),
        (["ask", "PICTURE", "-q", ""], 2, "the question must be"),
        (["ask", "PICTURE", "What?", "--grammar", "none.gbnf"], 2, "--grammar none.gbnf cannot be read: No such file"),
        (["ask", "PICTURE", "What?", "--grammar", "PICTURE"], 2, "cannot be read: it is not text in UTF-8"),
        (["ask", "PICTURE", "What?", "--json-schema", "x"], 2, "--json-schema x cannot be read: No such file"),
        (["ask", "missing.png"], 2, "what is the question about"),
        (["ask", "PICTURE", "What?", "--nope"], 2, "No such option"),
        (["ask", "PICTURE", "What?", "--keep", "many"], 2, "keep must be a number, got 'many'"),
        (["ask", "PICTURE", "What?", "--keep", "10"], 2, "keep must be greater than 0 and at most 1, got 10"),
        (["ask", "PICTURE", "What?", "--keep", "nan"], 2, "keep must be a number, got 'nan'"),
        (["ask", "PICTURE", "What?", "--alpha", "0"], 2, "alpha must be"),
        (["ask", "PICTURE", "What?", "--method", "magic"], 2, "known methods: aircache, snapkv, random, full"),
        (["ask", "PICTURE", "What?", "--method", "snapkv", "--alpha", "0.5"], 2, "'snapkv' has none; got 0.5"),
        (["ask", "PICTURE", "What?", "--window", "all", "--alpha", "0.5"], 2, "has none, got '0.5'"),
        (["ask", "PICTURE", "What?", "--window", "lots"], 2, "window must be elite[:ALPHA][:content][:last], last[:N]"),
        (["ask", "PICTURE", "What?", "--pool", "max:4"], 2, "pool must have an odd size from 1 to 65535, got 'max:4'"),
        (["ask", "PICTURE", "What?", "--merge", "2"], 2, "merge must be at least 0 and at most 1, got '2'"),
        (["ask", "PICTURE", "What?", "--allocation", "fair"], 2, "allocation must be one of strength+skewness"),
        (["ask", "PICTURE", "What?", "--method", "full", "--pool", "max:5"], 2, "same as keep=1.0"),
        (["ask", "PICTURE", "What?", "--max-tokens", "0"], 2, "max_tokens must be"),
        (["ask", "PICTURE", ""], 2, "the question must be"),
        (["ask", "What?", "--heatmap", "out.png"], 2, "--heatmap needs an image"),
        (["ask", "PICTURE", "What?", "--heatmap", "out"], 2, "not the name of a picture file"),
        (["ask", "PICTURE", "What?", "--heatmap", "out.heic"], 2, "not the name of a picture file to write"),
        (["ask", "PICTURE", "What?", "--heatmap", "out.psd"], 2, "not the name of a picture file to write"),
        (["ask", "PICTURE", "What?", "--heatmap", "out.xbm"], 2, "not the name of a picture file to write"),
        (["ask", "PICTURE", "What?", "--heatmap", "no/such/out.png"], 2, "no such folder"),
        (["ask", "missing.png", "What?"], 1, "missing.png does not exist"),
        (["nope"], 2, "No such command"),
        (["info", "m.gguf", "p.gguf", "--mmproj", "p.gguf"], 2, "the projector is given twice"),
        (["info", "m.gguf", "--image-size", "640"], 2, "must be width and height in pixels, such as 640x480"),
        (["info", "m.gguf", "--image-size", "0x10"], 2, "width must be a whole number from 1 to 32768, got 0"),
    ],
)
def test_errors_are_one_line(fake, picture, arguments, code, message):
    result = run(*(picture if one == "PICTURE" else one for one in arguments))
    assert result.exit_code == code
    assert result.stdout == ""
    assert result.stderr.startswith("pyaircache: error: ") and result.stderr.count("\n") == 1
    assert message in result.stderr


def test_model_that_is_no_gguf(tmp_path, picture):
    (tmp_path / "m.gguf").write_bytes(b"hello")
    result = run("ask", picture, "What?", "--model", tmp_path / "m.gguf")
    assert result.exit_code == 1 and "is not a GGUF file" in result.stderr
    assert run("info", tmp_path / "none.gguf").exit_code == 1


def test_help_and_version():
    assert "ask" in run("--help").stdout
    assert run().exit_code == 0
    for option in ("--keep", "--heatmap", "--cache-type-k", "--json", "--verbose"):
        assert option in run("ask", "--help").stdout
    assert run("--version").stdout.startswith("pyaircache ")


def test_interrupt(fake, picture, monkeypatch):
    def interrupt(self, *arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(fake, "prompt", interrupt)
    result = run("ask", picture, "What?")
    assert result.exit_code == 130 and "error" not in result.stderr


def test_two_things_said_about_the_projector(fake):
    for arguments in (["info", "m.gguf", "--mmproj", "p.gguf"], ["ask", "What?", "--mmproj", "p.gguf"]):
        result = run(*arguments, "--no-mmproj")
        assert result.exit_code == 2 and "--no-mmproj are given both" in result.stderr


def test_info_of_the_fake(fake):
    result = run("info", "m.gguf")
    assert result.exit_code == 0 and "can compress         yes" in result.stdout
    assert json.loads(run("info", "m.gguf", "--json").stdout)["architecture"] == "fake"


def test_info_of_picture_sizes(fake):
    result = run("info", "m.gguf", "--image-size", "640x480", "--image-size", "28X28")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-2:] == [
        "image 640x480        6 visual tokens in 1 span: 6 (3 x 2)",
        "image 28x28          6 visual tokens in 1 span: 6 (3 x 2)",
    ]
    value = json.loads(run("info", "m.gguf", "--image-size", "640x480", "--json").stdout)
    assert value["images"] == [
        {"width": 640, "height": 480, "visual_tokens": 6, "spans": [{"n_tokens": 6, "nx": 3, "ny": 2}]}
    ]


def test_info_of_tiles():
    spans = [Span(0, 9 * i, 9, 0, 0) for i in range(3)] + [Span(0, 27, 4, 0, 0)]
    (line,) = describe.lines({"images": [describe.picture((300, 200), spans)]})
    assert line == "image 300x200        31 visual tokens in 4 spans: 3 of 9, 4"


def test_info_says_why_not(fake, monkeypatch):
    assert "why not" not in run("info", "m.gguf").stdout
    monkeypatch.setattr(fake, "can_compress", False)
    result = run("info", "m.gguf")
    assert "can compress         no\nwhy not              sliding windows cannot be" in result.stdout


@pytest.mark.parametrize(
    ("architecture", "projector", "family"),
    [
        ("qwen2vl", "qwen2.5vl_merger", "Qwen2.5-VL"),
        ("qwen2", "llava_onevision", "LLaVA-OneVision"),
        ("llama", "llava_next", "LLaVA-NeXT"),
        ("llama", "idefics3", "Idefics 3, SmolVLM"),
        ("qwen35", "qwen3vl_merger", "Qwen3.5"),
        ("qwen2", "other", "qwen2"),
        ("mamba", "", "mamba"),
    ],
)
def test_families(fake, architecture, projector, family):
    info = replace(fake("m.gguf").info(), architecture=architecture, projector=projector)
    assert describe.family(info) == family
