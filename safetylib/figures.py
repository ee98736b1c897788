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


def escape_curves(
    n, curves: dict, *, delta: float, marks: dict | None = None, log_n: bool = False, lowest: float | None = None
) -> plt.Figure:
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
    lowest
        Where the vertical axis ends; by default at the smallest value.
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
    axes.set_ylim(bottom=lowest)
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


ARM_STYLES = {
    arm: {"color": color, "marker": MARKERS[place], "linestyle": DASHES[place]}
    for place, (arm, color) in enumerate(
        zip(("cyclic", "deep", "uniform", "random", "shallow", "base"), (*PALETTE[:5], INK), strict=True)
    )
}


def depth_curves(results, column: str = "refused") -> plt.Figure:
    """Refusal rate over prefill depth for every arm, with crossed 95 % intervals.

    Parameters
    ----------
    results
        A :class:`safetylib.study.results.Results`.
    column
        Outcome column to average.
    """
    from safetylib import stats

    figure, axes = new_axes()
    orbit = results.manifest["plan"]["recipe"]["orbit"]
    for arm, style in ARM_STYLES.items():
        estimates = [stats.crossed(results.table(arm, depth, column=column)) for depth in results.depths]
        means = [estimate.mean for estimate in estimates]
        axes.plot(results.depths, means, label=arm, markersize=5, **style)
        low, high = ([getattr(estimate, end) for estimate in estimates] for end in ("low", "high"))
        axes.fill_between(results.depths, low, high, color=style["color"], alpha=0.15, linewidth=0)
    axes.axvspan(max(orbit), max(results.depths), color=INK, alpha=0.08, linewidth=0)
    axes.annotate("beyond the deepest\ntrained position", (max(orbit) + 0.5, 1.02), va="bottom", fontsize=8)
    axes.plot(orbit, [-0.03] * len(orbit), "|", color=INK, markersize=9, clip_on=False)
    axes.set(
        xlabel="prefill depth: harmful tokens already given (ticks: trained positions)",
        ylabel="refused, share of prompts",
        ylim=(-0.03, 1.02),
    )
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def live_curve(
    results, arm: str, depths: list[int], rates: list[float], low: list[float], high: list[float]
) -> plt.Figure:
    """A depth curve measured in the page, over the stored curve of the same arm."""
    from safetylib import stats

    figure, axes = new_axes()
    estimates = [stats.crossed(results.table(arm, depth)) for depth in results.depths]
    style = ARM_STYLES[arm]
    axes.plot(results.depths, [estimate.mean for estimate in estimates], label=f"{arm}, stored", markersize=4, **style)
    axes.fill_between(
        results.depths,
        [estimate.low for estimate in estimates],
        [estimate.high for estimate in estimates],
        color=style["color"],
        alpha=0.15,
        linewidth=0,
    )
    errors = np.abs(np.array([rates, rates]) - np.array([low, high]))
    axes.errorbar(
        depths, rates, errors, color=PALETTE[1], marker="s", linestyle="none", capsize=3, label="live, this page"
    )
    axes.set(xlabel="prefill depth, tokens", ylabel="refused, share of prompts", ylim=(-0.03, 1.03))
    axes.legend(loc="lower right")
    return figure


def losses(table) -> plt.Figure:
    """Loss on refusals and on anchors over the steps of one run, with the step size beside it.

    ``table`` has the columns step, step_size, refusal_loss and anchor_loss.
    """
    figure, (left, right) = new_axes(2)
    left.plot(table["step"], table["refusal_loss"], color=PALETTE[0], label="refusals")
    left.plot(table["step"], table["anchor_loss"], color=PALETTE[1], linestyle="--", label="benign anchors")
    left.set(xlabel="optimiser step $t$", ylabel="loss, nats per token", ylim=(0, None))
    left.legend()
    right.plot(table["step"], table["step_size"], color=PALETTE[2])
    right.set(xlabel="optimiser step $t$", ylabel=r"step size $\alpha\gamma^t$", ylim=(0, None))
    return figure


def safety_against_over_refusal(points: dict[str, tuple]) -> plt.Figure:
    """Refusal of harmful prompts against over-refusal, one point an arm with both intervals.

    ``points`` maps an arm to three :class:`safetylib.stats.Estimate`: harmful at the headline depths, plain benign,
    borderline.
    """
    figure, axes = new_axes(2, sharey=True)
    for arm, (harmful, *benign) in points.items():
        for panel, over in zip(axes, benign, strict=True):
            panel.errorbar(
                over.mean,
                harmful.mean,
                xerr=[[over.mean - over.low], [over.high - over.mean]],
                yerr=[[harmful.mean - harmful.low], [harmful.high - harmful.mean]],
                capsize=2,
                label=arm,
                **{**ARM_STYLES[arm], "linestyle": "none"},
            )
    axes[0].set(xlabel="plain benign prompts refused", ylabel="harmful prompts refused,\nmean of depths off the orbit")
    axes[1].set(xlabel="borderline prompts refused")
    axes[1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def votes_by_depth(depths: list[int], curves: dict[str, list[float]], title: str) -> plt.Figure:
    """Share of prompts whose ensemble output is safe, over depth, one line a voting rule."""
    figure, axes = new_axes()
    for place, (rule, safe) in enumerate(curves.items()):
        axes.plot(
            depths, safe, marker=MARKERS[place], linestyle=DASHES[place], color=PALETTE[place], label=rule, markersize=5
        )
    axes.set(xlabel="prefill depth, tokens", ylabel="safe outputs, share of prompts", ylim=(-0.03, 1.03), title=title)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
