"""Shapes of text models that are measured with random weights."""

from __future__ import annotations

from dataclasses import dataclass

MIN_VOCAB = 512


@dataclass(frozen=True)
class Shape:
    """Shape of a text model, and of the small vision tower that `bench/random_gguf.py` gives it.

    Attributes:
        layers: L.
        width: Of the hidden state.
        heads: Query heads of a layer.
        heads_kv: KV heads of a layer.
        ffn: Width of the feed-forward part.
        vocab: Tokens.
        tied: Whether the output matrix is the token embedding.
        context: Tokens that the file says it was trained with.
        rope_base: Of the rotary embedding.
        arch: llama.cpp's architecture: "qwen2vl" (M-RoPE), "qwen2", "internlm2".
        vision_layers: Of the tower, which is small on purpose: encoding is not what is measured.
        vision_width: Its width.
        vision_heads: Its heads.
    """

    layers: int
    width: int
    heads: int
    heads_kv: int
    ffn: int
    vocab: int
    tied: bool = True
    context: int = 32768
    rope_base: float = 1e6
    arch: str = "qwen2vl"
    vision_layers: int = 2
    vision_width: int = 128
    vision_heads: int = 2

    @property
    def head_dim(self) -> int:
        """Elements of one head."""
        return self.width // self.heads

    @property
    def biased(self) -> bool:
        """Whether Q, K and V have a bias."""
        return self.arch.startswith("qwen2")

    @property
    def rope_sections(self) -> list[int]:
        """M-RoPE sections (time, height, width, unused) in Qwen2-VL's ratio 2 : 3 : 3 of half a head."""
        half = self.head_dim // 2
        side = half * 3 // 8
        return [half - 2 * side, side, side, 0]

    def __post_init__(self) -> None:
        if self.width % self.heads or self.heads % self.heads_kv:
            raise ValueError(f"width {self.width}, heads {self.heads}, heads_kv {self.heads_kv}: not divisible")
        for name in ("width", "ffn", "vision_width"):
            if getattr(self, name) % 32:
                raise ValueError(f"{name} must be a multiple of 32 (block size), got {getattr(self, name)}")
        if self.vocab < MIN_VOCAB:
            raise ValueError(f"vocab must be at least {MIN_VOCAB}, got {self.vocab}")


SHAPES: dict[str, Shape] = {
    "llava-ov-0.5b": Shape(24, 896, 14, 2, 4864, 151936, arch="qwen2"),
    "qwen2-vl-2b": Shape(28, 1536, 12, 2, 8960, 151936),
    "qwen2-vl-7b": Shape(28, 3584, 28, 4, 18944, 152064, tied=False),
    "llava-ov-7b": Shape(28, 3584, 28, 4, 18944, 152064, tied=False, arch="qwen2"),
    "internvl2-8b": Shape(32, 4096, 32, 8, 14336, 92553, tied=False, arch="internlm2"),
    "tiny": Shape(2, 128, 2, 1, 256, 512, context=8192, vision_layers=1, vision_width=64, vision_heads=1),
}
"""Text models by the names of the vision-language models that they belong to; "tiny" is for tests."""
