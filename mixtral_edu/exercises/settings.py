"""Settings of a whole process that change what a function computes: apply the usual ones, then restore the old ones."""

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

# For each setting: the function that reads it, the one that sets it, and its usual value (None keeps the current one).
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

    After the block, all settings are as they were before it: default dtype and device, gradient and inference mode,
    determinism, precision of products, anomaly detection, number of threads, numpy's print and error settings, warning
    filters, and the recursion limit.
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
        while _autocast_depth() > depth:  # a block was entered and never left; its copies of weights would go stale
            torch.autocast_decrement_nesting()
        if depth == 0:
            torch.clear_autocast_cache()
        for (read, set_to, _), value in zip(_SETTINGS, before, strict=True):
            if read() != value:
                set_to(value)
        if device != _CPU or torch.get_default_device() != _CPU:
            torch.set_default_device(None)  # restores the device of an enclosing `with torch.device(…)`
            if torch.get_default_device() != device:
                torch.set_default_device(device)


def _autocast_depth() -> int:
    """Return how many autocast blocks are open around this call."""
    torch.autocast_increment_nesting()
    return torch.autocast_decrement_nesting()
