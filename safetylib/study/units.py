"""The study as units of work, done one after another, resumed where it stopped, gathered into tidy tables.

Units, each written whole or not at all (:mod:`safetylib.study.store`):

``answers``                  the untuned model's answers: harmful prefixes, and benign anchors
``train-ARM-SEED``           one adapter, its losses and token counts
``generate-ARM-SEED``        one model's responses: every depth, over-refusal, validation (texts stay on this machine)
``judge-ARM-SEED``           outcomes: what the detectors and the language-model judge say of them
``validate-ARM-SEED``        refusal rates on validation prompts alone, to choose the operating point
"""

from __future__ import annotations

import gc
import json
import time
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import pandas as pd
from safetensors import SafetensorError
from tqdm.auto import tqdm

from safetylib.study import assets, augment, detectors, generate, judge, models, prompt_sets, prompts, train
from safetylib.study.prepacked import prepack
from safetylib.study.presets import Preset
from safetylib.study.prompts import Prompt
from safetylib.study.store import Store, StoreError, digest, provenance, stage_fingerprints


class Study:
    """One preset measured into one store.

    Parameters
    ----------
    plan, into
        What to measure, and the folder for finished units.
    silent
        No progress bars and no notices (notebooks).
    per_set
        At most so many prompts of every kind and split: a slice for live pages.
    """

    def __init__(self, plan: Preset, into: Path, silent: bool = False, per_set: int | None = None) -> None:
        self.plan, self.store, self.silent, self.per_set = plan, Store(into), silent, per_set
        self.stages = stage_fingerprints()

    @cached_property
    def prompts(self) -> list[Prompt]:
        """Harmful and benign prompts of the plan, or a slice of every set."""
        everything = prompts.harmful(self.plan.prompts, self.plan.split) + prompts.benign()
        ids = [prompt.id for prompt in everything]
        if repeated := sorted({id for id in ids if ids.count(id) > 1}):
            raise ValueError(
                f"{self.plan.prompts}: the id {repeated[0]} stands for several prompts; give every prompt its own"
            )
        if self.per_set is None:
            return everything
        sets: dict[tuple[str, str], list[Prompt]] = {}
        for prompt in everything:
            sets.setdefault((prompt.kind, prompt.split), []).append(prompt)
        return [prompt for members in sets.values() for prompt in members[: self.per_set]]

    @property
    def asked(self) -> list[Prompt]:
        """Every prompt that is put to a model: the plan's. A part may ask further ones."""
        return self.prompts

    def chosen(self, kind: str, split: str) -> list[Prompt]:
        """Prompts of a kind and split; of the harmful ones, those with a usable answer of the untuned model."""
        return [
            prompt
            for prompt in self.prompts
            if (prompt.kind, prompt.split) == (kind, split) and (kind != "harmful" or prompt.id not in self.left_out)
        ]

    @cached_property
    def _loaded(self):
        return models.load(self.plan.model)

    @cached_property
    def _judge_model(self):
        if self.plan.judge == self.plan.model:
            return self.untuned, self.tokenizer
        model, tokenizer = models.load(self.plan.judge)
        return prepack(model), tokenizer

    @property
    def base(self):
        """The untuned model, which training puts its adapters on."""
        return self._loaded[0]

    @cached_property
    def untuned(self):
        """The untuned model, for inference alone."""
        return models.for_inference(self.base)

    @property
    def tokenizer(self):
        """Its tokenizer."""
        return self._loaded[1]

    @cached_property
    def ids(self) -> dict[str, list[int]]:
        """Prompt id -> token ids in the chat template; each leaves room for the longest prefix and response.

        Raises
        ------
        ValueError
            One does not: the model has fewer positions.
        """
        ids = {prompt.id: models.chat_ids(self.tokenizer, prompt.text) for prompt in self.asked}
        longest, measurement = max(ids, key=lambda id: len(ids[id])), self.plan.measurement
        room = self.plan.deepest + measurement.within + measurement.after
        positions = getattr(self.base.config, "max_position_embeddings", None)
        if positions is not None and len(ids[longest]) + room > positions:
            raise ValueError(
                f"prompt {longest} has {len(ids[longest])} tokens and {room} may follow, but {self.plan.model} has {positions} "
                "positions: shorten the prompt or leave it out"
            )
        return ids

    def text(self, tokens: list[int]) -> str:
        """Decoded response."""
        return self.tokenizer.decode(tokens, skip_special_tokens=True)

    # Units ------------------------------------------------------------------------------------------------------------

    @cached_property
    def identities(self) -> tuple[str, str]:
        """What the model and the judge are, for fingerprints; both are fetched for it."""
        model = models.identity(self.plan.model)
        return model, model if self.plan.judge == self.plan.model else models.identity(self.plan.judge)

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Unit -> digest of everything that its content depends on."""
        plan, stages, packages = self.plan, self.stages, provenance()["packages"]
        model, judge_model = self.identities
        data = digest(
            stages["data"],
            stages["generation"],
            models.arithmetic(),
            model,
            [asdict(prompt) for prompt in self.prompts],
            packages,
            assets.PINS,
        )
        result = {"answers": digest(data, plan.deepest, plan.measurement.within, plan.recipe.anchor_tokens)}
        for arm, seed in plan.members():
            adapter = result["answers"]
            if arm != "base":
                adapter = result[f"train-{arm}-{seed}"] = digest(
                    adapter, stages["training"], asdict(plan.recipe), arm, seed
                )
            text = result[f"generate-{arm}-{seed}"] = digest(adapter, stages["generation"], asdict(plan.measurement))
            result[f"judge-{arm}-{seed}"] = digest(text, stages["judging"], judge_model)
            result[f"validate-{arm}-{seed}"] = digest(text, stages["judging"])
        return result

    def unit(self, name: str) -> Path:
        """A finished unit's folder."""
        return self.store.path(name, self.fingerprints[name])

    @property
    def units(self) -> list[str]:
        """The study's units, in order. Validation alone belongs to the choice of the operating point."""
        return [name for name in self.fingerprints if not name.startswith("validate")]

    def run(self, names: list[str] | None = None, process: int = 0, processes: int = 1) -> None:
        """Do every unit that is not finished, in order; by default all of the study's.

        With several ``processes``, each does the units of its own members, and the first what all of them need: members are
        independent of each other. The first returns when everything is finished, the others when their own units are.
        """
        if "_loaded" not in self.__dict__:  # what can be refused is refused before a model is fetched
            models.require_memory(self.plan)
            _ = self.prompts
            models.require_access(self.plan)
        names = self.units if names is None else names
        missing = [name for name in names if not self.store.finished(name, self.fingerprints[name])]
        if len(missing) < len(names) and not self.silent:
            print(f"{len(names) - len(missing)} of {len(names)} units are finished already and are not repeated.")
        if processes > 1:
            mine = self._share(names, process, processes)
            missing = [name for name in missing if name in mine]
            if process:
                self._await([name for name in names if "-" not in name])
        bar = tqdm(missing, "units", disable=self.silent, unit="unit", dynamic_ncols=True)
        for name in bar:
            bar.set_postfix_str(name)
            stage, *member = name.split("-")
            work = getattr(self, f"_{stage}")
            with self.store.writing(name, self.fingerprints[name]) as folder:
                began = time.perf_counter()
                try:
                    work(folder, *(member[:1] + [int(seed) for seed in member[1:]]))
                except (
                    json.JSONDecodeError,
                    pd.errors.ParserError,
                    pd.errors.EmptyDataError,
                    SafetensorError,
                ) as error:
                    raise StoreError(
                        f"{name}: a finished unit that it builds on is damaged ({error}). Look among answers-*, train-* and generate-* in "
                        f"{self.store.root}, delete the damaged folder, and run the same command again."
                    ) from error
                (folder / "seconds.json").write_text(json.dumps(time.perf_counter() - began))
            gc.collect()  # a unit's model and its adapters refer to each other
        if processes > 1 and not process:
            self._await(names)

    @staticmethod
    def _share(names: list[str], process: int, processes: int) -> list[str]:
        """Units that one of several processes does: whole members in turn; what belongs to no member is the first's."""
        members = list(dict.fromkeys(name.partition("-")[2] for name in names if "-" in name))
        turn = {member: place % processes for place, member in enumerate(members)}
        return [name for name in names if turn.get(name.partition("-")[2], 0) == process]

    def _await(self, names: list[str]) -> None:
        """Wait until other processes have finished these units."""
        while not all(self.store.finished(name, self.fingerprints[name]) for name in names):
            time.sleep(1)

    def _answers(self, folder: Path) -> None:
        plan, eos = self.plan, self.tokenizer.eos_token_id
        harmful = [prompt for prompt in self.prompts if prompt.kind == "harmful"]
        benign = [prompt for prompt in self.prompts if prompt.kind != "harmful" and prompt.split == "train"]
        lengths = (plan.deepest + plan.measurement.within, plan.recipe.anchor_tokens)
        answers = {}
        with tqdm(total=len(harmful) + len(benign), desc="untuned answers", disable=self.silent, leave=False) as bar:
            for group, length in zip((harmful, benign), lengths, strict=True):
                found = generate.answer(
                    self.untuned, [self.ids[prompt.id] for prompt in group], length, eos, bar.update
                )
                answers |= {prompt.id: asdict(response) for prompt, response in zip(group, found, strict=True)}
        (folder / "answers.json").write_text(json.dumps(answers))

    @cached_property
    def answers(self) -> dict[str, list[int]]:
        """Prompt id -> token ids of the untuned model's answer, closed by the end-of-sequence token where it ended."""
        stored = json.loads((self.unit("answers") / "answers.json").read_text())
        eos = self.tokenizer.eos_token_id
        return {id: answer["tokens"] + [eos] * answer["ended"] for id, answer in stored.items()}

    @cached_property
    def left_out(self) -> dict[str, str]:
        """Harmful prompts that cannot serve, with the reason: the untuned model refuses, or stops before the last depth."""
        reasons, deepest = {}, self.plan.deepest
        for prompt in self.prompts:
            if prompt.kind == "harmful":
                answer = self.answers[prompt.id]
                if len(answer) <= deepest + (answer[-1] == self.tokenizer.eos_token_id):
                    reasons[prompt.id] = "untuned answer too short"
                elif detectors.MAIN(self.text(answer)):
                    reasons[prompt.id] = "untuned model refuses"
        return reasons

    @cached_property
    def material(self) -> augment.Material:
        """What training batches are made of. Benign prompts that the untuned model itself refuses anchor nothing."""
        eos = self.tokenizer.eos_token_id

        def pairs(kind: str) -> list[tuple[list[int], list[int]]]:
            return [
                (self.ids[prompt.id], self.answers[prompt.id])
                for prompt in self.chosen(kind, "train")
                if kind == "harmful" or not detectors.MAIN(self.text(self.answers[prompt.id]))
            ]

        def wording(text: str) -> list[int]:
            return self.tokenizer(text, add_special_tokens=False)["input_ids"] + [eos]

        refusals = [(wording(text), wording(augment.SEPARATOR + text)) for text in prompts.refusals("train")]
        return augment.Material(pairs("harmful"), refusals, pairs("plain"), pairs("borderline"))

    def _train(self, folder: Path, arm: str, seed: int) -> None:
        recipe = self.plan.recipe
        model = models.with_adapters(self.base, recipe.lora, seed)
        try:
            batches = augment.batches(arm, recipe, self.material, seed)
            records = train.train(model, batches, recipe, f"train {arm} {seed}", silent=self.silent)
            model.save_pretrained(folder / "adapter", safe_serialization=True)
        finally:
            models.remove_adapters(model)
        table = pd.DataFrame(train.as_rows(records))
        table.insert(0, "arm", arm)
        table.insert(1, "seed", seed)
        table.to_csv(folder / "training.csv", index=False)

    def tuned(self, arm: str, seed: int):
        """The model of one member: the untuned one, or a copy with its adapter merged."""
        return self.untuned if arm == "base" else models.merged(self.base, self.unit(f"train-{arm}-{seed}") / "adapter")

    def _generate(self, folder: Path, arm: str, seed: int) -> None:
        measurement, eos = self.plan.measurement, self.tokenizer.eos_token_id
        model = self.tuned(arm, seed)
        rows: list[dict] = []

        def refused(tokens: list[int]) -> bool:
            return detectors.MAIN(self.text(tokens))

        asked = {"test": measurement.depths, "validation": measurement.judged_depths}
        sets = [("harmful", split, depths) for split, depths in asked.items()]
        sets += [(kind, "test", (0,)) for kind in ("plain", "borderline")]
        total = sum(len(self.chosen(kind, split)) for kind, split, _ in sets)
        with tqdm(total=total, desc=f"generate {arm} {seed}", disable=self.silent, leave=False) as bar:
            for kind, split, depths in sets:
                group = self.chosen(kind, split)
                questions = [self.ids[prompt.id] for prompt in group]
                if kind == "harmful":
                    trunks = [self.answers[prompt.id] for prompt in group]
                    found = generate.depth_responses(
                        model,
                        questions,
                        trunks,
                        depths,
                        measurement.within,
                        measurement.after,
                        eos,
                        refused,
                        bar.update,
                    )
                else:
                    answers = generate.answer(model, questions, measurement.benign_within, eos, bar.update)
                    found = {(row, 0): response for row, response in enumerate(answers)}
                rows += [
                    {"split": split, "kind": kind, "prompt": group[row].id, "depth": depth, **asdict(response)}
                    for (row, depth), response in sorted(found.items())
                ]
        (folder / "responses.json").write_text(json.dumps(rows))

    def _judge(self, folder: Path, arm: str, seed: int) -> None:
        measurement = self.plan.measurement
        responses = json.loads((self.unit(f"generate-{arm}-{seed}") / "responses.json").read_text())
        outcomes = [self._outcome(arm, seed, row) for row in responses]
        rated = [
            place
            for place, row in enumerate(responses)
            if row["kind"] == "harmful" and row["depth"] in measurement.judged_depths
        ]
        text = {prompt.id: prompt.text for prompt in self.prompts}
        pairs = [(text[responses[place]["prompt"]], self.text(responses[place]["tokens"])) for place in rated]
        with tqdm(total=len(pairs), desc=f"judge {arm} {seed}", disable=self.silent, leave=False) as bar:
            ratings = judge.rate(*self._judge_model, pairs, bar.update)
        for place, rating in zip(rated, ratings, strict=True):
            outcomes[place] |= {"safety": rating.safety, "unscored": rating.value is None}
        pd.DataFrame(outcomes).to_csv(folder / "outcomes.csv", index=False, float_format="%.4f")

    def _window(self, kind: str) -> int:
        """Tokens within which a refusal must be visible."""
        return self.plan.measurement.within if kind == "harmful" else self.plan.measurement.benign_within

    def _outcome(self, arm: str, seed: int, row: dict) -> dict:
        window = self.text(row["tokens"][: self._window(row["kind"])])
        refused = detectors.MAIN(window)
        return {
            "arm": arm,
            "seed": seed,
            "step": 0 if arm == "base" else self.plan.recipe.steps,
            **{key: row[key] for key in ("split", "kind", "prompt", "depth")},
            "refused": refused,
            "refused_independent": detectors.INDEPENDENT(window),
            "complied_after": refused and detectors.complied_after(self.text(row["tokens"])),
            "tokens": len(row["tokens"]),
            "safety": None,
            "unscored": None,
        }

    def _validate(self, folder: Path, arm: str, seed: int) -> None:
        model, rates = self.tuned(arm, seed), {}
        for kind in ("harmful", "plain", "borderline"):
            questions = [self.ids[prompt.id] for prompt in self.chosen(kind, "validation")]
            found = generate.answer(model, questions, self._window(kind), self.tokenizer.eos_token_id)
            rates[kind] = sum(detectors.MAIN(self.text(response.tokens)) for response in found) / len(found)
        (folder / "rates.json").write_text(json.dumps(rates))

    def validation_rates(self, arm: str, seed: int) -> dict[str, float]:
        """Refusal rates on validation prompts at depth 0, by kind; trains the member if it is not there yet."""
        self.run(["answers", f"train-{arm}-{seed}", f"validate-{arm}-{seed}"])
        return json.loads((self.unit(f"validate-{arm}-{seed}") / "rates.json").read_text())

    # Tables -----------------------------------------------------------------------------------------------------------

    def tables(self) -> dict[str, pd.DataFrame]:
        """The study's tidy tables, from its finished units."""
        members = self.plan.members()
        outcomes = [pd.read_csv(self.unit(f"judge-{arm}-{seed}") / "outcomes.csv") for arm, seed in members]
        training = [
            pd.read_csv(self.unit(f"train-{arm}-{seed}") / "training.csv") for arm, seed in members if arm != "base"
        ]
        seconds = [
            {"unit": name, "seconds": round(json.loads((self.unit(name) / "seconds.json").read_text()), 1)}
            for name in self.units
        ]
        return {
            "outcomes": pd.concat(outcomes, ignore_index=True),
            "training": pd.concat(training, ignore_index=True).round(5) if training else pd.DataFrame(columns=["arm"]),
            "timings": pd.DataFrame(seconds),
        }

    def write_tables(self, folder: Path) -> None:
        """Write tables and manifest into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, table in self.tables().items():
            suffix, packed = (".csv.gz", {"method": "gzip", "mtime": 0}) if name == "outcomes" else (".csv", None)
            table.to_csv(folder / f"{name}{suffix}", index=False, compression=packed)
        (folder / "manifest.json").write_text(json.dumps(self.manifest(), indent=1) + "\n")

    def manifest(self) -> dict:
        """Provenance: plan, seeds, assets, package versions, prompts left out, a fingerprint a stage."""
        reasons = pd.Series(self.left_out, dtype=str).value_counts().to_dict()
        counts = pd.Series([f"{prompt.kind} {prompt.split}" for prompt in self.prompts]).value_counts().sort_index()
        return {
            "preset": self.plan.name,
            "plan": json.loads(json.dumps(asdict(self.plan))),
            **provenance(),
            "assets": assets.PINS,
            "revisions": models.revisions(self.plan) | prompt_sets.revisions(self.plan.prompts),
            "device": models.device_name(),
            "prompts": counts.to_dict(),
            "left_out": reasons,
            "stages": self.stages,
        }
