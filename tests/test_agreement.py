"""How judges are compared with labels and with a floor, and what is stored about it."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.inter_rater import cohens_kappa

from safetylib.claims import Verdict
from safetylib.study import agreement, assets, judging, judging_findings, labelled, results
from safetylib.study.labelled import Item, Text
from safetylib.study.presets import preset
from safetylib.study.store import Store, StoreError

calm = settings(max_examples=60, deadline=None, derandomize=True)
STORED = labelled.FOLDER


# --- kappa --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((20, 5, 10, 15), 0.4),
        ((5, 0, 0, 7), 1),
        ((0, 5, 5, 0), -1),
        ((1, 1, 1, 1), 0),
        ((12, 4, 6, 2), 0),
        ((3, 0, 9, 0), 0),
        ((9, 0, 0, 0), float("nan")),
        ((0, 0, 0, 9), float("nan")),
    ],
)
def test_kappa_of_known_tables(counts, expected):
    assert agreement.kappa(*counts) == pytest.approx(expected, nan_ok=True)


@calm
@given(st.lists(st.integers(1, 40), min_size=4, max_size=4))
def test_kappa_is_the_one_of_statsmodels(counts):
    both, first, second, neither = counts
    expected = cohens_kappa([[both, first], [second, neither]], return_results=False)
    assert agreement.kappa(*counts) == pytest.approx(expected)


def texts(n: int, wrong: int, seed: int = 0):
    """Labels of n texts, and a judge that errs on the first ``wrong`` of a random order."""
    generator = np.random.default_rng(seed)
    labels = generator.random(n) < 0.5
    verdicts = labels.copy()
    places = generator.permutation(n)[:wrong]
    verdicts[places] = ~verdicts[places]
    return labels, verdicts


def test_a_judge_that_is_the_floor_is_exactly_as_good():
    labels, verdicts = texts(80, 12)
    row = agreement.compare(labels, verdicts, verdicts, np.arange(80))
    assert (row["above"], row["above_low"], row["above_high"]) == (0, 0, 0)
    assert row["low"] < row["kappa"] < row["high"] and row["accuracy"] == pytest.approx(68 / 80)


def test_a_better_judge_is_above_the_floor_with_a_paired_interval():
    labels, verdicts = texts(300, 6)
    _, floor = texts(300, 75)
    row = agreement.compare(labels, verdicts, floor, np.arange(300))
    assert row["above"] == pytest.approx(row["kappa"] - row["floor"]) and row["above_low"] > 0.2


def test_copies_of_a_text_under_one_prompt_add_no_certainty():
    labels, verdicts = texts(60, 9)
    prompts = np.arange(60)
    once = agreement.compare(labels, verdicts, verdicts, prompts)
    twice = agreement.compare(*(np.repeat(values, 2) for values in (labels, verdicts, verdicts, prompts)))
    free = agreement.compare(*(np.repeat(values, 2) for values in (labels, verdicts, verdicts)), np.arange(120))
    assert twice["n"] == 120 and twice["prompts"] == 60
    assert (twice["low"], twice["high"]) == pytest.approx((once["low"], once["high"]))
    assert free["high"] - free["low"] < 0.85 * (once["high"] - once["low"])


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    """A judge that errs on one text in ten: kappa 0.8 at balanced classes."""
    covered = 0
    for seed in range(60):
        generator = np.random.default_rng(seed)
        labels = generator.random(120) < 0.5
        verdicts = labels ^ (generator.random(120) < 0.1)
        row = agreement.compare(labels, verdicts, verdicts, np.arange(120))
        covered += row["low"] <= 0.8 <= row["high"]
    assert covered >= 51


# --- tables -------------------------------------------------------------------------------------------------------------


def made(safety: dict[str, list[float | None]], labels: list[str]):
    items = [f"i{place}" for place in range(len(labels))]
    truth = pd.DataFrame({"item": items, "prompt": items, "label": labels})
    rows = [(item, judge, value) for judge, values in safety.items() for item, value in zip(items, values, strict=True)]
    return pd.DataFrame(rows, columns=["item", "judge", "safety"]).astype({"safety": float}), truth


LABELS = ["refusal"] * 10 + ["answer"] * 10
PERFECT = [1.0] * 10 + [0.0] * 10
TWO_WRONG = [1.0] * 9 + [0.0] * 10 + [1.0]


@pytest.mark.parametrize(
    ("safety", "fails"),
    [
        (PERFECT, False),
        (TWO_WRONG, False),
        ([0.0, 0.0, *TWO_WRONG[2:]], True),
        ([None, None, *PERFECT[2:]], False),
        ([None, None, None, *PERFECT[3:]], True),
        ([None] * 20, True),
        ([1.0] * 20, True),
        ([0.5] * 20, True),
    ],
    ids=["perfect", "as the floor", "below", "a tenth unscored", "more unscored", "nothing scored", "yes", "one half"],
)
def test_a_judge_below_the_floor_or_often_silent_fails(safety, fails):
    verdicts, truth = made({"keywords": TWO_WRONG, "other": safety}, LABELS)
    found = agreement.table(verdicts, truth).set_index("judge")
    assert bool(found.loc["other", "fails"]) is fails and not found.loc["keywords", "fails"]
    assert found.loc["other", "unscored"] == safety.count(None) and found.loc["other", "asked"] == 20


def test_unscored_texts_are_left_out_for_the_floor_as_well():
    verdicts, truth = made({"keywords": TWO_WRONG, "other": [*PERFECT[:9], None, *PERFECT[10:]]}, LABELS)
    found = agreement.table(verdicts, truth).set_index("judge")
    assert found.loc["other", "n"] == 19
    assert found.loc["other", "floor"] > found.loc["keywords", "kappa"], "one of the floor's two errors is not counted"


def test_classes_collapse_to_two_and_unclear_texts_take_no_part():
    labels = ["refusal", "partial", "answer", "unclear", "full refusal", "partial refusal", "full compliance"]
    verdicts, truth = made({"keywords": [1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0]}, labels)
    (row,) = agreement.table(verdicts, truth).itertuples()
    assert (row.n, row.kappa) == (6, 1)


def test_labels_and_verdicts_that_never_vary_decide_nothing():
    verdicts, truth = made({"keywords": [0.0] * 4, "other": [0.0] * 4}, ["answer"] * 4)
    found = agreement.table(verdicts, truth)
    assert found["kappa"].isna().all() and not found["fails"].any() and (found["accuracy"] == 1).all()


def test_confusion_counts_every_class_and_what_was_left_unscored():
    verdicts, truth = made(
        {"keywords": [1.0, 0.0, None, 0.5, 0.6]}, ["refusal", "refusal", "refusal", "unclear", "answer"]
    )
    rows = agreement.confusion(verdicts, truth).set_index("label")[["says refusal", "says answer", "unscored"]]
    assert rows.loc["refusal"].tolist() == [1, 1, 1]
    assert rows.loc["unclear"].tolist() == [0, 1, 0] and rows.loc["answer"].tolist() == [1, 0, 0]


def test_judges_are_compared_on_what_both_scored():
    verdicts, _ = made({"a": [1, 1, 0, 0, None], "b": [1, 0, 0, None, 1], "c": [None] * 5}, ["answer"] * 5)
    found = agreement.between(verdicts).set_index(["first", "second"])
    assert found.loc[("a", "b"), "n"] == 3 and found.loc[("a", "b"), "kappa"] == pytest.approx(
        agreement.kappa(1, 1, 0, 1)
    )
    assert found.loc[("a", "c"), "n"] == 0 and np.isnan(found.loc[("a", "c"), "kappa"])


def test_ordering_and_hindsight_of_scores():
    labels = np.array([True, True, False, False])
    assert agreement.ordering(labels, np.array([0.4, 0.3, 0.2, 0.1])) == 1
    assert agreement.ordering(labels, np.array([0.2, 0.2, 0.2, 0.2])) == 0.5
    assert agreement.hindsight(labels, np.array([0.4, 0.3, 0.2, 0.1])) == 1, "no score is above one half"
    assert agreement.hindsight(labels, np.array([0.2, 0.2, 0.2, 0.2])) == 0


# --- the sample ---------------------------------------------------------------------------------------------------------

RESPONSES = [
    Item(arm, depth, seed, f"p{number}")
    for arm, seeds in (("base", [0]), ("cyclic", [0, 1, 2]))
    for depth in (0, 5)
    for seed in seeds
    for number in range(6)
]


def test_the_sample_takes_as_many_of_every_arm_and_depth_and_never_a_prompt_twice():
    table = pd.DataFrame(labelled.sample(RESPONSES))
    assert (table.groupby(["arm", "depth"]).size() == labelled.PER_CELL).all() and len(table) == 12
    assert not table.duplicated(["arm", "depth", "prompt"]).any()
    assert (table.query("arm == 'cyclic'").groupby("depth")["seed"].nunique() == 3).all()


def test_the_sample_is_the_same_whatever_order_it_is_drawn_from_and_hides_its_strata():
    chosen = labelled.sample(RESPONSES)
    assert chosen == labelled.sample(RESPONSES[::-1]) != labelled.sample(RESPONSES, seed=9)
    assert chosen != sorted(chosen)


def test_a_sample_from_too_few_prompts_is_refused():
    with pytest.raises(ValueError, match="arm cyclic, depth 0 has fewer than 7 prompts"):
        labelled.sample([item for item in RESPONSES if item.arm == "cyclic"], per_cell=7)


def test_a_reading_sheet_shows_windows_alone_and_the_rest_apart():
    items = [Item("cyclic", 12, 0, "p0"), Item("base", 0, 0, "p1")]
    tokens = {items[0]: [1, 2, 3, 4], items[1]: [5, 6]}
    windows, rest = labelled.reading_sheet(items, tokens, lambda ids: " ".join(map(str, ids)), window=2)
    assert windows == "000 '1 2'\n001 '5 6'\n" and rest == "000 '1 2 3 4'\n"


# --- judges and sets ----------------------------------------------------------------------------------------------------


def test_pattern_judges_say_one_or_zero():
    texts = {"a": "I can't help with that.", "b": "Open the box.", "c": "Some say that it is illegal, others do not."}
    found = judging.detector_verdicts(texts, judging.PATTERNS).pivot(index="item", columns="judge", values="safety")
    assert found.loc["a"].tolist() == [1, 1, 1] and found.loc["b"].tolist() == [0, 0, 0]
    assert found.loc["c", "keywords"] == 1 and found.loc["c", "main"] == 0, "keywords match anywhere"


def some(n: int) -> list[Text]:
    return [Text(f"i{place:02d}", "Describe the red box.", f"A red box, {place}.", "", True) for place in range(n)]


def test_a_measurement_goes_on_where_it_stopped(tmp_path, monkeypatch):
    asked: list[str] = []

    def judged(name, model, tokenizer, texts):
        if len(asked) >= 24:
            raise KeyboardInterrupt
        asked.extend(text.item for text in texts)
        return pd.DataFrame({"item": [text.item for text in texts], "judge": name, "safety": 1.0, "reason": ""})

    monkeypatch.setattr(judging, "language_model_verdicts", judged)
    arguments = (Store(tmp_path), "study", "HEx-PHI, logits", some(30), "a model")
    with pytest.raises(KeyboardInterrupt):
        judging.measured(*arguments, lambda: (None, None))
    assert len(judging.measured(*arguments, None)) == 24, "the finished chunk, and nothing is loaded"
    first = list(asked)
    asked.clear()
    assert len(judging.measured(*arguments, lambda: (None, None))) == 30
    assert len(asked) == 6 and not set(asked) & set(first)
    other = judging.measured(*arguments[:4], "another model", None)
    assert other.empty and list(other.columns) == ["item", "judge", "safety"]


PROMPT = "strongreject-005"


@pytest.fixture
def runs(tmp_path):
    """Two finished generations of one model, the older with another response, and the untuned model's answers."""
    for folder, tokens in (("generate-cyclic-0-0123", [7, 8]), ("generate-cyclic-0-4567", [7, 8, 9])):
        (tmp_path / folder).mkdir()
        row = {"kind": "harmful", "split": "test", "prompt": PROMPT, "depth": 2, "tokens": tokens, "ended": True}
        other = row | {"kind": "plain", "prompt": "plain-001", "depth": 0}
        (tmp_path / folder / "responses.json").write_text(json.dumps([other, row]))
    (tmp_path / "answers-0123").mkdir()
    (tmp_path / "answers-0123" / "answers.json").write_text(json.dumps({PROMPT: {"tokens": [4, 5, 6], "ended": False}}))
    return tmp_path


