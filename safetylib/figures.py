"""The book's figures: one function a figure, one style.

Colours are Okabe and Ito's colour-blind safe set, and every series also differs by marker or line style, so that a
figure survives grey print. Backgrounds are transparent and ink is a mid grey that reads on white and on dark pages.
"""

from __future__ import annotations

from collections.abc import Iterable

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib import patheffects

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


COLUMN = 5.2  # inches: a drawing this wide keeps its words legible when a phone shrinks it


def _in_column(nrows: int = 1, height: float = 3.6, **kwargs) -> tuple[plt.Figure, plt.Axes]:
    """Axes as wide as a column of text and as many below each other; their legend goes under them."""
    return plt.subplots(nrows=nrows, figsize=(COLUMN, height * nrows), layout="constrained", **kwargs)


def _legend_below(figure: plt.Figure, axes: plt.Axes, ncols: int = 2, **kwargs) -> None:
    """One legend under the whole figure, from the labels of ``axes``."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=ncols, **kwargs)


def _plain_decades(axis) -> None:
    """Label the decades of a logarithmic axis and nothing between them."""
    axis.set_minor_formatter(mpl.ticker.NullFormatter())


def escape_curves(
    n,
    curves: dict,
    *,
    delta: float,
    marks: dict | None = None,
    log_n: bool = False,
    lowest: float | None = None,
    steps: bool = False,
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
    steps
        Whether a curve keeps its value until the next update, instead of a line that leans towards it.
    """
    figure, axes = _in_column()
    for i, (label, escape) in enumerate(curves.items()):
        style = {"linestyle": DASHES[i % 6], "marker": MARKERS[i % 6], "markevery": (0.03 * i, 0.18), "markersize": 4}
        axes.plot(n, escape, label=label, drawstyle="steps-post" if steps else "default", **style)
    axes.axhline(delta, color=INK, linewidth=1)
    _name_level(axes, f"$\\delta$ = {delta:g}", delta)
    for label, updates in (marks or {}).items():
        axes.axvline(updates, color=INK, linewidth=1, linestyle=":")
        axes.annotate(f" {label}", (updates, 1), xycoords=("data", "axes fraction"), va="bottom", ha="center")
    axes.set(xlabel="number of updates, $n = T + 1$", ylabel="escape probability", yscale="log")
    axes.set_ylim(bottom=lowest, top=1.5)
    axes.set_xscale("log" if log_n else "linear")
    _plain_decades(axes.yaxis)
    _legend_below(figure, axes)
    return figure


def _name_level(axes: plt.Axes, name: str, level: float) -> None:
    """Write a level's name under its line, at the left end."""
    place = {"xycoords": ("axes fraction", "data"), "xytext": (0, -3), "textcoords": "offset points"}
    axes.annotate(name, (0.01, level), va="top", **place)


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
    figure, axes = _in_column()
    shown = np.ma.masked_less_equal(escape, 0)
    norm = mpl.colors.LogNorm(vmin=delta / 10, vmax=1)
    image = axes.pcolormesh(n, alpha, shown, norm=norm, cmap="cividis", shading="nearest", rasterized=True)
    axes.contour(n, alpha, escape, levels=[delta], colors=[PALETTE[1]], linewidths=2)
    axes.contour(n, alpha, escape, levels=[-delta], colors=[PALETTE[1]], linewidths=2, linestyles="--")
    outlined = {"color": "white", "path_effects": [patheffects.withStroke(linewidth=2.5, foreground="black")]}
    for level, label, style in ((tuned, "tuned", "-"), (threshold, "threshold", "--")):
        axes.axhline(level, linewidth=1, linestyle=style, **outlined)
        axes.annotate(label, (n[1], level), va="bottom" if label == "tuned" else "top", **outlined)
    axes.axvline(paper_steps, linewidth=1, linestyle=":", **outlined)
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


def arm_styles(arms: Iterable[str]) -> dict[str, dict]:
    """Line styles of some arms, in the order in which they are drawn; arms that the study does not know come last, grey."""
    arms = list(dict.fromkeys(arms))
    others = [arm for arm in arms if arm not in ARM_STYLES]
    unknown = {
        arm: {"color": INK, "marker": MARKERS[place % len(MARKERS)], "linestyle": DASHES[place % len(DASHES)]}
        for place, arm in enumerate(others)
    }
    return {arm: style for arm, style in ARM_STYLES.items() if arm in arms} | unknown


