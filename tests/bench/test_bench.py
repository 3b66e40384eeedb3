"""`pyaircache bench`: what is measured, its lines and tables, and the command on a tiny model."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pyaircache.bench import grid, measure, paper, report, results
from pyaircache.bench.grid import Cache, Case
from pyaircache.bench.measure import CpuTimes, Measured, Settings, Times
from pyaircache.bench.shapes import SHAPES
from pyaircache.cli import bench as command
from pyaircache.cli import main
from pyaircache.engine import EngineMethod, EngineModel, named_methods
from pyaircache.engine.bench import Bench, BenchInfo, BenchStats, copy_bandwidth
from pyaircache.errors import ArgumentError, CancelledError, ContextError, StateError
from pyaircache.model_files import resolve

# llama-batched-bench's, in their order
STOCK = [
    "n_kv_max",
    "n_batch",
    "n_ubatch",
    "flash_attn",
    "is_pp_shared",
    "n_gpu_layers",
    "n_threads",
    "n_threads_batch",
    "pp",
    "tg",
    "pl",
    "n_kv",
    "t_pp",
    "speed_pp",
    "t_tg",
    "speed_tg",
    "t",
    "speed",
]
SETTINGS = Settings("qwen2-vl-7b", n_decode=2, n_threads=1, memory_bytes=1000)


def needs_engine() -> None:
    if os.environ.get("PYAIRCACHE_NO_ENGINE") == "1":
        pytest.skip("PYAIRCACHE_NO_ENGINE=1")


# -- what is measured -------------------------------------------------------------------------------------------------


def test_words_of_the_grid() -> None:
    assert [grid.tokens(text) for text in ("2048", "2k", "32K")] == [2048, 2048, 32768]
    assert [grid.short(n) for n in (2048, 2000)] == ["2k", "2000"]
    assert Cache.of("q8_0") == Cache("q8_0") and Cache.of("f16:0.1") == Cache("f16", 0.1)
    assert [str(cache) for cache in grid.CACHES] == ["f16", "q8_0", "q4_0", "f16:0.5", "f16:0.1", "q8_0:0.1"]


@pytest.mark.parametrize("text", ["", "x", "f16:", "f16:0", "f16:1.1", "q5_0", "f16:nan", ":0.1"])
def test_wrong_caches_are_named(text: str) -> None:
    with pytest.raises(ArgumentError, match="TYPE:KEEP"):
        Cache.of(text)


@pytest.mark.parametrize("text", ["", "k", "127", "2.5k", "-1", "99999k"])
def test_wrong_prompts_are_named(text: str) -> None:
    with pytest.raises(ArgumentError, match="number of tokens"):
        grid.tokens(text)


def test_every_second_round_is_reversed() -> None:
    caches = [Cache("f16"), Cache("f16", 0.1)]
    cases = list(grid.cases([1, 4], [2048], caches, 2))
    assert [case.cache for case in cases] == [*caches, *caches[::-1]] * 2
    assert [case.batch for case in cases] == [1] * 4 + [4] * 4
    assert [case.round for case in cases] == [0, 0, 1, 1] * 2


def test_shapes_have_the_parameters_of_the_real_models() -> None:
    from pyaircache.bench import weights

    expected = {"llava-ov-0.5b": 494_032_768, "qwen2-vl-7b": 7_615_616_512, "internvl2-8b": 7_737_782_272}
    for name, n in expected.items():
        tensors = weights.text_tensors(SHAPES[name], weights.Type.Q4_0)
        assert sum(tensor.shape[0] * (tensor.shape[1] if len(tensor.shape) > 1 else 1) for tensor in tensors) == n


# -- lines and tables -------------------------------------------------------------------------------------------------


def measured(cache: Cache, steps: list[float], *, fill: float = 100, resident: int = 40, batch: int = 8) -> Measured:
    info = BenchInfo(
        n_layers=2, n_ctx=5000, n_visual=2000, n_text=48, n_batch=512, n_threads=2, n_devices=0, model_bytes=100,
        step_bytes=90, kv_bytes_per_token=1,
    )  # fmt: skip
    extra = [] if cache.full else [1.0] * batch
    cpu = CpuTimes([fill / 2] * batch, extra, [step / 2 for step in steps])
    times = Times([fill] * batch, extra, extra, steps, cpu)
    stats = BenchStats(resident, 5000, resident, 10, 0)
    return Measured(Case(batch, 2048, cache, 0), times, info, stats, 700, 600)


def line(*args: Any, settings: Settings = SETTINGS, **options: Any) -> dict[str, Any]:
    about = {"cpu": "paper", "cores": 2, "load": 0.5, "engine": "none", "date": "today"}
    return results.line(measured(*args, **options), settings, 1000.0) | about


def test_lines_have_the_names_of_batched_bench() -> None:
    one = line(Cache("f16"), [10.0, 30.0])
    assert list(one)[: len(STOCK)] == STOCK
    assert (one["pp"], one["tg"], one["pl"], one["n_kv"], one["n_kv_max"]) == (2048, 2, 8, 8 * 2050, 5000)
    assert one["t_tg"] == pytest.approx(0.04) and one["speed_tg"] == pytest.approx(16 / 0.04)
    assert one["t_pp"] is one["speed_pp"] is one["t"] is one["first_token_ms"] is None
    assert one["roofline_ms"] == pytest.approx((90 + 40) / 1000 * 1e3)
    assert one["rss_context_bytes"] == 100
    assert (results.Own.of(one).step, results.Own.of(one | {"alone": True}).step) == (20, 10)
    json.dumps(one)


def test_batched_bench_has_these_names_still() -> None:
    source = Path(__file__).resolve().parents[2] / "vendor/llama.cpp/tools/batched-bench/batched-bench.cpp"
    if not source.exists():
        pytest.skip("llama.cpp is not fetched")
    text = source.read_text(encoding="utf-8")
    assert all(f'\\"{name}\\": %' in text for name in STOCK)


def test_what_fits_counts_a_whole_prompt_once() -> None:
    assert (
        results.fitting(measured(Cache("f16"), [1.0], resident=16, batch=1), 10**4) == (10**4 - 110 - 2048 + 16) // 16
    )
    assert results.fitting(measured(Cache("f16"), [1.0], resident=8 * 2048), 10**4) == (10**4 - 110) // 2048
    assert results.fitting(measured(Cache("f16"), [1.0]), 100) == 0


def test_overhead_is_that_of_the_same_round_and_type() -> None:
    settings = replace(SETTINGS, computed=True)
    lines = [line(Cache("f16"), [9.0], settings=settings), line(Cache("f16", 0.1), [3.0], fill=101, settings=settings)]
    assert results.overheads(lines) == {(8, 2048, "f16", 0.1): pytest.approx(0.03)}
    assert lines[1]["first_token_ms"] == pytest.approx(103)
    assert results.overheads([line(Cache("f16"), [9.0]), line(Cache("f16", 0.1), [3.0])]) == {}


def test_tables() -> None:
    lines = [line(Cache("f16"), [9.0]), line(Cache("f16", 0.1), [3.0]), line(Cache("f16", 0.1), [3.0])]
    table = results.rows(lines)
    assert [row[2] for row in table] == ["cache", "f16", "f16:0.1"]
    assert [row[table[0].index("times")] for row in table[1:]] == ["1.00", "3.00"]
    shown = results.text(table)
    assert "first token" not in shown[0] and len({len(row) for row in results.markdown(table)}) > 1
    texts = list(report.texts(lines, markdown=True))
    assert any("| 8 | 2k | f16:0.1 |" in text for text in texts) and any("2,667" in text for text in texts)


def test_the_papers_table_stands_beside_the_same_cells() -> None:
    data = paper.table10()["rows"]
    assert len(data) == 14 and all(len(row["tokens_per_second"]) == 3 for row in data)
    for row in data:  # 512 tokens of each: what is printed agrees with itself, but for a few figures of the paper's
        full = 512 * row["batch"] / row["decode_s"][0]
        assert full == pytest.approx(row["tokens_per_second"][0], rel=0.05), row
    lines = [line(Cache("f16"), [9.0]), line(Cache("f16", 0.1), [3.0]), line(Cache("q8_0", 0.1), [3.0])]
    (row,) = paper.rows(lines)[1:]
    assert row[:6] == ["Qwen2-VL-7B", "8", "2k", "488", "621 (1.27 x)", "788 (1.61 x)"]
    assert row[6:] == ["888.9", "", "2,667 (3.00 x)"]
    assert len(paper.rows([], whole=True)) == 15 and len(paper.rows([])) == 1


# -- the engine's part ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> Iterator[EngineModel]:
    needs_engine()
    loaded = EngineModel(resolve(None, None)[0])
    yield loaded
    loaded.close()


def make(model: EngineModel, **options: Any) -> Bench:
    return Bench(model, **{"n_seqs": 2, "n_prompt": 400, "n_decode": 3, "n_threads": 1, "n_batch": 128, **options})


@pytest.mark.parametrize("computed", [False, True])
@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_conversations_are_filled_compressed_and_decoded(model: EngineModel, computed: bool, kind: str) -> None:
    method = replace(named_methods()["aircache"], keep=0.1)
    with make(model, cache_type_k=kind, cache_type_v=kind) as bench:
        info = bench.info()
        assert info.n_visual + info.n_text == 400 and 320 < info.n_visual <= 336
        for seq in range(2):
            assert bench.fill(seq, computed=computed, observe=method, seed=seq) > 0
        full = bench.stats()
        assert full.kv_bytes == 2 * 400 * info.kv_bytes_per_token
        score, evict = bench.evict(0, method)
        assert score > 0 and evict > 0
        bench.evict(1, method)
        kept = bench.stats()
        budgets = kept.kv_bytes / (2 * info.kv_bytes_per_token) - info.n_text  # their mean over the layers
        assert budgets == pytest.approx(0.1 * info.n_visual, rel=0.05)
        assert kept.kv_bytes_reserved <= full.kv_bytes_reserved
        assert all(bench.step() > 0 for _ in range(3))
        with pytest.raises(ContextError, match="no room for more than 3 tokens"):
            bench.step()
        bench.clear()
        assert bench.stats().kv_bytes == 0
        bench.fill(1)


def test_calls_in_the_wrong_order(model: EngineModel) -> None:
    method = EngineMethod(0.1)
    bench = make(model)
    bench.fill(0)
    with pytest.raises(StateError, match="conversation 0 has a prompt already"):
        bench.fill(0)
    with pytest.raises(StateError, match="has no prompt yet"):
        bench.step()
    with pytest.raises(StateError, match="synthetic"):
        bench.evict(0, method)
    with pytest.raises(StateError, match="not observed"):
        bench.evict(1, method)
    with pytest.raises(ArgumentError, match=r"seq is 2: it must be in \[0, 1\]"):
        bench.fill(2)
    bench.close()
    bench.close()
    with pytest.raises(StateError, match="closed"):
        bench.stats()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"n_seqs": 0}, "n_seqs is 0"),
        ({"n_seqs": 257}, "n_seqs is 257"),
        ({"n_prompt": 127}, "n_prompt is 127"),
        ({"n_decode": 0}, "n_decode is 0"),
        ({"n_threads": 513}, "n_threads is 513"),
        ({"flash_attn": 2}, "flash_attn is 2"),
        ({"n_seqs": 256, "n_prompt": 2**24}, "all conversations' cells"),
        ({"cache_type_k": "q9"}, '"q9"'),
        ({"n_ctx": 1}, "no option is called"),
    ],
)
def test_parameters_are_checked(model: EngineModel, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        make(model, **options)


def test_a_prefill_is_cancelled(model: EngineModel) -> None:
    with make(model) as bench:

        def stop(stage: int, done: int, total: int) -> None:
            assert (stage, total) == (2, 400)
            bench.cancel()

        with pytest.raises(CancelledError):
            bench.fill(0, computed=True, progress=stop)
        bench.fill(0)  # it is empty again


def test_copies_are_timed(model: EngineModel) -> None:
    assert copy_bandwidth(model, 2**20, 1) > 1e6
    with pytest.raises(ArgumentError, match="bytes is 0"):
        copy_bandwidth(model, 0)


# -- the command ------------------------------------------------------------------------------------------------------


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main.main, ["bench", *map(str, arguments)])


@pytest.fixture
def tiny(tmp_path: Path) -> list[str]:
    needs_engine()
    made = Path(str(tmp_path.parent), "made")
    return ["--model", "tiny", "--made", str(made), "--prompt", "256", "--tokens", "2", "--threads", "1"]


def test_command(tiny: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    options = ["--batch", "1,2", "--cache", "f16,f16:0.1", "--rounds", "2", "-o", str(out)]
    result = run(*tiny, *options, "--json")
    assert result.exit_code == 0 and result.stderr == "", result.output
    assert result.stdout == out.read_text()
    lines = [json.loads(text) for text in result.stdout.splitlines()]
    assert [(one["pl"], one["keep"], one["round"]) for one in lines[:4]] == [
        (1, 1, 0),
        (1, 0.1, 0),
        (1, 0.1, 1),
        (1, 1, 1),
    ]
    assert lines[0]["kv_bytes_read"] > lines[1]["kv_bytes_read"] > 0
    assert lines[0]["n_fit"] < lines[1]["n_fit"]
    assert lines[1]["score_ms"] > 0 and lines[1]["evict_ms"] > 0 and lines[0]["evict_ms"] == 0
    assert all(one["prefill"] == "synthetic" and one["model"] == "tiny" for one in lines)

    again = run(*tiny, "-o", out)
    assert again.exit_code == 2 and "is there already" in again.stderr
    with out.open("a") as file:
        file.write('{"cut off')
    picture = tmp_path / "out.png"
    shown = run("--show", out, "--markdown", "--plot", picture)
    assert shown.exit_code == 0 and "| 1 | 256 | f16:0.1 |" in shown.stdout, shown.output
    assert picture.stat().st_size > 1000
    out.write_text("{}\n" + out.read_text())
    assert "line 1 is no result" in run("--show", out).stderr


def test_command_with_a_real_prefill(tiny: list[str]) -> None:
    result = run(
        *tiny,
        "--batch",
        "1",
        "--cache",
        "q8_0,q8_0:0.5",
        "--prefill",
        "real",
        "--method",
        "snapkv",
        "--flash-attn",
        "on",
    )
    assert result.exit_code == 0, result.output
    assert "first token ms" in result.stdout and "overhead" in result.stdout and "real prefill" in result.stdout


def test_ctrl_c_shows_what_is_measured(tiny: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def some(*args: Any) -> Iterator[Any]:
        yield next(measure.run(*args))
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "run", some)
    out = tmp_path / "out.jsonl"
    result = run(*tiny, "--batch", "1", "--cache", "f16,f16:0.1", "-o", out)
    assert result.exit_code == 130
    assert "1 of 2 cases are measured" in result.stderr and " f16 " in result.stdout
    assert len(out.read_text().splitlines()) == 1


def test_what_does_not_fit_is_left_out(tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "available", lambda: 10**6)
    result = run(*tiny, "--batch", "1", "--cache", "f16")
    assert result.exit_code == 0 and result.stdout == ""
    assert "1 x 256 f16 is left out: the cache needs" in result.stderr


def test_a_failed_run_does_not_stand_in_the_way(tiny: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    wrong = run("--model", "huge", "-o", out)
    assert wrong.exit_code == 2 and "llava-ov-0.5b" in wrong.stderr
    assert run(*tiny, "--batch", "1", "--cache", "f16", "-o", out).exit_code == 0
    assert len(out.read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--batch", "0"), "in [1, 256], got 0"),
        (("--prompt", "2k,x"), "got x"),
        (("--cache", "f16:2"), "got f16:2"),
        (("--model", "huge"), "llava-ov-0.5b"),
        (("--model", "none.gguf"), "none.gguf does not exist"),
        (("--method", "nonsense"), "aircache"),
        (("--memory-gb", "0"), "--memory-gb"),
        (("--plot", "picture.txt"), "must end with .png, .svg, .pdf, got picture.txt"),
        (("--plot", "nowhere/picture.png"), "there is no folder nowhere"),
    ],
)
def test_wrong_options_are_named(options: tuple[str, str], said: str) -> None:
    needs_engine()
    result = run(*options)
    assert result.exit_code in (1, 2)
    assert said in result.stderr
