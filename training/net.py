"""The forward pass of training: the weights and the arithmetic of Hugging Face's Qwen2VLForConditionalGeneration,
without what slows it down here, for pages of one size with several questions each (batch.py).

Differences from the library: visual tokens and the text before them are computed once for all branches; activations may
be bfloat16; the two frames of a still image are the same, so their patch kernels are added up; attention of the
branches is written out, because its weights are needed (losses.py, evict.py). tests/training checks that
the logits agree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from training.batch import CHARS, KEY_WORDS, LOOKAHEAD, OWN_CHARS, Batch
from training.tokens import VOCAB_SIZE, Vocabulary

# An ordinary base (10^4 and more) and equal sections would not turn the width section, which has the slowest rotations,
# over a dozen columns: with (4, 14, 14) no column of a table was ever found.
ROPE_THETA = 100.0
MROPE_SECTION = (4, 6, 22)
COLUMN_HEADS = ((0, 2), (1, 0))  # layer, head
EPS = 1e-6


def make_config(
    vocabulary: Vocabulary,
    hidden: int = 256,
    layers: int = 6,
    heads: int = 4,
    kv_heads: int = 2,
    ffn: int = 640,
    vision_depth: int = 3,
    vision_width: int = 192,
    vision_heads: int = 3,
) -> Qwen2VLConfig:
    rope = {"rope_type": "default", "rope_theta": ROPE_THETA, "mrope_section": list(MROPE_SECTION)}
    return Qwen2VLConfig(
        text_config={
            "vocab_size": VOCAB_SIZE,
            "hidden_size": hidden,
            "intermediate_size": ffn,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "max_position_embeddings": 4096,
            "rms_norm_eps": EPS,
            "tie_word_embeddings": False,
            "bos_token_id": vocabulary.pad,
            "eos_token_id": vocabulary.im_end,
            "pad_token_id": vocabulary.pad,
            "rope_parameters": rope,
        },
        vision_config={
            "depth": vision_depth,
            "embed_dim": vision_width,
            "hidden_size": hidden,
            "num_heads": vision_heads,
            "mlp_ratio": 4,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "in_channels": 3,
        },
        image_token_id=vocabulary.image,
        video_token_id=vocabulary.video,
        vision_start_token_id=vocabulary.vision_start,
        vision_end_token_id=vocabulary.vision_end,
        tie_word_embeddings=False,
    )


def init_weights(model: Qwen2VLForConditionalGeneration) -> None:
    n_text, n_vision = model.config.text_config.num_hidden_layers, model.config.vision_config.depth
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim < 2:
                continue
            if "embed_tokens" in name:
                p.normal_(0, 0.5)
            elif "patch_embed" in name:
                p.normal_(0, 1 / math.sqrt(2 * p[0].numel()))
            else:
                std = 0.8 / math.sqrt(p.shape[1])
                if "o_proj" in name or "down_proj" in name:
                    std /= math.sqrt(2 * n_text)
                if ".attn.proj" in name or "fc2" in name:
                    std /= math.sqrt(2 * n_vision)
                p.normal_(0, std)
        for layer, head in COLUMN_HEADS:
            if head < model.config.text_config.num_attention_heads:
                init_column_head(model, layer, head)


def init_column_head(model: Qwen2VLForConditionalGeneration, layer: int, head: int) -> None:
    """Biases with which a head attends along the column: 4 nats less for every one of the eight rotations that has
    turned by a right angle. A number finds the head of its column by it; in 750 steps such biases were not learned.
    """
    config = model.config.text_config
    dim = config.hidden_size // config.num_attention_heads
    kv = head * config.num_key_value_heads // config.num_attention_heads
    attention = model.model.language_model.layers[layer].self_attn
    first = sum(MROPE_SECTION[:2])  # of the rotations that turn with the column
    with torch.no_grad():
        attention.q_proj.bias[head * dim + first : head * dim + first + 8] += (4 * dim**0.5) ** 0.5
        attention.k_proj.bias[kv * dim + first : kv * dim + first + 8] += (4 * dim**0.5) ** 0.5


@dataclass
class Seen:
    """What a forward pass leaves behind."""

    features: torch.Tensor  # [B, N, hidden], the vision tower's result
    hidden: torch.Tensor  # [B, K, L, hidden], normalised
    cells: list[torch.Tensor] = field(default_factory=list)  # per layer [B, N, hidden], its result at visual tokens
    visual: list[torch.Tensor] = field(default_factory=list)  # per layer [B, H, K, L, N]: attention to visual tokens
    scores: list[torch.Tensor] = field(
        default_factory=list
    )  # per layer [B, H, K, L, N + 1 + L]: before the softmax, to
    # the visual tokens, the vision end token and the own branch
    text: list[torch.Tensor] = field(
        default_factory=list
    )  # per layer [B, K, 1 + L]: attention of the last prompt token
    # among the text that it can see after the picture (first entry: the vision end token), mean over heads
    end: list[torch.Tensor] = field(default_factory=list)  # per layer [B, H, N + 1]: attention of the vision end token
    # among the visual tokens and itself


class Net(nn.Module):
    """Arguments of its methods are documented by Batch."""

    def __init__(self, model: Qwen2VLForConditionalGeneration, vision_end: int) -> None:
        super().__init__()
        self.model = model
        config = model.config.text_config
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.hidden_size // self.heads
        self.vision_heads = model.config.vision_config.num_heads
        self.vision_end = vision_end
        # training only
        self.chars = nn.Linear(config.hidden_size, OWN_CHARS * len(CHARS))
        self.keys = nn.Linear(config.hidden_size, KEY_WORDS * VOCAB_SIZE, bias=False)
        nn.init.normal_(self.keys.weight, 0, 0.02)
        self.ahead = nn.Linear(config.hidden_size, LOOKAHEAD * VOCAB_SIZE, bias=False)
        nn.init.normal_(self.ahead.weight, 0, 0.02)
        self.dtype = torch.float32
        self._tables: dict[tuple, tuple[torch.Tensor, ...]] = {}

    def w(self, p: torch.Tensor) -> torch.Tensor:
        return p.to(self.dtype)

    def linear(self, x: torch.Tensor, layer: nn.Linear) -> torch.Tensor:
        return F.linear(x, self.w(layer.weight), None if layer.bias is None else self.w(layer.bias))

    # -- vision ---------------------------------------------------------------------------------------------------

    def vision_rope(self, rows: int, columns: int) -> tuple[torch.Tensor, ...]:
        key = ("vision", rows, columns, self.dtype)
        if key not in self._tables:
            config = self.model.config.vision_config
            dim = config.embed_dim // config.num_heads // 2
            frequency = 1.0 / (10000 ** (torch.arange(0, dim, 2).float() / dim))
            h = torch.arange(rows * 2).view(rows, 1, 2, 1).expand(rows, columns, 2, 2).reshape(-1)
            w = torch.arange(columns * 2).view(1, columns, 1, 2).expand(rows, columns, 2, 2).reshape(-1)
            angle = torch.cat((h[:, None] * frequency, w[:, None] * frequency), -1)
            self._tables[key] = (angle.cos().to(self.dtype), angle.sin().to(self.dtype))
        return self._tables[key]

    def vision(self, patches: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        tower = self.model.model.visual
        cos, sin = self.vision_rope(rows, columns)
        kernel = tower.patch_embed.proj.weight.sum(2).flatten(1)
        x = patches.to(self.dtype) @ self.w(kernel).t()
        b, n, width = x.shape
        for block in tower.blocks:
            y = F.layer_norm(x, (width,), self.w(block.norm1.weight), self.w(block.norm1.bias), EPS)
            qkv = self.linear(y, block.attn.qkv).view(b, n, 3, self.vision_heads, -1)
            q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
            y = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v)
            x = x + self.linear(y.transpose(1, 2).reshape(b, n, width), block.attn.proj)
            y = F.layer_norm(x, (width,), self.w(block.norm2.weight), self.w(block.norm2.bias), EPS)
            y = self.linear(y, block.mlp.fc1)
            x = x + self.linear(quick_gelu(y), block.mlp.fc2)
        merger = tower.merger
        x = F.layer_norm(x, (width,), self.w(merger.ln_q.weight), self.w(merger.ln_q.bias), EPS)
        x = F.gelu(self.linear(x.view(b, n // 4, 4 * width), merger.mlp[0]))
        return self.linear(x, merger.mlp[2])

    # -- text -----------------------------------------------------------------------------------------------------

    def text_rope(self, n_before: int, rows: int, columns: int, length: int) -> tuple[torch.Tensor, ...]:
        """cos and sin of the prefix [P, d/2] and of one branch [L, d/2]."""
        key = ("text", n_before, rows, columns, length, self.dtype)
        if key not in self._tables:
            before = torch.arange(n_before).expand(3, -1)
            t = torch.full((rows * columns,), n_before)
            h = n_before + torch.arange(rows)[:, None].expand(rows, columns).reshape(-1)
            w = n_before + torch.arange(columns)[None].expand(rows, columns).reshape(-1)
            after = n_before + max(rows, columns) + torch.arange(1 + length).expand(3, -1)
            positions = torch.cat((before, torch.stack((t, h, w)), after), 1)
            frequency = 1.0 / (ROPE_THETA ** (torch.arange(0, self.head_dim, 2).float() / self.head_dim))
            angle = positions[..., None].float() * frequency
            angle = torch.cat([m[i] for i, m in enumerate(angle.split(MROPE_SECTION, -1))], -1)
            cos, sin = angle.cos().to(self.dtype), angle.sin().to(self.dtype)
            p = cos.shape[0] - length
            self._tables[key] = (cos[:p], sin[:p], cos[p:], sin[p:])
        return self._tables[key]

    def forward(self, batch: Batch, keep: torch.Tensor | None = None, look: bool = False) -> Seen:
        """
        Args:
            batch: pages and questions.
            keep: bool [layers, B, K, N], the visual tokens that answer tokens (all after the last prompt token) see.
            look: leave the attention weights in the result.
        """
        lm = self.model.model.language_model
        features = self.vision(batch.patches, batch.rows, batch.columns)
        b, n, width = features.shape
        k, length = batch.ids.shape[1:]
        n_before = len(batch.prefix)
        prefix = n_before + n + 1
        cos_p, sin_p, cos_b, sin_b = self.text_rope(n_before, batch.rows, batch.columns, length)
        table = self.w(lm.embed_tokens.weight)
        before = F.embedding(batch.prefix, table).expand(b, -1, -1)
        end = table[self.vision_end].expand(b, 1, -1)
        x = torch.cat((before, features, end), 1)  # the shared part
        y = F.embedding(batch.ids, table).reshape(b, k * length, width)  # the branches
        seen = Seen(features, y)
        visual = slice(n_before, n_before + n)
        answering = torch.arange(length) > batch.last[..., None]  # [B, K, L]
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        heads, kv, d = self.heads, self.kv_heads, self.head_dim
        group = heads // kv
        scale = d**-0.5
        for i, layer in enumerate(lm.layers):
            attn = layer.self_attn
            z = torch.cat((x, y), 1)
            z = F.rms_norm(z, (width,), self.w(layer.input_layernorm.weight), EPS)
            q = self.linear(z, attn.q_proj)
            kk = self.linear(z, attn.k_proj)
            v = self.linear(z, attn.v_proj)
            qp = rotate(q[:, :prefix].view(b, prefix, heads, d).transpose(1, 2), cos_p, sin_p)
            kp = rotate(kk[:, :prefix].view(b, prefix, kv, d).transpose(1, 2), cos_p, sin_p)
            vp = v[:, :prefix].view(b, prefix, kv, d).transpose(1, 2)
            op = F.scaled_dot_product_attention(
                qp, kp.repeat_interleave(group, 1), vp.repeat_interleave(group, 1), is_causal=True
            )
            op = op.transpose(1, 2).reshape(b, prefix, heads * d)

            # [B, H, K, L, d]
            qb = rotate(q[:, prefix:].view(b, k, length, heads, d).permute(0, 3, 1, 2, 4), cos_b, sin_b)
            kb = rotate(kk[:, prefix:].view(b, k, length, kv, d).permute(0, 3, 1, 2, 4), cos_b, sin_b)
            vb = v[:, prefix:].view(b, k, length, kv, d).permute(0, 3, 1, 2, 4)
            flat = (qb * scale).reshape(b, kv, group * k * length, d)
            to_prefix = (flat @ kp.transpose(-1, -2)).view(b, heads, k, length, prefix)
            own = (qb * scale) @ kb.repeat_interleave(group, 1).transpose(-1, -2)
            own = own.masked_fill(~causal, float("-inf"))
            if keep is not None:
                hidden = (~keep[i])[:, None, :, None, :] & answering[:, None, :, :, None]  # [B, 1, K, L, N]
                to_prefix = torch.cat(
                    (
                        to_prefix[..., :n_before],
                        to_prefix[..., visual].masked_fill(hidden, float("-inf")),
                        to_prefix[..., -1:],
                    ),
                    -1,
                )
            weights = torch.cat((to_prefix, own), -1).softmax(-1)
            ob = (weights[..., :prefix].reshape(b, kv, group * k * length, prefix) @ vp).view(b, heads, k, length, d)
            ob = ob + weights[..., prefix:] @ vb.repeat_interleave(group, 1)
            ob = ob.permute(0, 2, 3, 1, 4).reshape(b, k * length, heads * d)
            if look:
                seen.visual.append(weights[..., visual])
                seen.scores.append(torch.cat((to_prefix[..., n_before:], own), -1))
                with torch.no_grad():
                    row = qp[:, :, -1:] * scale @ kp[:, :, n_before:].repeat_interleave(group, 1).transpose(-1, -2)
                    seen.end.append(row[:, :, 0].float().softmax(-1))
                    # softmax over the text after the picture only (docs/method.md, section 1)
                    at = batch.last[:, None, :, None, None].expand(b, heads, k, 1, prefix + length)
                    row = torch.cat((to_prefix, own), -1).gather(3, at)[:, :, :, 0, prefix - 1 :]
                    seen.text.append(row.float().softmax(-1).mean(1))
            z = torch.cat((x, y), 1) + self.linear(torch.cat((op, ob), 1), attn.o_proj)
            h = F.rms_norm(z, (width,), self.w(layer.post_attention_layernorm.weight), EPS)
            h = swiglu(self.linear(h, layer.mlp.gate_proj), self.linear(h, layer.mlp.up_proj))
            z = z + self.linear(h, layer.mlp.down_proj)
            x, y = z[:, :prefix], z[:, prefix:]
            seen.cells.append(x[:, visual])
        y = F.rms_norm(y, (width,), self.w(lm.norm.weight), EPS)
        seen.hidden = y.view(b, k, length, width)
        return seen

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.linear(hidden, self.model.lm_head).float()


# Compiled, because they are bound by memory: a training step takes a quarter less time.


@torch.compile(dynamic=True)
def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


@torch.compile(dynamic=True)
def quick_gelu(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(1.702 * x)


@torch.compile(dynamic=True)
def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return F.silu(gate) * up
