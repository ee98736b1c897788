"""Stored tables of the measured chain and of forced prefixes, in the shapes that fits and comparisons need. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from safetylib.study import results
from safetylib.study.laws import Trajectories

QUANTITIES = {
    "start": "a refusal starts after k harmful tokens, Q(H_k, R)",
    "stop": "a complete refusal ends there",
    "stay": "a refusal that has begun does not turn to compliance",
}


@dataclass(frozen=True)
class MeasuredRuns:
    """Transition probabilities along training runs.

    Attributes
    ----------
    outcomes
        A row per (run, seed, step, quantity, prompt, depth); the run ``untrained`` is step 0 of every other one.
    training
        A row per (run, seed, step): the step size that was used, losses.
    """

    outcomes: pd.DataFrame
    training: pd.DataFrame

    @cached_property
    def runs(self) -> pd.DataFrame:
        """Optimiser, alpha and gamma of every run, read off the step sizes that were used."""
        rows = {}
        for run, used in self.training.sort_values(["run", "step"]).groupby("run"):
            first, last = used["step_size"].iloc[[0, -1]]
            rows[run] = {
                "optimiser": str(run).rstrip("0123456789"),
                "alpha": first,
                "gamma": round((last / first) ** (1 / (used["step"].iloc[-1] - used["step"].iloc[0])), 4),
            }
        return pd.DataFrame(rows).T.astype({"alpha": float, "gamma": float}).rename_axis("run")

    @property
    def seeds(self) -> list[int]:
        """Seeds that every run was made with."""
        return sorted(self.training["seed"].unique().tolist())

    @property
    def optimisers(self) -> list[str]:
        """Names of the optimisers, in the order of the runs."""
        return list(dict.fromkeys(self.runs["optimiser"]))

    def after_training(self) -> pd.DataFrame:
        """A row a run: its design, the clock and the loss on refusals (last four steps) at its end, and the three quantities
        there, means over seeds, prompts and depths; the row ``untrained`` has the quantities alone."""
        means = self.outcomes.groupby(["run", "step", "quantity"])["value"].mean().unstack()
        last = means.reset_index("step").groupby("run").last()
        by_step = self.training.groupby(["run", "step"])[["step_size", "refusal_loss"]].mean()
        table = self.runs.copy()
        table["S at the end"] = by_step["step_size"].groupby("run").sum()
        table["loss, last four"] = by_step["refusal_loss"].groupby("run").apply(lambda loss: loss.tail(4).mean())
        quantities = last[["start", "stop"]].assign(stay=1 - last["turn"])
        return table.join(quantities, how="outer").reindex([*self.runs.index, "untrained"])

    def depths(self, quantity: str) -> list[int]:
        """Prefill depths at which a quantity was measured."""
        return sorted(self._rows(quantity)["depth"].unique().tolist())

    def _rows(self, quantity: str) -> pd.DataFrame:
        if quantity not in QUANTITIES:
            raise ValueError(f"unknown quantity {quantity!r}; known: {', '.join(QUANTITIES)}")
        return self.outcomes[self.outcomes["quantity"] == ("turn" if quantity == "stay" else quantity)]

    def trajectories(self, optimiser: str, quantity: str, depth: int = 0) -> Trajectories:
        """One of ``QUANTITIES`` along the runs of an optimiser.

        Raises
        ------
        ValueError
            Some run lacks a seed, a step or a prompt that another one has.
        """
        rows = self._rows(quantity).query("depth == @depth")
        table = rows.pivot(index=["run", "seed", "step"], columns="prompt", values="value").sort_index(axis=1)
        chosen = self.runs.query("optimiser == @optimiser")
        untrained, trained = table.loc["untrained"].to_numpy(), table.loc[list(chosen.index)]
        steps = sorted(trained.index.unique("step"))
        cells = pd.MultiIndex.from_product([chosen.index, self.seeds, steps])
        if len(cells) != len(trained) or not cells.isin(trained.index).all() or trained.isna().to_numpy().any():
            raise ValueError(f"{quantity}, depth {depth}, {optimiser}: some run lacks a seed, a step or a prompt")
        shape = (len(chosen), len(self.seeds), len(steps), -1)
        values = trained.reindex(cells).to_numpy(dtype=float).reshape(shape).swapaxes(0, 1)
        start = np.broadcast_to(untrained, (*values.shape[:2], *untrained.shape))
        values = np.concatenate([start, values], axis=2)
        return Trajectories(
            name=f"{quantity} {depth}" if quantity == "start" else quantity,
            runs=tuple(chosen.index),
            alpha=chosen["alpha"].to_numpy(),
            gamma=chosen["gamma"].to_numpy(),
            steps=np.array([0, *steps]),
            values=1 - values if quantity == "stay" else values,
        )


def measured_runs(preset: str | None = None, part: str = "chain") -> MeasuredRuns:
    """The stored table of the measured chain, or of its longer runs (part ``longer``)."""
    stored = results.load(preset)
    return MeasuredRuns(stored.part(part), stored.part(part, "training"))


@dataclass(frozen=True)
class Forced:
    """Probabilities by teacher forcing beside what was generated, for the same models, prompts and depths.

    Attributes
    ----------
    depths, prompts
        Depths in order; prompts measured at all of them.
    immediate, within, generated
        Arm -> (seeds, depths, prompts): that a refusal starts right after k tokens; that one starts within m tokens, if the
        answer goes on as the untuned model's; whether the model's own continuation refused within m tokens.
    missed
        No probability is short by more than this times m.
    window
        m.
    """

    depths: tuple[int, ...]
    prompts: tuple[str, ...]
    immediate: dict[str, np.ndarray]
    within: dict[str, np.ndarray]
    generated: dict[str, np.ndarray]
    missed: float
    window: int

    @property
    def trained(self) -> list[str]:
        """Arms but the untuned one."""
        return [arm for arm in self.immediate if arm != "base"]

    @property
    def seeds(self) -> int:
        """Members measured of every trained arm."""
        return min(len(self.immediate[arm]) for arm in self.trained)

    def only(self, seeds: np.ndarray, prompts: np.ndarray) -> Forced:
        """The same for some seeds and prompts, given by their indices; an untuned model, which has one seed, keeps it."""
        parts = [
            {arm: (table[seeds] if len(table) > 1 else table)[..., prompts] for arm, table in part.items()}
            for part in (self.immediate, self.within, self.generated)
        ]
        return Forced(self.depths, tuple(self.prompts[i] for i in prompts), *parts, self.missed, self.window)


def forced(preset: str | None = None) -> Forced:
    """The stored table of forced prefixes, with the main study's outcomes for the same models and prompts."""
    main = results.load(preset)
    return side_by_side(
        main.part("forced"),
        main.outcomes.query("kind == 'harmful' and split == 'test'"),
        main.arms,
        main.manifest["plan"]["measurement"]["within"],
    )


