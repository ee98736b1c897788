"""Prompt sets in one schema: who is asked what, and in which split it stands.

Harmful prompts come from published benchmarks (never copied into the repository); benign ones and the refusal wordings
were written for this project and lie in ``data/``.
"""

from __future__ import annotations

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
        Missing columns, empty cells, duplicates: each with the file and the line.
    """
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
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

    Within a stratum prompts are ordered by the digest of their id; strata are then interleaved, so that every prefix of
    the order is nearly proportional.
    """
    if sum(sizes) > len(ids):
        raise ValueError(f"the split {sizes} asks for {sum(sizes)} prompts, but there are {len(ids)}")

    def digest(id: str) -> str:
        return hashlib.sha256(id.encode()).hexdigest()

    members: dict[str, list[str]] = {}
    for id, stratum in sorted(zip(ids, strata, strict=True), key=lambda pair: digest(pair[0])):
        members.setdefault(stratum, []).append(id)
    rank = {id: (place + 0.5) / len(group) for group in members.values() for place, id in enumerate(group)}
    order = sorted(ids, key=lambda id: (rank[id], digest(id)))
    names = [name for name, size in zip(SPLITS, sizes, strict=True) for _ in range(size)]
    # Spread the splits evenly over the interleaved order, largest remainder first.
    quota = dict(zip(SPLITS, sizes, strict=True))
    given = dict.fromkeys(SPLITS, 0)
    assignment = {}
    for place, id in enumerate(order[: len(names)], start=1):
        name = max(SPLITS, key=lambda split: quota[split] * place / len(names) - given[split])
        given[name] += 1
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
