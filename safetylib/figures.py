"""The book's figures: one function a figure, one style.

Colours are Okabe and Ito's colour-blind safe set, and every series also differs by marker or line style, so that a
figure survives grey print. Backgrounds are transparent and ink is a mid grey that reads on white and on dark pages.
"""

from __future__ import annotations

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np

INK = "#767676"
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)))


def use_style() -> None:
    """Set the book's matplotlib style; call it once, in a notebook's first code cell."""
    mpl.rcParams.update(
        {
            "figure.figsize": (7.0, 3.8),
            "figure.dpi": 110,
            "figure.facecolor": "none",
            "axes.facecolor": "none",
            "savefig.facecolor": "none",
            "axes.edgecolor": INK,
            "axes.labelcolor": INK,
            "text.color": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.color": INK,
            "grid.alpha": 0.2,
            "axes.prop_cycle": mpl.cycler(color=PALETTE),
            "font.size": 10,
            "legend.frameon": False,
            "svg.hashsalt": "safetylib",
        }
    )


def new_axes(ncols: int = 1, **kwargs) -> tuple[plt.Figure, plt.Axes]:
    """A figure with ``ncols`` axes side by side, laid out so that nothing overlaps."""
    return plt.subplots(ncols=ncols, layout="constrained", **kwargs)


def escape_curves(n, curves: dict, *, delta: float, marks: dict | None = None, log_n: bool = False) -> plt.Figure:
    """Escape probability over the number of updates, one curve a label.

    Parameters
    ----------
    n
        Numbers of updates.
    curves
        Label to escape probabilities at ``n``; values of zero and below leave the logarithmic axis.
    delta
        Tolerated escape probability, drawn as a level.
    marks
        Label to a number of updates, drawn as an upright.
    log_n
        Whether the horizontal axis is logarithmic.
    """
    figure, axes = new_axes()
    for i, (label, escape) in enumerate(curves.items()):
        style = {"linestyle": DASHES[i % 6], "marker": MARKERS[i % 6], "markevery": (0.03 * i, 0.18), "markersize": 4}
        axes.plot(n, escape, label=label, **style)
    axes.axhline(delta, color=INK, linewidth=1)
    axes.annotate(f"$\\delta$ = {delta:g}", (0.01, delta), xycoords=("axes fraction", "data"), va="top")
    for label, updates in (marks or {}).items():
        axes.axvline(updates, color=INK, linewidth=1, linestyle=":")
        axes.annotate(f" {label}", (updates, 1), xycoords=("data", "axes fraction"), va="bottom", ha="center")
    axes.set(xlabel="number of updates, $n = T + 1$", ylabel="escape probability", yscale="log")
    axes.set_xscale("log" if log_n else "linear")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def escape_map(n, alpha, escape, *, delta: float, tuned: float, threshold: float, paper_steps: float) -> plt.Figure:
    """Escape probability over the number of updates and the learning rate, with the level ``delta``.

    Parameters
    ----------
    n, alpha
        Numbers of updates (columns) and learning rates (rows).
    escape
        Escape probabilities, (len(alpha), len(n)); negative where the row is no longer a distribution.
    delta
        Tolerated escape probability.
    tuned, threshold
        The learning rate at which kappa is one, and the one below which delta is never reached.
    paper_steps
        The number of updates that the paper's bound asks for.
    """
    figure, axes = new_axes()
    shown = np.ma.masked_less_equal(escape, 0)
    norm = mpl.colors.LogNorm(vmin=delta / 10, vmax=1)
    image = axes.pcolormesh(n, alpha, shown, norm=norm, cmap="cividis", shading="nearest", rasterized=True)
    axes.contour(n, alpha, escape, levels=[delta], colors=[PALETTE[1]], linewidths=2)
    axes.contour(n, alpha, escape, levels=[-delta], colors=[PALETTE[1]], linewidths=2, linestyles="--")
    for level, label, style in ((tuned, "tuned", "-"), (threshold, "threshold", "--")):
        axes.axhline(level, color="white", linewidth=1, linestyle=style)
        axes.annotate(label, (n[1], level), color="white", va="bottom" if label == "tuned" else "top")
    axes.axvline(paper_steps, color=INK, linewidth=1, linestyle=":")
    axes.annotate("the paper's count", (paper_steps, 1), xycoords=("data", "axes fraction"), va="bottom", ha="center")
    axes.set(xlabel="number of updates, $n = T + 1$", ylabel=r"learning rate $\alpha$")
    axes.grid(False)
    figure.colorbar(image, ax=axes, label="escape probability", extend="min")
    return figure
