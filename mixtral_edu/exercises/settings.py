"""The settings of a whole process that change what a function computes: the usual ones for a while, then as before."""

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

# For each setting: what reads it, what sets it, and what it has to be (None: whatever it is).
_SETTINGS: list[tuple[Callable, Callable, object]] = [
    (torch.get_default_dtype, torch.set_default_dtype, torch.float32),
    (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode, 0),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"),
    (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly, False),
    (torch.get_num_threads, torch.set_num_threads, None),
    (np.get_printoptions, lambda options: np.set_printoptions(**options), None),
    (np.geterr, lambda how: np.seterr(**how), None),
    (sys.getrecursionlimit, sys.setrecursionlimit, None),
]
_CPU = torch.device("cpu")


@contextmanager
def usual_settings() -> Iterator[None]:
    """Run the `with` block as a fresh Python would: float32 by default, on the CPU, with gradients, without autocast.

    Whatever the block changes, and whatever was set before it, is afterwards as it was: default dtype and device,
    gradient and inference mode, determinism, precision of products, anomaly detection, number of threads, what numpy
    prints and warns of, filters of warnings, and the recursion limit.
    """
    before, depth = [read() for read, _, _ in _SETTINGS], _autocast_depth()
    device = torch.get_default_device()
    try:
        for (_, set_to, usual), value in zip(_SETTINGS, before, strict=True):
            if usual is not None and value != usual:
                set_to(usual)
        if device != _CPU:
            torch.set_default_device(_CPU)
        with warnings.catch_warnings(), torch.inference_mode(False), torch.enable_grad():
            with torch.autocast("cpu", enabled=False):
                yield
    finally:
        while _autocast_depth() > depth:  # entered and not left: its copies of weights would outlive a training step
            torch.autocast_decrement_nesting()
        if depth == 0:
            torch.clear_autocast_cache()
        for (read, set_to, _), value in zip(_SETTINGS, before, strict=True):
            if read() != value:
                set_to(value)
        if device != _CPU or torch.get_default_device() != _CPU:
            torch.set_default_device(None)  # back to what an enclosing `with torch.device(…)` says
            if torch.get_default_device() != device:
                torch.set_default_device(device)


def _autocast_depth() -> int:
    """How many autocast blocks are open around this call."""
    torch.autocast_increment_nesting()
    return torch.autocast_decrement_nesting()
