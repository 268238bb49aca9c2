"""Compare a result with the expected one, and show the difference in a few short lines."""

import math
import numbers
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

Rows = list[tuple[str, str]]  # labelled lines of a message; an empty list means that both are equal

RELATIVE_TOLERANCE = {
    torch.float64: 1e-7, torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 2e-2,
    torch.complex128: 1e-7, torch.complex64: 1e-4,
}
SHOWN = 12  # a tensor with at most this many numbers is shown in full
ROW = 8  # numbers shown of a larger one


def compare(found: object, expected: object, rtol: float | None = None) -> Rows:
    """Return what differs between a student's result and the expected one; nothing if they agree.

    Tensors must agree in shape, dtype and values. If the expected one is a numpy array, the kind of number must agree
    instead of the dtype. Lists and tuples count as the same type. They are compared item by item, as are dicts. A
    tensor without dimensions may stand for a number. |found - expected| may be at most `rtol` · (|expected| + 0.1);
    `rtol=None` chooses one that fits the found dtype. Integers and booleans must be equal.
    """
    if isinstance(expected, Tensor | np.ndarray):
        return _compare_tensors(found, expected, rtol)
    if isinstance(expected, Mapping):
        if not isinstance(found, Mapping) or set(found) != set(expected):
            return _rows(expected, found)
        return _first_difference(found, expected, expected, rtol)
    if isinstance(expected, Sequence) and not isinstance(expected, str | bytes):
        if not isinstance(found, list | tuple) or len(found) != len(expected):
            return _rows(expected, found)
        return _first_difference(found, expected, range(len(expected)), rtol)
    if isinstance(expected, numbers.Number):
        if isinstance(found, Tensor | np.ndarray | np.generic) and found.ndim == 0:
            found = found.item()
        both_numbers = isinstance(found, numbers.Number) and isinstance(found, bool) == isinstance(expected, bool)
        return [] if both_numbers and _numbers_agree(found, expected, rtol) else _rows(expected, found)
    return [] if type(found) is type(expected) and found == expected else _rows(expected, found)


def show(value: object, digits: int = 4) -> str:
    """Return a value in short form: small tensors in full, others as dtype and shape.

    >>> show(torch.tensor([[1.0, 1 / 3]])), show(torch.zeros(5, 7)), show({"eps": 1e-5})
    ('[[1, 0.3333]]', 'float32 (5, 7)', "{'eps': 1e-05}")
    """
    if isinstance(value, np.ndarray | np.generic):
        value = torch.as_tensor(value, device="cpu")
    if isinstance(value, Tensor):
        if value.numel() <= SHOWN:
            return show(value.tolist(), digits)
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {show(item, digits)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        inside = ", ".join(show(item, digits) for item in value[:ROW]) + (", …" if len(value) > ROW else "")
        return f"[{inside}]" if isinstance(value, list) else f"({inside})"
    if isinstance(value, float | complex):
        return f"{value + 0.0:.{digits}g}"  # adding 0 turns -0 into 0
    text = repr(value)
    if " at 0x" in text:  # an address says nothing and differs each time
        return f"{type(value).__name__} object"
    return text if len(text) <= 80 else text[:79] + "…"


def form(value: object) -> object:
    """Return the type, shape and dtype of a result in words, for checks that ignore its numbers.

    >>> form((torch.ones(2, 3), torch.tensor([1], dtype=torch.int8))), form(2.5), form([])
    (['float32 (2, 3)', 'int8 (1,)'], 'a number', [])
    """
    if isinstance(value, list | tuple):
        return [form(item) for item in value]
    if isinstance(value, Tensor) and value.ndim:
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return "a number" if isinstance(value, Tensor | numbers.Number) else _with_type(value)


def _compare_tensors(found: object, expected: Tensor | np.ndarray, rtol: float | None) -> Rows:
    if not isinstance(found, Tensor):
        return [("expected", f"a tensor of shape {tuple(expected.shape)}"), ("found", _with_type(found))]
    if tuple(found.shape) != tuple(expected.shape):
        return [("expected", f"shape {tuple(expected.shape)}"), ("found", f"shape {tuple(found.shape)}")]
    any_dtype = isinstance(expected, np.ndarray)
    expected = torch.as_tensor(expected, device="cpu").detach()
    same = _kind(found.dtype) == _kind(expected.dtype) if any_dtype else found.dtype == expected.dtype
    if not same:
        names = [str(dtype).removeprefix("torch.") for dtype in (expected.dtype, found.dtype)]
        return [("expected", f"dtype {names[0]}"), ("found", f"dtype {names[1]}")]
    if rtol is None:
        rtol = RELATIVE_TOLERANCE.get(found.dtype, 0)
    found = found.detach().cpu()
    wide = torch.complex128 if found.is_complex() else torch.float64 if found.is_floating_point() else torch.int64
    found, expected = found.to(wide), expected.to(wide)
    agree = torch.isclose(found, expected, rtol=rtol, atol=0.1 * rtol, equal_nan=True)
    if agree.all():
        return []
    if agree.numel() <= SHOWN:
        return _rows(expected, found)
    distance = (found - expected).abs().double().nan_to_num(nan=math.inf).masked_fill(agree, -1)
    *place, column = np.unravel_index(int(distance.argmax()), distance.shape)
    start = max(0, min(int(column) - ROW // 2, distance.shape[-1] - ROW))
    around = (*place, slice(start, start + ROW))
    at = ", ".join([*(str(index) for index in place), f"{start}:{min(start + ROW, distance.shape[-1])}"])
    count = f"{int((~agree).sum())} of {agree.numel()} numbers differ, most at [{at}], shown here"
    return [*_rows(expected[around], found[around]), ("", count)]


def _first_difference(found, expected, keys, rtol: float | None) -> Rows:
    for key in keys:
        if rows := compare(found[key], expected[key], rtol):
            (label, place), *rest = rows
            inside = (place, rest) if label == "item" else ("", rows)
            return [("item", f"[{key!r}]{inside[0]}"), *inside[1]]
    return []


def _numbers_agree(found, expected, rtol: float | None) -> bool:
    if isinstance(found, numbers.Integral) and isinstance(expected, numbers.Integral):
        return found == expected
    if found == expected or (found != found and expected != expected):  # both infinite, or both NaN
        return True
    return abs(found - expected) <= (1e-4 if rtol is None else rtol) * (abs(expected) + 0.1)


def _rows(expected: object, found: object) -> Rows:
    for digits in (4, 7, 17):
        texts = show(expected, digits), show(found, digits)
        if texts[0] != texts[1]:
            break
    else:  # the numbers look the same, so the types differ
        texts = _with_type(expected), _with_type(found)
    return [("expected", texts[0]), ("found", texts[1])]


def _with_type(value: object) -> str:
    return "None: is there a return?" if value is None else f"{type(value).__name__} {show(value)}"


def _kind(dtype: torch.dtype) -> str:
    if dtype == torch.bool:
        return "boolean"
    return "complex" if dtype.is_complex else "float" if dtype.is_floating_point else "integer"
