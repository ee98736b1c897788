"""What a part is: a :class:`Study` with further units (:mod:`safetylib.study.parts` lists them).

It shares the main study's store, so that what the two have in common (the untuned answers, the trained adapters) is done
once, whichever comes first. Its tables lie in ``results/<preset>/<part>/``.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from safetylib.study import detectors, generate
from safetylib.study.prompts import Prompt
from safetylib.study.store import code_without_prose, digest, provenance
from safetylib.study.units import Study


class Part(Study):
    """Units beyond the main plan. A subclass names its table, its units, and does them in methods ``_STAGE``.

    Attributes
    ----------
    part
        Name on the command line and of the folder of its tables.
    code
        Modules whose code its numbers depend on, besides the main study's.
    renewed, keys
        The unit that is measured again to renew the tables' stamp, and the columns of the tables that name a unit.
    """

    part = ""
    code: tuple[str, ...] = ()
    renewed = ""
    keys: tuple[str, ...] = ("arm", "seed")

    def own(self) -> dict[str, tuple]:
        """Own units, in order: what each depends on, besides this part's code."""
        raise NotImplementedError

    @property
    def stamp(self) -> str:
        """Fingerprint of this part's code, without its prose."""
        folder = Path(__file__).parent
        return digest(*(code_without_prose((folder / name).read_text("utf-8")) for name in self.code))

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        main = super().fingerprints
        stamp = digest(self.stamp, self.stages["generation"])
        result = dict(main)
        for unit, needs in self.own().items():
            result[unit] = digest(stamp, *(result.get(need, need) if isinstance(need, str) else need for need in needs))
        return result

    @property
    def units(self) -> list[str]:
        """What must be finished for this part: units of the main study that it builds upon, then its own."""
        own = self.own()
        needed = {need for needs in own.values() for need in needs if isinstance(need, str)}
        return [name for name in self.fingerprints if name in needed or name in own]

    def needed(self, unit: str) -> list[str]:
        """The unit with everything that must be finished before it, in order."""
        own, found = self.own(), {"answers", unit}
        queue = [unit]
        while queue:
            needs = [need for need in own.get(queue.pop(), ()) if isinstance(need, str) and need in self.fingerprints]
            queue += [need for need in needs if need not in found]
            found.update(needs)
        return [name for name in self.fingerprints if name in found]

    # What parts read off a model --------------------------------------------------------------------------------------

    def observed(
        self, model: PreTrainedModel, depths: tuple[int, ...], group: list[Prompt], trunks: dict[str, list[int]]
    ) -> list[dict]:
        """Refusals by depth, without a judge: a row per prompt and depth. ``trunks`` are the untuned model's answers."""
        measurement = self.plan.measurement

        def refused(tokens: list[int]) -> bool:
            return detectors.MAIN(self.text(tokens))

        with tqdm(total=len(group), desc="responses", disable=self.silent, leave=False) as bar:
            found = generate.depth_responses(
                model,
                [self.ids[prompt.id] for prompt in group],
                [trunks[prompt.id] for prompt in group],
                depths,
                measurement.within,
                measurement.after,
                self.tokenizer.eos_token_id,
                refused,
                bar.update,
            )
        return [
            self._row("harmful", group[row].id, depth, response.tokens)
            for (row, depth), response in sorted(found.items())
        ]

    def observed_benign(self, model: PreTrainedModel) -> list[dict]:
        """Over-refusal on the plain and borderline test prompts: a row a prompt."""
        rows = []
        for kind in ("plain", "borderline"):
            group, window = self.chosen(kind, "test"), self.plan.measurement.benign_within
            answers = generate.answer(
                model, [self.ids[prompt.id] for prompt in group], window, self.tokenizer.eos_token_id
            )
            rows += [
                self._row(kind, prompt.id, 0, answer.tokens) for prompt, answer in zip(group, answers, strict=True)
            ]
        return rows

    def _row(self, kind: str, prompt: str, depth: int, tokens: list[int]) -> dict:
        window = self.text(tokens[: self._window(kind)])
        refused = detectors.MAIN(window)
        return {
            "kind": kind,
            "prompt": prompt,
            "depth": depth,
            "refused": refused,
            "refused_independent": detectors.INDEPENDENT(window),
            "complied_after": refused and detectors.complied_after(self.text(tokens)),
        }

    @staticmethod
    def write_rows(folder: Path, rows: list[dict], name: str = "rows.csv", **keys: object) -> None:
        """Write a unit's table, with the unit's keys as its first columns."""
        table = pd.DataFrame(rows)
        for place, (key, value) in enumerate(keys.items()):
            table.insert(place, key, value)
        table.to_csv(folder / name, index=False, float_format="%.5g")

    # Tables -----------------------------------------------------------------------------------------------------------

    def tables(self) -> dict[str, pd.DataFrame]:
        own = [unit for unit in self.own() if (self.unit(unit) / "rows.csv").is_file()]
        rows = pd.concat([pd.read_csv(self.unit(unit) / "rows.csv") for unit in own], ignore_index=True)
        seconds = {unit: json.loads((self.unit(unit) / "seconds.json").read_text()) for unit in self.own()}
        training = [pd.read_csv(path) for unit in self.own() if (path := self.unit(unit) / "training.csv").is_file()]
        return ({"training": pd.concat(training, ignore_index=True)} if training else {}) | {
            "outcomes": rows,
            "timings": pd.DataFrame(
                {"unit": seconds.keys(), "seconds": [round(value, 1) for value in seconds.values()]}
            ),
        }

    def manifest(self) -> dict:
        main = super().manifest()
        return {key: main[key] for key in ("preset", "plan", "assets", "stages")} | {
            "part": self.part,
            **provenance(),
            "stamp": self.stamp,
            "units": list(self.own()),
        }