def side_by_side(table: pd.DataFrame, outcomes: pd.DataFrame, arms: list[str], window: int) -> Forced:
    """Forced prefixes and generated refusals in arrays of one shape; prompts whose answer is too short are left out."""
    depths = tuple(sorted(table["depth"].unique()))
    measured = table.groupby("prompt")["depth"].nunique()
    prompts = tuple(sorted(measured.index[measured == len(depths)]))
    kept = table[table["prompt"].isin(prompts)]

    def arrays(rows: pd.DataFrame, column: str) -> dict[str, np.ndarray]:
        found = {}
        for arm in arms:
            seeds = sorted(table.loc[table["arm"] == arm, "seed"].unique())
            wide = rows[rows["arm"] == arm].pivot(index=["seed", "depth"], columns="prompt", values=column)
            wide = wide.reindex(index=pd.MultiIndex.from_product([seeds, depths]), columns=list(prompts))
            if wide.isna().to_numpy().any():
                raise ValueError(f"{arm}: some seed, depth or prompt has no {column}")
            found[arm] = wide.to_numpy(dtype=float).reshape(len(seeds), len(depths), len(prompts))
        return found

    return Forced(
        depths,
        prompts,
        arrays(kept, "immediate"),
        arrays(kept, "within"),
        arrays(outcomes, "refused"),
        float(table["missed"].max()),
        window,
    )
