"""Rounding to 8 and 4 bits, and the layers that multiply with it: against bounds, float64 and PyTorch's own kernels."""

import copy
import itertools
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close

from mixtral_edu.quantized_linear import (
    Int4Linear,
    Int8Linear,
    pack_pairs,
    quantize_groups,
    quantize_rows,
    unpack_pairs,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# In and out features: such as PyTorch's kernels take, and such as they do not.
SIZES = [(64, 64), (128, 48), (256, 16), (64, 20), (192, 37)]


def make(kind: type, D: int, outputs: int, dtype: torch.dtype = torch.float32) -> Int8Linear | Int4Linear:
    layer = Int8Linear(D, outputs) if kind is Int8Linear else Int4Linear(D, outputs, group_size=32)
    return layer.quantize_(torch.randn(outputs, D), dtype)


def pack(layer: Int8Linear | Int4Linear) -> None:
    if isinstance(layer, Int4Linear):
        layer.pack()


@pytest.mark.parametrize("dtype", DTYPES)
def test_eight_bits_are_at_most_half_a_step_away_and_the_largest_number_of_a_row_is_kept(dtype):
    weight = torch.randn(5, 300) * torch.tensor([1e-3, 1.0, 30.0, 1.0, 1.0])[:, None]
    q, scale = quantize_rows(weight, dtype)
    assert (q.shape, q.dtype, scale.shape, scale.dtype) == ((5, 300), torch.int8, (5,), dtype)
    steps = scale.double()[:, None]
    error = (q.double() * steps - weight.double()).abs()
    rounding = 127 * steps * torch.finfo(dtype).eps  # of the scale itself
    assert (error <= steps / 2 + rounding).all()
    assert (q.abs().amax(dim=1) >= 126).all(), "the range is used"


@pytest.mark.parametrize("group_size", [2, 6, 50])
@pytest.mark.parametrize("dtype", DTYPES)
def test_four_bits_are_at_most_half_a_step_away(dtype, group_size):
    weight = torch.randn(7, 300) + 2 * torch.randn(7, 1)
    q, scale, zero = quantize_groups(weight, group_size, dtype)
    assert q.shape == (7, 300) and q.dtype == torch.uint8 and q.max() <= 15
    assert scale.shape == zero.shape == (7, 300 // group_size) and scale.dtype == zero.dtype == dtype
    error = 0.0
    for row in range(7):  # the formula, number by number
        for column in range(300):
            step, middle = (t[row, column // group_size].item() for t in (scale, zero))
            found = (q[row, column].item() - 8) * step + middle
            allowed = step / 2 + 16 * torch.finfo(dtype).eps * (step + abs(middle))
            assert abs(found - weight[row, column].item()) <= allowed
            error = max(error, abs(found - weight[row, column].item()))
    assert error > 0
    if dtype == torch.float32:  # where the zero is not rounded, a group's ends are the range's
        assert (q.view(7, -1, group_size).amin(2) == 0).all() and (q.view(7, -1, group_size).amax(2) == 15).all()


def test_what_needs_no_rounding_is_kept_exactly():
    whole = torch.randint(-8, 8, (4, 64)).float()
    whole[:, ::32], whole[:, 1::32] = -8, 7  # each group spans the whole range: a step is one
    assert torch.equal(Int4Linear(64, 4, 32).quantize_(whole, torch.float32).dequantize(), whole)
    whole = torch.randint(-127, 128, (4, 64)).float()
    whole[:, 0] = 127
    assert torch.equal(Int8Linear(64, 4).quantize_(whole, torch.float32).dequantize(), whole)


@pytest.mark.parametrize("value", [0.0, 0.3, -2.5])
def test_equal_numbers_come_back_and_do_not_divide_by_zero(value):
    weight = torch.full((3, 64), value)
    assert_close(Int4Linear(64, 3, 32).quantize_(weight, torch.float32).dequantize(), weight, rtol=0, atol=0)
    assert_close(Int8Linear(64, 3).quantize_(weight, torch.float32).dequantize(), weight, rtol=1e-6, atol=0)


@given(st.lists(st.lists(st.integers(0, 15), min_size=6, max_size=6), min_size=1, max_size=4))
def test_two_neighbours_share_a_byte_and_come_back(rows):
    q = torch.tensor(rows, dtype=torch.uint8)
    packed = pack_pairs(q)
    expected = np.array(rows, dtype=np.uint8)
    assert packed.numpy().tolist() == (16 * expected[:, ::2] + expected[:, 1::2]).tolist()
    assert torch.equal(unpack_pairs(packed), q)


@pytest.mark.parametrize("kind", [Int8Linear, Int4Linear])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("D", "outputs"), SIZES)
def test_a_product_is_that_of_the_dequantized_weights(kind, dtype, D, outputs):
    layer = make(kind, D, outputs, dtype)
    weight = layer.dequantize()
    assert weight.shape == (outputs, D) and weight.dtype == dtype
    for packed, shape in itertools.product((False, True), ((D,), (1, D), (5, D), (3, 40, D), (0, D))):
        if packed:
            pack(layer)
        x = torch.randn(shape).to(dtype)
        expected = x.double() @ weight.double().T
        y = layer(x)
        assert y.dtype == dtype and y.shape == expected.shape
        # each output is rounded once more, and so is each weight that `dequantize` gives
        assert_close(y.double(), expected, rtol=0, atol=3 * torch.finfo(dtype).eps * D**0.5 + 5e-5)


@pytest.mark.parametrize("kind", [Int8Linear, Int4Linear])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_goes_through_a_kernel_and_gives_the_same(kind, dtype, monkeypatch):
    """Where the kernel is used the weights are not turned back: with that way barred, the result is still there."""
    layer = make(kind, 64, 48, dtype)
    x = torch.randn(5, 64).to(dtype)
    expected = x.double() @ layer.dequantize().double().T
    pack(layer)
    monkeypatch.setattr(kind, "dequantize", lambda *_: pytest.fail("turned back"))
    assert_close(layer(x).double(), expected, rtol=0, atol=0.1)
    strided = torch.randn(64, 5).to(dtype).T
    assert_close(layer(strided), layer(strided.contiguous()), rtol=0, atol=0)


@pytest.mark.parametrize("group_size", [32, 64, 128, 256])
@pytest.mark.parametrize("outputs", [16, 48, 64, 112, 256])
def test_a_kernels_layout_is_left_without_a_trace(group_size, outputs):
    layer = Int4Linear(512, outputs, group_size).quantize_(torch.randn(outputs, 512), torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    weight = layer.dequantize()
    layer.pack()
    assert layer.kernel == "cpu" and layer.weight_int4.numel() == before["weight_int4"].numel()
    for same in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert same.kernel is None and torch.equal(same.weight_int4, before["weight_int4"]) and layer.kernel == "cpu"
    assert torch.equal(layer.dequantize(), weight) and layer.kernel == "cpu"
    after = layer.state_dict()
    assert layer.kernel is None
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_many_rows_meet_weights_that_were_turned_back(monkeypatch):
    layer = make(Int8Linear, 64, 48, torch.bfloat16)
    x = torch.randn(33, 64).bfloat16()
    few = layer(x[:32])
    calls, dequantize = [], Int8Linear.dequantize
    monkeypatch.setattr(Int8Linear, "dequantize", lambda self, *dtype: calls.append(dtype) or dequantize(self, *dtype))
    assert_close(layer(x)[:32], few, rtol=2**-6, atol=2**-5)
    layer(x[:32])
    assert len(calls) == 1


def test_packing_enters_the_layout_and_unpacking_leaves_it():
    layer = make(Int4Linear, 64, 48, torch.bfloat16)
    pairs, x = layer.weight_int4.clone(), torch.randn(40, 64).bfloat16()
    turned_back = layer(x), layer(x[:1])
    assert layer.kernel is None
    for _ in range(2):  # packing what is packed changes nothing
        layer.pack()
        assert layer.kernel == "cpu" and not torch.equal(layer.weight_int4.flatten(), pairs.flatten())
        assert_close(layer(x), turned_back[0], rtol=2**-6, atol=2**-5)
        assert_close(layer(x[:1]), turned_back[1], rtol=2**-6, atol=2**-5)
        assert layer.kernel == "cpu"
    assert torch.equal(layer(x.requires_grad_()), turned_back[0]), "gradients are asked for"
    assert layer.kernel == "cpu"
    layer.unpack()
    assert layer.kernel is None and torch.equal(layer.weight_int4, pairs)
    for layer in (make(Int4Linear, 64, 48, torch.float32), make(Int4Linear, 64, 44, torch.bfloat16)):
        layer.pack()
        assert layer.kernel is None, "no kernel for these"


def test_a_layer_in_a_kernels_layout_takes_other_weights_and_dtypes():
    layer, other = make(Int4Linear, 64, 48, torch.bfloat16), make(Int4Linear, 64, 48, torch.bfloat16)
    x = torch.randn(3, 64)
    layer.pack()
    expected = other(x.bfloat16())
    layer.load_state_dict(other.state_dict())
    assert torch.equal(layer(x.bfloat16()), expected)
    layer.float()
    assert layer.scale_and_zero.dtype == torch.float32 and layer.weight_int4.dtype == torch.uint8
    assert_close(layer(x), expected.float(), rtol=0, atol=0.2)


@pytest.mark.parametrize("kind", [Int8Linear, Int4Linear])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_reach_the_input_and_nothing_else(kind, dtype):
    layer = make(kind, 64, 48, dtype)
    x = torch.randn(5, 64).to(dtype).requires_grad_()
    direction = torch.randn(5, 48).to(dtype)
    layer(x).backward(direction)
    expected = (direction.double() @ layer.dequantize().double()).to(dtype)
    # without instructions for bfloat16 the weights are not rounded on their way, those of `dequantize` are
    assert_close(x.grad, expected, **({"rtol": 1.6e-2, "atol": 0.04} if dtype == torch.bfloat16 else {}))
    assert not list(layer.parameters()), "rounded weights do not train"


@pytest.mark.parametrize("kind", [Int8Linear, Int4Linear])
@pytest.mark.parametrize("gradients", [False, True])
def test_autocast_takes_either_dtype(kind, gradients):
    """Layers after the first get half precision from the one before, while their scales are still float32."""
    layer = make(kind, 64, 48, torch.float32)
    x = torch.randn(5, 64, requires_grad=gradients)
    expected = x.double() @ layer.dequantize().double().T
    with torch.set_grad_enabled(gradients), torch.autocast("cpu", torch.bfloat16):
        for given in (x, x.bfloat16()):
            y = layer(given)
            assert y.dtype == torch.bfloat16
            assert_close(y.double(), expected, rtol=0, atol=0.2)


@pytest.mark.parametrize("kind", [Int8Linear, Int4Linear])
@pytest.mark.parametrize("packed", [False, True])
def test_an_input_of_another_size_or_dtype_is_refused(kind, packed):
    layer = make(kind, 64, 48, torch.bfloat16)
    if packed:
        pack(layer)
    for wrong in (torch.randn(3, 128).bfloat16(), torch.randn(3, 32).bfloat16(), torch.randn(3, 64)):
        with pytest.raises(RuntimeError):
            layer(wrong)


@pytest.mark.parametrize(("D", "outputs"), [(256, 64), (96, 16), (64, 48), (4096, 14336)])
def test_the_gpu_kernel_is_called_as_its_signature_wants(D, outputs):
    """PyTorch's own checks of shapes and dtypes, without a GPU; the numbers are a matter of the gpu tests."""
    with FakeTensorMode(), torch.no_grad(), torch.device("cuda"):
        layer = Int4Linear(D, outputs, 32, torch.bfloat16)
        layer.pack()
        y = layer(torch.empty(5, 3, D, dtype=torch.bfloat16))
        assert layer.kernel == "cuda" and (y.shape, y.dtype) == ((5, 3, outputs), torch.bfloat16)
        assert layer.weight_int4.nbytes == outputs * D // 2


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [Int8Linear, Int4Linear])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("D", "outputs"), [*SIZES, (96, 32), (160, 64)])
def test_products_on_a_gpu_are_those_of_the_cpu(kind, dtype, D, outputs):
    layer = make(kind, D, outputs, dtype)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    for N in (1, 7, 100):
        x = torch.randn(N, D).to(dtype)
        expected: Tensor = x.double() @ layer.cpu().dequantize().double().T
        plain = layer.cuda()(x.cuda())
        pack(layer)
        for y in (plain, layer(x.cuda())):
            assert_close(y.cpu().double(), expected, rtol=0, atol=3 * torch.finfo(dtype).eps * D**0.5 + 5e-5)
    after = nn.Module.cpu(layer).state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
