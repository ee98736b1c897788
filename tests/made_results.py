"""Stored tables made by hand, for tests of what reads them."""

import json

import numpy as np
import pandas as pd

from safetylib.study import laws
from safetylib.study.results import Results


def given(table):
    """Scores (seeds, runs, prompts) of a forecast that was not fitted to what it is scored on."""
    seeds, _, prompts = table.shape
    return laws.Scores(
        table,
        np.array([np.delete(table, seed, axis=0).mean() for seed in range(seeds) if seeds > 1]),
        np.array([np.delete(table, prompt, axis=2).mean() for prompt in range(prompts)]),
    )


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
