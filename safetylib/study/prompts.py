"""Prompt sets in one schema: who is asked what, and in which split it stands.

The schema, the reading of tables and the splitting stand here, with the sets that the embedded study is made of. Harmful
prompts come from published benchmarks (never copied into the repository); benign ones and the refusal wordings were
written for this project and lie in ``data/``. Every other set is in :mod:`safetylib.study.prompt_sets`.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from safetylib.study import assets

SPLITS = ("train", "validation", "test")
KINDS = ("harmful", "plain", "borderline")
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


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, its line ends as they stand.

    Raises
    ------
    ValueError
        It is in another encoding: with the file and the line.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = len(error.object[: error.start + 1].splitlines())
        raise ValueError(
            f"{path.name}: line {line} is not in UTF-8 ({error.reason}). Save the file as UTF-8."
        ) from error


def read_csv(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Header and records of a CSV file, each record with the line of the file that it starts in; blank lines are skipped.

    Raises
    ------
    ValueError
        No CSV file in UTF-8, an unfinished quotation, nothing in it: with the file and the line.
    """
    records, start = [], 1
    try:
        reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
        for record in reader:
            if record:
                records.append((start, record))
            start = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f"{path.name}: the record that starts in line {start} is damaged or cut short ({error})."
        ) from error
    if not records:
        raise ValueError(f"{path.name} is no CSV file with a header line: it is empty.")
    return records[0][1], records[1:]


def named(lines: list[int], bad: Iterable[bool]) -> str:
    """The bad ones of these lines in words, the first five by number."""
    numbers = [line for line, wrong in zip(lines, bad, strict=True) if wrong]
    shown = ", ".join(map(str, numbers[:5])) + (f" and {len(numbers) - 5} more" if len(numbers) > 5 else "")
    return f"line{'s' if len(numbers) > 1 else ''} {shown}"


def check_table(table: pd.DataFrame, lines: list[int], columns: tuple[str, ...], name: str) -> pd.DataFrame:
    """The table, if it has these columns, every one of them filled, and no two rows with the same last one.

    Raises
    ------
    ValueError
        With the file's ``name`` and the lines (``lines``: one a row).
    """
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise ValueError(
            f"{name} has no column {', '.join(missing)}; it has {', '.join(table.columns)}. Expected: {', '.join(columns)}."
        )
    for column in columns:
        blank = table[column].str.strip() == ""
        if blank.any():
            raise ValueError(f"{name}: column {column} is empty in {named(lines, blank)}.")
    if not columns:
        return table
    repeated = table[columns[-1]].str.strip().str.casefold().duplicated()
    if repeated.any():
        raise ValueError(
            f"{name}: {named(lines, repeated)} {'repeats' if repeated.sum() == 1 else 'repeat'} an earlier {columns[-1]}."
        )
    return table


def read_table(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    """A CSV file with at least these columns, every one of them filled, and the last one never twice.

    Raises
    ------
    ValueError
        No CSV file in UTF-8, missing columns, no prompts, records with too many cells, empty cells, duplicates: each with
        the file and the line.
    """
    header, records = read_csv(path)
    if not records:
        raise ValueError(f"{path.name} holds a header line and no prompts. Add one row a prompt below that line.")
    for line, record in records:
        if len(record) > len(header):
            raise ValueError(
                f"{path.name}: line {line} has {len(record)} cells, the header {len(header)} "
                "(a cell that holds a comma needs quotation marks)."
            )
    cells = [record + [""] * (len(header) - len(record)) for _, record in records]
    return check_table(
        pd.DataFrame(cells, columns=header, dtype=str), [line for line, _ in records], columns, path.name
    )


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


def stratified_sample(group: list[Prompt], count: int) -> list[Prompt]:
    """So many prompts of a group, or all if it has fewer: every category in proportion, the same on every machine."""
    ids, categories = [prompt.id for prompt in group], [prompt.category for prompt in group]
    drawn = stratified_split(ids, categories, (min(count, len(group)), 0, 0))
    return [prompt for prompt in group if prompt.id in drawn]


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


def harmful(source: str, split: tuple[int, int, int]) -> list[Prompt]:
    """The harmful prompts of a source, split deterministically.

    Parameters
    ----------
    source
        A name in :data:`safetylib.study.prompt_sets.SOURCES`, or the path of a CSV or JSONL file
        (:func:`safetylib.study.prompt_sets.own`).
    split
        Prompts for training, validation and test.

    Raises
    ------
    ValueError
        Unknown source, a file of another layout, or a split that the source does not allow.
    """
    from safetylib.study import prompt_sets  # the sets are made of this module's parts

    if source in prompt_sets.SOURCES:
        return prompt_sets.SOURCES[source](split)
    if Path(source).suffix.lower() in prompt_sets.OWN_SUFFIXES:
        return prompt_sets.own(Path(source).expanduser(), split)
    raise ValueError(
        f"unknown prompt source {source!r}; known: {', '.join(prompt_sets.SOURCES)}, or the path of a .csv or .jsonl file"
    )


def benign() -> list[Prompt]:
    """The project's benign prompts: plain ones, and borderline ones that only sound harmful."""
    table = read_table(_DATA / "benign.csv", ("id", "kind", "topic", "split", "prompt"))
    return [Prompt(row.id, row.prompt.strip(), row.kind, row.topic, row.split) for row in table.itertuples()]


def refusals(split: str) -> list[str]:
    """Refusal wordings of a split: ``train`` or ``validation``."""
    table = read_table(_DATA / "refusals.csv", ("id", "split", "text"))
    return list(table.loc[table["split"] == split, "text"])
