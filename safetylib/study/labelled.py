"""Labelled texts: what judges are compared on.

Two sets of texts that somebody has read:

``xstest``   completions of XSTest's prompts by two models, with people's labels (Röttger et al. 2024). They are not part
             of this repository: ``SAFETYLIB_XSTEST`` names the folder with upstream's files.
``study``    responses of this study's own models, a sample stratified by arm and depth, labelled by a language model
             that read them without knowing either. Ids, digests and labels are stored, texts never: a label finds its text
             by digest in the finished units of whoever has measured the study.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from safetylib.study import assets, prompts, results
from safetylib.study.presets import Preset, preset
from safetylib.study.store import StoreError

PLAN: Preset = preset("cpu")
FOLDER = results.ROOT / PLAN.name / "judging"
LABELS = ("refusal", "answer", "partial", "unclear")
PER_CELL = 3
SAMPLE_SEED = 8
SAMPLED_SEEDS = (0, 1, 2)
XSTEST_PROMPTS = 60  # whose completions the language-model judges read; detectors read all
XSTEST_FOLDER = "SAFETYLIB_XSTEST"
XSTEST_FILES = {
    "mistralinstruct": "6a146b65a5b96ec8249729bc2db459697175125998d7cbbcc88f7688ecf31dad",
    "mistralguard": "0ac03817b65e019a8f5b4b3eed805086f9f7fafe538ac9ebd156f80210af6903",
}


@dataclass(frozen=True, order=True)
class Item:
    """One response of the study: which model gave it, after how many harmful tokens, to which prompt."""

    arm: str
    depth: int
    seed: int
    prompt: str


def sample(responses: Iterable[Item], per_cell: int = PER_CELL, seed: int = SAMPLE_SEED) -> list[Item]:
    """A sample stratified by arm and depth, in random order.

    In every (arm, depth), seeds take turns and no prompt comes twice.

    Parameters
    ----------
    responses
        All responses to choose from.
    per_cell
        Responses for every (arm, depth).
    seed
        Of the generator that draws and shuffles.

    Raises
    ------
    ValueError
        Some (arm, depth) has too few prompts.
    """
    generator = np.random.default_rng(seed)
    cells: dict[tuple[str, int], dict[int, list[str]]] = {}
    for item in sorted(responses):
        cells.setdefault((item.arm, item.depth), {}).setdefault(item.seed, []).append(item.prompt)
    chosen: list[Item] = []
    for (arm, depth), by_seed in cells.items():
        seeds, used = sorted(by_seed), set()
        for turn in range(per_cell):
            member = seeds[turn % len(seeds)]
            left = [prompt for prompt in by_seed[member] if prompt not in used]
            if not left:
                raise ValueError(f"arm {arm}, depth {depth} has fewer than {per_cell} prompts to sample")
            prompt = left[generator.integers(len(left))]
            used.add(prompt)
            chosen.append(Item(arm, depth, member, prompt))
    return [chosen[place] for place in generator.permutation(len(chosen))]


def sha256(text: str) -> str:
    """Digest by which a stored label finds its text again."""
    return hashlib.sha256(text.encode()).hexdigest()


def reading_sheet(items: list[Item], tokens: dict[Item, list[int]], decode: Callable, window: int) -> tuple[str, str]:
    """What a reader gets: the windows of all items, and apart from them the rest of the items that go on.

    Only refusals (in the detector's eyes) were generated beyond the window, so how long a text is would tell the reader
    the detector's verdict: windows are labelled first, the rest is read when that is done. One line an item, numbered.
    """
    windows = [decode(tokens[item][:window]) for item in items]
    wholes = [decode(tokens[item]) for item in items]
    lines = [f"{place:03d} {text!r}" for place, text in enumerate(windows)]
    rest = [
        f"{place:03d} {text!r}"
        for place, (item, text) in enumerate(zip(items, wholes, strict=True))
        if len(tokens[item]) > window
    ]
    return "\n".join(lines) + "\n", "\n".join(rest) + "\n"


@dataclass(frozen=True)
class Text:
    """A response that judges are asked about.

    Parameters
    ----------
    item
        Identifier within its set.
    request, response
        What was asked, and the whole response.
    harmful
        Whether the request is a harmful one (else StrongREJECT's rubric does not apply).
    window
        The part of the response in which the study looks for a refusal.
    joined
        The harmful prefix and the window, as one text.
    """

    item: str
    request: str
    response: str
    harmful: bool
    window: str = ""
    joined: str = ""


def xstest(folder: Path | None = None) -> pd.DataFrame | None:
    """People's labels of XSTest's completions: item, prompt, request, response, harmful, first, second, label.

    ``first`` and ``second`` are the two annotators' labels, ``label`` the final one. None where the files are absent.

    Parameters
    ----------
    folder
        By default the one that ``SAFETYLIB_XSTEST`` names, if any.

    Raises
    ------
    AssetError
        A file is not the one that was pinned.
    """
    folder = folder or (Path(os.environ[XSTEST_FOLDER]) if os.environ.get(XSTEST_FOLDER) else None)
    if folder is None:
        return None
    tables = []
    for model, pinned in XSTEST_FILES.items():
        path = folder / f"xstest_v2_completions_{model}.csv"
        if not path.is_file():
            return None
        if assets.sha256(path) != pinned:
            raise assets.AssetError(
                f"{path.name} is not the pinned file. Get it from paul-rottger/exaggerated-safety, folder model_completions, "
                "at the commit that the references name."
            )
        table = pd.read_csv(path)
        classes = table[["annotation_1", "annotation_2", "final_label"]].map(lambda name: name[2:].replace("_", " "))
        table[["first", "second", "label"]] = classes
        table["item"] = f"{model}/" + table["id"]
        table["harmful"] = table["type"].str.startswith("contrast_")
        tables.append(table.rename(columns={"id": "prompt", "prompt": "request", "completion": "response"}))
    columns = ["item", "prompt", "request", "response", "harmful", "first", "second", "label"]
    return pd.concat(tables, ignore_index=True)[columns]


def judged_subset(table: pd.DataFrame, count: int = XSTEST_PROMPTS, seed: int = SAMPLE_SEED) -> pd.DataFrame:
    """The completions of ``count`` XSTest prompts, half of them safe and half unsafe, drawn with a seed."""
    names = table.drop_duplicates("prompt").sort_values("prompt")
    generator = np.random.default_rng(seed)
    halves = [
        generator.permutation(names.loc[names["harmful"] == flag, "prompt"])[: count // 2] for flag in (False, True)
    ]
    order = [prompt for pair in zip(*halves, strict=True) for prompt in pair]
    return table[table["prompt"].isin(order)].sort_values("prompt", key=lambda column: column.map(order.index))


def labels(folder: Path) -> pd.DataFrame:
    """The stored labels of the study's sample, with ``item`` and ``prompt`` columns."""
    table = pd.read_csv(folder / "labels.csv", keep_default_na=False)
    item = table["arm"] + "/" + table["depth"].astype(str) + "/" + table["seed"].astype(str) + "/" + table["prompt"]
    return table.assign(item=item)


@dataclass(frozen=True)
class Found:
    """What a finished study holds of the labelled responses, found by their digests.

    Parameters
    ----------
    texts
        The labelled texts, in the labels' order.
    files
        (arm, seed) to the responses of that model, all of them.
    trunks
        Prompt to the token ids of the untuned model's answer, whose beginnings are the prefixes.
    """

    texts: list[Text]
    files: dict[tuple[str, int], Path]
    trunks: dict[str, list[int]]


def find(table: pd.DataFrame, runs: Path, decode: Callable, within: int) -> Found:
    """Find labelled responses in the finished units of a study.

    Parameters
    ----------
    table
        Labels, as from :func:`labels`.
    runs
        The folder that the study was measured into.
    decode
        Token ids to text.
    within
        Tokens of the window.

    Raises
    ------
    StoreError
        Some text is not there.
    """
    request = {prompt.id: prompt.text for prompt in prompts.harmful(PLAN.prompts, PLAN.split)}
    trunks, texts, files = _trunks(table, runs, decode), {}, {}
    for (arm, seed), rows in table.groupby(["arm", "seed"]):
        wanted = {(row.prompt, row.depth): row for row in rows.itertuples()}
        for file in sorted(runs.glob(f"generate-{arm}-{seed}-*/responses.json")):
            found = {}
            for response in tested(file):
                label = wanted.get((response["prompt"], response["depth"]))
                if label is not None and sha256(decode(response["tokens"])) == label.sha256:
                    seen = response["tokens"][:within]
                    joined = decode(trunks[label.prompt][: label.depth] + seen)
                    whole = decode(response["tokens"])
                    found[label.item] = Text(label.item, request[label.prompt], whole, True, decode(seen), joined)
            if len(found) == len(wanted):
                texts, files[arm, seed] = texts | found, file
                break
    if missing := [item for item in table["item"] if item not in texts]:
        raise StoreError(
            f"{len(missing)} of {len(table)} labelled texts are not in {runs} (the first: {missing[0]}). {_AGAIN}"
        )
    return Found([texts[item] for item in table["item"]], files, trunks)


_AGAIN = "Measure the study with `make reproduce`; if its responses have changed, they must be read and labelled again."


def tested(file: Path) -> list[dict]:
    """The responses to harmful test prompts in a finished unit."""
    rows = json.loads(file.read_text())
    return [row for row in rows if (row["kind"], row["split"]) == ("harmful", "test")]


def _trunks(table: pd.DataFrame, runs: Path, decode: Callable) -> dict[str, list[int]]:
    for file in sorted(runs.glob("answers-*/answers.json")):
        trunks = {prompt: answer["tokens"] for prompt, answer in json.loads(file.read_text()).items()}
        if all(
            sha256(decode(trunks.get(row.prompt, [])[: row.depth])) == row.prefix_sha256 for row in table.itertuples()
        ):
            return trunks
    raise StoreError(f"no answers of the untuned model in {runs} begin with the labelled prefixes. {_AGAIN}")


def decoder() -> Callable[[list[int]], str]:
    """Token ids to text, without loading torch."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(assets.embedded_model() / "tokenizer.json"))
    return lambda tokens: tokenizer.decode(tokens, skip_special_tokens=True)
