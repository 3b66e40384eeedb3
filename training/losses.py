"""What training minimises. The answer's next tokens; and, thrown away afterwards, four helpers:

chars       the vision tower's result at every cell tells the characters that it shows
keys        the results of the second and the third text layer tell what a cell belongs to: the label of a value, row
            and column of a number
lookahead   the last prompt token tells the whole answer
pointer     from the third layer on, the end of the question looks at all cells of the answer, and the answer's tokens
            at some of them. Without it a model that read letters well had found nothing after 500 steps.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F  # noqa: N812

from training.batch import IGNORE, OWN_CHARS, Batch
from training.net import Net, Seen
from training.tokens import VOCAB_SIZE

ELITE_ALPHA = 0.9
KEY_LAYERS = (1, 2)
POINTER_FROM = 2  # layers before it are left alone: they have to find out first what is asked


def answer_loss(net: Net, batch: Batch, seen: Seen) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of the answers' tokens, and which branches are right as a whole, bool [B, K]."""
    at = batch.labels != IGNORE
    logits = net.logits(seen.hidden[at])
    target = batch.labels[at]
    wrong = torch.zeros_like(batch.labels, dtype=torch.bool)
    wrong[at] = logits.argmax(-1) != target
    return F.cross_entropy(logits, target), ~wrong.any(-1)


def chars_loss(net: Net, batch: Batch, seen: Seen) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss, and the share of written cells whose characters are all right."""
    logits = net.linear(seen.features, net.chars).float().unflatten(-1, (OWN_CHARS, -1))
    loss = F.cross_entropy(logits.flatten(0, 2), batch.chars.flatten(), reduction="none").view(batch.chars.shape)
    written = batch.chars[..., 0] != 0
    right = (logits.argmax(-1) == batch.chars).all(-1)
    weight = torch.where(written, 1.0, 0.2)[..., None]
    return (loss * weight).sum() / weight.sum() / OWN_CHARS, right[written].float().mean()


def keys_loss(net: Net, batch: Batch, seen: Seen) -> torch.Tensor:
    keyed = (batch.keys != IGNORE).any(-1)
    target = batch.keys[keyed].flatten()
    total = torch.zeros(())
    for layer in KEY_LAYERS:
        cells = F.rms_norm(seen.cells[layer][keyed], seen.features.shape[-1:], eps=1e-6)
        logits = net.linear(cells, net.keys).float().view(len(target), -1)
        total = total + F.cross_entropy(logits, target, ignore_index=IGNORE)
    return total / len(KEY_LAYERS)


def lookahead_loss(net: Net, batch: Batch, seen: Seen) -> torch.Tensor:
    width = seen.hidden.shape[-1]
    last = seen.hidden.gather(2, batch.last[..., None, None].expand(-1, -1, 1, width))[:, :, 0]
    logits = net.linear(last, net.ahead).float().view(-1, VOCAB_SIZE)
    return F.cross_entropy(logits, batch.lookahead.flatten(), ignore_index=IGNORE)


def elite(text: torch.Tensor) -> torch.Tensor:
    """Elite tokens of one layer, bool [B, K, 1 + L] over vision end and branch."""
    return text >= ELITE_ALPHA * text.amax(-1, keepdim=True)


def pointer_loss(batch: Batch, seen: Seen) -> torch.Tensor:
    """Asking tokens (the elite ones of the layer, and the last): cross-entropy between the cells of the answer, all
    alike, and their attention to visual tokens, mean over heads. Answering tokens: -log of the share that the cells of
    the answer get of theirs.
    """
    length = batch.ids.shape[-1]
    index = torch.arange(length)
    answering = ((index > batch.last[..., None]) & (batch.labels != IGNORE)).float()  # [B, K, L]
    asking = F.one_hot(batch.last, length).float()
    where = batch.where.float()
    target = where / where.sum(-1, keepdim=True)
    total = torch.zeros(())
    layers = range(POINTER_FROM, len(seen.visual))
    for i in layers:
        weights = seen.visual[i]
        share = weights / weights.sum(-1, keepdim=True).clamp(min=1e-6)  # every head's own distribution
        window = elite(seen.text[i])[..., 1:].float()  # the vision end token has not seen the question
        asked = window / window.sum(-1, keepdim=True).clamp(min=1) + asking
        asked = asked / asked.sum(-1, keepdim=True)
        looks = torch.einsum("bhkln,bkl->bkn", share, asked.to(share.dtype)).float() / share.shape[1]
        total = total - (target * (looks + 1e-5).log()).sum(-1).mean()
        mass = torch.einsum("bhkln,bkn->bkl", share, where.to(share.dtype)).float() / share.shape[1]
        total = total - 0.5 * ((mass + 1e-4).log() * answering).sum() / answering.sum()
    return total / len(layers)
