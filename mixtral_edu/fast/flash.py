"""FlashAttention-2: attention on a GPU in tiles that stay in its fast memory, so no score is ever written out.

The kernels are others' work: the flash-attn package where it can be imported, else the one inside PyTorch. Both take
a batch in two forms, with key-value heads as few as they are:

    dense     q (B, T, Hq, Dh)     k, v (B, S, Hkv, Dh)     all rows of the same length
    packed    q (Nq, Hq, Dh)       k, v (Nk, Hkv, Dh)       the real tokens of all rows, and where each row starts

Both align queries with the last keys of their row, and count distance there: with a window of W, query t of T sees
key j of S where 0 <= (t + S - T) - j <= W - 1. Kernels call that `window_size=(W - 1, 0)`, to the left and the right;
-1 is no limit. A single query needs no rule: it is given just the keys that it may see, in any order.

Source: Dao 2023, arXiv 2307.08691.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from mixtral_edu.masks import NO_POSITION, Visibility

_DTYPES = (torch.float16, torch.bfloat16)
_MAX_HEAD_DIM = 256
_HEAD_DIM_STEP = 8  # kernels take heads of a multiple of this
_CAPABILITY = (8, 0)  # of the oldest GPUs that the kernels are written for, Ampere


@dataclass(frozen=True)
class Packing:
    """The tokens of a padded batch that take part, end to end, as kernels for rows of unequal length take them.

    Rows without a real query are left out, and so are keys that no query of their row may see. Where a row's tokens lie
    so far apart that no window reaches from one to the next, as packed texts do, it goes on as another row.

    Attributes:
        queries, keys: the tokens' rows and columns in the batch, two tensors (Nq,) and two (Nk,).
        query_starts, key_starts: (rows + 1,) int32, where each row's tokens start among them, and the end.
        most_queries, most_keys: the most in one row.
        closes_gaps: somewhere padding was left out between tokens so far apart that a window tells them apart: packed,
            they are nearer to each other than in their row.
    """

    queries: tuple[Tensor, Tensor]
    keys: tuple[Tensor, Tensor]
    query_starts: Tensor
    key_starts: Tensor
    most_queries: int
    most_keys: int
    closes_gaps: bool


@dataclass(frozen=True)
class FlashKernel:
    """A FlashAttention-2 that can be used here.

    `name` says in words whose it is, and which version. `attend(q, k, v, packing, window, dropout, scale)` returns what
    q gathers, in q's shape: packed with a `Packing`, dense with None; `window` is (left, right).
    """

    name: str
    attend: Callable[..., Tensor]


def package_kernel() -> FlashKernel:
    """The flash-attn package's; an ImportError or OSError where it is missing or fits another PyTorch."""
    import flash_attn  # not at the top: it takes seconds, and few machines have it

    return FlashKernel(f"the flash-attn package {flash_attn.__version__}", attend_by_package)


def torch_kernel() -> FlashKernel:
    """PyTorch's own. Raises a ValueError if PyTorch was built without it."""
    if not torch.backends.cuda.is_flash_attention_available() or torch.version.hip is not None:
        raise ValueError(f"PyTorch {torch.__version__} was built without FlashAttention-2 for NVIDIA GPUs")
    return FlashKernel(f"PyTorch {torch.__version__}'s own FlashAttention-2", attend_by_torch)


def attend_by_package(
    q: Tensor, k: Tensor, v: Tensor, packing: Packing | None, window: tuple[int, int], dropout: float, scale: float
) -> Tensor:
    """`FlashKernel.attend` with the flash-attn package's functions for the two forms."""
    from flash_attn import flash_attn_func, flash_attn_varlen_func

    options = {"dropout_p": dropout, "softmax_scale": scale, "causal": window[1] == 0, "window_size": window}
    if packing is None:
        return flash_attn_func(q, k, v, **options)
    starts, most = (packing.query_starts, packing.key_starts), (packing.most_queries, packing.most_keys)
    return flash_attn_varlen_func(q, k, v, *starts, *most, **options)


