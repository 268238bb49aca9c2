"""Ways to multiply: all right, tried once for each shape, and chosen by time or by hand."""

import os
import subprocess
import sys
import threading
import time
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from mixtral_edu.fast import products
from mixtral_edu.fast.products import WAYS, Shape, choices, choose, multiply, pinned
from tolerances import assert_product

pytestmark = pytest.mark.numerics

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# x and w: one row, few and many, odd sizes, a batch of rows, a single input or output.
SHAPES = [((1, 64), 48), ((3, 37), 11), ((2, 5, 64), 33), ((600, 32), 64), ((37,), 5), ((4, 1), 7), ((4, 7), 1)]


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    monkeypatch.setattr(products, "_found", {})
    monkeypatch.setattr(products, "_seen", {})
    monkeypatch.setattr(products, "_pays_after", {})
    monkeypatch.setattr(products, "_pinned", None)


@pytest.mark.parametrize("way", [None, *WAYS])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "outputs"), SHAPES)
def test_every_way_gives_the_product_and_its_gradients(way, dtype, shape, outputs):
    x = torch.randn(shape).to(dtype).requires_grad_()
    w = torch.randn(outputs, shape[-1]).to(dtype).requires_grad_()
    direction = torch.randn(*shape[:-1], outputs).to(dtype)
    with pinned(way):
        y = multiply(x, w)
        with torch.no_grad():
            again = multiply(x, w)
        dx, dw = torch.autograd.grad(y, (x, w), direction)
    assert y.shape == again.shape == direction.shape and y.dtype == dtype and y.is_contiguous()
    assert_product(y, x, w, roundings=0)
    assert_product(again, x, w, roundings=0)
    rows, directions = x.detach().reshape(-1, shape[-1]), direction.reshape(-1, outputs)
    assert_product(dx.reshape(-1, shape[-1]), directions, w.detach().T, roundings=0)
    assert_product(dw, directions.T, rows.T, roundings=0)


@pytest.mark.parametrize("way", WAYS)
def test_weights_in_any_layout_are_taken(way):
    x = torch.randn(5, 33)
    whole = torch.randn(42, 66)
    for w in (whole[:21, :33], torch.randn(33, 21).T, whole[::2, ::2], torch.randn(1, 33).expand(21, 33)):
        with pinned(way), torch.no_grad():
            assert_product(multiply(x, w), x, w, roundings=0)
            assert_product(multiply(x.T.contiguous().T, w), x, w, roundings=0)


@pytest.mark.parametrize("way", WAYS)
def test_second_derivatives_and_checkpoints(way):
    x, w = torch.randn(4, 6, dtype=torch.float32, requires_grad=True), torch.randn(3, 6, requires_grad=True)
    plain = lambda x, w: F.linear(x, w).square().sum()  # noqa: E731
    ours = lambda x, w: multiply(x, w).square().sum()  # noqa: E731
    with pinned(way):
        results = []
        for function in (plain, ours, lambda x, w: checkpoint(ours, x, w, use_reentrant=False)):
            (grad,) = torch.autograd.grad(function(x, w), x, create_graph=True)
            results.append(torch.autograd.grad(grad.square().sum(), (x, w)))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0])


def test_only_gradients_that_are_wanted_are_computed():
    x, w = torch.randn(4, 6), torch.randn(3, 6)
    multiply(x, w.requires_grad_()).sum().backward()
    assert x.grad is None and w.grad is not None
    x = x.requires_grad_()
    multiply(x, w.detach()).sum().backward()
    assert x.grad.shape == x.shape


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
@pytest.mark.parametrize("way", WAYS)
def test_transforms_of_functions_get_the_plain_product(way):
    x, w = torch.randn(4, 6), torch.randn(3, 6)
    with pinned(way):
        torch.testing.assert_close(torch.func.vmap(lambda row: multiply(row, w))(x), x @ w.T)
        _, tangent = torch.func.jvp(lambda x: multiply(x, w), (x,), (torch.ones_like(x),))
        torch.testing.assert_close(tangent, torch.ones_like(x) @ w.T)
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
            found = torch.autograd.forward_ad.unpack_dual(multiply(dual, w)).tangent
        torch.testing.assert_close(found, torch.ones_like(x) @ w.T)
        with torch.autocast("cpu", torch.bfloat16):
            assert multiply(x, w).dtype == torch.bfloat16


def test_an_input_that_does_not_fit_is_refused_as_by_pytorch():
    for x, w in ((torch.randn(2, 5), torch.randn(3, 6)), (torch.randn(2, 6), torch.randn(3, 6).bfloat16())):
        with pytest.raises(RuntimeError) as theirs:
            F.linear(x, w)
        with pytest.raises(RuntimeError) as ours:
            multiply(x, w)
        assert str(ours.value) == str(theirs.value)


