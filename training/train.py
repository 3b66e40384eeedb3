"""Trains a small Qwen2-VL from scratch on rendered pages (README.md has the recipe of the bundled model).

    python -m training.train OUT --steps 4800            # writes OUT/state.pt, OUT/log.jsonl
    python -m training.train OUT --steps 4800            # goes on where it stopped

Every batch is drawn from the seed and the number of its step, so a run that was interrupted sees the same pages.
"""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from pathlib import Path

import click
import numpy as np
import torch
from tokenizers import Tokenizer
from torch.utils.data import DataLoader, IterableDataset
from tqdm import tqdm
from transformers import Qwen2VLForConditionalGeneration

from training.batch import Batch, make_batch
from training.draw import LARGE, LARGE_SHARE, MIX, SIZES
from training.losses import answer_loss, chars_loss, keys_loss, lookahead_loss, pointer_loss
from training.net import Net, init_weights, make_config
from training.tokens import Vocabulary, train_tokenizer

# (until this share of the run, sizes in cells, pages, questions a page): few rows first
CURRICULUM = (
    (0.16, ((5, 11), (6, 11), (6, 12)), 20, 6),
    (0.30, ((8, 11), (8, 12), (9, 13)), 14, 8),
    (1.00, SIZES, 8, 10),
)
# Columns of tables are learned last. For this part of the run half of the pages are tables.
TABLES_FROM, TABLES_TO = 0.57, 0.85
TABLES = {"form": 0.15, "receipt": 0.12, "table": 0.5, "chart": 0.1, "signs": 0.13}


class Pages(IterableDataset):
    """The batches of the steps from `first` on."""

    def __init__(self, vocabulary: Vocabulary, seed: int, first: int, steps: int) -> None:
        self.vocabulary, self.seed, self.first, self.steps = vocabulary, seed, first, steps

    def __iter__(self):
        for step in range(self.first, self.steps):
            rng = np.random.default_rng((self.seed, step))
            _, sizes, pages, branches = next(c for c in CURRICULUM if step < c[0] * self.steps)
            if sizes is SIZES and rng.random() < LARGE_SHARE:
                sizes, pages = LARGE, pages // 2
            rows, columns = sizes[rng.integers(len(sizes))]
            mix = TABLES if TABLES_FROM <= step / self.steps < TABLES_TO else MIX
            yield make_batch(rng, self.vocabulary, pages, rows, columns, branches, mix=mix)


def weights(progress: float) -> dict[str, float]:
    """Of the helper losses: characters matter early."""
    fade = max(0.05, 1 - 1.6 * progress)
    return {
        "chars": fade,
        "keys": 1.0 if TABLES_FROM <= progress < TABLES_TO else 0.3 * min(1.0, 2.5 - 2.5 * progress),
        "lookahead": 0.2 * max(0.0, 1 - 5 * progress),
        "pointer": 0.5,
    }


def learning_rate(step: int, steps: int, peak: float) -> float:
    """A short rise, then constant, then straight down to nothing over the last quarter."""
    return peak * min(1.0, (step + 1) / 100) * min(1.0, 4 * (1 - step / steps))


