"""The words that go with a figure reach the notebook that stores it."""

import pytest
from matplotlib import pyplot as plt
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

from mixtral_edu.viz.alt import describe
from refresh_notebooks import normalised

SENTENCE = "One line rises from 1 to 2, the other falls back."


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


@pytest.mark.slow
def test_a_notebook_stores_each_figures_own_words():
    drawn = "import matplotlib.pyplot as plt\nfrom mixtral_edu.viz.alt import describe\nplt.plot([1, 2, 1])\n"
    cells = [drawn + f"describe({SENTENCE!r})\nplt.show()", "plt.plot([2, 1])\nplt.show()",
             "%matplotlib inline\n" + drawn + f"describe({'Again: ' + SENTENCE!r})\nplt.show()"]  # fmt: skip
    notebook = new_notebook(cells=[new_code_cell(source) for source in cells])
    NotebookClient(notebook, kernel_name="python3").execute()
    stored = [cell.outputs[-1].metadata for cell in normalised(notebook).cells]
    assert stored == [{"image/png": {"alt": SENTENCE}}, {}, {"image/png": {"alt": f"Again: {SENTENCE}"}}]


def test_outside_a_notebook_the_figure_keeps_them():
    first, second = plt.figure(), plt.figure()
    describe(SENTENCE.replace(" ", "\n   "))
    describe(f"First: {SENTENCE}", first)
    assert (first.alt_text, second.alt_text) == (f"First: {SENTENCE}", SENTENCE)


@pytest.mark.parametrize("text", ["", "A figure.", "A line that rises from 1 to 2 and falls back"])
def test_words_that_are_no_sentence_are_refused(text):
    with pytest.raises(ValueError, match="must be a sentence"):
        describe(text)