def attend_by_torch(
    q: Tensor, k: Tensor, v: Tensor, packing: Packing | None, window: tuple[int, int], dropout: float, scale: float
) -> Tensor:
    """`FlashKernel.attend` with the operator under PyTorch's public functions, of which none takes all of these.

    Its arguments have been these since PyTorch 2.5; newer ones came behind them.
    """
    lengths = (None, None, q.shape[1], k.shape[1])
    if packing is not None:
        lengths = (packing.query_starts, packing.key_starts, packing.most_queries, packing.most_keys)
    left, right = window
    return torch.ops.aten._flash_attention_forward(
        q, k, v, *lengths, dropout, window == (-1, 0), False,
        scale=scale, window_size_left=left, window_size_right=right,
    )[0]  # fmt: skip


@cache
def flash_kernel() -> FlashKernel:
    """Return the kernel that "flash_attention_2" uses here; its `name` says which.

    Raises:
        ValueError: there is none; the message says why.
    """
    try:
        return package_kernel()
    except (ImportError, OSError) as error:
        unusable = error
    try:
        own = torch_kernel()
    except ValueError as error:
        raise ValueError(
            f"attn_implementation='flash_attention_2' finds no kernel: flash-attn does not import ({unusable}) and "
            f"{error}; choose attn_implementation='sdpa'"
        ) from unusable
    if isinstance(unusable, ModuleNotFoundError) and unusable.name == "flash_attn":
        return own
    return replace(own, name=f"{own.name} (flash-attn is installed but does not import: {unusable})")


def check_flash(device: torch.device, dtype: torch.dtype, head_dim: int) -> None:
    """Raise a ValueError, which says what to choose instead, unless FlashAttention-2 can run on such a model."""
    asked, other = "attn_implementation='flash_attention_2'", "attn_implementation='sdpa'"
    if device.type != "cuda":
        raise ValueError(f"{asked} needs a CUDA device, and the model is on {device}: choose {other} or device='cuda'")
    if dtype not in _DTYPES:
        raise ValueError(
            f"{asked} computes in float16 or bfloat16, and the model is in {str(dtype).removeprefix('torch.')}: "
            f"choose dtype=torch.bfloat16 or {other}"
        )
    if head_dim > _MAX_HEAD_DIM:
        raise ValueError(f"{asked} takes heads of at most {_MAX_HEAD_DIM}, and head_dim={head_dim}: choose {other}")
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) < _CAPABILITY:
        raise ValueError(
            f"{asked} needs a GPU of compute capability 8.0 (Ampere) or later, and {device} has {major}.{minor}: "
            f"choose {other}"
        )
    flash_kernel()


def packing_of(visibility: Visibility, num_rows: int) -> Packing | None:
    """Return what takes part in a batch of B rows, None if that is everything, so that the dense form serves.

    A mask that was given but hides nothing ends up dense too: on a GPU nobody looks at its values before.
    """
    if not visibility.padded and (visibility.query_positions.shape[1] > 1 or visibility.all_visible):
        return None
    if len(visibility.query_positions) < num_rows:  # one row stands for all
        queries, keys = (p.expand(num_rows, -1) for p in (visibility.query_positions, visibility.key_positions))
        visibility = replace(visibility, query_positions=queries, key_positions=keys)
    return pack(visibility)