def make_optimisers(net: Net, peak: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the two transformers, AdamW for everything else."""
    inside, matrices, vectors, biases = [], [], [], []
    for name, p in net.named_parameters():
        if p.ndim == 2 and (".layers." in name or ".blocks." in name or ".merger." in name):
            inside.append(p)
        elif name.endswith(("q_proj.bias", "k_proj.bias", "qkv.bias")):
            biases.append(p)
        else:
            (matrices if p.ndim > 1 else vectors).append(p)
    return [
        torch.optim.Muon(inside, lr=peak, weight_decay=0.02, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": 0.02},
                {"params": vectors, "weight_decay": 0.0},
                # attention by position alone, along a column say, takes large ones
                {"params": biases, "weight_decay": 0.0, "scale": 5.0},
            ],
            lr=peak,
            betas=(0.9, 0.98),
            fused=True,
        ),
    ]


def train_step(net: Net, batch: Batch, progress: float) -> dict[str, float | torch.Tensor]:
    """Adds the gradients of one batch; returns its figures."""
    weight = weights(progress)
    seen = net(batch, look=True)
    answer, right = answer_loss(net, batch, seen)
    chars, chars_right = chars_loss(net, batch, seen)
    helpers = {
        "chars": chars,
        "keys": keys_loss(net, batch, seen),
        "pointer": pointer_loss(batch, seen),
    }
    if weight["lookahead"]:
        helpers["lookahead"] = lookahead_loss(net, batch, seen)
    loss = answer + sum(weight[name] * helper for name, helper in helpers.items())
    figures = {"answer": answer, "chars_right": chars_right, **helpers}
    loss.backward()
    return {**{k: float(v.detach()) for k, v in figures.items()}, "right": right}


def build(out: Path, seed: int) -> tuple[Vocabulary, Net]:
    """The tokenizer (made once, kept in `out`) and a model with fresh weights."""
    file = out / "hf" / "tokenizer.json"
    if not file.is_file():
        Vocabulary(train_tokenizer(seed)).save(out / "hf")
    vocabulary = Vocabulary(Tokenizer.from_file(str(file)))
    torch.manual_seed(seed)
    model = Qwen2VLForConditionalGeneration(make_config(vocabulary)).float()
    init_weights(model)
    return vocabulary, Net(model, vocabulary.vision_end)


def save(path: Path, state: dict) -> None:
    torch.save(state, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


@click.command(help=__doc__)
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--steps", default=4800, show_default=True, type=click.IntRange(min=10), help="Of the whole run.")
@click.option("--seed", default=1, show_default=True, type=int)
@click.option("--lr", default=1.5e-3, show_default=True, type=float, help="Highest learning rate.")
@click.option("--threads", default=2, show_default=True, type=click.IntRange(min=1))
@click.option("--save-every", default=250, show_default=True, type=click.IntRange(min=1), help="Steps.")
def main(out: Path, steps: int, seed: int, lr: float, threads: int, save_every: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(threads)
    vocabulary, net = build(out, seed)
    net.dtype = torch.bfloat16
    optimisers = make_optimisers(net, lr)
    first, seconds = 0, 0.0
    checkpoint = out / "state.pt"
    if checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        net.load_state_dict(state["net"])
        for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        first, seconds = state["step"], state["seconds"]
    loader = DataLoader(
        Pages(vocabulary, seed, first, steps),
        batch_size=None,
        num_workers=1,
        prefetch_factor=3,
        persistent_workers=False,
    )
    means: dict[str, float] = {}
    kinds: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    begin = time.monotonic()
    with (
        (out / "log.jsonl").open("a", encoding="utf-8") as log,
        tqdm(loader, total=steps, initial=first, disable=None, unit="step") as bar,
    ):
        for step, batch in enumerate(bar, start=first):
            rate = learning_rate(step, steps, lr)
            for optimiser in optimisers:
                for group in optimiser.param_groups:
                    group["lr"] = rate * group.get("scale", 1.0)
            figures = train_step(net, batch, step / steps)
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            for optimiser in optimisers:
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
            for kind, right in zip(sum(batch.kinds, []), figures.pop("right").flatten().tolist(), strict=True):
                kinds[kind][0] += right
                kinds[kind][1] += 1
            for key, value in figures.items():
                means[key] = value if key not in means else 0.95 * means[key] + 0.05 * value
            bar.set_postfix({k: f"{means[k]:.3f}" for k in ("answer", "chars_right")})
            elapsed = seconds + time.monotonic() - begin
            if (step + 1) % 50 == 0:
                line = {"step": step + 1, "seconds": round(elapsed), "lr": round(rate, 6)}
                line |= {k: round(v, 4) for k, v in means.items()}
                line["right"] = {k: round(r / n, 3) for k, (r, n) in sorted(kinds.items())}
                kinds.clear()
                log.write(json.dumps(line) + "\n")
                log.flush()
            if (step + 1) % save_every == 0 or step + 1 == steps:
                save(
                    checkpoint,
                    {
                        "net": net.state_dict(),
                        "optimisers": [o.state_dict() for o in optimisers],
                        "step": step + 1,
                        "seconds": elapsed,
                        "steps": steps,
                    },
                )


if __name__ == "__main__":
    main()
