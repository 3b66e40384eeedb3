"""The model of the reference: Hugging Face's forward pass in float32, and what it leaves behind for aircache_ref."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Qwen2ForCausalLM, Qwen2VLForConditionalGeneration

Later = tuple[int, Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]]
"""(first token, change): from that token on, queries find change(layer, k, v) in the cache instead of k and v, each
[H_kv, S, d] in the cache's type."""


@dataclass(frozen=True)
class Capture:
    """What a forward pass leaves behind."""

    q: np.ndarray  # [L, H, S, d] float32, after RoPE
    k: np.ndarray  # [L, H_kv, S, d] float32, after RoPE, as the cache holds it in the end
    logits: np.ndarray  # [S, vocabulary] float32
    visual: np.ndarray  # [N_v] token indices of the visual tokens to compress, ascending
    positions: np.ndarray  # [3, S] rotary positions: time, height, width; [1, S] where there is but one
    v: np.ndarray | None = None  # [L, H_kv, S, d] float32, as k
    visible: np.ndarray | None = None  # [L, S, S] bool: what the queries saw, on top of the causal order; None: all
    images: tuple[tuple[int, int], ...] = ()  # rows and columns of each image's tokens, of the images to compress

    @property
    def n_layers(self) -> int:
        return self.q.shape[0]

    @property
    def n_tokens(self) -> int:
        return self.q.shape[2]

    @property
    def text(self) -> np.ndarray:
        """T: token indices of the text after the first visual token, ascending."""
        if self.visual.size == 0:
            raise ValueError("the prompt has no visual tokens")
        after = np.arange(self.visual[0], self.n_tokens)
        return np.setdiff1d(after, self.visual)


