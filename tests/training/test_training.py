"""The training's own forward pass is Hugging Face's; its evaluation is docs/method.md's; a run can be interrupted."""

from __future__ import annotations

import aircache_ref
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from transformers import Qwen2VLForConditionalGeneration

from training import evict, train
from training.batch import IGNORE, make_batch
from training.losses import pointer_loss
from training.net import Net, init_weights, make_config
from training.tokens import train_tokenizer


@pytest.fixture(scope="module")
def batch(vocabulary):
    return make_batch(np.random.default_rng(1), vocabulary, 2, 5, 11, 3)


def one_question(vocabulary, batch, b: int, k: int):
    """Prompt, answer, pixels and grid of one branch, as Hugging Face takes them."""
    n = batch.rows * batch.columns
    end = int(batch.last[b, k]) + 1
    answer = batch.labels[b, k][batch.labels[b, k] != IGNORE]
    before = [*batch.prefix.tolist(), *[vocabulary.image] * n, vocabulary.vision_end]
    prompt = torch.tensor(before + batch.ids[b, k, :end].tolist())
    pixels = batch.patches[b].view(-1, 3, 1, 196).expand(-1, -1, 2, -1).reshape(-1, 1176)
    return prompt, answer, pixels, torch.tensor([[1, 2 * batch.rows, 2 * batch.columns]])


def test_logits_are_those_of_hugging_face(net, vocabulary, batch) -> None:
    with torch.no_grad():
        seen = net(batch)
    for b in range(2):
        for k in range(3):
            prompt, answer, *vision = one_question(vocabulary, batch, b, k)
            capture = aircache_ref.qwen2vl_forward(net.model, torch.cat((prompt, answer[:-1])), *vision)
            last = int(batch.last[b, k])
            ours = net.logits(seen.hidden[b, k, last : last + len(answer)]).detach().numpy()
            np.testing.assert_allclose(ours, capture.logits[-len(answer) :], atol=2e-5)


@pytest.mark.parametrize("window", ["elite", "last:1", "last:4"])
def test_importance_is_that_of_the_reference(net, vocabulary, batch, window) -> None:
    with torch.no_grad():
        ours = evict.importance(batch, net(batch, look=True), window)
    sizes = set()
    for b in range(2):
        for k in range(3):
            prompt, _, *vision = one_question(vocabulary, batch, b, k)
            capture = aircache_ref.qwen2vl_forward(net.model, prompt, *vision)
            expected, windows = aircache_ref.scores(capture, window)
            sizes |= {len(w) for w in windows}
            np.testing.assert_allclose(ours[:, b, k], expected, atol=1e-6)
    assert len(sizes) > 1 or window != "elite"


def test_eviction_is_that_of_the_reference(net, vocabulary, batch) -> None:
    """Logits of the answer's tokens with cells hidden in every layer from the first answer token on."""
    with torch.no_grad():
        keep = evict.kept(evict.importance(batch, net(batch, look=True)), 0.2)
        hidden = net(batch, keep=keep).hidden
    b, k = 1, 2
    prompt, answer, *vision = one_question(vocabulary, batch, b, k)
    capture = aircache_ref.qwen2vl_forward(net.model, prompt, *vision)
    cells = [np.flatnonzero(row) for row in keep[:, b, k].numpy()]
    n_tokens = len(prompt) + len(answer) - 1
    visible = aircache_ref.visible_after(capture.visual, len(prompt), n_tokens, cells)
    expected = aircache_ref.qwen2vl_forward(net.model, torch.cat((prompt, answer[:-1])), *vision, visible=visible)
    last = int(batch.last[b, k])
    ours = net.logits(hidden[b, k, last : last + len(answer)]).detach().numpy()
    np.testing.assert_allclose(ours, expected.logits[-len(answer) :], atol=2e-5)
    full = aircache_ref.qwen2vl_forward(net.model, torch.cat((prompt, answer[:-1])), *vision)
    assert np.abs(full.logits[-1] - ours[-1]).max() > 1e-3  # it makes a difference


def test_kept_has_the_budget(net, batch) -> None:
    with torch.no_grad():
        scores = evict.importance(batch, net(batch, look=True))
    layers, b, k, n = scores.shape
    assert (evict.kept(scores, 0.25).sum((0, 3)) == round(0.25 * layers * n)).all()


def test_pointer_is_least_where_everything_looks_at_the_answer(net, batch) -> None:
    seen = net(batch, look=True)
    before = pointer_loss(batch, seen)
    ideal = (batch.where / batch.where.sum(-1, keepdim=True))[:, None, :, None]  # every answer cell alike
    seen.visual[2] = ideal.expand_as(seen.visual[2])
    best = pointer_loss(batch, seen)
    cells = batch.where.sum(-1).float()
    assert best == pytest.approx(cells.log().mean().item(), abs=1e-2)
    assert best < before


def test_losses_fall(vocabulary, batch) -> None:
    torch.manual_seed(0)
    config = make_config(vocabulary, hidden=128, layers=3, heads=2, kv_heads=1, ffn=96, vision_width=64)
    config.vision_config.num_heads = 2
    model = Qwen2VLForConditionalGeneration(config).float()
    init_weights(model)
    net = Net(model, vocabulary.vision_end)
    optimisers = train.make_optimisers(net, 3e-3)
    figures = []
    for _ in range(12):
        figures.append(train.train_step(net, batch, 0.9))
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
    for key in ("answer", "chars", "keys", "pointer"):
        assert figures[-1][key] < 0.95 * figures[0][key], key


@pytest.mark.slow
def test_a_run_goes_on_where_it_stopped(tmp_path, monkeypatch) -> None:
    """Ten steps at once, and ten of which some were lost and done again: the same weights."""
    monkeypatch.setattr(train, "CURRICULUM", ((1.0, ((5, 11),), 1, 2),))
    monkeypatch.setattr(train, "SIZES", ())
    monkeypatch.setattr(train, "train_tokenizer", lambda seed: train_tokenizer(seed, n_pages=20))
    small = {"hidden": 128, "layers": 3, "heads": 2, "kv_heads": 1, "ffn": 96, "vision_width": 64, "vision_heads": 2}
    monkeypatch.setattr(train, "make_config", lambda vocabulary: make_config(vocabulary, **small))

    def run(folder):
        options = [str(folder), "--steps", "10", "--threads", "1", "--save-every", "5"]
        return CliRunner().invoke(train.main, options)

    assert run(tmp_path / "whole").exit_code == 0
    real, count = train.train_step, iter(range(100))

    def dying(*args):
        if next(count) == 7:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(train, "train_step", dying)
    assert run(tmp_path / "cut").exit_code != 0  # leaves the checkpoint of step 5
    monkeypatch.setattr(train, "train_step", real)
    assert run(tmp_path / "cut").exit_code == 0
    whole, again = (torch.load(tmp_path / name / "state.pt", weights_only=True) for name in ("whole", "cut"))
    assert again["step"] == whole["step"] == 10
    for name, tensor in whole["net"].items():
        torch.testing.assert_close(again["net"][name], tensor, msg=name)
