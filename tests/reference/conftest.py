"""The reference is two modules, aircache_ref and tiny; pytest puts this folder on the path."""

import torch

torch.set_num_threads(1)  # the models are so small that more threads only wait for each other
