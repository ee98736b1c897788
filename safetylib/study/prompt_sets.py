"""Where prompts come from, one function a set; each keeps to its set's licence and role.

============  ===========  =========================  ==============================================  ===================
set           licence      prompts                    never loaded                                    role
============  ===========  =========================  ==============================================  ===================
StrongREJECT  MIT          313, of which 261 loaded   category Sexual content, 2 of another category  training and testing
HEx-PHI       own, gated   330 or 300; 270 loaded     categories 2 and 8 (child abuse, adult)         training and testing
HarmBench     MIT          159 standard; 149 loaded   10 of a sexual nature                           testing only
XSTest        CC BY 4.0    450, of which 448 loaded   2 about sexual violence                         testing only
a file        its owner's  whatever it holds          nothing                                         as the file says
============  ===========  =========================  ==============================================  ===================

StrongREJECT itself stands in :mod:`safetylib.study.prompts`, with the parts that all sets share.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd

from safetylib.study import assets
from safetylib.study.assets import AssetError
from safetylib.study.prompts import (
    KINDS,
    SPLITS,
    Prompt,
    benign,
    check_table,
    named,
    neutral,
    read_csv,
    read_table,
    read_text,
    stratified_split,
    strongreject,
)

Split = tuple[int, int, int]
_HARMBENCH_ID = "harmbench-"

# HarmBench's standard test behaviours of a sexual nature, never loaded: found by all 159 ids and a search of words in the texts.
HARMBENCH_NEVER_LOADED = (
    "blackmail_explicit_images_guide",
    "consent_unnecessary_sexual_activity",
    "coworker_sexual_pressure_instructions",
    "explicit_pornographic_story",
    "illegal_brothel_start_guide",
    "kavanaugh_new_evidence",
    "law_enforcement_evasion_sexual_exploitation",
    "pornographic_snuff_film",
    "secretary_explicit_images_coercion",
    "sexual_assault_romanticization_post",
)


def harmbench() -> list[Prompt]:
    """HarmBench's standard test behaviours (Mazeika et al. 2024), for testing only, in the file's order.

    Of the 159, those of a sexual nature are never loaded. None repeats a prompt of StrongREJECT, so all are out of
    distribution for a model tuned there.

    Raises
    ------
    AssetError
        The asset cannot be fetched or verified.
    ValueError
        The file has another layout.
    """
    # Contextual behaviours, left out below, share their texts: it is the id that must not repeat.
    columns = ("FunctionalCategory", "SemanticCategory", "Behavior", "BehaviorID")
    table = read_table(assets.fetch(assets.HARMBENCH), columns)
    table = table[(table["FunctionalCategory"] == "standard") & ~table["BehaviorID"].isin(HARMBENCH_NEVER_LOADED)]
    return [
        Prompt(f"{_HARMBENCH_ID}{row.BehaviorID}", row.Behavior.strip(), "harmful", row.SemanticCategory, "test")
        for row in table.itertuples()
    ]


def _drawn(loaded: list[Prompt], split: Split) -> list[Prompt]:
    """The prompts that a stratified split draws, in their order, with the split written in."""
    where = stratified_split([prompt.id for prompt in loaded], [prompt.category for prompt in loaded], split)
    return [replace(prompt, split=where[prompt.id]) for prompt in loaded if prompt.id in where]


def _harmbench_test(split: Split) -> list[Prompt]:
    if any(split[:2]):
        raise ValueError(
            f"HarmBench is for testing only: the split {tuple(split)} would train or select on it. "
            f"Ask for (0, 0, {split[2] or 149})."
        )
    return _drawn(harmbench(), split)


HEXPHI_CATEGORIES = {
    1: "Illegal Activity",
    3: "Hate/Harass/Violence",
    4: "Malware",
    5: "Physical Harm",
    6: "Economic Harm",
    7: "Fraud/Deception",
    9: "Political Campaigning",
    10: "Privacy Violation Activity",
    11: "Tailored Financial Advice",
}  # without 2 (child abuse content) and 8 (adult content), which are never opened, nor downloaded
_HEXPHI_PER_CATEGORY = 30
_HEXPHI_HEADERS = ("prompt", "prompts", "text", "instruction")  # what a copy's header line may say; no prompt does
_HEXPHI_REPO = "LLM-Tuning-Safety/HEx-PHI"


def hexphi(split: Split, folder: Path | None = None) -> list[Prompt]:
    """HEx-PHI (Qi et al. 2024) from a folder with category_N.csv, or from the Hub, where it is gated.

    Parameters
    ----------
    split
        Prompts for training, validation and test.
    folder
        Where the files lie; by default what ``SAFETYLIB_HEXPHI`` names, and without it the Hub is asked.

    Raises
    ------
    AssetError
        A file is missing, or the licence has not been accepted.
    ValueError
        A file is cut short, has a header line or another number of prompts than 30, or a prompt is empty or repeated.
    """
    names = {number: f"category_{number}.csv" for number in HEXPHI_CATEGORIES}
    chosen = folder or os.environ.get("SAFETYLIB_HEXPHI")
    if chosen:
        root = Path(chosen).expanduser()
    else:
        from safetylib.study import hub  # only this set needs it

        page = f"https://huggingface.co/datasets/{_HEXPHI_REPO}"
        root = hub.snapshot(_HEXPHI_REPO, tuple(names.values()), kind="dataset", page=page)
    missing = [name for name in names.values() if not (root / name).is_file()]
    if missing:
        raise AssetError(
            f"HEx-PHI is not complete in {root}: {', '.join(missing)} missing. Put category_1.csv ... category_11.csv there "
            "(2 and 8 are not needed), or unset SAFETYLIB_HEXPHI to take them from the Hub."
        )
    loaded = []
    for number, name in names.items():
        loaded += _hexphi_category(number, root / name)
    return _drawn(loaded, split)


def revisions(source: str) -> dict[str, str]:
    """The Hub's commit of a set that was downloaded from there, as recorded at the first download; empty for any other."""
    if source != "HEx-PHI" or os.environ.get("SAFETYLIB_HEXPHI"):
        return {}
    from safetylib.study import hub  # only this set needs it

    commit = hub.revisions().get(f"datasets/{_HEXPHI_REPO}")
    return {} if commit is None else {_HEXPHI_REPO: commit}


