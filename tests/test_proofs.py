"""Every proof is checked, every mutation refuted, and the machinery itself refuses what it should refuse."""

import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import sympy as sp

from safetylib import claims
from safetylib.claims import Verdict
from safetylib.proofs import all_proofs, updates
from safetylib.proofs.core import (
    Entailment,
    Identity,
    Instances,
    Mutation,
    Proof,
    ProofError,
    Step,
    Undecided,
    keep_punctuation,
)  # fmt: skip

PROOFS = {proof.label: proof for proof in all_proofs()}
NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
x, y = sp.symbols("x y", positive=True)
z = sp.Symbol("z", real=True)


def proof_of(*checks, hypotheses=(), mutations=()):
    steps = tuple(Step(f"reason {i}", check) for i, check in enumerate(checks, start=1))
    return Proof("test-proof", "A test", hypotheses, "It holds.", steps, mutations)


@pytest.mark.parametrize("label", PROOFS)
def test_every_step_is_checked(label):
    PROOFS[label].check()


@pytest.mark.parametrize("label", PROOFS)
def test_every_mutation_is_refuted(label):
    assert len(PROOFS[label].refutations()) == len(PROOFS[label].mutations) >= 1


def test_labels_are_unique_over_the_book():
    assert len(PROOFS) == len(all_proofs())


@pytest.mark.parametrize("label", PROOFS)
def test_a_proof_reads_as_mathematics_with_reasons(label):
    proof = PROOFS[label]
    page = proof._repr_markdown_()
    for step in proof.steps:
        assert keep_punctuation(step.reason) in page and step.check.latex() in page and step.check.method in page
    assert page.count("$$") == 2 * len(proof.steps)
    assert proof.theorem_box().startswith(f":::{{prf:theorem}} {proof.title}\n:label: {label}\n")


@pytest.mark.parametrize("label", PROOFS)
def test_no_step_shows_an_empty_identity(label):
    for step in PROOFS[label].steps:
        left, equals, right = step.check.latex().partition(" = ")
        assert not (equals and left.strip() == right.strip()), step.reason
        assert "\\text{True}" not in step.check.latex(), step.reason


@pytest.mark.parametrize("label", PROOFS)
def test_a_box_names_a_symbol_before_it_sets_a_condition_on_it(label):
    proof = PROOFS[label]
    introduced = re.sub(r"[{} ]", "", "|".join(re.findall(r"\$([^$]+)\$", proof.setting)))
    for symbol in set().union(*(hypothesis.free_symbols for hypothesis in proof.hypotheses)):
        name = re.sub(r"[{} ]", "", sp.latex(symbol).replace("\\epsilon", "\\varepsilon"))
        assert re.search(rf"(?<![A-Za-z\\]){re.escape(name)}(?![A-Za-z])", introduced), f"{name} is not introduced"


def test_punctuation_stays_with_its_formula():
    before = "Let $x$, with $y$: **$z$.** and $$w$$, `$v$` and $u$ too."
    assert keep_punctuation(before) == "Let $x,$ with $y{:}$ **$z.$** and $$w$$, `$v$` and $u$ too."


@pytest.mark.parametrize("page", sorted(NOTEBOOKS.glob("*.md")), ids=lambda page: page.stem)
def test_a_theorem_box_on_a_page_says_what_its_proof_says(page):
    text = page.read_text(encoding="utf-8")
    for label in re.findall(r"^:label: (\S+)$", text, re.MULTILINE):
        assert label not in PROOFS or PROOFS[label].theorem_box() in text, PROOFS[label].theorem_box()


# --- the machinery ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "check",
    [
        Identity((x + y) ** 2, x**2 + 2 * x * y + y**2),
        Identity(sp.log(x * y), sp.log(x) + sp.log(y)),
        Identity(sp.Derivative(x**2, x), 2 * x),
        Identity(sp.Subs(x + y, y, -x), 0),
        Entailment(x / y > 0),
        Entailment(z**2 >= 0),
        Entailment(x + 1 / x >= 2),
        Entailment(sp.Or(z > 1, z <= 1)),
        Entailment(sp.Implies(z > 1, z**2 > z)),
        Entailment(z < 1, given=(z < 0,)),
        Instances("1 < 2", lambda: [("one", True)]),
    ],
)
def test_what_is_true_passes(check):
    assert proof_of(check).check().holds()


