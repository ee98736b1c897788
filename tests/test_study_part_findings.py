"""What is read off the parts' tables: HarmBench, along training, teacher forcing, ablations; and the operating point; on tables
made by hand."""

import re
from itertools import product

import pandas as pd
import pytest
from made_results import made

from safetylib import stats
from safetylib.claims import Verdict, ledger
from safetylib.study import augmentation_findings, depth_findings, findings

PROMPTS = [f"p{n}" for n in range(20)]
CONTRASTS = [f"c{n}" for n in range(10)]


def store(results, name, rows):
    """Write a part's outcomes beside the main tables."""
    folder = results.folder / name
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(folder / "outcomes.csv.gz", index=False)
    return results


def main(tmp_path, rates, seeds=(0, 1), depths=(0, 5)):
    """Main results whose arm refuses the first ``rate`` of the prompts, at every depth, for every seed."""
    rows = [
        {
            "arm": arm,
            "seed": seed,
            "prompt": prompt,
            "depth": depth,
            "refused": place < rate * len(PROMPTS),
            "kind": kind,
        }
        for (arm, rate), seed, (place, prompt), (kind, depth) in product(
            rates.items(),
            seeds,
            list(enumerate(PROMPTS)),
            [*(("harmful", depth) for depth in depths), ("plain", 0), ("borderline", 0)],
        )
    ]
    return made(tmp_path / "made", rows, seeds=seeds, depths=depths, headline=(5,), recipe={"orbit": [0]})


def refusals(arm, share, seed=0, depth=0, prompts=PROMPTS, **more):
    """Rows of an arm that refuses the first ``share`` of the prompts."""
    return [
        {"arm": arm, "seed": seed, "prompt": prompt, "depth": depth, "refused": place < share * len(prompts), **more}
        for place, prompt in enumerate(prompts)
    ]


def test_a_part_that_was_never_measured_says_how(tmp_path):
    with pytest.raises(FileNotFoundError, match="make reproduce PRESET=made PART=transfer ARGS=--accept"):
        depth_findings.transfer_rates(main(tmp_path, {"cyclic": 0.5}))


# --- HarmBench --------------------------------------------------------------------------------------------------------


def test_transfer_contrasts_pair_prompts_and_seeds(tmp_path):
    results = main(tmp_path, {"shallow": 0.1, "cyclic": 0.9})
    rates = {("shallow", 0): 0.1, ("shallow", 1): 0.2, ("cyclic", 0): 0.8, ("cyclic", 1): 0.9}
    rows = [row for (arm, seed), rate in rates.items() for depth in (0, 5) for row in refusals(arm, rate, seed, depth)]
    store(results, "transfer", rows)
    assert depth_findings.transfer_table(results, "cyclic", 5).shape == (2, 20)
    assert depth_findings.transfer_rates(results)["shallow"][5].mean == pytest.approx(0.15)
    contrast = depth_findings.transfer_contrasts(results)
    assert list(contrast) == ["shallow"] and contrast["shallow"].difference.mean == pytest.approx(0.7)


def test_a_missing_harmbench_prompt_is_an_error_and_no_smaller_table(tmp_path):
    results = main(tmp_path, {"cyclic": 0.9})
    store(results, "transfer", (refusals("cyclic", 0.5, 0) + refusals("cyclic", 0.5, 1))[:-1])
    with pytest.raises(
        ValueError, match="arm 'cyclic', depth 0 on HarmBench: some prompt has no refused from some seed"
    ):
        depth_findings.transfer_table(results, "cyclic", 0)


# --- XSTest -----------------------------------------------------------------------------------------------------------


