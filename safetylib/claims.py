"""The scorecard's ledger: what the paper claims, the reading we tested, and what came out.

A claim never carries a typed verdict. It carries a *check*, a function that proves, certifies or measures, and returns
a :class:`Finding`; the verdict printed in a chapter and on the scorecard is what the check returned just now.

We have read a summary of the paper, not the paper: every claim therefore states the reading that was tested.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from importlib import import_module


class Verdict(StrEnum):
    """What a reader may conclude about the summarised statement."""

    REPRODUCED = "reproduced"
    CONDITIONAL = "true under a stated condition"
    REFUTED = "does not hold as summarised"
    NOT_REPRODUCED = "not reproduced"
    UNDECIDED = "undecided: the evidence does not settle it"


class Basis(StrEnum):
    """What carries a verdict."""

    PROOF = "symbolic proof"
    CERTIFICATE = "machine-checked certificate"
    MEASUREMENT = "measurement"


@dataclass(frozen=True)
class Finding:
    """What a check found: a verdict and one or two sentences of evidence, numbers included."""

    verdict: Verdict
    evidence: str


@dataclass(frozen=True)
class Claim:
    """One row of the scorecard.

    Parameters
    ----------
    id
        Short and stable, e.g. ``"4.5-sufficient"``.
    chapter
        Number of the chapter that derives or measures it.
    source
        Where the statement stands, e.g. ``"Theorem 4.5"``; always of the summary.
    statement
        The statement as summarised, in our words.
    reading
        The precise statement that was tested.
    basis
        What carries the verdict.
    check
        Computes the finding. Deterministic; raises if its own preconditions fail.
    """

    id: str
    chapter: int
    source: str
    statement: str
    reading: str
    basis: Basis
    check: Callable[[], Finding]


_LEDGERS = (
    "safetylib.proofs",
    "safetylib.study.findings",
    "safetylib.study.augmentation_findings",
    "safetylib.study.judging_findings",
    "safetylib.study.depth_findings",
    "safetylib.study.chain_findings",
)
_LEDGER: dict[str, Claim] = {}


def register(
    *, id: str, chapter: int, source: str, statement: str, reading: str, basis: Basis
) -> Callable[[Callable[[], Finding]], Callable[[], Finding]]:
    """Enter the decorated check in the ledger (decorator; the check itself is returned unchanged)."""

    def enter(check: Callable[[], Finding]) -> Callable[[], Finding]:
        if id in _LEDGER:
            raise ValueError(f"claim {id!r} is registered twice")
        _LEDGER[id] = Claim(id, chapter, source, statement, reading, basis, check)
        return check

    return enter


def ledger(chapter: int | None = None) -> list[Claim]:
    """All claims, or those of one chapter, in the order of chapters and registration.

    Claims are registered where their checks live: proofs in ``safetylib.proofs``, measurements in the study's modules of
    findings (which read stored tables and never import torch).
    """
    for module in _LEDGERS:
        import_module(module)
    claims = sorted(_LEDGER.values(), key=lambda claim: claim.chapter)
    return [claim for claim in claims if chapter in (None, claim.chapter)]


_COLUMNS = 66  # of printed text beside the book's sidebars


def report(chapter: int) -> None:
    """Check and print one chapter's claims, as plain deterministic text."""
    for claim in ledger(chapter):
        finding = claim.check()
        print(f"[{claim.id}] {claim.source}: {finding.verdict.upper()} ({claim.basis})")
        for label, text in (("tested", claim.reading), ("found", finding.evidence)):
            print(textwrap.fill(f"{label}: {text}", _COLUMNS, initial_indent="  ", subsequent_indent="    "))