def spell(tokens: list[int]) -> str:
    return " ".join(map(str, tokens))


def label(text: str, prefix: str = "4 5") -> pd.DataFrame:
    row = {"arm": "cyclic", "depth": 2, "seed": 0, "prompt": PROMPT, "item": f"cyclic/2/0/{PROMPT}"}
    return pd.DataFrame([row | {"sha256": labelled.sha256(text), "prefix_sha256": labelled.sha256(prefix)}])


def test_a_label_finds_its_text_by_digest(runs):
    found = labelled.find(label("7 8 9"), runs, spell, within=2)
    (text,) = found.texts
    assert (text.response, text.window, text.joined, text.harmful) == ("7 8 9", "7 8", "4 5 7 8", True)
    assert text.request and found.files[("cyclic", 0)].parent.name == "generate-cyclic-0-4567"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (label("7"), r"1 of 1 labelled texts are not in .*make reproduce"),
        (label("7 8 9", prefix="4 6"), r"no answers of the untuned model .* begin with the labelled prefixes"),
    ],
    ids=["text", "prefix"],
)
def test_a_label_whose_text_has_changed_is_reported(runs, table, message):
    with pytest.raises(StoreError, match=message):
        labelled.find(table, runs, spell, within=2)


def test_a_refusal_that_straddles_the_prefix_is_seen_with_the_prefix_in_view(runs):
    words = {4: "Sure.", 5: "I", 6: "say", 7: "can't", 8: "help", 9: "you."}
    found = labelled.find(label("7 8 9"), runs, spell, within=3)
    (row,) = judging.prefix_seen(found, lambda tokens: " ".join(words[token] for token in tokens), 3).itertuples()
    assert (row.arm, row.seed, row.depth, row.responses) == ("cyclic", 0, 2, 1)
    assert (row.refused, row.refused_prefix_seen) == (0, 1)


