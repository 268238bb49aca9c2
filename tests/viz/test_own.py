"""The drawing of the reader's own Mixtral says which parts are theirs, and nothing in it is cut off."""

from pathlib import Path

import matplotlib
import pytest
from matplotlib import pyplot as plt

from figure_checks import assert_no_texts_overlap, assert_nothing_cut_off, texts_of
from mixtral_edu.exercises import exercises
from mixtral_edu.exercises.own import PARTS
from mixtral_edu.viz.own import PLACES, draw_my_mixtral, draw_parts

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


@pytest.mark.parametrize("yours", [[], ["rms_norm", "gated_expert"], list(PARTS)], ids=len)
def test_each_part_has_its_place_and_the_readers_are_marked(yours: list[str]):
    figure = draw_parts(yours)
    assert_nothing_cut_off(figure)
    assert_no_texts_overlap(figure)
    texts = [text.get_text() for text in texts_of(figure)]
    names = [f"{exercises()[name].lesson} {name}" for name in PARTS]
    assert PLACES.keys() == PARTS.keys() and set(names) <= set(texts)
    assert texts.count("yours") == len(yours)
    assert any(f"{len(yours)} of {len(PARTS)} parts are yours" in text for text in texts)
    in_blue, _, in_grey = figure.alt_text.partition("In grey")
    assert all((name in in_blue) == (name in yours) for name in PARTS)
    assert len(yours) in (0, len(PARTS)) or all((name in in_grey) != (name in yours) for name in PARTS)


def test_it_draws_what_is_kept_without_running_it(tmp_path: Path):
    (tmp_path / "band_mask.py").write_text("raise SystemExit")
    (tmp_path / "something_else.py").write_text("")
    figure = draw_my_mixtral(tmp_path)
    assert "1 of 20" in figure.alt_text and "yours: band_mask." in figure.alt_text