@pytest.mark.parametrize(
    ("check", "where"),
    [
        (Identity((x + y) ** 2, x**2 + y**2), "x = "),
        (Identity(z, sp.Abs(z) + 1), "z = "),
        (Identity(sp.Subs(x + y, y, x), 3 * x), "x = "),
        (Entailment(x > 1), "x = "),
        (Entailment(z**2 > 0), "z = 0"),
        (Entailment(sp.Or(1 / z < 2, 1 / z >= 1)), "z = 0"),  # a denominator that may vanish is a hole
        (Instances("all", lambda: [("one", True), ("two", False)]), "two"),
    ],
)
def test_what_is_false_is_refuted_at_a_point(check, where):
    with pytest.raises(ProofError, match=rf"A test, step 2 \(reason 2\) fails at .*{where}"):
        proof_of(Identity(x, x), check).check()


def test_nothing_is_proved_from_hypotheses_that_cannot_be_met():
    with pytest.raises(ProofError, match="cannot be met"):
        proof_of(Entailment(x > 5), hypotheses=(x < 0,)).check()


def test_no_instances_are_no_evidence():
    with pytest.raises(ProofError, match="no case"):
        proof_of(Instances("nothing", list)).check()


def test_a_mutation_that_passes_is_an_error():
    loose = proof_of(Identity(x, x), mutations=(Mutation("adds zero", Identity(x + 0, x)),))
    with pytest.raises(ProofError, match="'adds zero' is not refuted"):
        loose.refutations()


def test_what_the_machine_cannot_express_is_neither_proved_nor_refuted():
    with pytest.raises(TypeError, match="polynomials"):
        proof_of(Entailment(sp.exp(z) > 1)).check()
    f, g = sp.Function("f"), sp.Function("g")
    with pytest.raises(Undecided):
        proof_of(Identity(f(x), g(x))).check()


# --- the claims on Theorem 4.5 ----------------------------------------------------------------------------------------

CLAIMS = {claim.id: claim for claim in claims.ledger(2)}
VERDICTS = {
    "4.5-sufficient": Verdict.CONDITIONAL,
    "4.5-any-alpha": Verdict.REFUTED,
    "4.5-threshold": Verdict.REPRODUCED,
    "4.5-necessary": Verdict.REFUTED,
    "4.5-geometric": Verdict.CONDITIONAL,
    "4.5-clipped": Verdict.REFUTED,
}


@pytest.mark.parametrize("id", VERDICTS)
def test_the_verdicts_on_theorem_4_5(id):
    assert CLAIMS[id].check().verdict == VERDICTS[id]


@pytest.mark.parametrize(
    ("id", "broken"),
    [
        ("4.5-sufficient", "paper_sufficient"),
        ("4.5-threshold", "exact_steps"),
        ("4.5-necessary", "paper_not_needed"),
        ("4.5-geometric", "closed_form"),
        ("4.5-clipped", "harmonic"),
    ],
)
def test_a_verdict_falls_with_its_proof(monkeypatch, id, broken):
    proof = getattr(updates, broken)
    false = Step("mutated", proof.mutations[0].check)
    monkeypatch.setattr(updates, broken, replace(proof, steps=(*proof.steps, false)))
    assert CLAIMS[id].check().verdict != VERDICTS[id]


def test_a_verdict_falls_with_its_counterexample(monkeypatch):
    monkeypatch.setattr(updates, "paper_count", lambda delta, gamma: 0)
    monkeypatch.setattr(updates, "additive_path", lambda *_: iter([Fraction(0)]))
    assert CLAIMS["4.5-any-alpha"].check().verdict == Verdict.UNDECIDED
    assert CLAIMS["4.5-sufficient"].check().verdict == Verdict.REPRODUCED


def test_the_smallest_counterexample_can_be_followed_by_hand():
    example = updates.smallest_counterexample()
    assert (example.escape_0, example.gamma, example.alpha, example.delta) == (
        Fraction(2, 3), Fraction(1, 4), Fraction(1, 4), Fraction(1, 4),
    )  # fmt: skip
    assert example.gamma**example.steps <= example.delta * (1 - example.gamma) < example.gamma ** (example.steps - 1)
    assert example.escape == Fraction(2, 3) - Fraction(1, 4) - Fraction(1, 16) == Fraction(17, 48)


def test_the_sign_a_symbol_is_declared_with_reaches_z3():
    """sympy drops "u >= 0" for a symbol it knows to be nonnegative; without the sign the first conclusion would be refuted."""
    u, v = sp.Symbol("u", nonnegative=True), sp.Symbol("v", nonpositive=True)
    assert Entailment(sp.Ge(u - v, 0, evaluate=False)).counterexample() is None
    assert Entailment(sp.Gt(u - v, 0, evaluate=False)).counterexample() is not None