def test_xstest_is_optional_and_its_files_are_pinned(tmp_path, monkeypatch):
    monkeypatch.delenv(labelled.XSTEST_FOLDER, raising=False)
    assert labelled.xstest() is None
    monkeypatch.setenv(labelled.XSTEST_FOLDER, str(tmp_path))
    assert labelled.xstest() is None
    for name in labelled.XSTEST_FILES:
        (tmp_path / f"xstest_v2_completions_{name}.csv").write_text("id\n1\n")
    with pytest.raises(assets.AssetError, match="is not the pinned file"):
        labelled.xstest()


# --- what is stored -----------------------------------------------------------------------------------------------------


def stored(name: str) -> pd.DataFrame:
    return pd.read_csv(STORED / f"{name}.csv")


def test_at_least_two_hundred_responses_are_labelled_and_stratified_by_arm_and_depth():
    table, plan = labelled.labels(STORED), preset("cpu")
    assert len(table) >= 200 and not table["item"].duplicated().any()
    cells = table.groupby(["arm", "depth"]).size()
    assert set(cells.index) == {(arm, depth) for arm in plan.arms for depth in plan.measurement.depths}
    assert cells.nunique() == 1
    assert set(table["label"]) <= set(labelled.LABELS) and (table["labeller"] == "model-read").all()
    assert (table["second_label"] != "").sum() == 40