def _hexphi_category(number: int, path: Path) -> list[Prompt]:
    first, others = read_csv(path)
    records = [(1, first), *others]  # the original has no header: its first row is a prompt
    for line, record in records:
        if len(record) != 1:
            raise ValueError(f"{path.name}: line {line} has {len(record)} cells; HEx-PHI has one prompt a row.")
    if first[0].strip().casefold() in _HEXPHI_HEADERS:
        advice = "Remove that line" if len(others) == _HEXPHI_PER_CATEGORY else "Take the file from the Hub again"
        raise ValueError(
            f"{path.name}: line 1 is a header line ({first[0].strip()}), above {len(others)} prompts; HEx-PHI has none, and "
            f"{_HEXPHI_PER_CATEGORY} prompts a file. {advice}."
        )
    if len(records) != _HEXPHI_PER_CATEGORY:
        raise ValueError(
            f"{path.name} holds {len(records)} prompts instead of {_HEXPHI_PER_CATEGORY}. The file has no header line: a copy "
            "made by a program that expects one has lost or gained a row. Take the file from the Hub again."
        )
    table = pd.DataFrame({"prompt": [record[0] for _, record in records]})
    check_table(table, [line for line, _ in records], ("prompt",), path.name)
    return [
        Prompt(f"hexphi-{number:02d}-{place:02d}", text.strip(), "harmful", HEXPHI_CATEGORIES[number], "")
        for place, text in enumerate(table["prompt"], start=1)
    ]


XSTEST_FILES = {
    "xstest_prompts.csv": "11783fb294ed017473ee53c207d71f2161c7672c8d0b037501e78387f801cb5a",
    "xstest_v2_completions_mistralinstruct.csv": "6a146b65a5b96ec8249729bc2db459697175125998d7cbbcc88f7688ecf31dad",
    "xstest_v2_completions_mistralguard.csv": "0ac03817b65e019a8f5b4b3eed805086f9f7fafe538ac9ebd156f80210af6903",
}
XSTEST_COMMIT = "d7bb5bd738c1fcbc36edd83d5e7d1b71a3e2d84d"
XSTEST_NEVER_LOADED = ("206", "231")  # about sexual violence
XSTEST_LABELS = {
    "1_full_compliance": "full compliance",
    "2_full_refusal": "full refusal",
    "3_partial_refusal": "partial refusal",
}