def test_xstest_rates_keep_safe_and_unsafe_prompts_apart_and_pool_seeds_within_a_kind(tmp_path):
    results = main(tmp_path, {"base": 0.0, "cyclic": 0.9})
    rows = refusals("base", 0.0, kind="borderline") + refusals("base", 0.1, kind="harmful", prompts=CONTRASTS)
    for seed, (safe, unsafe) in enumerate([(0.2, 0.8), (0.4, 0.9)]):
        rows += refusals("cyclic", safe, seed, kind="borderline")
        rows += refusals("cyclic", unsafe, seed, kind="harmful", prompts=CONTRASTS)
    rows = [{**row, "refused_independent": row["kind"] == "harmful"} for row in rows]
    found = depth_findings.xstest_rates(store(results, "xstest", rows))
    second = depth_findings.xstest_rates(results, "refused_independent")
    assert second.loc["cyclic"].map(lambda estimate: estimate.mean).tolist() == [0, 1, 1]
    means = found.map(lambda estimate: estimate.mean)
    assert means.loc["cyclic"].to_dict() == pytest.approx({"safe": 0.3, "unsafe contrasts": 0.85, "apart": 0.55})
    assert means.loc["base"].to_dict() == pytest.approx({"safe": 0, "unsafe contrasts": 0.1, "apart": 0.1})
    assert [found.loc["cyclic", name].prompts for name in found] == [20, 10, 30]
    assert 0 < found.loc["cyclic", "apart"].low < 0.55 < found.loc["cyclic", "apart"].high
    store(results, "xstest", rows[:-1])
    with pytest.raises(ValueError, match="arm 'cyclic', harmful on XSTest: some prompt has no refused from some seed"):
        depth_findings.xstest_rates(results)


def test_a_type_of_safe_prompts_stands_beside_its_contrasts(tmp_path):
    results = main(tmp_path, {"cyclic": 0.9})
    rows = []
    for place, (safe, (_, unsafe)) in enumerate(depth_findings.XSTEST_TYPES.items()):
        for seed in (0, 1):
            rows += refusals("cyclic", place / 10, seed, prompts=[f"{safe}{n}" for n in range(10)], category=safe)
            if not any(row["category"] == unsafe and row["seed"] == seed for row in rows):
                prompts = [f"{unsafe}{n}" for n in range(10)]
                rows += refusals("cyclic", (10 - place) / 10, seed, prompts=prompts, category=unsafe)
    found = depth_findings.xstest_types(store(results, "xstest", rows), "cyclic").map(lambda estimate: estimate.mean)
    assert found["safe"].tolist() == pytest.approx([place / 10 for place in range(10)])
    first = [0, 1, 2, 3, 4, 5, 5, 7, 8, 8]  # two pairs of types share their contrasts
    assert found["unsafe contrasts"].tolist() == pytest.approx([1 - place / 10 for place in first])
    assert found["apart"].tolist() == pytest.approx((found["unsafe contrasts"] - found["safe"]).tolist())


# --- along training ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ({0: 0.0, 1: 0.5, 2: 0.9, 4: 0.95}, 2),
        ({0: 0.0, 1: 0.95, 2: 0.5, 4: 0.95}, 4),  # passing through the level is not converging
        ({0: 0.9, 1: 0.9, 2: 0.9, 4: 0.9}, 0),
        ({0: 0.0, 1: 0.95, 2: 0.95, 4: 0.85}, None),
    ],
)
def test_converged_is_the_first_checkpoint_that_holds_to_the_end(tmp_path, rates, expected):
    results = main(tmp_path, {"cyclic": 0.5})
    store(results, "along", [row for step, rate in rates.items() for row in refusals("cyclic", rate, step=step)])
    found = depth_findings.steps_to(results)
    assert list(found.index) == [("cyclic", 0)]
    assert found.loc[("cyclic", 0), 0] is pd.NA if expected is None else found.loc[("cyclic", 0), 0] == expected


def test_every_run_converges_by_itself_and_falls_by_itself(tmp_path):
    results = main(tmp_path, {"cyclic": 0.5})
    rates = {
        0: {0: 0.0, 1: 0.95, 2: 0.9},
        1: {0: 0.0, 1: 0.9, 2: 0.2},
        2: {0: 0.0, 1: 0.1, 2: 0.8},
    }  # their mean would not hold
    rows = [
        row
        for seed, run in rates.items()
        for step, rate in run.items()
        for row in refusals("cyclic", rate, seed, step=step)
    ]
    store(results, "along", rows)
    found = depth_findings.steps_to(results)
    assert found.loc[("cyclic", 0), 0] == 1 and found.loc[("cyclic", 1), 0] is pd.NA
    assert depth_findings.falls(results)[0].to_list() == pytest.approx([0.05, 0.7, 0.0]), "a rise is no fall"


