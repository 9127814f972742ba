"""Calls a user's function without any effect on training."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import torch
from torch import nn


@contextlib.contextmanager
def undisturbed(pl_module: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradient inside; modes and random states restored afterwards.

    Otherwise a forward pass in the user's function would move batch-norm statistics and dropout.
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