def test_each_case_is_tried_once(monkeypatch):
    tried = []
    monkeypatch.setattr(products, "_fastest", lambda ways, gain: tried.append(list(ways)) or "weight-first")
    with torch.no_grad():
        for rows in (1, 1, 5, 7, 8, 3000, 512):
            multiply(torch.randn(rows, 6), torch.randn(3, 6))
    assert len(tried) == 3 and "vector" in tried[0] and "vector" not in tried[1]
    threads = torch.get_num_threads()
    assert choices() == {Shape(rows, 8, 4, torch.float32, threads): "weight-first" for rows in (1, 8, 512)}


def test_the_clearly_faster_way_wins_and_one_that_fails_is_left_out(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def taking(seconds):
        def run():
            now[0] += seconds

        return run

    def failing():
        raise RuntimeError("not in this release")

    assert choose(("a",), {"usual": taking(1.0), "other": taking(0.5), "third": taking(0.7)}) == "other"
    assert choose(("b",), {"usual": taking(1.0), "other": taking(0.95)}) == "usual", "no clear difference"
    assert choose(("c",), {"usual": taking(1.0), "other": failing}) == "usual"
    assert choose(("a",), {}) == "other", "known"


def test_of_two_threads_the_first_decides(monkeypatch):
    gate, found = threading.Barrier(2), []

    def fastest(ways, gain):
        gate.wait()
        return threading.current_thread().name

    monkeypatch.setattr(products, "_fastest", fastest)
    threads = [threading.Thread(target=lambda: found.append(choose(("x",), {}))) for _ in range(2)]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    assert len(set(found)) == 1


def test_a_way_can_be_pinned_by_hand_and_by_the_environment():
    with pinned("onednn"), pytest.raises(ValueError, match="way='fast'.*linear, weight-first, vector, onednn"):
        pinned("fast").__enter__()
    assert products._pinned is None
    code = "from mixtral_edu.fast import products; print(products._pinned)"
    for value, expected in (("weight-first", "weight-first"), ("", "None")):
        result = run_with(value, code)
        assert result.stdout.strip() == expected, result.stderr
    assert "MIXTRAL_EDU_PRODUCT='quick'" in run_with("quick", code).stderr


def run_with(value: str, code: str) -> subprocess.CompletedProcess:
    environment = os.environ | {products.VARIABLE: value}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)


def test_another_order_pays_after_as_many_rows_as_its_making_takes(monkeypatch):
    monkeypatch.setattr(products, "_pays_after", {})
    weight, tried = torch.randn(48, 64), []

    def seconds(ways):
        tried.append(set(ways))
        return {"copy": 30.0, "row": 2.0} if "copy" in ways else dict.fromkeys(ways, 5.0)

    monkeypatch.setattr(products, "_seconds", seconds)
    assert products.reordered(weight, 10) is None and torch.equal(products.reordered(weight, 11).to_dense(), weight)
    assert len(tried) == 2, "once for each shape"
    monkeypatch.setattr(products, "_pays_after", {})
    monkeypatch.setattr(products, "_seconds", lambda ways: {"copy": 1.0, "row": 4.9} if "copy" in ways else {0: 5.0})
    assert products.reordered(weight, 1e9) is None, "no clear difference"
    assert products.reordered(weight.double(), 1e9) is None and products.reordered(weight.to("meta"), 1e9) is None


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("learns", [False, True])
def test_a_result_can_be_written_to_as_that_of_a_linear_layer(way, rows, learns):
    x, w = torch.randn(1, rows, 8), torch.randn(6, 8, requires_grad=learns)
    scale = torch.full((1, rows, 6), 2.0, requires_grad=True)
    with pinned(way):
        multiply(x, w).mul_(2).sum()
        with torch.no_grad():
            y = multiply(x, w)
        y.mul_(scale).sum().backward()
    assert scale.grad.shape == scale.shape


def test_while_a_way_is_pinned_nothing_is_tried_nor_laid_out_anew(monkeypatch):
    monkeypatch.setattr(products, "_seconds", lambda ways: pytest.fail("a trial"))
    weight = torch.randn(6, 8)
    with pinned("linear"):
        assert multiply(torch.randn(2, 8), weight).shape == (2, 6)
        assert choose(("a",), {"first": None, "second": None}) == "first" and products.reordered(weight, 1e9) is None


def test_a_way_that_does_not_run_here_gives_way_to_the_usual_one(monkeypatch):
    def refusing(x, weight):
        raise RuntimeError("could not create a primitive descriptor")

    monkeypatch.setitem(WAYS, "onednn", refusing)
    products._runs.cache_clear()
    with pinned("onednn"):
        x, w = torch.randn(2, 8), torch.randn(6, 8)
        assert torch.equal(multiply(x, w), F.linear(x, w))
    products._runs.cache_clear()


def test_a_trace_and_determinism_get_the_plain_product():
    w = torch.randn(6, 8)
    with pinned("vector"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(lambda x: multiply(x, w), torch.randn(1, 8))
        x = torch.randn(5, 8)
        assert_product(traced(x), x, w, roundings=0)
    torch.use_deterministic_algorithms(True)
    try:
        with pinned("weight-first"):
            assert torch.equal(multiply(x, w), F.linear(x, w)) and products.modes_are_on()
    finally:
        torch.use_deterministic_algorithms(False)