def pack(visibility: Visibility) -> Packing | None:
    """What takes part, end to end; None if that is each query and key. Waits for the device, once for all layers.

    >>> keys = torch.tensor([[-1, -1, 0, 1], [0, 1, 2, 3], [0, 1, 2, -1]])
    >>> packing = pack(Visibility(keys[:, 2:], keys, window=2, padded=True))
    >>> packing.query_starts.tolist(), packing.key_starts.tolist()
    ([0, 2, 4, 5], [0, 2, 5, 7])
    """
    queries, keys = visibility.query_positions, visibility.key_positions  # (B, T), (B, S)
    real = queries != NO_POSITION
    last = queries.amax(1, keepdim=True)  # (B, 1), NO_POSITION in a row without a query
    first = torch.where(real, queries, last).amin(1, keepdim=True)  # (B, 1)
    seen = (keys != NO_POSITION) & (keys <= last)
    gapless = torch.ones_like(real[:, 0])  # (B,)
    if visibility.window is not None:
        seen = seen & (keys > first - visibility.window)
        span = (last - torch.where(seen, keys, last)).amax(1) + 1  # (B,), from the oldest key to the last query
        gapless = (span == seen.sum(1)) | (span <= visibility.window)
    num_queries, num_keys, gapless = torch.stack((real.sum(1), seen.sum(1), gapless)).tolist()

    (B, T), S = real.shape, seen.shape[1]
    closes_gaps = not all(gapless)
    if closes_gaps and T == S:
        return pack_runs(queries, visibility.window)
    if num_queries == [T] * B and num_keys == [S] * B and not closes_gaps:
        return None
    num_queries = [count for count in num_queries if count]
    num_keys = [count for count in num_keys if count]
    return Packing(
        queries=real.nonzero(as_tuple=True),
        keys=seen.nonzero(as_tuple=True),
        query_starts=torch.tensor([0, *accumulate(num_queries)], dtype=torch.int32, device=real.device),
        key_starts=torch.tensor([0, *accumulate(num_keys)], dtype=torch.int32, device=real.device),
        most_queries=max(num_queries, default=0),
        most_keys=max(num_keys, default=0),
        closes_gaps=closes_gaps,
    )


def pack_runs(positions: Tensor, window: int) -> Packing:
    """`pack` of B rows (B, T) without a past, cut where the next token is W or more positions away.

    >>> packing = pack_runs(torch.tensor([[0, 1, 2, 6, 7], [0, 1, -1, -1, 4]]), window=3)
    >>> packing.query_starts.tolist(), packing.closes_gaps
    ([0, 3, 5, 7, 8], False)
    """
    row_idx, columns = (positions != NO_POSITION).nonzero(as_tuple=True)  # (N,) each
    places = positions[row_idx, columns]
    cut = F.pad((row_idx.diff() != 0) | (places.diff() >= window), (1, 0), value=True)
    starts = F.pad(cut.nonzero()[:, 0], (0, 1), value=len(places))  # (runs + 1,)
    lengths, span = starts.diff(), places[starts[1:] - 1] - places[starts[:-1]] + 1
    most = int(lengths.max())
    return Packing(
        queries=(row_idx, columns),
        keys=(row_idx, columns),
        query_starts=starts.int(),
        key_starts=starts.int(),
        most_queries=most,
        most_keys=most,
        closes_gaps=bool(((span != lengths) & (span > window)).any()),
    )


def flash_attention(
    q: Tensor, k: Tensor, v: Tensor, window: int | None, packing: Packing | None, dropout: float = 0.0
) -> Tensor:
    """Attention through the kernel that `flash_kernel` names. Head sizes are filled up with zeros to a multiple of 8.

    Args:
        q: (B, Hq, T, Dh); its own keys are the last T of S, unless T = 1.
        k: (B, Hkv, S, Dh), in time order, unless T = 1.
        v: (B, Hkv, S, Dh).
        window: W, or None.
        packing: the tokens that take part, of a batch whose gaps it does not close; None for all.
        dropout: share of weights that is dropped.

    Returns:
        (B, Hq, T, Dh), zero for queries that take no part.
    """
    T, Dh = q.shape[2:]
    most_queries = T if packing is None else packing.most_queries
    sides = (-1, -1) if most_queries == 1 else (-1 if window is None else window - 1, 0)
    if Dh % _HEAD_DIM_STEP:
        q, k, v = (F.pad(x, (0, -Dh % _HEAD_DIM_STEP)) for x in (q, k, v))
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, T, Hq, Dh), (B, S, Hkv, Dh)
    attend, scale = flash_kernel().attend, Dh**-0.5
    if packing is None:
        out = attend(q, k, v, None, sides, dropout, scale)
    else:
        out = torch.zeros_like(q)
        if packing.most_queries:
            packed = q[packing.queries], k[packing.keys], v[packing.keys]  # (Nq, Hq, Dh), (Nk, Hkv, Dh)
            out[packing.queries] = attend(*packed, packing, sides, dropout, scale)
    return out[..., :Dh].transpose(1, 2)  # (B, Hq, T, Dh)
