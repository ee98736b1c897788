"""Plans that cannot be measured are refused when they are made, not after hours of measuring."""

from dataclasses import replace

import pytest

from safetylib.study.presets import PRESETS, live

CPU = PRESETS["cpu"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"arms": ("base", "shalow")}, "unknown arm 'shalow'; known: base, shallow"),
        ({"arms": ()}, "arms must be some"),
        ({"arms": ("cyclic", "cyclic")}, "each of them once"),
        ({"seeds": ()}, "seeds must be some"),
        ({"seeds": (0, 1, 0)}, "each of them once"),
        ({"split": (8, 4, 0)}, "needs test prompts"),
        ({"split": (-1, 4, 6)}, "negative"),
    ],
)
def test_a_plan_that_cannot_be_measured_is_refused(changes, says):
    with pytest.raises(ValueError, match=says) as raised:
        replace(CPU, **changes)
    assert str(raised.value).startswith("preset cpu: ")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"headline": (3, 5)}, r"headline holds \[3\]"),
        ({"judged_depths": (0, 13)}, r"judged_depths holds \[13\]"),
        ({"depths": (5, 12, 20), "judged_depths": (12,)}, "must hold 0"),
        ({"depths": (0, 5, 5, 12, 20)}, "depths must be some, each of them once"),
    ],
)
def test_depths_that_do_not_go_together_are_refused(changes, says):
    with pytest.raises(ValueError, match=says):
        replace(CPU, measurement=replace(CPU.measurement, **changes))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"steps": 0}, "0 steps"),
        ({"orbit": ()}, "a position"),
        ({"benign_per_step": -1}, "benign_per_step may not be negative"),
    ],
)
def test_a_recipe_without_steps_or_positions_is_refused(changes, says):
    with pytest.raises(ValueError, match=says):
        replace(CPU.recipe, **changes)


def test_answers_are_as_long_as_training_and_measuring_need():
    assert CPU.deepest == 40 and live(CPU).deepest == max(CPU.recipe.orbit) > max(live(CPU).measurement.depths)
    assert replace(CPU, recipe=replace(CPU.recipe, deep_position=50)).deepest == 50
