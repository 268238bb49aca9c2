"""What a figure has to keep, whatever it shows: its texts inside, and none on another."""

import itertools

import matplotlib
from matplotlib.figure import Figure


def texts_of(figure: Figure) -> list:
    return [text for text in figure.findobj(matplotlib.text.Text) if text.get_visible() and text.get_text().strip()]


def assert_nothing_cut_off(figure: Figure) -> None:
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    for text in texts_of(figure):
        extent = text.get_window_extent(renderer)
        inside = extent.x0 >= 0 and extent.y0 >= 0 and extent.x1 <= figure.bbox.x1 and extent.y1 <= figure.bbox.y1
        assert inside, f"{text.get_text()!r} leaves the figure: {extent} in {figure.bbox}"


def assert_no_texts_overlap(figure: Figure) -> None:
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    extents = [(text.get_text(), text.get_window_extent(renderer)) for text in texts_of(figure)]
    for (first, a), (second, b) in itertools.combinations(extents, 2):
        width, height = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        assert width < 1 or height < 1, f"{first!r} lies on {second!r}"
