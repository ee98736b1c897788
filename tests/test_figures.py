"""Figures draw what the results hold: fewer arms than the book's, and arms that the book does not know."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from made_results import made

from safetylib import figures


@pytest.mark.parametrize("arms", [("base", "cyclic"), ("cyclic", "late", "base"), ("late", "early")])
def test_depth_curves_draw_the_arms_that_there_are(tmp_path, arms):
    rows = [
        {"arm": arm, "seed": seed, "prompt": f"p{prompt}", "depth": depth, "refused": prompt > depth}
        for arm in arms
        for seed in ((0,) if arm == "base" else (0, 1))
        for prompt in range(4)
        for depth in (0, 2)
    ]
    figure = figures.depth_curves(made(tmp_path / "made", rows, depths=(0, 2), recipe={"orbit": [0]}))
    (axes,) = figure.axes
    drawn = [line.get_label() for line in axes.get_lines() if not line.get_label().startswith("_")]
    assert sorted(drawn) == sorted(arms)
    plt.close(figure)


def test_escape_is_drawn_run_by_run_with_a_colour_a_learning_rate_and_a_dash_a_decay():
    values = np.linspace(0.1, 0.9, 2 * 4 * 3 * 5).reshape(2, 4, 3, 5)
    panel = np.array([1, 1, 2, 2.0]), np.array([0.9, 1, 0.9, 1]), np.array([0, 1, 4]), values
    figure = figures.escape_along_training({"one": panel, "two": panel})
    for axes in figure.axes:
        lines = axes.get_lines()
        looks = [(line.get_color(), line.get_linestyle()) for line in lines]
        assert len(set(looks)) == 4 and looks[0][0] == looks[1][0] != looks[2][0] and looks[0][1] == looks[2][1]
        assert lines[2].get_ydata() == pytest.approx(1 - values[:, 2].mean(axis=(0, 2)))
    assert [axes.get_title() for axes in figure.axes] == ["one", "two"]
    plt.close(figure)


def test_unknown_arms_come_last_and_differ_from_each_other():
    styles = figures.arm_styles(["late", "base", "early", "cyclic"])
    assert list(styles) == ["cyclic", "base", "late", "early"]
    looks = {(style["color"], style["marker"], style["linestyle"]) for style in styles.values()}
    assert len(looks) == 4


def test_two_unknown_arms_differ_within_every_figure():
    steps = pd.MultiIndex.from_product([("late", "early"), (0, 1), (1, 2)], names=["arm", "seed", "step"])
    along = figures.rates_along(pd.DataFrame({0: 0.5, 12: 0.5}, index=steps), (0, 12))
    placed = figures.placements({"late": [[1], [2]], "early": [[1], [2]]}, (0, 2))
    looks = [
        {
            (line.get_color(), line.get_marker())
            for line in along.axes[0].get_lines()
            if line.get_label() in ("late", "early")
        },
        {
            (line.get_color(), line.get_marker())
            for axes in placed.axes
            for line in axes.get_lines()
            if line.get_marker() != "None"
        },
    ]
    assert [len(look) for look in looks] == [2, 2]
    plt.close("all")