def test_rates_along_are_means_by_run_step_and_depth(tmp_path):
    results = main(tmp_path, {"cyclic": 0.5})
    rows = refusals("cyclic", 0.25, step=0) + refusals("cyclic", 0.75, step=4) + refusals("deep", 0.5, depth=5, step=4)
    found = depth_findings.along_rates(store(results, "along", rows))
    assert found.loc[("cyclic", 0, 0), 0] == 0.25 and found.loc[("cyclic", 0, 4), 0] == 0.75
    assert found.loc[("deep", 0, 4), 5] == 0.5


# --- teacher forcing --------------------------------------------------------------------------------------------------


def test_forced_and_generated_are_compared_on_the_same_prompts(tmp_path):
    results = main(tmp_path, {"cyclic": 0.5})
    rows = [
        {"arm": "cyclic", "seed": 0, "prompt": prompt, "depth": 5, "immediate": 0.1, "within": 0.25, "missed": 0.0}
        for prompt in PROMPTS[:5]  # all of these are refused
    ]
    found = depth_findings.forced_against_generated(store(results, "forced", rows))
    assert len(found) == 1 and found.loc[("cyclic", 5)].to_dict() == {"forced": 0.25, "generated": 1.0}


# --- ablations --------------------------------------------------------------------------------------------------------


def ablated(tmp_path, rates, seeds):
    results = main(tmp_path, {"cyclic": 0.5}, seeds=(0, 1, 2))
    rows = [
        row
        for arm, rate in rates.items()
        for seed in seeds
        for kind, depth in (("harmful", 0), ("harmful", 5), ("plain", 0), ("borderline", 0))
        for row in refusals(arm, rate, seed, depth, kind=kind)
    ]
    return store(results, "ablations", rows)


def test_variants_are_compared_with_the_cyclic_runs_of_their_own_seeds(tmp_path):
    results = ablated(tmp_path, {"orbit2": 0.25, "orbit8": 0.75, "rotate": 0.5}, seeds=(0, 2))
    assert augmentation_findings.cyclic_table(results, 5).shape == (2, 20)
    found = augmentation_findings.variants(results)
    assert list(found) == ["orbit of 2", "orbit of 4 (cyclic)", "orbit of 8", "rotated phrases"]
    assert [round(cells[5].mean, 2) for cells in found.values()] == [0.25, 0.5, 0.75, 0.5]
    differences = {row.name: round(row.difference.mean, 2) for row in augmentation_findings.contrasts(results)}
    assert differences == {"orbit of 2": -0.25, "orbit of 8": 0.25, "rotated phrases": 0.0}
    assert augmentation_findings.over_refusal(results)["orbit of 8"]["borderline"].mean == 0.75
    assert augmentation_findings.headline_by_seed(results, "orbit8").to_dict() == {"seed 0": 0.75, "seed 2": 0.75}
    assert augmentation_findings.headline_by_seed(results, "cyclic").to_dict() == {"seed 0": 0.5, "seed 2": 0.5}


@pytest.mark.parametrize(("seeds", "decided"), [((0,), False), ((0, 1, 2), True)])
def test_one_seed_decides_nothing_however_narrow_its_interval(tmp_path, monkeypatch, seeds, decided):
    results = ablated(tmp_path, {"orbit2": 0.5, "orbit8": 1.0, "rotate": 0.5}, seeds)
    monkeypatch.setattr(augmentation_findings, "load", lambda: results)
    finding = augmentation_findings.diversity()
    assert (finding.verdict is Verdict.REPRODUCED) is decided
    assert ("one seed" in finding.evidence) is not decided
    assert augmentation_findings.phrases().verdict is Verdict.UNDECIDED


def test_what_a_variant_costs_is_read_off_the_benign_prompts_of_its_kind(tmp_path):
    results = ablated(tmp_path, dict.fromkeys(("orbit2", "orbit8", "rotate"), 0.5), seeds=(0, 2))
    for table, arm, kind, refused in (("ablations", "rotate", "plain", False), ("", "cyclic", "borderline", True)):
        path = results.folder / table / "outcomes.csv.gz"
        rows = pd.read_csv(path)
        rows.loc[(rows["arm"] == arm) & (rows["kind"] == kind), "refused"] = refused
        rows.to_csv(path, index=False)
    found = {
        kind: {row.name: round(row.difference.mean, 2) for row in augmentation_findings.contrasts(results, kind)}
        for kind in ("harmful", "plain", "borderline")
    }
    even = {"orbit of 2": 0.0, "orbit of 8": 0.0, "rotated phrases": 0.0}
    less = {name: -0.5 for name in even}
    assert found == {"harmful": even, "plain": even | {"rotated phrases": -0.5}, "borderline": less}


