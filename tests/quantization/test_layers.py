"""Layers that multiply with 8-bit and 4-bit weights: against float64 and PyTorch's own kernels."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from mixtral_edu.fast import copies, products
from mixtral_edu.quantization import layers as quantized_linear
from mixtral_edu.quantization.layers import Int4Linear, Int8Linear
from tolerances import assert_product

pytestmark = pytest.mark.numerics

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# In and out features: such as PyTorch's kernels take, and such as they do not.
SIZES = [(64, 64), (128, 48), (256, 16), (64, 20), (192, 37)]


def make(kind: type, D: int, outputs: int, dtype: torch.dtype = torch.float32) -> Int8Linear | Int4Linear:
    layer = Int8Linear(D, outputs) if kind is Int8Linear else Int4Linear(D, outputs, group_size=32)
    return layer.quantize_(torch.randn(outputs, D), dtype)


@contextmanager
def packed(layer: nn.Module) -> Iterator[None]:
    """While a copy for a kernel is in use, if there is one."""
    with copies.in_use(copies.make(layer)):
        yield


@pytest.fixture
def choose(monkeypatch):
    """A function that makes one of the two ways to multiply with integers the faster one; it returns what was asked."""
    asked, usual = [], products.choose

    def choose(way: str) -> list[tuple]:
        def choice(key, ways, *gain):
            return (asked.append(key), way)[1] if way in ways else usual(key, ways, *gain)

        monkeypatch.setattr(products, "choose", choice)
        return asked

    return choose


@pytest.fixture(params=["kernel", "dequantized"])
def faster(request, choose) -> str:
    choose(request.param)
    return request.param


def assert_its_product(y: torch.Tensor, x: torch.Tensor, layer: Int8Linear | Int4Linear, roundings: int = 2) -> None:
    """Check that y is x times the dequantized weights.

    Of each term's two roundings one is in `dequantize`, the other in a kernel, which may round otherwise or not at all.
    """
    assert_product(y, x, layer.dequantize(), roundings)


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


@pytest.mark.parametrize("kind", [Int8Linear, Int4Linear])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("D", "outputs"), SIZES)
def test_a_product_is_that_of_the_dequantized_weights(kind, dtype, D, outputs, faster):
    layer = make(kind, D, outputs, dtype)
    weight = layer.dequantize()
    assert weight.shape == (outputs, D) and weight.dtype == dtype
    for use, shape in itertools.product((nullcontext, packed), ((D,), (1, D), (5, D), (3, 40, D), (0, D))):
        x = torch.randn(shape).to(dtype)
        with use(layer):
            y = layer(x)
        assert y.dtype == dtype and y.shape == (*shape[:-1], outputs)
        assert_its_product(y, x, layer)


@pytest.mark.parametrize("kind", [Int8Linear, Int4Linear])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_goes_through_a_kernel_and_gives_the_same(kind, dtype, monkeypatch, choose):
    """Where the kernel is used nothing is dequantized: with that way barred, the result is still there."""
    choose("kernel")
    layer = make(kind, 64, 48, dtype)
    x, weight = torch.randn(5, 64).to(dtype), layer.dequantize()
    monkeypatch.setattr(kind, "dequantize", lambda *_: pytest.fail("dequantized"))
    strided = torch.randn(64, 5).to(dtype).T
    with packed(layer):
        assert_product(layer(x), x, weight, roundings=2)
        assert_close(layer(strided), layer(strided.contiguous()), rtol=0, atol=0)


def test_many_rows_meet_dequantized_weights_and_a_trial_decides_about_few(monkeypatch, choose):
    layer, asked = make(Int8Linear, 64, 64, torch.bfloat16), choose("kernel")
    monkeypatch.setattr(Int8Linear, "_multiply_by_kernel", lambda self, rows: rows)
    x = torch.randn(257, 64).bfloat16()
    assert_its_product(layer(x), x, layer)
    assert not asked and layer(x[:256]) is not None and len(asked) == 1
    layer(x[:5]), layer(x[:8]), layer(x[:9])
    assert len(set(asked)) == 3, "5 and 8 rows are one case"


def test_the_kernel_is_used_while_there_is_a_copy_for_it(monkeypatch, choose):
    choose("kernel")
    layer = make(Int4Linear, 64, 48, torch.bfloat16)
    x, calls = torch.randn(40, 64).bfloat16(), []
    dequantized = layer(x)
    kernel = quantized_linear._INT4_KERNELS["cpu"]
    counted = kernel._replace(multiply=lambda *given: calls.append(1) or kernel.multiply(*given))
    monkeypatch.setitem(quantized_linear._INT4_KERNELS, "cpu", counted)
    with packed(layer):
        assert_its_product(layer(x), x, layer)
        assert_its_product(layer(x[:1]), x[:1], layer)
        assert len(calls) == 2
        assert torch.equal(layer(x.requires_grad_()), dequantized), "gradients are asked for"
    assert torch.equal(layer(x.detach()), dequantized) and len(calls) == 2
    for layer in (make(Int4Linear, 64, 48, torch.float32), make(Int4Linear, 64, 44, torch.bfloat16)):
        assert layer.make_copy() is None, "no kernel for these"


@pytest.mark.parametrize("kind", [Int8Linear, Int4Linear])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_reach_the_input_and_nothing_else(kind, dtype):
    layer = make(kind, 64, 48, dtype)
    x = torch.randn(5, 64).to(dtype).requires_grad_()
    direction = torch.randn(5, 48).to(dtype)
    layer(x).backward(direction)
    # without instructions for bfloat16 the weights are not rounded on their way, those of `dequantize` are
    assert_product(x.grad, direction, layer.dequantize().T, roundings=1)
    assert not list(layer.parameters()), "rounded weights do not train"


@pytest.mark.parametrize("kind", [Int8Linear, Int4Linear])
@pytest.mark.parametrize("gradients", [False, True])
def test_autocast_takes_either_dtype(kind, gradients):
    """Layers after the first get half precision from the one before, while their scales are still float32."""
    layer = make(kind, 64, 48, torch.float32)
    x = torch.randn(5, 64, requires_grad=gradients)
    with torch.set_grad_enabled(gradients), torch.autocast("cpu", torch.bfloat16):
        for given in (x, x.bfloat16()):
            y = layer(given)
            assert y.dtype == torch.bfloat16
            assert_its_product(y, x, layer)  # both x and the weights may be rounded on their way


@pytest.mark.parametrize("kind", [Int8Linear, Int4Linear])
@pytest.mark.parametrize("use", [nullcontext, packed])
def test_an_input_of_another_size_or_dtype_is_refused(kind, use):
    layer = make(kind, 64, 48, torch.bfloat16)
    with use(layer):
        for wrong in (torch.randn(3, 128).bfloat16(), torch.randn(3, 32).bfloat16(), torch.randn(3, 64)):
            with pytest.raises(RuntimeError):
                layer(wrong)


@pytest.mark.parametrize(("D", "outputs"), [(256, 64), (96, 16), (64, 48), (4096, 14336)])
def test_the_gpu_kernel_is_called_as_its_signature_wants(D, outputs):
    """PyTorch's own checks of shapes and dtypes, without a GPU; the numbers are a matter of the gpu tests."""
    kernel = quantized_linear._INT4_KERNELS["cuda"]
    with FakeTensorMode(), torch.no_grad(), torch.device("cuda"):
        layer = Int4Linear(D, outputs, 32, torch.bfloat16)
        packed = kernel.pack(layer.weight_int4)
        y = kernel.multiply(torch.empty(5, D, dtype=torch.bfloat16), packed, 32, layer.scale_and_zero)
        assert (y.shape, y.dtype) == ((5, outputs), torch.bfloat16) and packed.nbytes == outputs * D // 2


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [Int8Linear, Int4Linear])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("D", "outputs"), [*SIZES, (96, 32), (160, 64)])
def test_products_on_a_gpu_are_those_of_the_cpu(kind, dtype, D, outputs):
    layer = make(kind, D, outputs, dtype)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    for N in (1, 7, 100):
        x = torch.randn(N, D).to(dtype)
        weight = layer.cpu().dequantize()
        plain = layer.cuda()(x.cuda())
        with packed(layer):
            by_kernel = layer(x.cuda())
        for y in (plain, by_kernel):
            assert_product(y.cpu(), x, weight, roundings=2)
    after = nn.Module.cpu(layer).state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
@pytest.mark.parametrize("kind", [Int8Linear, Int4Linear])
def test_modes_and_transforms_meet_dequantized_weights_and_no_trial(kind, monkeypatch):
    layer, x = make(kind, 64, 48, torch.bfloat16), torch.randn(3, 64).bfloat16()
    monkeypatch.setattr(products, "choose", lambda *_: pytest.fail("a trial"))
    with packed(layer):
        y, tangent = torch.func.jvp(lambda x: layer(x), (x,), (x,))
        torch.testing.assert_close(y, tangent)
        assert torch.func.vmap(lambda row: layer(row))(x).shape == (3, 48)
        with FlopCounterMode(display=False) as counter:
            layer(x)
        assert counter.get_total_flops() == 2 * 3 * 64 * 48
    with FakeTensorMode():
        fake = Int8Linear(64, 48, torch.bfloat16) if kind is Int8Linear else Int4Linear(64, 48, 32, torch.bfloat16)
        assert fake(torch.empty(3, 64, dtype=torch.bfloat16)).shape == (3, 48)
    assert layer.to("meta")(x.to("meta")).shape == (3, 48)