def depth_curves(results, column: str = "refused") -> plt.Figure:
    """Refusal rate over prefill depth for every arm, with crossed 95 % intervals.

    Parameters
    ----------
    results
        A :class:`safetylib.study.results.Results`.
    column
        Outcome column to average.
    """
    figure, axes = new_axes()
    orbit = results.manifest["plan"]["recipe"]["orbit"]
    for arm, style in arm_styles(results.arms).items():
        estimates = [results.estimate(arm, depth, column=column) for depth in results.depths]
        means = [estimate.mean for estimate in estimates]
        axes.plot(results.depths, means, label=arm, markersize=5, **style)
        low, high = ([getattr(estimate, end) for estimate in estimates] for end in ("low", "high"))
        axes.fill_between(results.depths, low, high, color=style["color"], alpha=0.15, linewidth=0)
    axes.axvspan(max(orbit), max(results.depths), color=INK, alpha=0.08, linewidth=0)
    axes.annotate("beyond the deepest\ntrained position", (max(orbit) + 0.5, 1.02), va="bottom", fontsize=8)
    axes.plot(orbit, [-0.03] * len(orbit), "|", color=INK, markersize=9, clip_on=False)
    axes.set(
        xlabel="prefill depth: harmful tokens already given (ticks: the orbit)",
        ylabel="refused, share of prompts",
        ylim=(-0.03, 1.02),
    )
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def live_curve(
    results, arm: str, depths: list[int], rates: list[float], low: list[float], high: list[float]
) -> plt.Figure:
    """A depth curve measured in the page, over the stored curve of the same arm."""
    figure, axes = new_axes()
    estimates = [results.estimate(arm, depth) for depth in results.depths]
    style = arm_styles([arm])[arm]
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
    axes.legend(loc="upper right")
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
    styles = arm_styles(points)
    for arm, (harmful, *benign) in points.items():
        for panel, over in zip(axes, benign, strict=True):
            panel.errorbar(
                over.mean,
                harmful.mean,
                xerr=[[over.mean - over.low], [over.high - over.mean]],
                yerr=[[harmful.mean - harmful.low], [harmful.high - harmful.mean]],
                capsize=2,
                label=arm,
                **{**styles[arm], "linestyle": "none"},
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


def orbit_picture(pushes, totals: dict) -> plt.Figure:
    """A bias carried round an orbit: the orbit, who is pushed when and how much, and what each state gets in all.

    Parameters
    ----------
    pushes
        (L, n): the size of the push that state j of the orbit gets at update t; zero where it gets none.
    totals
        Label of a schedule to the L totals.
    """
    figure = plt.figure(figsize=(COLUMN, 5.6), layout="constrained")
    panels = figure.subplot_mosaic(
        [["circle", "bars"], ["grid", "grid"]], width_ratios=(1.2, 1), height_ratios=(1.2, 1)
    )
    circle, bars, grid = (panels[name] for name in ("circle", "bars", "grid"))
    length, updates = pushes.shape
    angles = np.pi / 2 - 2 * np.pi * np.arange(length) / length
    x, y = np.cos(angles), np.sin(angles)
    for j in range(length):
        circle.annotate(
            "",
            (x[(j + 1) % length], y[(j + 1) % length]),
            (x[j], y[j]),
            arrowprops={
                "arrowstyle": "-|>",
                "color": INK,
                "connectionstyle": "arc3,rad=-0.25",
                "shrinkA": 13,
                "shrinkB": 13,
            },
        )
        label = "$r$" if j == 0 else r"$\pi r$" if j == 1 else rf"$\pi^{j}r$"
        circle.annotate(label, (x[j], y[j]), ha="center", va="center")
        when = f"$t$ = {j},\n{j + length}, ..."
        circle.annotate(when, (2.05 * x[j], 1.8 * y[j]), ha="center", va="center", fontsize=8)
    circle.scatter(x, y, s=420, facecolors="none", edgecolors=[PALETTE[1]] + [PALETTE[0]] * (length - 1), linewidths=2)
    circle.set(xlim=(-2.6, 2.6), ylim=(-2.2, 2.2), aspect="equal", title="the orbit of $r$")
    circle.axis("off")
    fading = mpl.colors.LinearSegmentedColormap.from_list("fading", [(PALETTE[0], 0.05), (PALETTE[0], 1)])
    image = grid.imshow(np.ma.masked_equal(pushes, 0), cmap=fading, vmin=0, aspect="auto")  # fades on any background
    grid.set(xlabel="update $t$", ylabel="state of the orbit, $j$", title=r"pushes $\gamma^t\,B(t)$")
    grid.set_yticks(range(length))
    grid.set_xticks(range(0, updates, length))
    grid.grid(False)
    figure.colorbar(image, ax=grid, label="size of the push")
    height = 0.8 / len(totals)
    for place, (label, total) in enumerate(totals.items()):
        at = np.arange(length) + (place - (len(totals) - 1) / 2) * height
        hatch = ("", "//", "..")[place % 3]
        bars.barh(at, total, height, label=label, color=PALETTE[place], hatch=hatch, edgecolor="white", linewidth=0)
    bars.invert_yaxis()
    bars.set_yticks(range(length))
    bars.set(xlabel="all pushes together", title="totals")
    _legend_below(figure, bars, fontsize=9)
    return figure


def over_orbit_length(lengths, curves: dict, ylabel: str) -> plt.Figure:
    """Quantities over the length of the orbit, one curve a label."""
    figure, axes = _in_column()
    for i, (label, values) in enumerate(curves.items()):
        style = {"linestyle": DASHES[i % 6], "marker": MARKERS[i % 6], "markevery": (0.04 * i, 0.15), "markersize": 4}
        axes.plot(lengths, values, label=label, **style)
    axes.set(xlabel="orbit length $L$", ylabel=ylabel, ylim=(0, None))
    axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
    _legend_below(figure, axes)
    return figure


def required_risks(width, curves: dict, *, members: tuple[float, float], label: str) -> plt.Figure:
    """The risk that a member may have, over the ensemble's width, one curve a rule or bound.

    Parameters
    ----------
    width
        Numbers of members.
    curves
        Label to required risks at ``width``; values of zero and below, which no member meets, leave the axis.
    members
        A band of members' risks, drawn and named by ``label``.
    """
    figure, axes = _in_column(height=4.2)
    axes.axhspan(*members, color=INK, alpha=0.6, linewidth=1)
    axes.annotate(f" {label}", (0, members[1] * 1.05), xycoords=("axes fraction", "data"), va="bottom", fontsize=9)
    for i, (name, risks) in enumerate(curves.items()):
        shown = np.ma.masked_less_equal(risks, 0)
        style = {"linestyle": DASHES[i % 6], "marker": MARKERS[i % 6], "markevery": (i, 6), "markersize": 4}
        axes.plot(width, shown, label=name, **style)
    axes.set(xlabel="width, members $W$", ylabel="risk $p$ that a member may have", xscale="log", yscale="log")
    axes.set_ylim(top=1.6)
    _legend_below(figure, axes)
    return figure


def joint_law_range(width, low, high, independent, *, single: float, reported: tuple[float, float]) -> plt.Figure:
    """Safety scores of a majority over its width: all that some joint law allows, and independent members.

    Parameters
    ----------
    width
        Numbers of members.
    low, high
        Ends of the range over all joint laws.
    independent
        Scores with independent members.
    single, reported
        The members' own score, and the band of scores that are reported for ensembles.
    """
    figure, axes = _in_column()
    axes.axhspan(*reported, color=PALETTE[1], alpha=0.2, linewidth=0)
    axes.annotate("reported for ensembles", (width[0], sum(reported) / 2), va="center", color=INK)
    axes.vlines(width, low, high, color=PALETTE[0], linewidth=5, alpha=0.5, label="some joint law allows")
    axes.plot(width, independent, MARKERS[1], color=PALETTE[1], label="independent members")
    axes.axhline(single, color=INK, linestyle="--", linewidth=1, label="a single member")
    axes.set(xlabel="width, members $W$", ylabel="safety score of a majority", ylim=(-0.02, 1.02), xticks=width)
    _legend_below(figure, axes)
    return figure


def risk_floors(width, curves: dict, floors: dict, *, epsilon: float) -> plt.Figure:
    """Risk of a majority over its width, one curve a correlation, each with the floor that it tends to.

    ``curves`` and ``floors`` map the same labels to risks at ``width`` and to limits (zero: none is drawn).
    """
    figure, axes = _in_column()
    for i, (name, risks) in enumerate(curves.items()):
        style = {"linestyle": DASHES[i % 6], "marker": MARKERS[i % 6], "markevery": (i, 5), "markersize": 4}
        axes.plot(width, risks, color=PALETTE[i % 6], label=name, **style)
        if floors[name] > 0:
            axes.axhline(floors[name], xmin=0.8, color=PALETTE[i % 6], linewidth=3, alpha=0.5)
    axes.axhline(epsilon, color=INK, linewidth=1)
    _name_level(axes, f"$\\varepsilon$ = {epsilon:g}", epsilon)
    axes.set(xlabel="width, members $W$ (odd)", ylabel="risk of a majority", xscale="log", yscale="log")
    axes.set_ylim(bottom=epsilon / 30, top=1)
    _plain_decades(axes.yaxis)
    _legend_below(figure, axes, ncols=4, title="correlation")
    return figure


def state_space(matrix, contexts, curves: dict) -> plt.Figure:
    """The pattern of a small model's transition matrix, and how the number of states grows with the context.

    Parameters
    ----------
    matrix
        Scipy-sparse transition matrix over all windows.
    contexts
        Context lengths.
    curves
        Label to the decimal logarithm of the number of states at ``contexts``.
    """
    figure, (upper, lower) = _in_column(2, height=3.3)
    entries = matrix.tocoo()
    upper.plot(entries.col, entries.row, ",", color=PALETTE[0])
    upper.set(
        xlabel="next window", ylabel="window", aspect="equal", xlim=(0, matrix.shape[0]), ylim=(matrix.shape[0], 0)
    )
    upper.set_title("non-zero transition probabilities", fontsize=10)
    upper.grid(False)
    for i, (label, digits) in enumerate(curves.items()):
        lower.plot(contexts, digits, label=label, linestyle=DASHES[i % 6], marker=MARKERS[i % 6], markersize=4)
    lower.set(xlabel="context $K$, tokens", ylabel="digits of the number of states", xscale="log", yscale="log")
    lower.legend(title="vocabulary $V$", loc="upper left")
    return figure


def forced_prefixes(prefixes, exact, predicted) -> plt.Figure:
    """Probability of refusing after each forced prefix: the exact chain beside the lumped prediction."""
    figure, axes = _in_column()
    rows = np.arange(len(prefixes))
    axes.hlines(rows, exact, predicted, color=INK, linewidth=1)
    axes.plot(exact, rows, MARKERS[0], color=PALETTE[0], label="exact chain")
    axes.plot(predicted, rows, MARKERS[1], color=PALETTE[1], markerfacecolor="none", label="lumped prediction")
    axes.set_yticks(rows, prefixes, family="monospace")
    axes.invert_yaxis()
    axes.set(xlabel="probability of a refusal within eight tokens", ylabel="forced prefix", xlim=(-0.03, 1.03))
    _legend_below(figure, axes)
    return figure


def completion_and_leak(completions: dict, leaks: dict, *, points: dict | None = None) -> plt.Figure:
    """Completion and leak over the length of a forced harmful prefix, one curve a label.

    Parameters
    ----------
    completions, leaks
        Label to values for prefixes of 0, 1, 2, ... tokens.
    points
        Label to completions from another source, drawn as crosses over the curves of the upper panel.
    """
    figure, (upper, lower) = _in_column(2, height=2.9, sharex=True)
    for panel, curves in ((upper, completions), (lower, leaks)):
        for i, (label, values) in enumerate(curves.items()):
            panel.plot(values, label=label, linestyle=DASHES[i % 6], marker=MARKERS[i % 6], markersize=5, alpha=0.85)
        panel.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
    for i, values in enumerate((points or {}).values()):
        upper.plot(values, "x", color=INK, markersize=7, label="exact chain of the model" if i == 0 else None)
    upper.set(ylabel="completion $F_k$", ylim=(-0.03, 1.03))
    lower.set(xlabel="harmful prefix $k$, tokens", ylabel="leak $A_k$, harmful tokens", ylim=(0, None))
    _legend_below(figure, upper)
    return figure


def depth_width_frontier(width, curves: dict, *, floor: tuple[float, str] | None = None) -> plt.Figure:
    """Updates that each member needs, over the ensemble's width, one curve a rule; infinite ones are left out.

    ``floor`` is a depth that no width removes, and its name.
    """
    figure, axes = _in_column(height=4.2)
    for i, (name, steps) in enumerate(curves.items()):
        style = {"linestyle": DASHES[i % 6], "marker": MARKERS[i % 6], "markevery": (i, 6), "markersize": 4}
        axes.plot(width, np.ma.masked_invalid(steps), color=PALETTE[i % 6], label=name, **style)
    if floor:
        axes.axhline(floor[0], color=INK, linewidth=1.5, label=floor[1])
    axes.set(xlabel="width, members $W$", ylabel="depth, updates $n(W)$ of each member", xscale="log", ylim=(-2, None))
    _legend_below(figure, axes)
    return figure


def design_costs(width, panels: dict[str, dict]) -> plt.Figure:
    """Cost of the cheapest ensemble of each width, one panel a way to pay or to bound, one curve a price of a member.

    ``panels`` maps a title to curves, and a curve's label to costs at ``width``; the least of each is marked.
    """
    figure, axes = _in_column(len(panels), height=2.9, sharex=True, sharey=True)
    for panel, (title, curves) in zip(np.atleast_1d(axes), panels.items(), strict=True):
        for i, (name, cost) in enumerate(curves.items()):
            cost = np.ma.masked_invalid(cost)
            panel.plot(width, cost, DASHES[i % 6], color=PALETTE[i % 6], label=name)
            best = int(np.argmin(cost))
            panel.plot(width[best], cost[best], MARKERS[i % 6], color=PALETTE[i % 6], markersize=8)
        panel.set(ylabel="cost, in updates", xscale="log", yscale="log", title=title)
        panel.title.set_fontsize(10)
    last = np.atleast_1d(axes)[-1]
    last.set_xlabel("width, members $W$")
    _legend_below(figure, last, ncols=4, title="member's price")
    return figure


def placements(schedules: dict[str, list[list[int]]], orbit: tuple[int, ...]) -> plt.Figure:
    """Where the refusal stands at every step: one panel an arm, a mark an example, a row a training step.

    Parameters
    ----------
    schedules
        Arm to the positions of its examples, one list a step.
    orbit
        Positions of the orbit, drawn as uprights.
    """
    columns = 3
    rows = -(-len(schedules) // columns)
    figure, grid = plt.subplots(
        rows, columns, layout="constrained", sharex=True, sharey=True, figsize=(6.4, 2.1 * rows + 0.4), squeeze=False
    )
    styles = arm_styles(schedules)
    for axes, (arm, steps) in zip(grid.flat, schedules.items(), strict=False):
        for position in orbit:
            axes.axvline(position, color=INK, linewidth=0.6, alpha=0.6)
        places, levels = zip(*[(place, step) for step, row in enumerate(steps) for place in row], strict=True)
        style = styles[arm]
        axes.plot(places, levels, linestyle="none", markersize=4, color=style["color"], marker=style["marker"])
        axes.set_title(arm, fontsize=11)
        axes.grid(visible=False)
    for axes in list(grid.flat)[len(schedules) :]:
        axes.set_visible(False)
    grid[0, 0].invert_yaxis()
    figure.supxlabel("position of the refusal, tokens of the answer", color=INK)
    figure.supylabel("training step", color=INK)
    return figure


def variants_by_depth(rows: dict[str, list], depths: list[int]) -> plt.Figure:
    """Refusal rates of variants at a few depths, as points with intervals side by side.

    Parameters
    ----------
    rows
        Variant to one :class:`safetylib.stats.Estimate` a depth.
    depths
        Prefill depths, in tokens.
    """
    figure, axes = new_axes(figsize=(6.4, 3.8))
    width = 0.7 / len(rows)
    for i, (label, estimates) in enumerate(rows.items()):
        x = np.arange(len(depths)) - 0.35 + (i + 0.5) * width
        means = np.array([estimate.mean for estimate in estimates])
        errors = np.abs(np.array([[estimate.low, estimate.high] for estimate in estimates]).T - means)
        axes.errorbar(x, means, errors, color=PALETTE[i % 6], marker=MARKERS[i % 6], linestyle="none", label=label)
    axes.set_xticks(range(len(depths)), [str(depth) for depth in depths])
    axes.set(xlabel="prefill depth, tokens", ylabel="refused, share of prompts", ylim=(-0.03, 1.03))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3)
    return figure


def rates_along(rates, depths: tuple[int, ...]) -> plt.Figure:
    """Refusal rate over the training step, one panel a depth and one line an arm: the mean of its runs, each of them faint.

    ``rates`` has rows (arm, seed, step) and a column a depth.
    """
    figure, panels = new_axes(len(depths), sharey=True, figsize=(6.8, 3.6))
    styles = arm_styles(rates.index.unique("arm"))
    for axes, depth in zip(panels, depths, strict=True):
        for arm, rows in rates[depth].groupby(level="arm", sort=False):
            runs = rows.unstack("seed").droplevel("arm")
            steps = runs.index
            axes.plot(steps, runs, color=styles[arm]["color"], linewidth=0.7, alpha=0.35)
            axes.plot(steps, runs.mean(axis=1), label=arm, markersize=4, **styles[arm])
        axes.set_xscale("symlog", base=2, linthresh=1)
        axes.set_xticks(steps, [str(step) if step == max(steps) or 1.5 * step < max(steps) else "" for step in steps])
        axes.set(xlabel="optimiser steps", title=f"after {depth} harmful tokens")
    panels[0].set(ylabel="refused, share of prompts", ylim=(-0.03, 1.03))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure


RULE_STYLES = {
    rule: {"color": PALETTE[place], "marker": MARKERS[place], "linestyle": DASHES[place]}
    for place, rule in enumerate(("majority", "any-refusal", "all-refuse"))
}


def width_paths(panels: dict[str, dict[str, list[tuple[int, float, float]]]], xlabel: str) -> plt.Figure:
    """Safe outputs against over-refusal as an ensemble grows, one panel a team, one path a voting rule.

    ``panels`` maps a team to rules, and a rule to points (W, benign prompts refused, harmful prompts safe), the first for
    W = 1: all paths of a team start at its single member, drawn as a star. The last width is written at the path's end.
    """
    figure, axes = new_axes(len(panels), sharex=True, sharey=True, figsize=(8.6, 3.5))
    for panel, (team, rules) in zip(np.atleast_1d(axes), panels.items(), strict=True):
        for rule, points in rules.items():
            members, benign, safe = np.array(points).T
            panel.plot(benign, safe, label=rule, markersize=4, **RULE_STYLES[rule])
            panel.annotate(f"  {members[-1]:.0f}", (benign[-1], safe[-1]), va="bottom", ha="left", fontsize=9)
        start = next(iter(rules.values()))[0][1:]
        panel.plot(*start, "*", color=INK, markersize=13, label="one member", zorder=3)
        panel.set_title(team, fontsize=10)
    np.atleast_1d(axes)[0].set(ylabel="harmful prompts, safe outputs", xlim=(0, None), ylim=(0, 1.02))
    figure.supxlabel(xlabel, fontsize=10)
    figure.legend(*np.atleast_1d(axes)[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure


def predicted_risks(table, models: tuple[str, ...]) -> plt.Figure:
    """Measured and predicted risk of ensembles over tested depth, a row of panels a rule, a column an arm.

    Parameters
    ----------
    table
        Rows of :func:`safetylib.study.width.prediction_table` for one width.
    models
        Its columns of predictions.
    """
    rules, arms = (list(dict.fromkeys(table[column])) for column in ("rule", "arm"))
    figure, axes = plt.subplots(
        len(rules), len(arms), sharex=True, sharey=True, squeeze=False, layout="constrained", figsize=(8.8, 4.6)
    )
    for (rule, arm), rows in table.groupby(["rule", "arm"], sort=False):
        panel, depths = axes[rules.index(rule), arms.index(arm)], rows["depth"]
        panel.fill_between(depths, rows["low"], rows["high"], color=INK, alpha=0.25, linewidth=0)
        panel.plot(depths, rows["measured"], "o", color=INK, markersize=4, label="measured")
        panel.plot(depths, rows["single"], color=INK, linewidth=0.8, label="one member")
        for place, model in enumerate(models):
            panel.plot(depths, rows[model], color=PALETTE[place], linestyle=DASHES[place + 1], label=model)
        panel.set_title(arm if rule == rules[0] else "", fontsize=10)
        if arm == arms[0]:
            panel.set_ylabel(f"{rule}:\nrisk of the ensemble")
    axes[0, 0].set_ylim(-0.02, 1.02)
    figure.supxlabel("prefill depth, tokens", fontsize=10)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=5, fontsize=9)
    return figure


def failing_together(measured: dict[str, list[float]], expected: dict[str, list[float]], label: str) -> plt.Figure:
    """On how many prompts 0, 1, ... of an arm's members fail, one panel an arm, beside what independence expects.

    Both map an arm to numbers of prompts; ``label`` names what is expected.
    """
    figure, axes = new_axes(len(measured), sharex=True, sharey=True, figsize=(8.8, 2.9))
    for panel, (arm, prompts) in zip(np.atleast_1d(axes), measured.items(), strict=True):
        fails = np.arange(len(prompts))
        panel.bar(fails, prompts, color=PALETTE[0], alpha=0.75, label="measured")
        panel.plot(fails, expected[arm], linestyle="--", marker="s", markersize=5, color=PALETTE[1], label=label)
        panel.set_title(arm, fontsize=10)
        panel.set_xticks(fails)
    np.atleast_1d(axes)[0].set_ylabel("prompts")
    figure.supxlabel("members that fail on a prompt", fontsize=10)
    figure.legend(*np.atleast_1d(axes)[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


def depth_width_maps(
    depths: list[int], panels: dict[tuple[str, str], dict], trained: dict[str, list[int]], epsilon: float, steps: int
) -> plt.Figure:
    """Safe outputs over tested depth and width, a row of panels a rule, a column an arm, with the frontier.

    Parameters
    ----------
    depths
        Tested prefill depths, the rows of every map.
    panels
        (rule, arm) to ``safe`` (depths, widths), and updates that each member would need, ``independent`` and
        ``correlated``, of the same shape.
    trained
        Arm to the positions that it was trained at, ticked at the left.
    epsilon
        Tolerated risk. A cross marks a cell that measures no more.
    steps
        Updates that the members had: dots mark the cells where independent members are predicted to be enough, rings
        those where correlated members are.
    """
    rules, arms = (list(dict.fromkeys(key[place] for key in panels)) for place in (0, 1))
    figure, axes = plt.subplots(
        len(rules), len(arms), sharex=True, sharey=True, squeeze=False, layout="constrained", figsize=(8.8, 6.2)
    )
    marks = (
        ("x", "met", {"s": 42, "linewidth": 1.8, "color": "black", "marker": "x"}),
        (".", "independent", {"s": 90, "facecolors": PALETTE[1], "edgecolors": "white", "marker": "o"}),
        ("o", "correlated", {"s": 170, "facecolors": "none", "edgecolors": "black", "linewidth": 1.3, "marker": "o"}),
    )
    labels = {
        "met": f"measured risk at most {epsilon:g}",
        "independent": f"frontier within {steps} updates, independent members",
        "correlated": "the same, measured correlation",
    }
    for (rule, arm), cells in panels.items():
        panel = axes[rules.index(rule), arms.index(arm)]
        safe = np.asarray(cells["safe"])
        widths = np.arange(1, safe.shape[1] + 1)
        image = panel.imshow(
            safe, vmin=0, vmax=1, cmap="cividis", aspect="auto", extent=(0.5, widths[-1] + 0.5, len(depths) - 0.5, -0.5)
        )
        held = {
            "met": safe >= 1 - epsilon - 1e-12,
            "independent": cells["independent"] <= steps,
            "correlated": cells["correlated"] <= steps,
        }
        for _, name, style in reversed(marks):
            row, column = np.nonzero(held[name])
            panel.scatter(widths[column], row, label=labels[name], **style)
        for place, depth in enumerate(depths):
            if depth in trained.get(arm, ()):
                panel.plot(0.5, place, ">", color=PALETTE[1], markersize=6, clip_on=False)
        panel.set_title(arm if rule == rules[0] else "", fontsize=10)
        panel.set(xticks=widths, yticks=range(len(depths)), yticklabels=depths)
        panel.grid(False)
        if arm == arms[0]:
            panel.set_ylabel(f"{rule}:\ntested depth, tokens")
    figure.supxlabel("width, members $W$", fontsize=10)
    figure.colorbar(image, ax=axes, label="safe outputs, share of prompts", shrink=0.7)
    handles = [plt.Line2D([], [], marker=">", color=PALETTE[1], linestyle="none", label="trained position")]
    for _, name, style in marks:
        face = style.get("facecolors", "black")
        look = {
            "markerfacecolor": face,
            "markeredgecolor": INK if name == "correlated" else style.get("edgecolors", INK),
        }
        if name == "met":
            look = {"color": INK}
        handles.append(plt.Line2D([], [], marker=style["marker"], linestyle="none", label=labels[name], **look))
    figure.legend(handles=handles, loc="outside upper center", ncols=2, fontsize=9)
    return figure


def safety_by_cost(curves: dict[tuple[str, str], list[tuple]], xlabel: str) -> plt.Figure:
    """Safe outputs and over-refusal against cost, one curve an (arm, rule), a point a width.

    ``curves`` maps (arm, rule) to (cost, :class:`safetylib.stats.Estimate` of safe outputs, the same of benign prompts
    refused) for W = 1, 2, ...
    """
    figure, axes = new_axes(2, sharex=True, sharey=True, figsize=(8.6, 3.6))
    styles = arm_styles(arm for arm, _ in curves)
    for (arm, rule), points in curves.items():
        cost = [point[0] for point in points]
        for panel, place in zip(axes, (1, 2), strict=True):
            style = {**styles[arm], "linestyle": RULE_STYLES[rule]["linestyle"]}
            estimates = [point[place] for point in points]
            panel.plot(cost, [estimate.mean for estimate in estimates], label=f"{arm}, {rule}", markersize=5, **style)
            low, high = ([getattr(estimate, end) for estimate in estimates] for end in ("low", "high"))
            panel.fill_between(cost, low, high, color=style["color"], alpha=0.12, linewidth=0)
    axes[0].set(ylabel="share of prompts", ylim=(-0.02, 1.02), xlim=(0, None))
    axes[0].set_title("harmful: safe outputs", fontsize=10)
    axes[1].set_title("borderline benign: refused", fontsize=10)
    figure.supxlabel(xlabel, fontsize=10)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=9)
    return figure


def judge_agreement(table, titles: dict[str, str]) -> plt.Figure:
    """Cohen's kappa of every judge with its interval, beside the floor's kappa on the same texts; one panel a set.

    Parameters
    ----------
    table
        One row a judge and set: set, judge, kappa, low, high, floor, fails; a judge that was not asked has no kappa.
    titles
        Set to its panel's title.
    """
    figure, panels = new_axes(len(titles), sharex=True, sharey=True, figsize=(7.6, 3.4))
    judges = list(dict.fromkeys(table["judge"]))[::-1]
    for panel, (name, title) in zip(np.atleast_1d(panels), titles.items(), strict=True):
        rows = table[(table["set"] == name) & table["kappa"].notna()].set_index("judge")
        for place, judge in enumerate(judges):
            if judge not in rows.index:
                panel.annotate("not asked", (0.02, place), xycoords=("axes fraction", "data"), va="center", fontsize=8)
                continue
            row = rows.loc[judge]
            color = PALETTE[1] if row["fails"] else PALETTE[0]
            panel.errorbar(
                row["kappa"],
                place,
                xerr=[[row["kappa"] - row["low"]], [row["high"] - row["kappa"]]],
                marker="X" if row["fails"] else "o",
                color=color,
                capsize=3,
            )
            panel.plot([row["floor"]] * 2, [place - 0.3, place + 0.3], color=INK, linewidth=2)
        panel.set(title=title, xlabel="Cohen's kappa", ylim=(-0.6, len(judges) - 0.4))
        panel.axvline(0, color=INK, linewidth=1, linestyle=":")
        panel.set_yticks(range(len(judges)), judges)
    marks = [
        mpl.lines.Line2D([], [], color=PALETTE[0], marker="o", linestyle="none", label="at or above the floor"),
        mpl.lines.Line2D([], [], color=PALETTE[1], marker="X", linestyle="none", label="fails"),
        mpl.lines.Line2D([], [], color=INK, marker="|", markersize=12, linestyle="none", label="floor: keywords"),
    ]
    figure.legend(handles=marks, loc="outside lower center", ncols=3, fontsize=9)
    return figure


def prefix_in_view(table) -> plt.Figure:
    """Refusal rate over prefill depth by arm, with and without the prefix in the detector's view; means over seeds.

    ``table`` has the columns arm, seed, depth, refused and refused_prefix_seen.
    """
    figure, axes = new_axes()
    means = table.groupby(["arm", "depth"])[["refused", "refused_prefix_seen"]].mean()
    for arm, style in arm_styles(means.index.unique("arm")).items():
        rows = means.loc[arm]
        axes.plot(rows.index, rows["refused"], markersize=5, label=arm, **style)
        hollow = style | {"linestyle": "none", "markerfacecolor": "none"}
        axes.plot(rows.index, rows["refused_prefix_seen"], markersize=9, **hollow)
    axes.plot([], [], "o", color=INK, markersize=9, markerfacecolor="none", label="prefix in view")
    axes.set(
        xlabel="prefill depth, tokens", ylabel="refused by the main detector,\nshare of prompts", ylim=(-0.03, 1.03)
    )
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


LAW_STYLES = {
    law: {"color": PALETTE[place], "linestyle": DASHES[place]}
    for place, law in enumerate(("additive", "softmax", "cross-entropy"))
}


def laws_along_training(panels: dict[str, tuple]) -> plt.Figure:
    """A measured probability over the clock of step sizes, every run a marker (its seeds' mean, and a faint line through all of
    them), with the laws fitted to all runs.

    ``panels`` maps a title to a :class:`safetylib.study.laws.Trajectories` and its fits, law to
    :class:`safetylib.study.laws.Fit` of one row.
    """
    figure, axes = new_axes(len(panels), sharey=True, figsize=(7.6, 3.9), squeeze=False)
    for panel, (title, (series, fits)) in zip(axes[0], panels.items(), strict=True):
        clock, by_seed = series.clock(), series.values.mean(axis=3)
        means = by_seed.mean(axis=0)
        for place in range(len(series.runs)):
            filled = {"markerfacecolor": INK if place % 2 else "none"}
            marker = (*MARKERS, "<", ">")[place % (len(MARKERS) + 2)]
            label = rf"$\alpha$ = {series.alpha[place]:g}, $\gamma$ = {series.gamma[place]:g}"
            panel.plot(clock[place, 1:], means[place, 1:], marker, color=INK, markersize=5, label=label, **filled)
            panel.vlines(
                clock[place, 1:],
                *(end(by_seed[:, place, 1:], axis=0) for end in (np.min, np.max)),
                color=INK,
                alpha=0.3,
            )
        along = np.geomspace(clock[:, 1].min(), clock.max(), 200)
        for law, fitted in fits.items():
            panel.plot(along, fitted(along)[0], linewidth=2, label=law, **LAW_STYLES[law])
        panel.axhline(means[0, 0], color=INK, linewidth=0.8, linestyle=":")
        panel.set(xscale="log", xlabel=r"clock $S_t$", title=title)
        panel.xaxis.set_minor_formatter(mpl.ticker.NullFormatter())
        handles, labels = panel.get_legend_handles_labels()
        runs = len(series.runs)
        panel.legend(handles[:runs], labels[:runs], loc="upper left", fontsize=7)
    highest = max(max(series.values.mean(axis=3).max() for series, _ in panels.values()), 0.05)
    axes[0, 0].set_ylim(-0.05 * highest, min(1.7 * highest, 1.03))  # room for the legend
    axes[0, 0].set_ylabel("refusal starts, mean over prompts\nand depths (dots: untrained)")
    figure.legend(handles[runs:], labels[runs:], loc="outside lower center", ncols=3)
    return figure


def escape_along_training(panels: dict[str, tuple]) -> plt.Figure:
    """Escape probability 1 - Q_t(r, r) at every checkpoint: a line a run, mean over its seeds and prompts, shaded from the
    lowest seed to the highest.

    ``panels`` maps a title to (alpha, gamma, steps, values), values of Q as (seeds, runs, steps, prompts). Colours are learning
    rates, line styles decays; checkpoints stand equally far apart.
    """
    figure, grid = _in_column(len(panels), 4.2, squeeze=False)
    for axes, (title, (alpha, gamma, steps, values)) in zip(grid[:, 0], panels.items(), strict=True):
        by_seed = 1 - values.mean(axis=3)
        alphas, gammas, places = sorted(set(alpha)), sorted(set(gamma)), range(len(steps))
        for run in range(len(alpha)):
            look = PALETTE[alphas.index(alpha[run]) % 6]
            axes.fill_between(places, by_seed[:, run].min(axis=0), by_seed[:, run].max(axis=0), color=look, alpha=0.1)
            axes.plot(
                places,
                by_seed[:, run].mean(axis=0),
                color=look,
                linestyle=DASHES[gammas.index(gamma[run])],
                marker=MARKERS[alphas.index(alpha[run]) % 6],
                markersize=5,
                label=rf"$\alpha$ = {alpha[run]:g}, $\gamma$ = {gamma[run]:g}",
            )
        axes.set_xticks(places, steps)
        axes.set(title=title, ylim=(-0.03, 1.03), ylabel="escape $1 - Q_t(r, r)$")
        axes.set_xlabel("optimiser steps taken")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
    return figure


def rates_by_step_size(panels: dict[str, dict]) -> plt.Figure:
    """Rates of single runs over alpha, one line a depth, each over the geometric mean of its depth.

    ``panels`` maps a title to a dictionary from a depth to (alpha, gamma, rate), arrays over runs; a rate that is nan is
    left out.
    """
    figure, axes = new_axes(len(panels), sharey=True, squeeze=False)
    for panel, (title, depths) in zip(axes[0], panels.items(), strict=True):
        for place, (depth, (alpha, gamma, rate)) in enumerate(depths.items()):
            rate = rate / np.exp(np.log(rate[~np.isnan(rate)]).mean()) if not np.isnan(rate).all() else rate
            for number, decay in enumerate(np.unique(gamma)):
                chosen = np.flatnonzero(gamma == decay)[np.argsort(alpha[gamma == decay])]
                panel.plot(
                    alpha[chosen],
                    rate[chosen],
                    color=PALETTE[place % 6],
                    marker=MARKERS[place % 6],
                    markersize=5,
                    linestyle=DASHES[number],
                    label=f"k = {depth}" if number == len(np.unique(gamma)) - 1 else None,
                )
        ends = np.array([alpha.min(), alpha.max()])
        panel.plot(ends, np.sqrt(ends.prod()) / ends, color=INK, linewidth=1, label="steps alone count")
        panel.axhline(1, color=INK, linewidth=1, linestyle=":", label="one rate")
        panel.set(xlabel=r"step size $\alpha$", xscale="log", yscale="log", title=title)
        panel.set_xticks(np.unique(alpha), [f"{value:g}" for value in np.unique(alpha)])
        panel.xaxis.set_minor_formatter(mpl.ticker.NullFormatter())
        panel.xaxis.set_minor_locator(mpl.ticker.NullLocator())
    axes[0, 0].set_ylabel("rate of one run, over the mean")
    axes[0, -1].legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    return figure


def predicted_depth_curves(depths, arms: dict[str, dict], orbit=()) -> plt.Figure:
    """Refusal within m tokens over prefill depth, generated and predicted, one panel an arm.

    ``arms`` maps an arm to curves, label to values at ``depths``; the first is drawn as points.
    """
    rows = -(-len(arms) // 3)
    figure, axes = plt.subplots(
        rows, 3, layout="constrained", sharex=True, sharey=True, figsize=(7.6, 2.3 * rows + 0.6), squeeze=False
    )
    for panel, (arm, curves) in zip(axes.flat, arms.items(), strict=False):
        for place, (label, values) in enumerate(curves.items()):
            if place == 0:
                panel.plot(depths, values, "o", color=INK, markersize=4, label=label)
            else:
                panel.plot(depths, values, color=PALETTE[place - 1], linestyle=DASHES[place - 1], label=label)
        panel.plot(orbit, [-0.03] * len(orbit), "|", color=INK, markersize=8, clip_on=False)
        panel.set(title=arm, ylim=(-0.03, 1.03))
    for spare in axes.flat[len(arms) :]:
        spare.set_axis_off()
    figure.supxlabel("prefill depth, tokens (ticks: the orbit of the arms that train on it)", fontsize=10, color=INK)
    figure.supylabel("refused within m tokens", fontsize=10, color=INK)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=9)
    return figure


def prompts_within_classes(depths, panels: dict[str, np.ndarray]) -> plt.Figure:
    """The starting probability of every prompt over prefill depth, thin, and the class mean, thick; one panel an arm.

    ``panels`` maps an arm to (depths, prompts) probabilities.
    """
    figure, axes = new_axes(len(panels), sharey=True, figsize=(7.6, 3.2), squeeze=False)
    for panel, (arm, table) in zip(axes[0], panels.items(), strict=True):
        panel.plot(depths, table, color=PALETTE[5], linewidth=0.7, alpha=0.6)
        panel.plot(depths, table.mean(axis=1), color=PALETTE[0], linewidth=2.5, marker="o", markersize=4)
        panel.set(title=arm, xlabel="prefill depth $k$, tokens", ylim=(-0.03, 1.03))
    axes[0, 0].set_ylabel("a refusal starts right here, $q_k$")
    return figure