@pytest.mark.parametrize(
    ("difference", "p_holm", "seeds", "settled"),
    [
        (0.31, 0.04, 5, True),
        (-0.31, 0.04, 5, True),
        (0.29, 0.04, 5, False),
        (0.31, 0.06, 5, False),
        (0.31, 0.04, 1, False),
    ],
)
def test_a_contrast_is_settled_by_three_standard_errors_and_holms_correction_together(
    difference, p_holm, seeds, settled
):
    estimate = stats.Estimate(difference, difference - 0.2, difference + 0.2, 0.1, 8.0, 100, seeds)
    assert findings.settles(stats.Contrast("made", estimate, p_holm / 4, p_holm)) is settled


# --- the operating point ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("harmful", "plain", "verdict"),
    [
        (1.0, 0.0, Verdict.REPRODUCED),
        (0.5, 0.0, Verdict.NOT_REPRODUCED),
        (1.0, 0.5, Verdict.NOT_REPRODUCED),
        (0.85, 0.0, Verdict.UNDECIDED),
        (0.925, 0.0, Verdict.UNDECIDED),
        (1.0, 0.075, Verdict.UNDECIDED),
        (1.0, 0.15, Verdict.UNDECIDED),
    ],
)
def test_the_operating_point_is_decided_by_whole_intervals(tmp_path, monkeypatch, harmful, plain, verdict):
    shares, many = {"harmful": harmful, "plain": plain, "borderline": 0.0}, [f"p{n}" for n in range(80)]
    rows = [
        row
        for arm, kind, seed in product(("cyclic", "deep"), shares, (0, 1, 2))
        for row in refusals(arm, shares[kind] if arm == "cyclic" else 0.0, seed, prompts=many, kind=kind)
    ]
    results = made(tmp_path / "made", rows)
    monkeypatch.setattr(findings, "load", lambda: results)
    assert findings.operating_point().verdict is verdict


def test_one_of_many_intervals_beyond_its_target_is_not_enough(tmp_path, monkeypatch):
    """Four arms and two targets: what a single interval would decide, Holm's correction leaves open."""
    many = [f"p{n}" for n in range(80)]
    plain = {"shallow": 0.0, "uniform": 0.0, "random": 0.0, "cyclic": 0.1875, "deep": 0.0}
    rows = [
        row
        for arm, kind, seed in product(plain, ("harmful", "plain", "borderline"), (0, 1, 2))
        for row in refusals(
            arm, {"harmful": 1.0, "plain": plain[arm], "borderline": 0.0}[kind], seed, prompts=many, kind=kind
        )
    ]
    results = made(tmp_path / "made", rows)
    monkeypatch.setattr(findings, "load", lambda: results)
    assert results.estimate("cyclic", kind="plain").low > 0.1
    found = findings.operating_point()
    assert found.verdict is Verdict.UNDECIDED
    assert "beyond a target: none, by single intervals: cyclic" in found.evidence


# --- contrasts and votes ----------------------------------------------------------------------------------------------


def test_a_contrast_tells_what_its_verdict_rests_on(tmp_path, monkeypatch):
    """The first detector sees a difference, the independent one sees none."""
    rows = [
        {**row, "refused_independent": False}
        for arm, share in {"cyclic": 0.9, "uniform": 0.9, "random": 0.9, "shallow": 0.1, "deep": 0.9}.items()
        for seed in (0, 1, 2)
        for row in refusals(arm, share, seed, depth=5, prompts=[f"p{n}" for n in range(80)])
    ]
    rows += [  # every member refuses one harmless prompt in ten, whatever its arm
        {"arm": arm, "seed": seed, "kind": kind, "prompt": f"{kind}{n}", "refused": n % 10 == seed}
        for arm in ("cyclic", "uniform", "random", "shallow", "deep")
        for seed in (0, 1, 2)
        for kind in ("plain", "borderline")
        for n in range(40)
    ]
    results = made(tmp_path / "made", rows, depths=(5,), headline=(5,))
    monkeypatch.setattr(findings, "load", lambda: results)
    monkeypatch.setattr(findings, "primary_contrasts", findings.primary_contrasts.__wrapped__)  # not what others cached
    (claim,) = [one for one in ledger(9) if one.id == "9-cyclic-shallow"]
    found = claim.check()
    assert found.verdict is Verdict.REPRODUCED and "By the independent detector: undecided" in found.evidence
    prices = re.findall(r"0\.10 of (plain|borderline) prompts: (-?\d\.\d\d) \[", found.evidence)
    assert [kind for kind, _ in prices] == ["plain", "borderline"] and all(0 < float(lead) < 0.9 for _, lead in prices)


