"""The book's figures: one function a figure, one style.

Colours are Okabe and Ito's colour-blind safe set, and every series also differs by marker or line style, so that a
figure survives grey print. Backgrounds are transparent and ink is a mid grey that reads on white and on dark pages.
"""

from __future__ import annotations

import matplotlib as mpl
import matplotlib.pyplot as plt

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
