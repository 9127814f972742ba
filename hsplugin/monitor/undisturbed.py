"""Calling a user's function without the training noticing."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import torch
from torch import nn


@contextlib.contextmanager
def undisturbed(pl_module: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradient, and every random state as before when left.

    A forward pass of a function of the user would else move batch-norm statistics and dropout.
    """
    import numpy as np

    modes = [(module, module.training) for module in pl_module.modules()]
    devices = {p.get_device() for p in pl_module.parameters() if p.is_cuda}
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        pl_module.eval()
        with torch.random.fork_rng(sorted(devices)), torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        random.setstate(python_state)
        np.random.set_state(numpy_state)
