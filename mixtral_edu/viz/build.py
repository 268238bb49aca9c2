"""Losses of several predictors side by side, for a model that is built step by step."""

from collections.abc import Mapping

from matplotlib.figure import Figure

from mixtral_edu.viz.style import ACCENT, INK, MUTED, new_figure, use_style


def loss_ladder(
    losses: Mapping[str, float], title: str, bold: str | None = None, figure: Figure | None = None
) -> Figure:
    """Draw the loss of each predictor as a bar with its number, in the order given, from the top down.

    Args:
        losses: nats per token, by name.
        title: states the finding.
        bold: the name of the one bar that is emphasised.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: `losses` is empty, or `bold` is not one of its names.
    """
    if not losses or bold not in (None, *losses):
        raise ValueError(
            f"losses has the names {list(losses)}; it must have at least one, and among them bold={bold!r}"
        )
    with use_style():
        figure = new_figure(9.5, 1.45 + 0.42 * len(losses), figure)
        height = figure.get_figheight()
        axes = figure.add_axes((0.31, 0.62 / height, 0.66, 1 - 1.15 / height))
        colours = [ACCENT if name == bold else MUTED for name in losses]
        axes.barh(range(len(losses)), list(losses.values()), color=colours, height=0.66)
        for row, (name, loss) in enumerate(losses.items()):
            weight = "bold" if name == bold else "normal"
            place = {"xytext": (5, 0), "textcoords": "offset points", "va": "center"}
            halo = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # hides the grid
            axes.annotate(f"{loss:.2f}", (loss, row), color=INK, weight=weight, bbox=halo, **place)
        right = 1.12 * max(losses.values())
        axes.set(xlabel="loss, nats per token", xlim=(0, right))
        axes.set_xticks([tick for tick in axes.get_xticks() if tick <= right])
        axes.set_yticks(range(len(losses)), list(losses))
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        axes.invert_yaxis()
        figure.text(0.012, 1 - 0.25 / height, title, size=13, weight="bold", va="center")
    return figure
