"""A list over Ray, on a local cluster of two workers with the bundled model. Needs the extra `ray`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyaircache.batch.cluster import Answerer, over_ray
from pyaircache.batch.lists import Question, read
from pyaircache.batch.run import Job, answers

pytest.importorskip("ray", reason="Ray is not installed: pip install 'pyaircache[ray]'")
pytestmark = pytest.mark.slow

TIMES = ("ms_", "tokens_per_second", "n_graphs_reused", "n_encoded", "n_reused", "kv_bytes_allocated", "process_bytes")


class DiesOnce(Answerer):
    """A worker whose process ends in the middle of its work, the first time that one is asked."""

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        mark = Path(self._job.folder) / "died"
        try:
            mark.touch(exist_ok=False)
        except FileExistsError:
            return super().__call__(batch)
        os._exit(1)


@pytest.fixture
def cluster() -> Iterator[None]:
    """Two processors, whatever the machine has."""
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not find the tests
    ray.init(
        _system_config={"worker_niceness": 0},  # else whatever the machine does comes first
        num_cpus=2,
        num_gpus=0,
        log_to_driver=False,
        include_dashboard=False,
        address="local",
    )
    yield
    ray.shutdown()


@pytest.fixture
def questions(samples: list[Any]) -> list[Question]:
    """More than one worker takes at a time, one of them wrong."""
    lines = [{"id": i, "image": str(one.picture), "question": one.question} for i, one in enumerate(samples[:7])]
    return read([*(json.dumps(one) for one in lines), '{"question": ""}'])


def plain(results: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    """In the order of the list, without what differs from run to run."""
    found = sorted(results, key=lambda one: one.get("id", 99))
    return [{name: value for name, value in one.items() if not name.startswith(TIMES)} for one in found]


def test_as_here_and_a_dead_worker_loses_nothing(cluster: None, questions: list[Question], tmp_path: Path) -> None:
    job = Job(str(tmp_path), {"keep": 0.2, "n_threads": 1}, {"max_tokens": 8}, n_parallel=2, n_ctx=1024)
    with job.open() as chat:
        here = plain(answers(chat, job, questions))
    assert len(here) == len(questions) and sum("error" in one for one in here) == 1
    there = plain(over_ray(job, questions, workers=2, answerer=DiesOnce))
    assert (tmp_path / "died").exists()
    assert there == here
