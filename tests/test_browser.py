"""What a reader does with the notebooks in JupyterLab: run all cells, move the controls, see the pictures change."""

import nbformat
import pytest
from playwright.sync_api import TimeoutError

from jupyterlab_browser import JupyterLab
from refresh_notebooks import METADATA

pytestmark = [pytest.mark.browser, pytest.mark.slow]

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


def test_the_harness_sees_errors_and_pictures_that_stay_and_that_change(jupyterlab: JupyterLab):
    cells = [nbformat.v4.new_code_cell(source) for source in (SLIDER_AND_PICTURE, "1 / 0", "2 + 2")]
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=METADATA)  # without a kernelspec, a dialog asks for one
    nbformat.write(notebook, jupyterlab.root / "trial.ipynb")
    with jupyterlab.notebook("trial.ipynb") as notebook:
        notebook.run_all()
        assert notebook.errors() == ["cell 1: ZeroDivisionError: division by zero", "cell 2 did not run"]
        with pytest.raises(TimeoutError):
            notebook.picture_change(lambda: None, timeout=0.5)
        dark, grey = notebook.picture_change(notebook.press_slider)
        assert dark != grey
        grey_again, dark_again = notebook.picture_change(lambda: notebook.press_slider("ArrowLeft"))
        assert (dark_again, grey_again) == (dark, grey)


def test_quickstart_runs_and_its_layer_slider_redraws_the_tokens(jupyterlab: JupyterLab):
    with jupyterlab.notebook("00_quickstart.ipynb") as notebook:
        notebook.run_all()
        assert notebook.errors() == []
        before, after = notebook.picture_change(notebook.press_slider)
        assert before != after


WIDGETS = {
    "RopeView": """
from mixtral_edu.viz.rope_widget import RopeView
RopeView(head_dim=32, theta=1e4)""",
    "MaskView": """
from mixtral_edu.viz.masks import MaskView
MaskView()""",
    "RingView": """
from mixtral_edu.viz.cache_ring import RingView
RingView()""",
    "SamplingView": """
from mixtral_edu import MixtralForCausalLM, MixtralTokenizer
from mixtral_edu.viz.sampling_widget import SamplingView
model, tokenizer = (kind.from_pretrained("tiny") for kind in (MixtralForCausalLM, MixtralTokenizer))
SamplingView(model.float(), tokenizer, {"a story": "Once upon a time there was a"})""",
    "QuantizationView": """
import torch
from mixtral_edu.viz.quantization_widget import QuantizationView
QuantizationView(torch.linspace(-1, 1, 256) ** 3)""",
}


@pytest.mark.parametrize("name", WIDGETS)
def test_a_widget_redraws_when_its_slider_moves(jupyterlab: JupyterLab, name: str):
    cells = [nbformat.v4.new_code_cell(WIDGETS[name].strip())]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=METADATA), jupyterlab.root / f"{name}.ipynb")
    with jupyterlab.notebook(f"{name}.ipynb") as notebook:
        notebook.run_all()
        assert notebook.errors() == []
        before, after = notebook.picture_change(notebook.press_slider)
        assert before != after
        if name == "RingView":
            play = notebook.page.locator(".jupyter-widgets button").first
            before, after = notebook.picture_change(play.click)
            assert before != after
