"""`viz.benchmark`: each row and each line is drawn."""

from dataclasses import replace

import matplotlib
import pytest
from matplotlib import pyplot as plt

from benchmark_runs import RESULTS
from figure_checks import assert_no_texts_overlap, assert_nothing_cut_off, texts_of
from mixtral_edu.bench.results import Result
from mixtral_edu.viz.benchmark import attention_by_length, ratios_and_floors

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def test_the_picture_holds_every_row():
    figure = ratios_and_floors(RESULTS)
    ratios, shares = figure.axes
    dots = [line.get_xdata()[0] for line in ratios.lines if line.get_marker() == "o"]
    assert dots == pytest.approx([result.ratio.median for result in RESULTS])
    assert [bar.get_width() for bar in shares.patches] == pytest.approx([100 * 0.1 / 0.21, 100 * 0.1 / 0.4])
    words = [text.get_text() for text in texts_of(figure)]
    assert {"prefill-512", "plain float32", "int4 bfloat16", "loading", "210 ms", "2 GB", "1.48", "48 %"} <= set(words)
    assert "Less time or memory than transformers in 2 of 3 rows" in words
    assert_nothing_cut_off(figure)
    assert_no_texts_overlap(figure)


def test_rows_of_a_task_stand_together_in_whatever_order_they_were_measured():
    late = replace(RESULTS[0], variant="compiled float32")
    first = [result for result in RESULTS if result.task == RESULTS[0].task]
    others = [result for result in RESULTS if result.task != RESULTS[0].task]
    in_order, mixed = (ratios_and_floors(rows) for rows in ([*first, late, *others], [*first, *others, late]))
    places = [[(text.get_text(), text.get_position()) for text in texts_of(figure)] for figure in (in_order, mixed)]
    assert places[0] == places[1]
    assert_nothing_cut_off(mixed)


def test_the_picture_without_a_peer_or_a_floor_says_so():
    alone = [replace(result, theirs=(), against="") for result in RESULTS]
    assert "At best 48% of the floor" in [text.get_text() for text in texts_of(ratios_and_floors(alone))]
    with pytest.raises(ValueError, match="results is empty"):
        ratios_and_floors([])


@pytest.mark.parametrize("has_memory", [True, False])
def test_the_picture_of_attention_has_a_line_for_each_way_and_window(has_memory):
    def row(T: int, W: int, way: str, seconds: float) -> Result:
        theirs = (4 * seconds,) if way != "eager" else ()
        memory = T * T * 1e3 if has_memory else None
        return Result(f"attention-{T}-{W}", f"{way} float16", (seconds,), theirs, floor=seconds / 3, peak_bytes=memory)

    rows = [row(T, W, way, T * 1e-6) for way in ("eager", "sdpa") for T, W in ((512, 512), (8192, 8192), (8192, 4096))]
    figure = attention_by_length([*rows, Result("prefill-9", "plain float16", (1.0,))], "float16")
    assert len(figure.axes) == 1 + has_memory
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["eager", "eager, window", "sdpa", "sdpa, window", "floor", "floor, window"]
    lines = {line.get_label(): line.get_xydata().tolist() for line in figure.axes[0].lines}
    assert lines["sdpa"] == [[512, 512e-6], [8192, 8192e-6]] and lines["sdpa, window"] == [[8192, 8192e-6]]
    texts = {text.get_text() for text in texts_of(figure)}
    assert "sdpa is 4.0 times as fast as eager at 8,192 tokens, in float16" in texts
    assert_nothing_cut_off(figure)
    assert_no_texts_overlap(figure)
