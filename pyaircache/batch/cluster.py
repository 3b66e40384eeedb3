"""The same over Ray: one engine on each node or GPU."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

from ..errors import EngineError
from .lists import Question
from .run import Job, answers

_ROUNDS = 2  # how often a worker's places are filled by what it is given at once: that is what a dead worker loses


class Answerer:
    """What computes: a Chat in a worker's process. Called with a batch of Ray Data."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._chat = job.open()

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        questions = [_question(text) for text in batch["question"]]
        return {"result": [json.dumps(result) for result in answers(self._chat, self._job, questions)]}


def _question(text: str) -> Question:
    fields = json.loads(text)
    return Question(**{**fields, "identity": tuple(fields["identity"])})


def over_ray(
    job: Job, questions: Sequence[Question], workers: int | None = None, answerer: type[Answerer] = Answerer
) -> Iterator[dict[str, Any]]:
    """The results, as they are ready; as those of `answers`, in another order.

    It joins the cluster that ``RAY_ADDRESS`` names, or that is there already, or starts one on this machine. The files
    of the model and of the pictures must be found at the same places on all nodes. What a worker was doing when it died
    is done again by another one.

    Args:
        job: What the questions have in common.
        questions: The questions.
        workers: Engines; None: one a GPU, or one a node where there are none.
        answerer: What computes in each worker.

    Raises:
        EngineError: Ray is not installed.
    """
    try:
        import ray
        import ray.data
    except ImportError as exc:
        raise EngineError(f"--ray needs Ray: pip install 'pyaircache[ray]' ({exc})") from exc

    started = not ray.is_initialized()
    if started:
        ray.init(log_to_driver=False)
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        gpus = int(ray.cluster_resources().get("GPU", 0)) if job.chat.get("n_gpu_layers") != 0 else 0
        nodes = [node for node in ray.nodes() if node["Alive"]]
        count = workers or gpus or len(nodes)
        cpus = job.chat.get("n_threads") or min(int(node["Resources"].get("CPU", 1)) for node in nodes)
        if workers and not job.chat.get("n_threads"):
            cpus = max(1, cpus * len(nodes) // workers)
            job = replace(job, chat={**job.chat, "n_threads": cpus})
        size = _ROUNDS * job.n_parallel
        rows = [{"question": json.dumps(asdict(question))} for question in questions]
        data = ray.data.from_items(rows, override_num_blocks=max(1, -(-len(rows) // size))).map_batches(
            answerer,
            fn_constructor_args=(job,),
            compute=ray.data.ActorPoolStrategy(size=count),
            batch_size=size,
            num_cpus=cpus,
            num_gpus=1 if gpus else 0,
        )
        for row in data.iter_rows():
            yield json.loads(row["result"])
    finally:
        if started:
            ray.shutdown()
