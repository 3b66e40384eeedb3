"""A small vocabulary and a small model, made once; torch.compile is off: compiling takes longer than these tests."""

import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "reference")]

from transformers import Qwen2VLForConditionalGeneration  # noqa: E402

from training.net import Net, init_weights, make_config  # noqa: E402
from training.tokens import Vocabulary, train_tokenizer  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def eager() -> None:
    torch.compiler.set_stance("force_eager")


@pytest.fixture(scope="session")
def vocabulary() -> Vocabulary:
    return Vocabulary(train_tokenizer(seed=3, n_pages=50))


@pytest.fixture(scope="session")
def net(vocabulary: Vocabulary) -> Net:
    torch.manual_seed(5)
    config = make_config(vocabulary, hidden=128, layers=3, heads=2, kv_heads=1, ffn=96, vision_depth=3, vision_width=64)
    config.vision_config.num_heads = 2
    model = Qwen2VLForConditionalGeneration._from_config(config, attn_implementation="eager").float().eval()
    init_weights(model)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if ".q_proj" in name or ".k_proj" in name:
                p.mul_(2)  # attention that tells tokens apart, or every one of them would be elite
    return Net(model, vocabulary.vision_end)
