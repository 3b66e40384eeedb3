"""Compressed slots in files and in the host's prompt cache: they go on as if they had never left their slot."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import Launch, Page, Server

Fresh = Callable[..., str]
END = struct.Struct("<4I")  # behind the record of a compression: size, version, hash, magic
MAGIC = struct.pack("<I", 0x53524941)


def next_turn(first: list[dict[str, Any]], answer: str, question: str = "And the next row?") -> list[dict[str, Any]]:
    return [*first, {"role": "assistant", "content": answer}, {"role": "user", "content": question}]


def action(server: Server, what: str, name: str = "a.bin") -> Any:
    return server.http.post(f"/slots/0?action={what}", json={"filename": name})


def goes_on(server: Server, messages: list[dict[str, Any]]) -> str:
    """The answer to the next turn, which was not compressed anew."""
    answer = server.ask(messages)
    timings = answer.model_extra["timings"]
    assert timings["cache_n"] > 80 and timings["aircache"]["ms"] == 0
    return answer.choices[0].message.content


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0.1, 1.0])
def test_a_slot_goes_on_in_another_server(
    launch: Launch, fresh: Fresh, pages: list[Page], tmp_path: Path, keep: float
) -> None:
    options = ["--slot-save-path", str(tmp_path), "--aircache-keep", str(keep)]
    with launch(*options) as server:
        second = next_turn(pages[0].ask(), server.text(pages[0].ask()))
        before = server.http.get("/slots").json()[0].get("aircache")
        assert action(server, "save").status_code == 200
    assert (MAGIC in (tmp_path / "a.bin").read_bytes()) == (keep < 1)  # others are as stock writes them
    with launch(*options) as server:
        assert action(server, "restore").status_code == 200
        assert server.http.get("/slots").json()[0].get("aircache") == before
        expected = fresh(pages[0].ask(), keep, second)
        assert (goes_on(server, second) if keep < 1 else server.text(second)) == expected


def record(data: bytes) -> tuple[int, int]:
    """Where the JSON of the record is."""
    end = data.index(MAGIC) + 4 - END.size
    return end - END.unpack_from(data, end)[0], end


def without_record(data: bytes) -> bytes:
    begin, end = record(data)
    n_tokens = struct.unpack_from("<I", data, 8)[0] - (end + END.size - begin) // 4
    return data[:8] + struct.pack("<I", n_tokens) + data[12:begin] + data[end + END.size :]


def of_version(data: bytes, version: int) -> bytes:
    _, end = record(data)
    return data[: end + 4] + struct.pack("<I", version) + data[end + 8 :]


def changed(data: bytes, old: bytes, new: bytes) -> bytes:
    begin, end = record(data)
    assert len(old) == len(new) and old in data[begin:end]
    return data[:begin] + data[begin:end].replace(old, new) + data[end:]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cells cut": lambda data: data[:-100],
    "no record": without_record,
    "another version": lambda data: of_version(data, 2),
    "a number of the record": lambda data: changed(data, b'"n_visual":', b'"n_visuak":'),
    "a token": lambda data: data[:60] + bytes([data[60] ^ 1]) + data[61:],
    "no file": lambda data: b"",
}


def test_a_damaged_file_leaves_the_slot_empty(launch: Launch, fresh: Fresh, pages: list[Page], tmp_path: Path) -> None:
    with launch("--slot-save-path", str(tmp_path), "--aircache-keep", "0.1") as server:
        server.ask(pages[0].ask())
        action(server, "save")
        good = (tmp_path / "a.bin").read_bytes()
        text = good[slice(*record(good))]
        assert json.loads(text)["params"]["aircache_keep"] == "0.1"
        for name, damage in DAMAGE.items():
            (tmp_path / "b.bin").write_bytes(damage(good))
            res = action(server, "restore", "b.bin")
            assert res.status_code == 400, (name, res.text)
            assert "aircache" not in server.http.get("/slots").json()[0], name
        assert server.text(pages[0].ask()) == fresh(pages[0].ask(), 0.1)
        assert action(server, "restore").status_code == 200


# --- the host's prompt cache ------------------------------------------------------------------------------------------


def test_prompts_come_back_from_the_host(launch: Launch, fresh: Fresh, pages: list[Page]) -> None:
    with launch("--aircache-keep", "0.1") as server:
        turns = [next_turn(page.ask(), server.text(page.ask())) for page in pages[:3]]
        for page, second in zip(pages[:3], turns, strict=True):
            assert goes_on(server, second) == fresh(page.ask(), 0.1, second)
        log = server.log.read_text(errors="replace")
        assert "failed to restore state" not in log


def test_without_the_host_a_lost_conversation_starts_anew(launch: Launch, fresh: Fresh, pages: list[Page]) -> None:
    with launch("--aircache-keep", "0.1", "--cache-ram", "0") as server:
        second = next_turn(pages[0].ask(), server.text(pages[0].ask()))
        server.text(pages[1].ask())
        assert server.text(second) == fresh(second, 0.1)


def test_an_idle_slot_is_saved_once(launch: Launch, pages: list[Page]) -> None:
    """Whenever a request starts, the other slots are saved: not again and again."""
    with launch("--aircache-keep", "0.1", "-lv", "4", slots=2) as server:
        server.ask(pages[0].ask())
        for _ in range(4):
            server.ask([{"role": "user", "content": "Hello"}])
        log = server.log.read_text(errors="replace")
        assert log.count("saving prompt with length") <= 2 + log.count("prompt is already in the cache")
