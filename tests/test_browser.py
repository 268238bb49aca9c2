"""What a reader does with the notebooks in JupyterLab: run all cells, move the controls, see the pictures change."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import nbformat
import pytest
from ipywidgets import Dropdown, FloatSlider, IntSlider, SelectionSlider, Text
from playwright.sync_api import TimeoutError as PictureStays

from jupyterlab_browser import JupyterLab, NotebookPage
from mixtral_edu.viz.widgets import FigureView
from refresh_notebooks import METADATA

pytestmark = [pytest.mark.browser, pytest.mark.slow]

SLIDERS = (IntSlider, FloatSlider, SelectionSlider)

SLIDER_AND_PICTURE = """
from io import BytesIO
import ipywidgets
from PIL import Image

def png(grey):
    file = BytesIO()
    Image.new("L", (64, 64), grey).save(file, "png")
    return file.getvalue()

slider = ipywidgets.IntSlider(value=0, min=0, max=2)
picture = ipywidgets.Image(value=png(0), format="png")
slider.observe(lambda change: setattr(picture, "value", png(100 * change.new)), "value")
ipywidgets.VBox([slider, picture])
"""
PAGE_ERRORS = """() => new Promise(done => {
    console.error("said");
    setTimeout(() => { setTimeout(done); throw new Error("thrown"); });
})"""


def test_the_harness_sees_errors_in_cells_and_page_and_pictures_that_stay_and_that_change(jupyterlab: JupyterLab):
    # A kernel lets fall the cells that wait when one fails: on a busy machine the last needs time to get there.
    fails = "import time; time.sleep(2); 1 / 0"
    cells = [nbformat.v4.new_code_cell(source) for source in (SLIDER_AND_PICTURE, fails, "2 + 2")]
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=METADATA)  # without a kernelspec, a dialog asks for one
    nbformat.write(notebook, jupyterlab.root / "trial.ipynb")
    with jupyterlab.notebook("trial.ipynb") as notebook:
        notebook.run_all()
        assert notebook.errors() == ["cell 1: ZeroDivisionError: division by zero", "cell 2 did not run"]
        with pytest.raises(PictureStays):
            notebook.picture_change(lambda: None, timeout=0.5)
        dark, grey = notebook.picture_change(notebook.press_slider)
        assert dark != grey
        grey_again, dark_again = notebook.picture_change(lambda: notebook.press_slider("ArrowLeft"))
        assert (dark_again, grey_again) == (dark, grey)
        with pytest.raises(TimeoutError):
            notebook.await_picture(b"another picture", timeout=0.5)
        notebook.evaluate(PAGE_ERRORS, timeout=10)
        assert notebook.problems == ["said", "thrown"]


def test_quickstart_runs_and_its_layer_slider_redraws_the_tokens(jupyterlab: JupyterLab):
    with jupyterlab.notebook("00_quickstart.ipynb") as notebook:
        notebook.run_all()
        assert notebook.errors() == []
        before, after = notebook.picture_change(notebook.press_slider)
        assert before != after
        assert notebook.problems == []


SETUP = """
import torch
from mixtral_edu import MixtralForCausalLM, MixtralTokenizer
from mixtral_edu.viz.widgets import (
    AblationView,
    AttentionView,
    ChoiceView,
    LensView,
    MaskView,
    MergesView,
    QuantizationView,
    RingView,
    RopeView,
    RouterView,
    SamplingView,
)

model = MixtralForCausalLM.from_pretrained("tiny", dtype=torch.float32, attn_implementation="eager")
tokenizer = MixtralTokenizer.from_pretrained("tiny")
texts = {"story": "Once upon a time there was a", "cat": "The cat sat down."}
names = ("as it is", 0, 1.0), ("as it is", 1, 1.1), ("A", 0, 1.5), ("A", 1, 1.7), ("B", 0, 1.2)
runs = [{"setting": a, "seed": b, "steps": 4, "losses": [3, c], "held_out": c} for a, b, c in names]
"""
# Each widget, and what is done to it: sliders (their values are numbers) go one step to the right.
WIDGETS = {
    "AblationView(runs, ['A'])": {"setting": "B"},
    "MergesView(tokenizer, texts)": {"merges": 1, "text": "cat", "own_text": "zebras"},
    "RopeView(head_dim=32, theta=1e4)": {"pair": 1, "distance": 3},
    "AttentionView(model, tokenizer, texts, [(0, 3, 5)])": {"head": 4, "query": 6, "text": "cat", "own_text": "Yes."},
    "MaskView()": {"window": 5, "pads": 1},
    "RingView(window=2)": {"step": 1, "chunk": 2, "order": "write first (wrong)"},
    "ChoiceView(model, tokenizer, texts['story'])": {"token": 1, "layer": 1, "top_k": 3},
    "RouterView(model, tokenizer, texts)": {"layer": 1, "text": "cat", "own_text": "zebras"},
    "LensView(model, tokenizer, texts)": {"token": 2, "text": "cat", "own_text": "Yes, there was a"},
    "SamplingView(model, tokenizer, texts)": {"temperature": 1.1, "top_k": 50, "text": "cat", "own_text": "zebras"},
    "QuantizationView(torch.linspace(-1, 1, 256) ** 3)": {"bits": 5, "group": "256"},
}


@pytest.fixture(scope="module")
def widgets(jupyterlab: JupyterLab) -> Iterator[NotebookPage]:
    """A notebook with a cell for SETUP and one for each widget, which has run."""
    cells = [nbformat.v4.new_code_cell(source) for source in (SETUP, *WIDGETS)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=METADATA), jupyterlab.root / "widgets.ipynb")
    with jupyterlab.notebook("widgets.ipynb") as notebook:
        notebook.run_all()
        yield notebook


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    """What SETUP defines, in this process."""
    names: dict[str, Any] = {}
    exec(SETUP, names)
    return names


@pytest.mark.parametrize("source", WIDGETS, ids=lambda source: source.partition("(")[0])
def test_a_widget_shows_what_its_controls_say(widgets: NotebookPage, names: dict[str, Any], source: str):
    assert widgets.errors() == []
    cell, twin = widgets.cell(1 + list(WIDGETS).index(source)), eval(source, names)
    cell.await_picture(twin.picture.value)
    for name, value in WIDGETS[source].items():
        before, after = cell.picture_change(partial(move, cell, twin, name, value))
        assert before != after
        cell.await_picture(twin.picture.value)
    assert widgets.problems == []


def move(cell: NotebookPage, twin: FigureView, name: str, value: float | str) -> None:
    """Move a control in the page by mouse and keyboard, and the twin's control from here."""
    control = getattr(twin, name)
    controls = twin.children[0].children
    if isinstance(control, Dropdown):
        cell.choose(value, [each for each in controls if isinstance(each, Dropdown)].index(control))
        control.label = value
    elif isinstance(control, Text):
        cell.type_text(value)
        control.value = value
    else:
        cell.press_slider("ArrowRight", [each for each in controls if isinstance(each, SLIDERS)].index(control))
        control.value = value


def test_the_ring_plays_by_itself(widgets: NotebookPage):
    cell = widgets.cell(1 + list(WIDGETS).index("RingView(window=2)"))
    play = cell.area.locator(".jupyter-widgets button").first
    before, after = cell.picture_change(play.click)
    assert before != after
