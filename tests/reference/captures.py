"""Made-up captures: queries and keys without a model."""

from __future__ import annotations

import aircache_ref as ref
import numpy as np


def random_capture(seed: int, n_layers: int = 2, heads: int = 4, heads_kv: int = 2, dim: int = 8) -> ref.Capture:
    """Made-up queries and keys for text 0-2, image 3-8, text 9-10, image 11-13, text 14-20."""
    rng = np.random.default_rng(seed)
    visual = np.array([3, 4, 5, 6, 7, 8, 11, 12, 13])
    return ref.Capture(
        q=rng.normal(size=(n_layers, heads, 21, dim)).astype(np.float32) * 1.5,
        k=rng.normal(size=(n_layers, heads_kv, 21, dim)).astype(np.float32) * 1.5,
        logits=np.zeros((21, 4), np.float32),
        visual=visual,
        positions=np.zeros((3, 21), np.int64),
    )
