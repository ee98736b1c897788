"""Prompt sets: what is never loaded, what a broken file is told, how splits are drawn, what the written sets hold."""

import csv
import os
import random
import subprocess
import sys
from collections import Counter

import pytest

from safetylib.study import assets, prompts
from safetylib.study.prompts import SPLITS, stratified_split

COLUMNS = ["category", "source", "forbidden_prompt"]


def rows(count=60, categories=("Red", "Green", "Blue")):
    """Neutral sentences in the layout of StrongREJECT."""
    return [[categories[n % len(categories)], "made", f"Describe the box with the number {n}."] for n in range(count)]


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Writes the file that stands in for StrongREJECT's."""
    path = tmp_path / "made.csv"
    monkeypatch.setattr(assets, "fetch", lambda asset: path)

    def write(records, columns=COLUMNS):
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([columns, *records])
        return path

    return write


# --- StrongREJECT -----------------------------------------------------------------------------------------------------


def test_prompts_keep_the_number_of_their_record(table):
    table(rows(6))
    loaded = prompts.strongreject((2, 2, 2))
    assert {prompt.id: prompt.text for prompt in loaded} == {
        f"strongreject-{n + 1:03d}": f"Describe the box with the number {n}." for n in range(6)
    }
    assert {prompt.kind for prompt in loaded} == {"harmful"}
    assert Counter(prompt.split for prompt in loaded) == dict.fromkeys(SPLITS, 2)


def test_the_category_sexual_content_is_never_loaded(table):
    records = rows(45, ("Red", "Sexual content", "Blue"))
    table(records)
    loaded = prompts.strongreject((15, 10, 5))
    assert {prompt.category for prompt in loaded} == {"Red", "Blue"}
    excluded = {text for category, _, text in records if category == "Sexual content"}
    assert len(excluded) == 15 and not excluded & {prompt.text for prompt in loaded}
    with pytest.raises(ValueError, match="asks for 31 prompts, but there are 30"):
        prompts.strongreject((15, 10, 6))


def test_the_two_records_filed_under_another_category_are_never_loaded(table):
    table(rows(60))
    loaded = prompts.strongreject((20, 20, 18))
    assert len(loaded) == 58
    assert not {"strongreject-056", "strongreject-057"} & {prompt.id for prompt in loaded}


def _with(record, column, value):
    changed = rows(6)
    changed[record][column] = value
    return changed


@pytest.mark.parametrize(
    ("records", "columns", "words"),
    [
        (rows(6), ["category", "source", "prompt"], ["no column forbidden_prompt", "it has category, source, prompt"]),
        (rows(6), ["a", "b", "c"], ["no column category, source, forbidden_prompt", "Expected"]),
        (_with(3, 2, ""), COLUMNS, ["forbidden_prompt is empty", "line 5"]),
        (_with(0, 0, "  "), COLUMNS, ["category is empty", "line 2"]),
        (_with(4, 2, "Describe the box with the number 1."), COLUMNS, ["line 6 repeats", "forbidden_prompt"]),
        (_with(4, 2, " describe THE box with the number 1. "), COLUMNS, ["line 6 repeats"]),
        pytest.param([[*row, "one cell too many"] for row in rows(6)], COLUMNS, ["line 2 has 4 cells"]),
        pytest.param([*rows(6), ["Red", "made", "A sentence.", "one cell too many"]], COLUMNS, ["line 8 has 4 cells"]),
        ([*rows(6), ["Red", "made"]], COLUMNS, ["forbidden_prompt is empty", "line 8"]),
    ],
    ids=[
        "column renamed",
        "other columns",
        "empty cell",
        "blank cell",
        "duplicate",
        "duplicate in other case",
        "every record too long",
        "one record too long",
        "record too short",
    ],
)
def test_a_file_of_another_layout_is_refused_with_its_name_and_the_line(table, records, columns, words):
    table(records, columns)
    with pytest.raises(ValueError) as error:
        prompts.strongreject((2, 2, 2))
    for word in ["made.csv", *words]:
        assert word in str(error.value)


def test_lines_are_those_of_the_file_though_records_span_several_and_blank_ones_are_skipped(table):
    path = table([])
    path.write_text('category,source,forbidden_prompt\n\nRed,made,"one\ntwo\nthree"\n\nRed,made,\nRed,made,\n', "utf-8")
    with pytest.raises(ValueError, match=r"made\.csv: column forbidden_prompt is empty in lines 7, 8\."):
        prompts.strongreject((0, 0, 1))


def test_a_file_cut_short_is_refused_with_the_line_of_the_last_record(table):
    path = table([])
    path.write_text('category,source,forbidden_prompt\nRed,made,one\nRed,made,"two\nand', "utf-8")
    with pytest.raises(ValueError, match=r"made\.csv: the record that starts in line 3 is damaged or cut short"):
        prompts.strongreject((0, 0, 1))


def test_a_file_with_a_header_line_alone_is_refused(table):
    table([])
    with pytest.raises(ValueError, match=r"made\.csv holds a header line and no prompts"):
        prompts.strongreject((0, 0, 0))


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00bad\x80"], ids=["empty", "not UTF-8"])
def test_a_file_that_is_no_table_is_refused_with_its_name(table, content):
    table(rows(6)).write_bytes(content)
    with pytest.raises(ValueError, match=r"made\.csv"):
        prompts.strongreject((2, 2, 2))


