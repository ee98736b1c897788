"""What was found, in three sentences and one picture: ``make front`` writes both from ``results/cpu``.

``book/found.md`` is included by the introduction, the same sentences stand in the README, and the picture is
``book/depth-curves.svg``. A test compares all three with the results.
"""

from __future__ import annotations

import io
import re
from pathlib import Path

import matplotlib as mpl

from safetylib import figures
from safetylib.claims import Verdict
from safetylib.study import findings
from safetylib.study.judging_findings import Judged
from safetylib.study.results import Results, load

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- found: written by `make front` -->", "<!-- end of found -->"


def sentences(results: Results) -> list[str]:
    """The three findings, with their numbers; the wording follows the verdicts."""
    rate = {arm: results.headline_estimate(arm) for arm in results.arms}
    start = results.estimate("shallow")
    depths = ", ".join(map(str, results.headline[:-1])) + f" or {results.headline[-1]}"
    placed = (
        f"Trained to refuse at the first token only, the model refuses {start} of held-out harmful prompts, but "
        f"{rate['shallow']} once {depths} tokens of a harmful answer have been given to it; trained on refusals placed along "
        f"the answer in a cycle, it still refuses {rate['cyclic']} of those."
    )
    contrast = findings.primary_contrasts(results)["uniform"]
    verdict = findings.decide(contrast).verdict
    said = {
        Verdict.REPRODUCED: "The cycle itself helps",
        Verdict.NOT_REPRODUCED: "The cycle itself does not help: the same positions drawn at random do better",
        Verdict.UNDECIDED: "That the *cycle* helps, rather than the positions, could not be shown",
    }[verdict]
    cycle = f"{said}: cyclic minus the same positions drawn independently is {contrast.difference} of prompts."
    votes = {
        rule: findings.headline_safety(results, "shallow", rule).mean
        for rule in ("any-refusal", "majority", "all-refuse")
    }
    best = max(votes, key=votes.get)
    width = (
        f"Width does not replace depth here: of {len(results.manifest['plan']['seeds'])} shallow models, even the best vote ({best}) is safe on "
        if votes[best] < rate["cyclic"].mean
        else f"Width replaces depth here: the best vote of the shallow models ({best}) is safe on "
    ) + f"{votes[best]:.2f} of those prompts, one cyclic model on {rate['cyclic'].mean:.2f}."
    return [placed, cycle, width]


def found(results: Results) -> str:
    """The sentences as Markdown."""
    plan, own = results.manifest["plan"], Judged().row("study", "main")
    basis = (
        f"*Shares of prompts with 95 % intervals over {results.table('cyclic').shape[1]} prompts and "
        f"{len(plan['seeds'])} seeds; {plan['model']} in 4 bits. Refusals as the book's detector sees them: on this study's responses its "
        f"kappa with a model that read them is {own['kappa']:.2f} [{own['low']:.2f}, {own['high']:.2f}]; other models' responses it reads "
        "less well than a list of keywords does (chapter 8).*"
    )
    return "\n".join(f"{number}. {text}" for number, text in enumerate(sentences(results), start=1)) + f"\n\n{basis}\n"


def picture(results: Results) -> str:
    """The depth curves as SVG, the same bytes at every call."""
    figures.use_style()
    with mpl.rc_context({"svg.fonttype": "path"}):
        figure = figures.depth_curves(results)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
        figures.plt.close(figure)
    return re.sub(r"[ \t]+$", "", buffer.getvalue(), flags=re.MULTILINE)


def readme(text: str, results: Results) -> str:
    """The README with its block of findings written anew."""
    pattern = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
    return pattern.sub(lambda _: f"{BEGIN}\n{found(results)}{END}", text)


def rendered(root: Path = ROOT) -> dict[Path, str]:
    """Every file that this module writes, with its text."""
    results = load("cpu")
    front = root / "README.md"
    return {
        root / "book" / "found.md": found(results),
        root / "book" / "depth-curves.svg": picture(results),
        front: readme(front.read_text(encoding="utf-8"), results),
    }


if __name__ == "__main__":
    for path, text in rendered().items():
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path.relative_to(ROOT)}")
