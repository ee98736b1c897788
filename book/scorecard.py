"""Write ``book/scorecard.md`` from the ledger of claims: ``make scorecard``."""

from __future__ import annotations

import re
from collections import Counter
from itertools import groupby
from pathlib import Path

from safetylib.claims import Claim, Finding, Verdict, ledger

ROOT = Path(__file__).resolve().parents[1]

HEAD = """\
<!-- Generated from safetylib.claims by `make scorecard`; edits here are overwritten. -->

# Scorecard

Each row is one claim of the paper {cite}`kao2025safety`. We have read a summary of the paper, not the paper:
the row gives the statement as the summary puts it and the reading that we tested. A verdict is computed when
this page is written, by a proof, a certificate or a measurement, as the row says. Corrections are welcome: if
a reading does the paper an injustice, open an issue with the button at the top of the page.
"""
TABLE = """\
:::{table}
:class: scorecard

| Verdict | Statement, as summarised | Reading tested | Evidence |
|---|---|---|---|
"""


def plain(text: str) -> str:
    """Text that Markdown will show as it stands, on one line."""
    return re.sub(r"([\\`*_{}\[\]<>|$#~^!&])", r"\\\1", " ".join(text.split()))


def row(claim: Claim, finding: Finding) -> str:
    """A claim's line of the table."""
    cells = (
        f"**{plain(finding.verdict)}** ({plain(claim.basis)})",
        f"{plain(claim.source)} \\[{plain(claim.id)}\\]: {plain(claim.statement)}",
        plain(claim.reading),
        plain(finding.evidence),
    )
    return "| " + " | ".join(cells) + " |\n"


def chapter_heading(number: int, root: Path) -> str:
    """A heading for a chapter, linked to its page if the contents list one."""
    listed = re.search(rf"notebooks/({number:02d}-[\w-]+)\.ipynb", (root / "_toc.yml").read_text(encoding="utf-8"))
    return f"\n## Chapter {number}\n" + (f"\n{{doc}}`../notebooks/{listed[1]}`\n" if listed else "")


def render_claims(checked: list[tuple[Claim, Finding]], root: Path = ROOT) -> str:
    """The page for claims with their findings, ordered by chapter."""
    counts = Counter(finding.verdict for _, finding in checked)
    tally = "; ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict if counts[verdict])
    page = HEAD + f"\n{len(checked)} claims" + (f": {tally}.\n" if tally else " have been checked so far.\n")
    for chapter, rows in groupby(checked, key=lambda pair: pair[0].chapter):
        page += chapter_heading(chapter, root) + "\n" + TABLE + "".join(row(*pair) for pair in rows) + ":::\n"
    return page


def render(root: Path = ROOT) -> str:
    """The page for the ledger; every check is run."""
    return render_claims([(claim, claim.check()) for claim in ledger()], root)


if __name__ == "__main__":
    (ROOT / "book" / "scorecard.md").write_text(render(), encoding="utf-8")
    print("wrote book/scorecard.md")
