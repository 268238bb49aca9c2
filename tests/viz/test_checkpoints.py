"""Pictures of files, shards, and of what rows in the wrong order cost."""

import pytest
from matplotlib import pyplot as plt

from mixtral_edu.viz.checkpoints import errors_by_distance, file_map, losses_by_text, shard_map
from mixtral_edu.viz.diagram import PART_COLOURS


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def test_a_file_is_cut_into_its_parts():
    figure = file_map({"header": 100, "experts": 700, "norms": 200}, title="Mostly experts")
    (axes,) = figure.axes
    assert [(bar.get_x(), bar.get_width()) for bar in axes.patches] == [(0, 100), (100, 700), (800, 200)]
    assert plt.matplotlib.colors.to_hex(axes.patches[1].get_facecolor()) == PART_COLOURS["experts"].lower()
    texts = [text.get_text() for text in figure.texts]
    assert "700 bytes" in texts and "70.00%" in texts
    with pytest.raises(ValueError, match="parts is empty"):
        file_map({}, title="")


def test_each_shard_shows_what_it_holds():
    figure = shard_map([{"layer 0": 3_000_000, "layer 1": 1_000_000}, {"layer 1": 2_000_000}], title="Two shards")
    (axes,) = figure.axes
    assert [(bar.get_x(), bar.get_width()) for bar in axes.patches] == [(0, 3), (3, 1), (0, 2)]
    assert axes.patches[1].get_facecolor() == axes.patches[2].get_facecolor() != axes.patches[0].get_facecolor()
    assert [label.get_text() for label in axes.get_yticklabels()] == ["shard 1", "shard 2"]
    with pytest.raises(ValueError, match="at least one shard"):
        shard_map([], title="")


def test_errors_stand_at_their_distances():
    figure = errors_by_distance([0, 2, 5], {"one": [0, 1, 2], "other": [3, 1, 1]}, title="Errors")
    (axes,) = figure.axes
    assert [line.get_xydata().tolist() for line in axes.lines[:2]] == [
        [[0, 0], [2, 1], [5, 2]], [[0, 3], [2, 1], [5, 1]]
    ]  # fmt: skip
    assert len({(line.get_color(), line.get_marker(), line.get_linestyle()) for line in axes.lines[:2]}) == 2
    for errors in ({}, {"one": [1, 2]}, dict.fromkeys("abcd", [1, 2, 3])):
        with pytest.raises(ValueError, match="one to three curves of length 3"):
            errors_by_distance([0, 2, 5], errors, title="")


def test_each_variant_has_a_bar_for_each_text():
    losses = {"right": {"verse": (2.0, 0.1), "prose": (3.0, 0.2)}, "wrong": {"verse": (4.0, 0.1), "prose": (5.0, 0.2)}}
    figure = losses_by_text(losses, title="Losses")
    (axes,) = figure.axes
    assert [bar.get_height() for bar in axes.patches] == [2, 3, 4, 5]
    assert {text.get_text() for text in axes.texts} == {"2.00", "3.00", "4.00", "5.00"}
    assert [label.get_text() for label in axes.get_xticklabels()] == ["verse", "prose"]
    for wrong in ({}, losses | {"less": {"verse": (1.0, 0.1)}}, dict.fromkeys("abcde", losses["right"])):
        with pytest.raises(ValueError, match="one to four variants"):
            losses_by_text(wrong, title="")
