"""Stored tables made by hand, for tests of what reads them."""

import json

import pandas as pd

from safetylib.study.results import Results


def made(folder, rows, *, seeds=(0, 1, 2), depths=(0,), judged=(0,), headline=(), **plan):
    """Results with these rows; what a row leaves out is filled in, plain values first."""
    folder.mkdir(parents=True, exist_ok=True)
    blank = {
        "arm": "cyclic",
        "seed": 0,
        "step": 1,
        "split": "test",
        "kind": "harmful",
        "prompt": "p0",
        "depth": 0,
        "refused": False,
        "refused_independent": False,
        "complied_after": False,
        "tokens": 4,
        "safety": None,
        "unscored": None,
    }
    table = pd.DataFrame([{**blank, **row} for row in rows])
    table.to_csv(folder / "outcomes.csv.gz", index=False)
    measurement = {"depths": list(depths), "headline": list(headline), "judged_depths": list(judged)}
    arms = plan.pop("arms", list(dict.fromkeys(table["arm"])))
    whole = {
        "arms": arms,
        "seeds": list(seeds),
        "measurement": measurement,
        "split": [1, 1, 1],
        "prompts": "made",
        "model": "made",
        **plan,
    }
    (folder / "manifest.json").write_text(json.dumps({"plan": whole}))
    return Results(folder)
