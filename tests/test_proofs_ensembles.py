"""The verdicts on Proposition 4.11, and that each falls with what carries it."""

from dataclasses import replace
from fractions import Fraction

import pytest

from safetylib import claims
from safetylib.chain import ensemble
from safetylib.claims import Verdict
from safetylib.proofs import ensembles
from safetylib.proofs.core import Step

CLAIMS = {claim.id: claim for claim in claims.ledger(4)}
VERDICTS = {
    "4.11-union": Verdict.REPRODUCED,
    "4.11-union-relaxed": Verdict.REFUTED,
    "4.11-majority": Verdict.REPRODUCED,
    "4.11-majority-required": Verdict.REFUTED,
    "4.11-independence": Verdict.REPRODUCED,
    "4.11-reported": Verdict.REFUTED,
    "4.11-explains": Verdict.REFUTED,
    "4.11-reported-any-refusal": Verdict.CONDITIONAL,
}


def test_chapter_4_claims_are_these():
    assert set(CLAIMS) == set(VERDICTS)


@pytest.mark.parametrize("id", VERDICTS)
def test_the_verdicts_on_proposition_4_11(id):
    assert CLAIMS[id].check().verdict == VERDICTS[id]


@pytest.mark.parametrize(
    ("id", "broken"),
    [
        ("4.11-union", "union"),
        ("4.11-union-relaxed", "any_refusal"),
        ("4.11-majority", "majority_bounds"),
        ("4.11-majority-required", "majority_required"),
        ("4.11-independence", "shared_cause"),
        ("4.11-reported", "reported"),
        ("4.11-explains", "reported"),
        ("4.11-reported-any-refusal", "any_refusal"),
    ],
)
def test_a_verdict_falls_with_its_proof(monkeypatch, id, broken):
    proof = getattr(ensembles, broken)
    false = Step("mutated", proof.mutations[0].check)
    monkeypatch.setattr(ensembles, broken, replace(proof, steps=(false,)))
    assert CLAIMS[id].check().verdict != VERDICTS[id]


def test_with_better_members_the_reported_scores_are_possible(monkeypatch):
    monkeypatch.setattr(ensembles, "SINGLE", (Fraction(9, 10), Fraction(92, 100)))
    assert CLAIMS["4.11-explains"].check().verdict == Verdict.UNDECIDED
    assert CLAIMS["4.11-reported-any-refusal"].check().verdict == Verdict.REPRODUCED


def test_without_a_wrongly_excluded_ensemble_the_condition_is_not_refuted(monkeypatch):
    monkeypatch.setattr(ensemble, "hoeffding_required_p", lambda *_: 0.5)
    assert CLAIMS["4.11-majority-required"].check().verdict == Verdict.UNDECIDED


def test_the_smallest_excluded_ensemble_can_be_computed_by_hand():
    example = ensembles.smallest_excluded()
    p = Fraction(1, 17)
    assert (example.width, example.risk) == (3, p)
    assert example.ensemble_risk == 3 * p**2 - 2 * p**3 == Fraction(49, 4913) <= example.epsilon
    assert example.bound < 0


def test_the_library_and_the_fractions_agree():
    for width in (3, 5, 7):
        quorum = ensemble.unsafe_quorum("majority", width)
        best = 1 - ensemble.any_joint_risk(0.54, width, quorum).low
        assert best == pytest.approx(float(ensembles.best_majority_safety(Fraction(46, 100), width)))