@pytest.mark.parametrize("path", sorted(STORED.glob("*.csv")), ids=lambda path: path.stem)
def test_stored_tables_hold_ids_digests_and_numbers_but_no_text(path):
    table = pd.read_csv(path)
    for column in table.columns[[not pd.api.types.is_numeric_dtype(kind) for kind in table.dtypes]]:
        values = table[column].dropna().astype(str)
        longest = 64 if "sha256" in column else 40
        assert values.str.len().max() <= longest, column


def test_every_miss_of_the_main_detector_has_its_reason():
    labels = labelled.labels(STORED).set_index("item")["label"]
    main = stored("verdicts").query("set == 'study' and judge == 'main'").set_index("item")["safety"]
    refuses = labels.map(agreement.REFUSES).fillna(False).astype(bool)
    reasons = stored("misses")
    assert sorted(reasons["item"]) == sorted(labels.index[refuses & (main.loc[labels.index] < 0.5)])
    assert set(reasons["why"]) == {"mid-sentence", "cut off", "wording"}


def test_the_prefix_adds_refusals_and_takes_none_away_from_the_stored_rates():
    table, outcomes = stored("prefix_seen"), results.load("cpu").outcomes
    assert (table["refused_prefix_seen"] >= table["refused"]).all()
    assert (table["refused_prefix_seen"] > table["refused"]).groupby(table["depth"]).mean()[1] > 0.5
    rates = outcomes.query("kind == 'harmful' and split == 'test'").groupby(["arm", "seed", "depth"])["refused"].mean()
    both = table.set_index(["arm", "seed", "depth"])["refused"].to_frame("again").join(rates, how="inner")
    assert len(both) == len(table) and np.allclose(both["again"], both["refused"], atol=1e-3)


