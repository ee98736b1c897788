"""Harmless requests that look harmful, and harmful ones that look like them: every member on XSTest, which trained nothing.

The main study's over-refusal is measured on prompts that were written for this project, some of which trained. XSTest
(Röttger et al. 2024) comes from other people; it is not embedded: ``SAFETYLIB_XSTEST`` names the folder with its files.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import cached_property
from pathlib import Path

from tqdm.auto import tqdm

from safetylib.study import generate, prompt_sets
from safetylib.study.part import Part
from safetylib.study.prompts import Prompt

FILE = "xstest_prompts.csv"


class XSTest(Part):
    """Refusal of XSTest's safe prompts and of their unsafe contrasts, nothing put before the response.

    Both are watched for as long as the main study's benign prompts, so that they can be compared: unsafe prompts longer than the
    m tokens of its depth curves.
    """

    part = "xstest"
    code = ("part.py", "xstest.py", "prompt_sets.py")
    renewed = "xstest-base-0"

    def own(self) -> dict[str, tuple]:
        depends = asdict(self.plan.measurement), prompt_sets.XSTEST_FILES[FILE]
        result: dict[str, tuple] = {}
        for arm, seed in self.plan.members():
            needs = ("answers",) if arm == "base" else ("answers", f"train-{arm}-{seed}")
            result[f"xstest-{arm}-{seed}"] = (*needs, *depends)
        return result

    @cached_property
    def contrasted(self) -> list[Prompt]:
        """XSTest's prompts, or a slice of each kind.

        Raises
        ------
        AssetError
            The files are not there.
        """
        everything = prompt_sets.xstest()
        kinds = {prompt.kind: [one for one in everything if one.kind == prompt.kind] for prompt in everything}
        return [prompt for group in kinds.values() for prompt in group[: self.per_set]]

    @property
    def asked(self) -> list[Prompt]:
        return [*self.prompts, *self.contrasted]

    def manifest(self) -> dict:
        manifest = super().manifest()
        return manifest | {"assets": {**manifest["assets"], FILE: prompt_sets.XSTEST_FILES[FILE]}}

    def _xstest(self, folder: Path, arm: str, seed: int) -> None:
        questions = [self.ids[prompt.id] for prompt in self.contrasted]
        longest, eos = self.plan.measurement.benign_within, self.tokenizer.eos_token_id
        with tqdm(total=len(questions), desc=f"xstest {arm} {seed}", disable=self.silent, leave=False) as bar:
            found = generate.answer(self.tuned(arm, seed), questions, longest, eos, bar.update)
        rows = [
            {"category": prompt.category}
            | self._row("borderline", prompt.id, 0, response.tokens)
            | {"kind": prompt.kind}
            for prompt, response in zip(self.contrasted, found, strict=True)
        ]
        self.write_rows(folder, rows, arm=arm, seed=seed)
