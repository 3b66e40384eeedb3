"""Evaluation inside PyTorch, many questions at a time: exact match with the full cache, with none of it, and with what
AirCache or a simpler window keeps (docs/method.md). bench/quality.py measures the same through the real engine; this is
for looking at a run that is still training.

    python -m training.evict OUT --questions 400

An answer is right when every token of it is the most likely one after the right ones before it: the same as a greedy
answer being right.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import click
import numpy as np
import torch

from pyaircache.engine import EngineMethod, allocate, select
from training.batch import Batch, make_batch
from training.draw import LARGE, SIZES
from training.losses import answer_loss, elite
from training.net import Net, Seen
from training.train import build

EVAL_SEED = 10_000  # training uses (seed, step)


def importance(batch: Batch, seen: Seen, window: str = "elite") -> np.ndarray:
    """I of every layer, float32 [layers, B, K, N] (docs/method.md, section 1)."""
    b, k, length = batch.ids.shape
    out = []
    for logits, text, end in zip(seen.scores, seen.text, seen.end, strict=True):
        n = logits.shape[-1] - text.shape[-1]
        if window == "elite":
            chosen = elite(text)
        else:
            at = batch.last[..., None] - torch.arange(int(window.removeprefix("last:")))
            chosen = torch.zeros(b, k, length + 1).scatter_(-1, at.clamp(min=-1) + 1, 1.0).bool()
        # keys of an observer: the visual tokens and the window, as far as it sees them
        keys = logits[..., n:].masked_fill(~chosen[:, None, :, None, :], float("-inf"))
        share = torch.cat((logits[..., :n], keys), -1).softmax(-1)[..., :n]  # [B, H, K, L, N]
        score = torch.einsum("bhkln,bkl->bkn", share, chosen[..., 1:].to(share.dtype))
        score = score + chosen[..., :1] * end[..., :-1].sum(1)[:, None]
        out.append(score / share.shape[1] / chosen.sum(-1, keepdim=True))
    return torch.stack(out).float().numpy()


def kept(scores: np.ndarray, keep: float) -> torch.Tensor:
    """What AirCache keeps for scores [layers, B, K, N], bool, same shape; budgets and selection are the engine's."""
    layers, b, k, n = scores.shape
    out = torch.zeros(scores.shape, dtype=torch.bool)
    for i in range(b):
        for j in range(k):
            own = np.ascontiguousarray(scores[:, i, j])
            for layer, cells in enumerate(select(own, allocate(EngineMethod(keep), own))):
                out[layer, i, j, torch.from_numpy(cells.astype(np.int64))] = True
    return out


@torch.no_grad()
def evaluate(net: Net, batches: list[Batch], keeps: tuple[float, ...], windows: tuple[str, ...] = ("elite",)):
    """Right answers and questions by (what was kept, kind of question)."""
    tally: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    elite_sizes = []

    def count(name: str, right: torch.Tensor, batch: Batch) -> None:
        for kind, r in zip(sum(batch.kinds, []), right.flatten().tolist(), strict=True):
            for key in (kind, "all"):
                tally[name, key][0] += r
                tally[name, key][1] += 1

    for batch in batches:
        seen = net(batch, look=True)
        count("full", answer_loss(net, batch, seen)[1], batch)
        elite_sizes.append([elite(text).sum(-1).float().mean().item() for text in seen.text])
        layers, n = len(seen.visual), batch.rows * batch.columns
        none = torch.zeros(layers, *batch.ids.shape[:2], n, dtype=torch.bool)
        count("none", answer_loss(net, batch, net(batch, keep=none))[1], batch)
        for window in windows:
            scores = importance(batch, seen, window)
            for keep in keeps:
                mask = kept(scores, keep)
                count(f"{window} {keep:g}", answer_loss(net, batch, net(batch, keep=mask))[1], batch)
    return tally, np.mean(elite_sizes, 0)


def make_batches(vocabulary, questions: int, seed: int = EVAL_SEED) -> list[Batch]:
    """Fresh pages of all sizes, five questions each."""
    rng = np.random.default_rng(seed)
    sizes = SIZES + LARGE[:1]
    return [make_batch(rng, vocabulary, 4, *sizes[i % len(sizes)], branches=5) for i in range(-(-questions // 20))]


@click.command(help=__doc__)
@click.argument("out", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--questions", default=200, show_default=True, type=click.IntRange(min=1))
@click.option("--keep", "keeps", multiple=True, type=float, default=(0.25, 0.1), show_default=True)
@click.option("--window", "windows", multiple=True, default=("elite", "last:1"), show_default=True)
@click.option("--threads", default=1, show_default=True, type=click.IntRange(min=1))
def main(out: Path, questions: int, keeps: tuple[float, ...], windows: tuple[str, ...], threads: int) -> None:
    torch.set_num_threads(threads)
    vocabulary, net = build(out, 0)
    state = torch.load(out / "state.pt", weights_only=True, mmap=True)
    net.load_state_dict(state["net"])
    net.eval()
    tally, sizes = evaluate(net, make_batches(vocabulary, questions), keeps, windows)
    click.echo(f"step {state['step']}; elite tokens a layer: {' '.join(f'{s:.1f}' for s in sizes)}")
    kinds = sorted({kind for _, kind in tally} - {"all"})
    click.echo(f"{'':12}" + "".join(f"{kind:>9}" for kind in ["all", *kinds]))
    for name in dict.fromkeys(name for name, _ in tally):
        cells = [tally[name, kind] for kind in ["all", *kinds]]
        click.echo(f"{name:12}" + "".join(f"{100 * r / max(1, n):9.1f}" for r, n in cells))


if __name__ == "__main__":
    main()
