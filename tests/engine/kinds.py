"""Small random language models, written as GGUF with the bundled tokenizer: of kinds whose cache cannot be compressed,
and "qwen3", a plain one.

What they say means nothing; that they run and how they are refused is the point. All are 128 wide, so that the
projector of tiny_internvl fits each.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGUFValueType

from pyaircache.model_files import BUNDLED_MODEL, bundled_dir

WIDTH, FEED_FORWARD, VOCABULARY = 128, 256, 1216
HEADS, HEADS_KV, HEAD = 4, 2, 32
BUCKETS = 8  # distances that t5 tells apart
LAYERS = 4
INNER, STATE, RANK, KERNEL = 2 * WIDTH, 8, 4, 4  # of mamba
LATENT, LATENT_Q, TURNED = 64, 32, 16  # of deepseek2: the cached vector, that of queries, dimensions that are rotated
Shapes = dict[str, tuple[int, ...]]


def save(kind: str, out: Path, seed: int = 0) -> Path:
    """Writes "qwen3", "gemma3" (sliding windows), "mamba" (recurrent), "lfm2" (hybrid), "lfm2-swa" (both), "t5" or
    "deepseek2" (a latent vector instead of K and V)."""
    architecture = kind.partition("-")[0]
    writer = gguf.GGUFWriter(out, architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(2048)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(0 if architecture == "mamba" else FEED_FORWARD)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_head_count(0 if architecture == "mamba" else HEADS)
    _copy_tokenizer(writer)
    rng = np.random.default_rng(seed)
    for name, shape in _MAKERS[architecture](writer, kind).items():
        values = rng.normal(0, 1 / np.sqrt(shape[-1]), shape).astype(np.float32)
        if "norm" in name:
            values = np.ones_like(values)
        elif name.endswith("ssm_a"):
            values = -np.abs(values)  # states fade
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def _gemma3(writer: gguf.GGUFWriter, kind: str) -> Shapes:
    """Every second layer sees a window of 16 tokens, the others all."""
    writer.add_head_count_kv(HEADS_KV)
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_sliding_window(16)
    writer.add_sliding_window_pattern([i % 2 == 0 for i in range(LAYERS)])
    shapes = _ends("output_norm")
    for i in range(LAYERS):
        shapes |= _attention(i) | _mlp(i)
        shapes |= {f"blk.{i}.post_attention_norm.weight": (WIDTH,), f"blk.{i}.post_ffw_norm.weight": (WIDTH,)}
    return shapes


def _qwen3(writer: gguf.GGUFWriter, kind: str) -> Shapes:
    writer.add_head_count_kv(HEADS_KV)
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    shapes = _ends("output_norm")
    for i in range(LAYERS):
        shapes |= _attention(i) | _mlp(i)
    return shapes


def _lfm2(writer: gguf.GGUFWriter, kind: str) -> Shapes:
    """Short convolutions, and attention in every second layer; in "lfm2-swa" that is a sliding window."""
    writer.add_head_count_kv([HEADS_KV * (i % 2) for i in range(LAYERS)])
    writer.add_shortconv_l_cache(3)
    if kind.endswith("swa"):
        writer.add_sliding_window(16)
    shapes = _ends("token_embd_norm")
    for i in range(LAYERS):
        shapes |= _mlp(i)
        if i % 2:
            shapes |= _attention(i)
        else:
            shapes |= {
                f"blk.{i}.attn_norm.weight": (WIDTH,),
                f"blk.{i}.shortconv.conv.weight": (WIDTH, 3),
                f"blk.{i}.shortconv.in_proj.weight": (3 * WIDTH, WIDTH),
                f"blk.{i}.shortconv.out_proj.weight": (WIDTH, WIDTH),
            }
    return shapes


def _mamba(writer: gguf.GGUFWriter, kind: str) -> Shapes:
    writer.add_ssm_conv_kernel(KERNEL)
    writer.add_ssm_inner_size(INNER)
    writer.add_ssm_state_size(STATE)
    writer.add_ssm_time_step_rank(RANK)
    shapes = _ends("output_norm")
    for i in range(LAYERS):
        shapes |= {
            f"blk.{i}.attn_norm.weight": (WIDTH,),
            f"blk.{i}.ssm_in.weight": (2 * INNER, WIDTH),
            f"blk.{i}.ssm_conv1d.weight": (INNER, KERNEL),
            f"blk.{i}.ssm_conv1d.bias": (INNER,),
            f"blk.{i}.ssm_x.weight": (RANK + 2 * STATE, INNER),
            f"blk.{i}.ssm_dt.weight": (INNER, RANK),
            f"blk.{i}.ssm_dt.bias": (INNER,),
            f"blk.{i}.ssm_a": (INNER, STATE),
            f"blk.{i}.ssm_d": (INNER,),
            f"blk.{i}.ssm_out.weight": (WIDTH, INNER),
        }
    return shapes


def _t5(writer: gguf.GGUFWriter, kind: str) -> Shapes:
    """An encoder and a decoder, whose attention has a bias by distance."""
    writer.add_relative_attn_buckets_count(BUCKETS)
    shapes = {"token_embd.weight": (VOCABULARY, WIDTH)}
    for part, attentions in ("enc", ("attn",)), ("dec", ("attn", "cross_attn")):
        shapes[f"{part}.output_norm.weight"] = (WIDTH,)
        for i in range(LAYERS):
            block = f"{part}.blk.{i}"
            for attention in attentions:
                shapes[f"{block}.{attention}_norm.weight"] = (WIDTH,)
                shapes |= {f"{block}.{attention}_{x}.weight": (WIDTH, WIDTH) for x in "qkvo"}
            shapes[f"{block}.attn_rel_b.weight"] = (BUCKETS, HEADS)
            shapes[f"{block}.ffn_norm.weight"] = (WIDTH,)
            shapes[f"{block}.ffn_up.weight"] = (FEED_FORWARD, WIDTH)
            shapes[f"{block}.ffn_down.weight"] = (WIDTH, FEED_FORWARD)
    return shapes


def _deepseek2(writer: gguf.GGUFWriter, kind: str) -> Shapes:
    """Multi-head latent attention, without experts."""
    writer.add_head_count_kv(1)
    writer.add_key_length(LATENT + TURNED)
    writer.add_value_length(LATENT)
    writer.add_key_length_mla(HEAD + TURNED)
    writer.add_value_length_mla(HEAD)
    writer.add_q_lora_rank(LATENT_Q)
    writer.add_kv_lora_rank(LATENT)
    writer.add_rope_dimension_count(TURNED)
    writer.add_leading_dense_block_count(LAYERS)
    writer.add_expert_feed_forward_length(FEED_FORWARD)
    writer.add_expert_shared_count(0)
    shapes = _ends("output_norm")
    for i in range(LAYERS):
        shapes |= _mlp(i)
        shapes |= {
            f"blk.{i}.attn_norm.weight": (WIDTH,),
            f"blk.{i}.attn_q_a.weight": (LATENT_Q, WIDTH),
            f"blk.{i}.attn_q_a_norm.weight": (LATENT_Q,),
            f"blk.{i}.attn_q_b.weight": (HEADS * (HEAD + TURNED), LATENT_Q),
            f"blk.{i}.attn_kv_a_mqa.weight": (LATENT + TURNED, WIDTH),
            f"blk.{i}.attn_kv_a_norm.weight": (LATENT,),
            f"blk.{i}.attn_k_b.weight": (HEADS, LATENT, HEAD),
            f"blk.{i}.attn_v_b.weight": (HEADS, HEAD, LATENT),
            f"blk.{i}.attn_output.weight": (WIDTH, HEADS * HEAD),
        }
    return shapes


_MAKERS = {"deepseek2": _deepseek2, "gemma3": _gemma3, "lfm2": _lfm2, "mamba": _mamba, "qwen3": _qwen3, "t5": _t5}


def _ends(norm: str) -> Shapes:
    return {"token_embd.weight": (VOCABULARY, WIDTH), f"{norm}.weight": (WIDTH,)}


def _attention(i: int) -> Shapes:
    return {
        f"blk.{i}.attn_norm.weight": (WIDTH,),
        f"blk.{i}.attn_q.weight": (HEADS * HEAD, WIDTH),
        f"blk.{i}.attn_k.weight": (HEADS_KV * HEAD, WIDTH),
        f"blk.{i}.attn_v.weight": (HEADS_KV * HEAD, WIDTH),
        f"blk.{i}.attn_output.weight": (WIDTH, HEADS * HEAD),
        f"blk.{i}.attn_q_norm.weight": (HEAD,),
        f"blk.{i}.attn_k_norm.weight": (HEAD,),
    }


def _mlp(i: int) -> Shapes:
    return {
        f"blk.{i}.ffn_norm.weight": (WIDTH,),
        f"blk.{i}.ffn_gate.weight": (FEED_FORWARD, WIDTH),
        f"blk.{i}.ffn_up.weight": (FEED_FORWARD, WIDTH),
        f"blk.{i}.ffn_down.weight": (WIDTH, FEED_FORWARD),
    }


def _copy_tokenizer(writer: gguf.GGUFWriter) -> None:
    for key, field in gguf.GGUFReader(bundled_dir() / BUNDLED_MODEL).fields.items():
        if key.startswith("tokenizer."):
            kind, *of = field.types
            value: Any = field.contents()
            writer.add_key_value(key, value, kind, of[0] if kind == GGUFValueType.ARRAY else None)
