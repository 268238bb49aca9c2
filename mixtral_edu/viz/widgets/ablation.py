"""Stored training runs with controls: choose which part is changed, and see its loss beside the unchanged run's."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ipywidgets import Dropdown
from matplotlib.figure import Figure

from mixtral_edu.viz.training import learning_curves
from mixtral_edu.viz.widgets.view import FigureView


class AblationView(FigureView):
    """Choose a change and a seed, and see the loss of that run beside the unchanged run of the same seed.

    The static picture shows the first seed of the changes in `telling`, one below the other.

    Args:
        runs: as `python -m mixtral_edu.training.ablation` stores them: each has "setting", "seed", "steps", "losses"
            (means of equal parts of the run) and "held_out". Give runs that differ in setting and seed alone.
        unchanged: the setting of the unchanged runs.
        telling: the settings of the static picture.

    Raises:
        ValueError: a setting of `telling` has no run, or there is no unchanged run of its seed.
    """

    def __init__(self, runs: Sequence[Mapping[str, Any]], telling: Sequence[str], unchanged: str = "as it is"):
        self.runs = {(run["setting"], run["seed"]): run for run in runs}
        self.unchanged, self.telling = unchanged, list(telling)
        self.seeds = {
            name: sorted(seed for other, seed in self.runs if other == name and (unchanged, seed) in self.runs)
            for name in dict.fromkeys(name for name, _ in self.runs if name != unchanged)
        }
        missing = [name for name in self.telling if not self.seeds.get(name)]
        if missing or not self.telling:
            raise ValueError(f"telling={self.telling}: it must name settings that have runs, among {list(self.seeds)}")
        self.setting = Dropdown(options=[name for name in self.seeds if self.seeds[name]], description="change")
        self.setting.value = self.telling[0]
        self.seed = Dropdown(options=self.seeds[self.telling[0]], description="seed")
        super().__init__([self.setting, self.seed])

    def state(self) -> dict[str, Any]:
        seeds = self.seeds[self.setting.value]
        seed = self.seed.value if self.seed.value in seeds else seeds[0]
        return {"setting": self.setting.value, "seed": seed}

    def redraw(self, change: object = None) -> None:
        seeds = self.seeds[self.setting.value]
        if tuple(self.seed.options) != tuple(seeds):
            self.seed.options = seeds  # selects the first, if the old one is gone
        super().redraw(change)

    def draw(self, figure: Figure, setting: str, seed: int) -> None:
        both = {name: self.runs[name, seed] for name in (self.unchanged, setting)}
        cost = both[setting]["held_out"] - both[self.unchanged]["held_out"]
        curves = {name: (_middles(run), run["losses"]) for name, run in both.items()}
        signed = f"{cost:+.2f}".replace("-", "−")
        title = f"{setting}, seed {seed}: {signed} nats on held-out stories at the end"
        learning_curves(curves, title, span=1, figure=figure)

    def telling_states(self) -> list[dict[str, Any]]:
        return [{"setting": name, "seed": self.seeds[name][0]} for name in self.telling]

    def summary(self) -> str:
        """List, for the runs of the static picture, the loss on held-out stories with and without the change."""
        lines = ["loss on held-out stories   changed  unchanged"]
        for state in self.telling_states():
            changed, unchanged = (self.runs[name, state["seed"]] for name in (state["setting"], self.unchanged))
            what = f"{state['setting']}, seed {state['seed']}"
            lines.append(f"{what:26s} {changed['held_out']:7.2f} {unchanged['held_out']:10.2f}")
        return "\n".join(lines)


def _middles(run: Mapping[str, Any]) -> np.ndarray:
    """The steps in the middle of the equal parts whose mean losses the run holds."""
    length = run["steps"] / len(run["losses"])
    return (np.arange(len(run["losses"])) + 0.5) * length - 0.5