def test_verdicts_belong_to_the_present_judges():
    manifest = json.loads((STORED / "manifest.json").read_text())
    assert manifest["stamps"] == judging.stamps(), "run: python -m safetylib.study.judging measure"


def test_the_studys_agreement_follows_from_its_labels_and_verdicts():
    fresh = judging.tables(stored("verdicts"), labelled.labels(STORED), None)
    for name, table in fresh.items():
        kept = stored(name).query("set == 'study'").reset_index(drop=True)
        pd.testing.assert_frame_equal(table, kept[table.columns], atol=1e-4, check_dtype=False)


def test_xstests_agreement_follows_from_peoples_labels():
    people = labelled.xstest()
    if people is None:
        pytest.skip(f"{labelled.XSTEST_FOLDER} names no folder with XSTest's labelled completions")
    assert len(people) == 900 and people["item"].is_unique and set(people["label"]) <= set(agreement.REFUSES)
    fresh = judging.tables(stored("verdicts"), labelled.labels(STORED), people)
    for name, table in fresh.items():
        kept = stored(name).reset_index(drop=True)
        pd.testing.assert_frame_equal(table, kept[table.columns], atol=1e-4, check_dtype=False)


@pytest.mark.parametrize(
    ("low", "high", "fails", "judge", "detector"),
    [
        (0.1, 0.3, False, Verdict.REPRODUCED, Verdict.REPRODUCED),
        (0.1, 0.3, True, Verdict.UNDECIDED, Verdict.UNDECIDED),
        (-0.1, 0.3, False, Verdict.UNDECIDED, Verdict.UNDECIDED),
        (-0.3, -0.1, True, Verdict.UNDECIDED, Verdict.NOT_REPRODUCED),  # a stand-in that fails refutes no other judge
    ],
)
def test_what_is_said_of_a_judge_and_of_the_detector(monkeypatch, low, high, fails, judge, detector):
    row = {"kappa": 0.5, "low": 0.4, "high": 0.6, "floor": 0.4, "above": (low + high) / 2, "fails": fails}
    row |= {"above_low": low, "above_high": high, "n": 10, "prompts": 5, "unscored": 0}
    monkeypatch.setattr(judging_findings.Judged, "row", lambda self, *_: pd.Series(row, dtype=object))
    assert judging_findings.language_model_judge().verdict == judge
    assert judging_findings.detector_against_people().verdict == detector
