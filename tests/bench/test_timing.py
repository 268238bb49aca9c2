"""`bench.timing`: rounds in turns, and the most that the machine can do. No time is judged."""

from collections.abc import Callable
from functools import partial

import pytest
import torch

from benchmark_runs import CPU
from mixtral_edu.bench import timing
from mixtral_edu.bench.timing import paired_rounds, product_rate, product_ways, read_bandwidth
from mixtral_edu.fast import products
from tolerances import assert_product


class Noted:
    """Work that writes down when it is done."""

    def __init__(self, name: str, diary: list[str]):
        self.name, self.diary = name, diary

    def prepare(self) -> None:
        self.diary.append(f"prepare {self.name}")

    def run(self) -> None:
        self.diary.append(self.name)


def test_rounds_alternate_their_order_after_one_to_warm_up():
    diary = []
    times = paired_rounds([Noted("a", diary), Noted("b", diary)], budget=0.0, device=CPU, least=3)
    assert [len(each) for each in times] == [3, 3]
    assert [entry for entry in diary if " " not in entry] == ["b", "a", "a", "b", "b", "a", "a", "b"]
    assert diary[::2] == [f"prepare {name}" for name in diary[1::2]]


def test_the_first_round_counts_if_it_is_long(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mixtral_edu.bench.timing.seconds_of", lambda run, device: (run(), 6.0)[1])
    diary = []
    times = paired_rounds([Noted("a", diary), Noted("b", diary)], budget=0.0, device=CPU, least=3)
    assert times == [[6.0] * 3] * 2 and diary.count("a") == 3


def test_rounds_end_at_the_most():
    assert [len(each) for each in paired_rounds([Noted("a", [])], budget=60.0, device=CPU, most=4)] == [4]


def test_rates_count_bytes_and_operations(monkeypatch: pytest.MonkeyPatch):
    runs = []
    monkeypatch.setattr(timing, "_fastest", lambda run, device: (run(), runs.append(run), 0.5)[-1])
    assert read_bandwidth(CPU, 2**18) == 2**18 / 0.5
    read = [run.args for run in runs if way_of(run) == "linear"][-1]
    assert read[0].shape == (1, 1024) and read[1].nbytes == 2**18
    assert product_rate(torch.float32, CPU, size=64) == 2 * 64**3 / 0.5
    assert [len(x) for x in runs[-1].args[:1]] == [64]


class Stopwatch:
    """In place of `_fastest`: runs of `quick` take a quarter of a second, all others a second."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, quick: Callable[[Callable], bool] = lambda run: False):
        self.quick, self.runs = quick, []
        monkeypatch.setattr(timing, "_fastest", self)

    def __call__(self, run: Callable, device: torch.device) -> float:
        run()  # some ways refuse
        self.runs.append(run)
        return 0.25 if self.quick(run) else 1.0


def way_of(run: Callable) -> str:
    """The way of `fast.products`, or "reordered", that a run takes; "" for none."""
    if not isinstance(run, partial):
        return ""
    names = [name for name, multiply in products.WAYS.items() if multiply is run.func]
    return "reordered" if run.args[1].is_mkldnn else names[0]


def sure_ways() -> list[str]:
    """The ways that this build of PyTorch has: oneDNN's are private operators."""
    x = torch.ones(1, 64)
    found = {}
    for name, run in product_ways(x, torch.ones(64, 64)).items():
        try:
            found[name] = run()
        except (AttributeError, RuntimeError):
            continue
    return list(found)


@pytest.mark.parametrize("way", ["linear", "weight-first", "onednn", "reordered"])
def test_the_product_rate_is_that_of_the_fastest_way(monkeypatch: pytest.MonkeyPatch, way):
    if way not in sure_ways():
        pytest.skip(f"this PyTorch does not multiply by {way}")
    Stopwatch(monkeypatch, lambda run: way_of(run) == way)
    assert product_rate(torch.float32, CPU, size=64) == 2 * 64**3 / 0.25


@pytest.mark.parametrize("way", ["linear", "weight-first", "vector", "onednn", "reordered"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_bandwidth_is_that_of_the_fastest_way_in_the_measured_dtypes(monkeypatch, dtype, way):
    if way not in sure_ways():
        pytest.skip(f"this PyTorch does not multiply by {way}")
    watch = Stopwatch(monkeypatch, lambda run: way_of(run) == way and run.args[0].dtype == dtype)
    bandwidth = read_bandwidth(CPU, 2**18, [torch.bfloat16])
    if dtype == torch.float32 or any(map(watch.quick, watch.runs)):  # a processor may have no such product in bfloat16
        assert bandwidth == 2**18 / 0.25


def test_a_sum_and_a_copy_read_too(monkeypatch: pytest.MonkeyPatch):
    for name in ("sum", "<lambda>"):
        Stopwatch(monkeypatch, lambda run, name=name: not isinstance(run, partial) and run.__name__ == name)
        assert read_bandwidth(CPU, 2**18) == 2**18 / 0.25


def test_a_shorter_number_counts_in_float32_where_that_is_faster(monkeypatch: pytest.MonkeyPatch):
    Stopwatch(monkeypatch, lambda run: run.args[0].dtype == torch.float32)
    assert product_rate(torch.bfloat16, CPU, size=64) == 2 * 64**3 / 0.25
    assert product_rate(torch.float16, CPU, size=64) == 2 * 64**3 / 0.25


def test_a_small_product_counts_if_it_is_faster(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(timing, "_fastest", lambda run, device: (run(), len(run.args[0]) / 64)[1])
    assert product_rate(torch.float32, CPU, size=64) == 2 * 64**3 / 1
    monkeypatch.setattr(timing, "_fastest", lambda run, device: (run(), (len(run.args[0]) / 64) ** 4)[1])
    assert product_rate(torch.float32, CPU, size=64) == 2 * 16**3 * 4**4


def test_ways_that_a_trial_finds_slow_are_not_tried_at_full_size(monkeypatch: pytest.MonkeyPatch):
    watch = Stopwatch(monkeypatch, lambda run: way_of(run) == "linear")
    product_rate(torch.float32, CPU, size=64)
    assert [way_of(run) for run in watch.runs if len(run.args[0]) == 64] == ["linear"]
    assert len([run for run in watch.runs if len(run.args[0]) == 16]) > 1


def test_without_the_private_operators_of_onednn_the_other_ways_count(monkeypatch: pytest.MonkeyPatch):
    def missing(*_):
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_linear_pointwise'")

    monkeypatch.setitem(products.WAYS, "onednn", missing)
    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", missing)
    watch = Stopwatch(monkeypatch)
    assert product_rate(torch.float32, CPU, size=64) == 2 * 64**3 / 1
    assert read_bandwidth(CPU, 2**18) == 2**18 / 1
    assert {way_of(run) for run in watch.runs} == {"linear", "weight-first", "vector", ""}


@pytest.mark.numerics
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("rows", [1, 16])
def test_every_way_computes_the_product(dtype, rows):
    x, weight = torch.randn(rows, 64).to(dtype), torch.randn(48, 64).to(dtype)
    done = 0
    for run in product_ways(x, weight).values():
        try:
            y = run()
        except RuntimeError:  # not for such numbers on this processor
            continue
        assert_product(y, x, weight, roundings=0)
        done += 1
    assert done >= 2
