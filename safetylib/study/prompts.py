"""Prompt sets in one schema: who is asked what, and in which split it stands.

Harmful prompts come from published benchmarks (never copied into the repository); benign ones and the refusal wordings
were written for this project and lie in ``data/``.
"""

from __future__ import annotations

import csv
import hashlib
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from safetylib.study import assets

SPLITS = ("train", "validation", "test")
_DATA = Path(__file__).parent / "data"

# Prompts of a sexual nature are never loaded: StrongREJECT's category, and two records filed under another one.
_NEVER_LOADED_CATEGORIES = ("Sexual content",)
_NEVER_LOADED_IDS = ("strongreject-056", "strongreject-057")


@dataclass(frozen=True)
class Prompt:
    """A prompt: ``kind`` is harmful, plain or borderline; ``split`` is train, validation or test."""

    id: str
    text: str
    kind: str
    category: str
    split: str


def read_table(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    """A CSV file with at least these columns, every one of them filled, no prompt twice.

    Raises
    ------
    ValueError
        No CSV file in UTF-8, missing columns, records with too many cells, empty cells, duplicates: each with the file and
        the record.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header, *records = [record for record in csv.reader(file, strict=True) if record]
    except (UnicodeDecodeError, csv.Error, ValueError) as error:
        reason = "it is empty" if type(error) is ValueError else str(error)
        raise ValueError(f"{path.name} is no CSV file in UTF-8 with a header line ({reason}).") from error
    for number, record in enumerate(records, start=1):
        if len(record) > len(header):
            raise ValueError(
                f"{path.name}: record {number} has {len(record)} cells, the header {len(header)} "
                "(a cell that holds a comma needs quotation marks)."
            )
    table = pd.DataFrame([record + [""] * (len(header) - len(record)) for record in records], columns=header, dtype=str)
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise ValueError(
            f"{path.name} has no column {', '.join(missing)}; it has {', '.join(table.columns)}. "
            f"Expected: {', '.join(columns)}."
        )
    for column in columns:
        blank = table.index[table[column].str.strip() == ""]
        if len(blank):
            raise ValueError(
                f"{path.name}: column {column} is empty in record {blank[0] + 1} (the header not counted)."
            )
    text = table[columns[-1]].str.strip().str.casefold()
    if text.duplicated().any():
        first = text.index[text.duplicated()][0]
        raise ValueError(f"{path.name}: record {first + 1} repeats an earlier {columns[-1]}.")
    return table


def stratified_split(ids: list[str], strata: list[str], sizes: tuple[int, int, int]) -> dict[str, str]:
    """Assign ids to train, validation and test, each stratum in proportion; the same on every machine.

    Systematic sampling: prompts stand stratum by stratum, within a stratum in the order of their ids' digests, and every
    prompt goes to the split (or to none) that is furthest behind its share so far. A stratum is a contiguous stretch of
    that order, so its shares are right to within two prompts.

    Raises
    ------
    ValueError
        The split asks for more prompts than there are, or for a negative number of them.
    """
    if min(sizes) < 0 or sum(sizes) > len(ids):
        raise ValueError(f"the split {sizes} asks for {sum(sizes)} prompts, but there are {len(ids)}")

    def place(pair: tuple[str, str]) -> tuple[str, str]:
        id, stratum = pair
        return stratum, hashlib.sha256(id.encode()).hexdigest()

    order = [id for id, _ in sorted(zip(ids, strata, strict=True), key=place)]
    quota: dict[str | None, int] = {**dict(zip(SPLITS, sizes, strict=True)), None: len(ids) - sum(sizes)}
    given = dict.fromkeys(quota, 0)
    assignment = {}
    for position, id in enumerate(order, start=1):
        name = max(quota, key=lambda split: quota[split] * position / len(ids) - given[split])
        given[name] += 1
        if name is not None:
            assignment[id] = name
    return assignment


def strongreject(split: tuple[int, int, int]) -> list[Prompt]:
    """StrongREJECT's forbidden prompts (Souly et al. 2024) without those of a sexual nature, which are never loaded."""
    columns = ("category", "source", "forbidden_prompt")
    table = read_table(assets.fetch(assets.STRONGREJECT), columns)
    table["id"] = [f"strongreject-{row + 1:03d}" for row in table.index]
    table = table[~(table["category"].isin(_NEVER_LOADED_CATEGORIES) | table["id"].isin(_NEVER_LOADED_IDS))]
    where = stratified_split(list(table["id"]), list(table["category"]), split)
    return [
        Prompt(row.id, row.forbidden_prompt.strip(), "harmful", row.category, where[row.id])
        for row in table.itertuples()
        if row.id in where
    ]


def neutral(split: tuple[int, int, int]) -> list[Prompt]:
    """Neutral sentences that stand in for harmful prompts in tests; no result may rest on them."""
    ids = [f"neutral-{number:03d}" for number in range(1, sum(split) + 1)]
    where = stratified_split(ids, ["neutral"] * len(ids), split)
    return [
        Prompt(id, f"Describe the red box with the number {id[-3:]}.", "harmful", "neutral", where[id]) for id in ids
    ]


SOURCES = {"StrongREJECT": strongreject, "neutral": neutral}


def harmful(source: str, split: tuple[int, int, int]) -> list[Prompt]:
    """The harmful prompts of a source, split deterministically.

    Raises
    ------
    ValueError
        Unknown source, or a split larger than the source.
    """
    if source not in SOURCES:
        raise ValueError(f"unknown prompt source {source!r}; known: {', '.join(SOURCES)}")
    return SOURCES[source](split)


def benign() -> list[Prompt]:
    """The project's benign prompts: plain ones, and borderline ones that only sound harmful."""
    table = read_table(_DATA / "benign.csv", ("id", "kind", "topic", "split", "prompt"))
    return [Prompt(row.id, row.prompt.strip(), row.kind, row.topic, row.split) for row in table.itertuples()]


def refusals(split: str) -> list[str]:
    """Refusal wordings of a split: ``train`` or ``validation``."""
    table = read_table(_DATA / "refusals.csv", ("id", "split", "text"))
    return list(table.loc[table["split"] == split, "text"])
