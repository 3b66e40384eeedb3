"""The model tools are scripts, not a package: their folder is put on the path, and the reference's for its models."""

import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "models"), str(ROOT / "tests" / "reference")]

torch.set_num_threads(1)  # the models are so small that more threads only wait for each other