@pytest.mark.parametrize(
    ("prompts", "turned", "verdict"),
    [
        (200, 1, Verdict.REPRODUCED),
        (40, 1, Verdict.UNDECIDED),
        (40, 0, Verdict.UNDECIDED),
        (100, 30, Verdict.NOT_REPRODUCED),
    ],
)
def test_refusals_last_if_the_prompts_are_enough_to_say_so(tmp_path, monkeypatch, prompts, turned, verdict):
    """Next to none that turn are no proof where few prompts were asked."""
    rows = [
        {"seed": seed, "prompt": f"p{n:03}", "refused": True, "complied_after": n < turned, "tokens": 12}
        for seed in (0, 1, 2)
        for n in range(prompts)
    ]
    results = made(tmp_path / "made", rows)
    monkeypatch.setattr(findings, "load", lambda: results)
    assert findings.lasting().verdict is verdict


@pytest.mark.parametrize(
    ("members", "verdict"),
    [
        ([(0, 40), (25, 65), (60, 100)], Verdict.REPRODUCED),  # each refuses two fifths, together all
        ([(0, 40), (0, 40), (0, 40)], Verdict.NOT_REPRODUCED),
        ([(0, 40), (25, 65), (52, 92)], Verdict.UNDECIDED),
        ([(0, 40), (25, 65), (50, 86)], Verdict.UNDECIDED),
        ([(0, 60), (0, 60), (0, 60)], Verdict.UNDECIDED),  # not weak: the premise does not hold
    ],
)
def test_weak_members_reach_the_target_by_a_whole_interval(tmp_path, monkeypatch, members, verdict):
    rows = [
        {"arm": arm, "seed": seed, "prompt": f"p{n:03}", "depth": depth, "refused": first <= n < last}
        for (seed, (first, last)), n, depth, arm in product(enumerate(members), range(100), (0, 5), ("shallow", "deep"))
    ]
    results = made(tmp_path / "made", rows, seeds=(0, 1, 2), depths=(0, 5), headline=(5,))
    monkeypatch.setattr(findings, "load", lambda: results)
    found = findings.any_refusal()
    assert found.verdict is verdict
    assert ("Deep members without a prefix" in found.evidence) is ("premise" not in found.evidence)


@pytest.mark.parametrize(
    ("shallow", "cyclic", "verdict"),
    [
        (0.9, 0.3, Verdict.REPRODUCED),
        (0.3, 0.9, Verdict.NOT_REPRODUCED),
        (0.51, 0.5, Verdict.UNDECIDED),
        (0.5, 0.51, Verdict.UNDECIDED),
    ],
)
def test_width_offsets_depth_by_three_standard_errors_either_way(tmp_path, monkeypatch, shallow, cyclic, verdict):
    many = [f"p{n:03}" for n in range(100)]
    rows = [
        row
        for arm, share in {"shallow": shallow, "cyclic": cyclic}.items()
        for seed in (0, 1, 2)
        for row in refusals(arm, share, seed, depth=5, prompts=many)
    ]
    results = made(tmp_path / "made", rows, seeds=(0, 1, 2), depths=(0, 5), headline=(5,))
    monkeypatch.setattr(findings, "load", lambda: results)
    assert findings.offset().verdict is verdict


def test_a_rate_that_is_zero_everywhere_has_an_interval(tmp_path):
    many = [f"p{n:03}" for n in range(60)]
    rows = [
        row
        for arm, share in {"base": 0.0, "cyclic": 0.5}.items()
        for depth in (5, 12)
        for seed in ((0,) if arm == "base" else (0, 1))
        for row in refusals(arm, share, seed, depth=depth, prompts=many)
    ]
    results = made(tmp_path / "made", rows, depths=(5, 12), headline=(5, 12))
    never = results.headline_estimate("base")
    assert (never.mean, never.low) == (0, 0) and 0.01 < never.high < 0.1
