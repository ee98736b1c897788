"""Run every benchmark, store the ratios, and write the page's table.

python -m benchmarks                      # all of them: some twenty minutes on two idle cores
python -m benchmarks chains judge         # some; the others' rows stay as they are stored
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import pandas as pd
from matplotlib.ticker import EngFormatter

from benchmarks.timing import Comparison
from safetylib.study.store import provenance

ROOT = Path(__file__).resolve().parents[1]
STORED = ROOT / "results" / "benchmarks.csv"
PAGE = ROOT / "book" / "speed-table.md"
_NO_BREAK = "\u00a0"

COLUMNS = (
    *("benchmark", "function", "work", "peer", "peer_seconds", "our_seconds"),
    *("ratio", "lowest", "highest", "target", "date", "machine"),
)

# Benchmark -> functions of its module, and the ratio that the project set itself, if it did.
BENCHMARKS: dict[str, dict[str, float | None]] = {
    "loading": {"first": 3.0, "later": 30.0},
    "training_step": {"main": 2.5, "sft": 2.5},
    "generation": {"batch": 1.5, "five_adapters": 3.0},
    "depth_curve": {"deep": 8.0, "shallow": 5.0, "whole": 8.0},
    "judge": {"main": 6.0, "first_token": None},
    "chains": {"absorption": 30.0, "closed_form": 300.0, "long_closed_form": 300.0},
}


def measure(name: str) -> pd.DataFrame:
    """Rows of a benchmark, one a function; a peer that is not installed has none."""
    rows, where, module = [], provenance(), import_module(f"benchmarks.{name}")
    for function, target in BENCHMARKS[name].items():
        found: Comparison | None = getattr(module, function)()
        if found is not None:
            rows.append(
                {
                    "benchmark": name,
                    "function": function,
                    "work": found.work,
                    "peer": found.peer,
                    "peer_seconds": float(f"{found.peer_seconds:.3g}"),
                    "our_seconds": float(f"{found.our_seconds:.3g}"),
                    "ratio": float(f"{found.ratio:.3g}"),
                    "lowest": float(f"{found.spread[0]:.3g}"),
                    "highest": float(f"{found.spread[1]:.3g}"),
                    "target": target,
                    "date": where["date"],
                    "machine": where["machine"],
                }
            )
    return pd.DataFrame(rows, columns=COLUMNS)


def table(rows: pd.DataFrame) -> str:
    """The stored rows as a Markdown table, with a line on where they come from."""
    seconds = EngFormatter("s", sep=_NO_BREAK)
    lines = [
        "| work | peer | ratio | aim | from run to run | its time | our time |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row.work} | {row.peer} | {row.ratio:g} | {row.aim} | {row.lowest:g}{_NO_BREAK}to{_NO_BREAK}{row.highest:g} | "
        f"{seconds(row.peer_seconds)} | {seconds(row.our_seconds)} |"
        for row in rows.assign(aim=[f"{aim:g}" if pd.notna(aim) else "" for aim in rows["target"]]).itertuples()
    ]
    places = sorted({f"{row.date}, {row.machine}" for row in rows.itertuples()})
    return "\n".join([*lines, "", f"Measured {'; '.join(places)}. Medians; peer and ours in turn.", ""])


def main(names: list[str]) -> None:
    """Measure, and store each benchmark with the page's table as soon as it is done.

    Raises
    ------
    ValueError
        Unknown name, before anything is measured.
    """
    names = names or list(BENCHMARKS)
    if unknown := [name for name in names if name not in BENCHMARKS]:
        raise ValueError(f"unknown benchmark {unknown[0]!r}; known: {', '.join(BENCHMARKS)}")
    order = [(name, function) for name, functions in BENCHMARKS.items() for function in functions]
    for name in names:
        rows = measure(name)
        if STORED.is_file():  # a benchmark whose peer is missing today keeps its row
            rows = pd.concat([rows, pd.read_csv(STORED)]) if len(rows) else pd.read_csv(STORED)
        rows = rows.drop_duplicates(["benchmark", "function"]).set_index(["benchmark", "function"])
        rows = rows.loc[[key for key in order if key in rows.index]].reset_index()
        rows.to_csv(STORED, index=False)
        PAGE.write_text(table(rows), encoding="utf-8")
        print(f"{STORED.relative_to(ROOT)} and {PAGE.relative_to(ROOT)} hold {len(rows)} rows.")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ValueError as error:
        sys.exit(f"benchmarks: {error}")