def _xstest_file(name: str, folder: Path | None) -> Path:
    source = f"github.com/paul-rottger/exaggerated-safety at commit {XSTEST_COMMIT}"
    chosen = folder or os.environ.get("SAFETYLIB_XSTEST")
    if not chosen:
        raise AssetError(
            f"XSTest is not embedded. Take its files from {source}, and name their folder in SAFETYLIB_XSTEST."
        )
    path = Path(chosen).expanduser() / name
    if not path.is_file():
        raise AssetError(f"{name} is not in {path.parent}. Take it from {source}.")
    found = assets.sha256(path)
    if found != XSTEST_FILES[name]:
        raise AssetError(
            f"{path} is not the pinned file: sha256 {found[:16]}... instead of {XSTEST_FILES[name][:16]}.... "
            f"Take it from {source}."
        )
    return path


def xstest(folder: Path | None = None) -> list[Prompt]:
    """XSTest (Röttger et al. 2024), for testing only: safe prompts (kind borderline) and unsafe contrasts (harmful).

    Parameters
    ----------
    folder
        Where the files lie; by default what ``SAFETYLIB_XSTEST`` names.

    Raises
    ------
    AssetError
        No folder, no file, or not the pinned one.
    """
    table = read_table(_xstest_file("xstest_prompts.csv", folder), ("id", "type", "label", "prompt"))
    kind = {"safe": "borderline", "unsafe": "harmful"}
    return [
        Prompt(f"xstest-{row.id}", row.prompt.strip(), kind[row.label], row.type, "test")
        for row in table[~table["id"].isin(XSTEST_NEVER_LOADED)].itertuples()
    ]


def xstest_completions(folder: Path | None = None) -> pd.DataFrame:
    """Completions of XSTest's prompts with people's labels, for checking judges only; the text is a model's, untrusted.

    Returns
    -------
    DataFrame
        ``id`` (as in :func:`xstest`), ``model``, ``type``, ``kind``, ``prompt``, ``completion``, ``annotation_1``,
        ``annotation_2`` and ``label`` (categories full compliance, full refusal, partial refusal), ``agreement`` (bool).

    Raises
    ------
    AssetError
        As :func:`xstest`.
    """
    parts = []
    for model in ("mistralinstruct", "mistralguard"):
        columns = ("type", "prompt", "completion", "annotation_1", "annotation_2", "agreement", "final_label", "id")
        table = read_table(_xstest_file(f"xstest_v2_completions_{model}.csv", folder), columns)
        table["id"] = table["id"].str.removeprefix("v2-")
        parts.append(table[~table["id"].isin(XSTEST_NEVER_LOADED)].assign(model=model))
    table = pd.concat(parts, ignore_index=True).rename(columns={"final_label": "label"})
    label = pd.CategoricalDtype(list(XSTEST_LABELS.values()))
    for column in ("annotation_1", "annotation_2", "label"):
        table[column] = table[column].map(XSTEST_LABELS).astype(label)
    table["agreement"] = table["agreement"] == "TRUE"
    table["kind"] = table["type"].str.startswith("contrast_").map({True: "harmful", False: "borderline"})
    table["id"] = "xstest-" + table["id"]
    return table[
        ["id", "model", "type", "kind", "prompt", "completion", "annotation_1", "annotation_2", "label", "agreement"]
    ]


OWN_SUFFIXES = (".csv", ".jsonl")
_OWN_COLUMNS = ("id", "prompt", "category", "kind", "split")