@torch.no_grad()
def qwen2vl_forward(
    model: Qwen2VLForConditionalGeneration,
    input_ids: Tensor,
    pixel_values: Tensor,
    image_grid_thw: Tensor,
    image_embeds: Tensor | None = None,
    visible: np.ndarray | None = None,
    cache_dtype: torch.dtype = torch.float32,
    start: int = 0,
    later: Sequence[Later] = (),
) -> Capture:
    """Runs the model over a whole sequence and keeps every layer's queries, keys and values.

    Args:
        model: loaded with attn_implementation="eager", in float32; Qwen2.5-VL and Qwen3-VL have the same interface.
        input_ids: [S], with one image token for every visual token.
        pixel_values: [patches, 1176], all images.
        image_grid_thw: [images, 3], each image's grid of patches.
        image_embeds: [N_v, hidden] replaces the output of the vision tower; wider: see image_features.
        visible: [L, S, S] bool: the keys that each layer's queries see, on top of the causal order.
        cache_dtype: keys and values are rounded to it before anything uses them, as a cache of that type does.
        start: first token of this turn; images before it belong to earlier turns and are not compressed again.
        later: changes of the cache, in the order of their tokens.
    """
    ids = input_ids.reshape(1, -1)
    is_visual = ids == model.config.image_token_id
    if image_embeds is None:
        image_embeds = image_features(model, pixel_values, image_grid_thw)
    if image_embeds.shape[0] != int(is_visual.sum()):
        raise ValueError(f"{int(is_visual.sum())} image tokens, but {image_embeds.shape[0]} image embeddings")
    embeds = model.model.language_model.embed_tokens(ids)
    first, *deepstack = image_embeds.to(embeds.dtype).split(embeds.shape[-1], dim=1)
    embeds[is_visual] = first
    positions, _ = model.model.get_rope_index(ids, is_visual.int(), image_grid_thw=image_grid_thw)  # [3, 1, S]

    visual = is_visual[0].nonzero()[:, 0].numpy()
    merge = model.config.vision_config.spatial_merge_size
    grids = [(rows // merge, columns // merge) for _, rows, columns in image_grid_thw.tolist()]
    firsts = visual[np.cumsum([0] + [rows * columns for rows, columns in grids[:-1]])]
    return _forward(
        model.model.language_model,
        model.lm_head,
        embeds,
        positions,
        visible,
        cache_dtype,
        later,
        {"visual_pos_masks": is_visual, "deepstack_visual_embeds": deepstack} if deepstack else {},
        visual=visual[visual >= start],
        images=tuple(grid for grid, first in zip(grids, firsts, strict=True) if first >= start),
    )


def image_features(model: Qwen2VLForConditionalGeneration, pixel_values: Tensor, image_grid_thw: Tensor) -> Tensor:
    """What the text model takes in for each visual token: [N_v, hidden], in Qwen3-VL [N_v, (1 + n) * hidden]: the
    embedding, then what is added behind each of the first n layers."""
    with torch.no_grad():
        output = model.model.get_image_features(pixel_values, image_grid_thw)
    features = [torch.cat(output.pooler_output)]
    features += [torch.cat(images) for images in getattr(output, "deepstack_features", None) or ()]
    return torch.cat(features, dim=1)


@torch.no_grad()
def qwen2_forward(
    model: Qwen2ForCausalLM,
    input_ids: Tensor,
    images: Sequence[tuple[int, int]],
    image_embeds: Tensor,
    visible: np.ndarray | None = None,
    cache_dtype: torch.dtype = torch.float32,
    later: Sequence[Later] = (),
) -> Capture:
    """As qwen2vl_forward, for a text model that counts every visual token as one position.

    Args:
        model: loaded with attn_implementation="eager", in float32; Llama, Phi-3 and others have the same interface.
        input_ids: [S]; what stands at visual tokens does not matter.
        images: first token and number of tokens of each run of visual tokens.
        image_embeds: [N_v, hidden].
        visible, cache_dtype, later: as for qwen2vl_forward.
    """
    visual = np.concatenate([np.arange(first, first + count) for first, count in images])
    embeds = model.model.embed_tokens(input_ids.reshape(1, -1))
    embeds[0, visual] = image_embeds
    return _forward(
        model.model,
        model.lm_head,
        embeds,
        torch.arange(input_ids.numel())[None],
        visible,
        cache_dtype,
        later,
        {},
        visual=visual,
        images=tuple((1, count) for _, count in images),
    )


def _forward(
    model: torch.nn.Module,
    lm_head: torch.nn.Module,
    embeds: Tensor,
    positions: Tensor,
    visible: np.ndarray | None,
    cache_dtype: torch.dtype,
    later: Sequence[Later],
    inputs: dict[str, Any],
    **of_capture: Any,
) -> Capture:
    """model: a language model of Hugging Face's; inputs: what else it takes."""
    if model.config._attn_implementation != "eager":
        raise ValueError('load the model with attn_implementation="eager"')
    n_layers, n_tokens = model.config.num_hidden_layers, embeds.shape[1]
    mask = np.broadcast_to(np.tri(n_tokens, dtype=bool), (n_layers, n_tokens, n_tokens))
    if visible is not None:
        mask = mask & visible
    queries: list[Tensor] = []
    keys: list[Tensor] = []
    values: list[Tensor] = []

    def one_way(layer: int, q: Tensor, k: Tensor, v: Tensor, scaling: float) -> Tensor:
        """q [1, H, S, d], k and v [H_kv, S, d] -> [1, H, S, d]"""
        group = q.shape[1] // k.shape[0]
        k, v = k.to(q.dtype).repeat_interleave(group, dim=0), v.to(q.dtype).repeat_interleave(group, dim=0)
        logits = (q @ k.transpose(1, 2)) * scaling
        logits = logits.masked_fill(~torch.tensor(mask[layer]), -torch.inf)
        return logits.softmax(-1) @ v

    def attend(layer: Any, q: Tensor, k: Tensor, v: Tensor, _: Any, scaling: float, **__: Any) -> tuple[Tensor, None]:
        """q [1, H, S, d], k and v [1, H_kv, S, d] -> [1, S, H, d]"""
        index, k, v = layer.layer_idx, k[0].to(cache_dtype), v[0].to(cache_dtype)
        result = one_way(index, q, k, v, scaling)
        for first, change in later:
            k, v = change(index, k, v)
            result[:, :, first:] = one_way(index, q, k, v, scaling)[:, :, first:]
        queries.append(q[0])
        keys.append(k.to(q.dtype))
        values.append(v.to(q.dtype))
        return result.transpose(1, 2), None

    with _text_attention(type(model.layers[0].self_attn), attend):
        hidden = model(inputs_embeds=embeds, position_ids=positions, use_cache=False, **inputs)
    return Capture(
        q=torch.stack(queries).numpy(),
        k=torch.stack(keys).numpy(),
        logits=lm_head(hidden.last_hidden_state)[0].numpy(),
        positions=positions.reshape(-1, n_tokens).numpy(),
        v=torch.stack(values).numpy(),
        visible=visible,
        **of_capture,
    )


@contextmanager
def _text_attention(attention_class: type, attend: Callable[..., tuple[Tensor, None]]) -> Iterator[None]:
    """Lets `attend` do the attention of the language model's layers; its q and k are rotated already."""
    code: Any = sys.modules[attention_class.__module__]
    eager = code.eager_attention_forward

    def dispatch(module: torch.nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        is_text = isinstance(module, attention_class)
        return (attend if is_text else eager)(module, *args, **kwargs)

    code.eager_attention_forward = dispatch
    try:
        yield
    finally:
        code.eager_attention_forward = eager