def test_an_unknown_source_is_refused_and_the_known_ones_named():
    with pytest.raises(ValueError, match=r"'Other'; known: StrongREJECT, HEx-PHI, HarmBench, neutral, or the path"):
        prompts.harmful("Other", (1, 1, 1))


# --- splits -----------------------------------------------------------------------------------------------------------

MIXTURES = {
    "equal": ([40, 40, 40], (60, 20, 40)),
    "one large": ([100, 10, 10], (60, 20, 40)),
    "everything used": ([50, 54, 61, 48, 50], (118, 42, 103)),
    "a part used": ([50, 54, 59, 48, 50], (118, 40, 103)),
    "nearly equal, in halves": ([50, 49], (49, 50, 0)),
    "nearly equal, in thirds": ([40, 39, 38], (39, 39, 39)),
}


def drawn(mixture):
    strata, sizes = MIXTURES[mixture]
    ids = [f"prompt-{n:03d}" for n in range(sum(strata))]
    names = [f"stratum {place}" for place, count in enumerate(strata) for _ in range(count)]
    return ids, names, sizes, stratified_split(ids, names, sizes)


@pytest.mark.parametrize("mixture", MIXTURES)
def test_splits_are_disjoint_and_have_the_sizes_asked_for(mixture):
    ids, _, sizes, where = drawn(mixture)
    counts = Counter(where.values())
    assert tuple(counts[split] for split in SPLITS) == sizes
    assert where.keys() <= set(ids)


@pytest.mark.parametrize("mixture", MIXTURES)
def test_every_stratum_is_split_in_proportion(mixture):
    """Within two prompts of strict proportion, in every split."""
    ids, names, sizes, where = drawn(mixture)
    counts = Counter((stratum, where.get(id)) for id, stratum in zip(ids, names, strict=True))
    totals = Counter(names)
    for stratum in totals:
        for split, size in zip(SPLITS, sizes, strict=True):
            assert abs(counts[stratum, split] - totals[stratum] * size / len(ids)) <= 2, (stratum, split)


@pytest.mark.parametrize("mixture", MIXTURES)
def test_a_split_is_the_same_whatever_the_order_of_the_file(mixture):
    ids, names, sizes, where = drawn(mixture)
    pairs = list(zip(ids, names, strict=True))
    random.Random(5).shuffle(pairs)
    assert [id for id, _ in pairs] != ids
    assert stratified_split(*map(list, zip(*pairs, strict=True)), sizes) == where


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_a_split_is_the_same_in_every_process(hash_seed):
    code = (
        "from safetylib.study.prompts import stratified_split as split\n"
        "ids = [f'prompt-{n}' for n in range(30)]\n"
        "print(sorted(split(ids, [id[-1] for id in ids], (12, 6, 9)).items()))"
    )
    ids = [f"prompt-{n}" for n in range(30)]
    here = sorted(stratified_split(ids, [id[-1] for id in ids], (12, 6, 9)).items())
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == repr(here)


def test_a_split_larger_than_the_source_is_refused():
    with pytest.raises(ValueError, match="asks for 4 prompts, but there are 3"):
        stratified_split(["a", "b", "c"], ["x"] * 3, (2, 1, 1))


@pytest.mark.parametrize("count", [1, 8, 16, 40])
def test_a_sample_holds_every_category_in_proportion_and_stands_in_the_groups_order(count):
    group = [prompts.Prompt(f"p{n:02}", "", "harmful", "abcde"[n // 8], "test") for n in range(40)]
    sample = prompts.stratified_sample(group, count)
    assert len(sample) == count and [one for one in group if one in sample] == sample
    shares = Counter(one.category for one in sample)
    assert all(abs(shares[category] - count / 5) <= 1 for category in "abcde")
    assert prompts.stratified_sample(group[::-1], count) == sample[::-1]


def test_a_group_smaller_than_the_sample_is_taken_whole():
    group = [prompts.Prompt(f"p{n}", "", "harmful", "a", "test") for n in range(3)]
    assert prompts.stratified_sample(group, 16) == group


# --- what was written for this project --------------------------------------------------------------------------------


def test_benign_prompts_are_many_enough():
    counts = Counter((prompt.kind, prompt.split) for prompt in prompts.benign())
    assert sum(counts.values()) >= 500
    assert {kind for kind, _ in counts} == {"plain", "borderline"}
    assert {split for _, split in counts} == set(SPLITS)
    assert counts["plain", "test"] >= 150
    assert counts["borderline", "test"] >= 100


def test_no_benign_prompt_stands_in_two_splits_or_twice():
    benign = prompts.benign()
    plain_text = ["".join(filter(str.isalnum, prompt.text.casefold())) for prompt in benign]
    assert [text for text, count in Counter(plain_text).items() if count > 1] == []
    assert [id for id, count in Counter(prompt.id for prompt in benign).items() if count > 1] == []


def test_refusal_wordings_are_many_and_new_ones_validate():
    train, validation = prompts.refusals("train"), prompts.refusals("validation")
    assert len(train) >= 24 and len(validation) >= 10
    assert not set(train) & set(validation)
    openings = [{" ".join(text.casefold().split()[:4]) for text in split} for split in (train, validation)]
    assert not openings[0] & openings[1]


def test_neutral_prompts_stand_in_for_harmful_ones():
    made = prompts.neutral((8, 4, 6))
    assert Counter(prompt.split for prompt in made) == {"train": 8, "validation": 4, "test": 6}
    assert len({prompt.text for prompt in made}) == 18
