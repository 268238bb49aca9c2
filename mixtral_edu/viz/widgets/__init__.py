"""Figures with controls, each of which also shows a static picture where no kernel runs."""

from mixtral_edu.viz.widgets.ablation import AblationView
from mixtral_edu.viz.widgets.attention import AttentionView
from mixtral_edu.viz.widgets.cache import RingView
from mixtral_edu.viz.widgets.choice import ChoiceView
from mixtral_edu.viz.widgets.lens import LensView
from mixtral_edu.viz.widgets.masks import MaskView
from mixtral_edu.viz.widgets.merges import MergesView
from mixtral_edu.viz.widgets.quantization import QuantizationView
from mixtral_edu.viz.widgets.rope import RopeView
from mixtral_edu.viz.widgets.router import RouterView
from mixtral_edu.viz.widgets.sampling import SamplingView
from mixtral_edu.viz.widgets.view import FigureView

__all__ = [
    "AblationView",
    "AttentionView",
    "ChoiceView",
    "FigureView",
    "LensView",
    "MaskView",
    "MergesView",
    "QuantizationView",
    "RingView",
    "RopeView",
    "RouterView",
    "SamplingView",
]