def own(path: Path, split: Split) -> list[Prompt]:
    """A user's prompts from a CSV file with a header line, or from a file with one JSON object a line.

    The column ``prompt`` must be there; ``id``, ``category``, ``kind`` (harmful, plain, borderline; by default harmful) and
    ``split`` (train, validation, test) may be. Other columns are not looked at. Without ids, a prompt is named by the digest
    of its text; no id may be one of the project's own prompts. Harmful prompts are drawn as ``split`` says: from the whole
    file, or, where the file says which prompt stands in which split, from that split. Benign ones (plain, borderline) are
    taken as they are and must name their split; then harmful ones must, too.

    Raises
    ------
    ValueError
        No such file, no such column or two of them, empty or repeated prompts or ids, ids of the project's own prompts,
        unknown kinds and splits, damaged lines, too few prompts: each with the file and, where there is one, the line.
    """
    if not path.is_file():
        raise ValueError(f"there is no file {path} with prompts; the path is taken from the folder you stand in")
    table, lines = _own_table(path)
    check_table(table, lines, ("prompt",), path.name)
    texts = table["prompt"].str.strip()
    if "id" not in table:
        table["id"] = ["own-" + hashlib.sha256(text.encode()).hexdigest()[:12] for text in texts]
    for column, default in (("category", "own"), ("kind", "harmful"), ("split", "")):
        if column not in table:
            table[column] = default
        elif column != "split" or (table[column].str.strip() != "").any():
            check_table(table, lines, (column, "id"), path.name)
    check_table(table, lines, ("id",), path.name)
    taken = {prompt.id for prompt in benign()}
    for line, id in zip(lines, table["id"].str.strip(), strict=True):
        if id.casefold() in taken or id.casefold().startswith(_HARMBENCH_ID):
            raise ValueError(
                f"{path.name}: line {line} has the id {id}, kept for the project's own prompts. Choose another."
            )
    for column, known in (("kind", KINDS), ("split", (*SPLITS, ""))):
        for line, value in zip(lines, table[column], strict=True):
            if value.strip() not in known:
                raise ValueError(
                    f"{path.name}: line {line} has {column} {value!r}; known: {', '.join(filter(None, known))}."
                )
    loaded = [
        Prompt(row.id.strip(), text, row.kind.strip(), row.category.strip(), row.split.strip())
        for row, text in zip(table.itertuples(), texts, strict=True)
    ]
    stray = [prompt.kind != "harmful" and not prompt.split for prompt in loaded]
    if any(stray):
        raise ValueError(
            f"{path.name}: {named(lines, stray)} {'is' if sum(stray) == 1 else 'are'} plain or borderline, without a split. "
            f"The file needs a column split that says, in every row, harmful ones too, one of {', '.join(SPLITS)}."
        )
    harmful = [prompt for prompt in loaded if prompt.kind == "harmful"]
    if not any(prompt.split for prompt in harmful):
        if sum(split) > len(harmful):
            sizes = ", ".join(f"{size} for {name}" for name, size in zip(SPLITS, split, strict=True))
            raise ValueError(
                f"{path.name} holds {len(harmful)} harmful prompts, but {sum(split)} are asked for ({sizes}). "
                "Add prompts, or ask for fewer."
            )
        return _drawn(harmful, split) + [prompt for prompt in loaded if prompt.kind != "harmful"]
    drawn: set[str] = set()
    for name, size in zip(SPLITS, split, strict=True):
        standing = [prompt for prompt in harmful if prompt.split == name]
        if size > len(standing):
            raise ValueError(
                f"{path.name} holds {len(standing)} harmful prompts with the split {name}, but {size} are asked for. "
                "Add prompts, or ask for fewer."
            )
        sizes = tuple(size if each == name else 0 for each in SPLITS)
        drawn |= {prompt.id for prompt in _drawn(standing, sizes)}
    return [prompt for prompt in loaded if prompt.id in drawn or prompt.kind != "harmful"]


def _own_table(path: Path) -> tuple[pd.DataFrame, list[int]]:
    if path.suffix.lower() == ".csv":
        # Read whole for its checks of the cells, and once more for the lines.
        table = read_table(path, ())
        if twice := [column for column in _OWN_COLUMNS if list(table.columns).count(column) > 1]:
            raise ValueError(
                f"{path.name}: the header line names {', '.join(twice)} more than once. Keep one such column, rename the others."
            )
        return table, [line for line, _ in read_csv(path)[1]]
    records, lines = [], []
    for number, line in enumerate(io.StringIO(read_text(path), newline=None), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path.name}: line {number} is damaged or cut short ({error}).") from error
        if not isinstance(record, dict):
            raise ValueError(f'{path.name}: line {number} is no JSON object such as {{"prompt": "..."}}.')
        for column in _OWN_COLUMNS:
            value = record.get(column, "")
            if not isinstance(value, str):
                raise ValueError(f"{path.name}: line {number} has a {column} that is no text.")
            if half := re.search("[\ud800-\udfff]", value):
                raise ValueError(
                    f"{path.name}: the {column} in line {number} holds {ascii(half[0])[1:-1]}, half of a character. Remove it, or "
                    "write the whole character."
                )
        records.append(record)
        lines.append(number)
    if not records:
        raise ValueError(f"{path.name} is empty.")
    return pd.DataFrame(records).fillna(""), lines


SOURCES: dict[str, Callable[[Split], list[Prompt]]] = {
    "StrongREJECT": strongreject,
    "HEx-PHI": hexphi,
    "HarmBench": _harmbench_test,
    "neutral": neutral,
}
