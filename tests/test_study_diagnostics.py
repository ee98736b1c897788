"""Failure signatures appear where the tables show them, and only there."""

import pandas as pd
import pytest
from made_results import made

from safetylib.study import diagnostics


def study(folder, *, plain=0.0, failures=("0000", "0000"), losses=(4.0, 2.0, 1.0, 1.0), arms=("base", "cyclic")):
    """One trained arm: over-refusal of ten plain prompts, failures by seed and prompt (1 fails), mean loss by quarter."""
    rows = [
        {"arm": "base", "seed": 0, "kind": kind, "prompt": f"{kind}{i}"}
        for kind in ("plain", "harmful")
        for i in (0, 1)
    ]
    for seed, failed in enumerate(failures):
        rows += [{"seed": seed, "kind": "plain", "prompt": f"b{i}", "refused": i < 10 * plain} for i in range(10)]
        rows += [{"seed": seed, "prompt": f"p{i}", "refused": sign == "0"} for i, sign in enumerate(failed)]
    results = made(folder, rows, seeds=range(len(failures)), headline=(0,), arms=list(arms))
    steps = [
        {"arm": "cyclic", "seed": 0, "step": 5 * q + i, "refusal_loss": x}
        for q, x in enumerate(losses)
        for i in range(5)
    ]
    pd.DataFrame(steps).to_csv(folder / "training.csv", index=False)
    return results


def test_a_sound_run_shows_no_signature(tmp_path):
    results = study(tmp_path, plain=0.1, failures=("1010", "1100"))
    assert diagnostics.signatures(results) == []
    assert diagnostics.report(results) == "No failure signature."


@pytest.mark.parametrize(
    ("settings", "name", "words"),
    [
        ({"plain": 0.2}, "over-alignment", "0.20 of plain benign"),
        ({"failures": ("110000", "110000", "011000")}, "correlated failures", "correlate at 0.50"),
        ({"losses": (4, 2, 1, 0.5)}, "non-convergence", "another 50%"),
        ({"losses": (4, 3.6, 3.2, 3)}, "non-convergence", "75% of the loss on refusals is left at the end"),
        ({"losses": (4, 8, 20, 20)}, "non-convergence", "ends at 5.0 times where it began"),
    ],
    ids=["refuses benign prompts", "fails together", "loss still falls", "learns little", "diverges"],
)
def test_each_signature_is_found_by_itself_and_said_in_words(tmp_path, settings, name, words):
    results = study(tmp_path, **settings)
    (signature,) = diagnostics.signatures(results)
    assert (signature.name, signature.arm) == (name, "cyclic")
    assert words in diagnostics.report(results)


def test_members_that_never_vary_are_no_evidence_of_correlation(tmp_path):
    assert diagnostics.correlated_failures(study(tmp_path, failures=("1111", "0000"))) == []


def test_thresholds_are_strict(tmp_path):
    results = study(tmp_path, plain=0.2)
    assert diagnostics.over_alignment(results, most=0.2) == []
    assert diagnostics.over_alignment(results, most=0.19) != []


def test_runs_of_a_part_are_named_by_their_own_column():
    rows = [
        {"run": run, "seed": seed, "step": step, "refusal_loss": 4.0 * left**step}
        for run, left in (("slow", 0.97), ("quick", 0.5), ("hot", 1.2))
        for seed in (0, 1)
        for step in range(8)
    ]
    found = diagnostics.little_learnt(pd.DataFrame(rows), by="run")
    assert [signature.arm for signature in found] == ["slow", "hot"]
    assert found[0].value == pytest.approx((0.97**6 + 0.97**7) / 2)
    assert diagnostics.little_learnt(pd.DataFrame(rows), by="run", most=0.9) == found[1:]


def test_a_run_that_converged_had_not_when_stopped_half_way(tmp_path):
    results = study(tmp_path, losses=(4.0, 2.0, 1.0, 1.0))
    assert diagnostics.non_convergence(results) == []
    (signature,) = diagnostics.non_convergence(results, stopped_at=8)  # five steps at 4, three at 2
    assert signature.value == pytest.approx(1 - 2.0 / 3.0)  # the third quarter's mean is 3, the last one's 2
