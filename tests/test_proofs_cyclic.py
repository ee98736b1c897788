"""The verdicts on Proposition 4.8, each tied to the proof or the counterexample that carries it."""

from dataclasses import replace
from fractions import Fraction

import pytest

from safetylib import claims
from safetylib.chain import cyclic as chain
from safetylib.claims import Verdict
from safetylib.proofs import cyclic
from safetylib.proofs.core import Step

CLAIMS = {claim.id: claim for claim in claims.ledger(3)}
VERDICTS = {
    "4.8-min": Verdict.REFUTED,
    "4.8-rescued": Verdict.CONDITIONAL,
    "4.8-order": Verdict.CONDITIONAL,
    "4.8-absorbing": Verdict.CONDITIONAL,
    "4.8-faster": Verdict.CONDITIONAL,
}


def test_the_chapter_has_these_claims():
    assert set(CLAIMS) == set(VERDICTS)


@pytest.mark.parametrize("id", VERDICTS)
def test_the_verdicts_on_proposition_4_8(id):
    assert CLAIMS[id].check().verdict == VERDICTS[id]


@pytest.mark.parametrize(
    ("id", "broken"),
    [
        ("4.8-rescued", "rescue"),
        ("4.8-order", "penalty"),
        ("4.8-order", "orbit_sum"),
        ("4.8-absorbing", "corrected"),
        ("4.8-absorbing", "counterexamples"),
        ("4.8-faster", "coverage"),
    ],
)
def test_a_verdict_falls_with_its_proof(monkeypatch, id, broken):
    proof = getattr(cyclic, broken)
    false = Step("mutated", proof.mutations[0].check)
    monkeypatch.setattr(cyclic, broken, replace(proof, steps=(false,)))
    assert CLAIMS[id].check().verdict != VERDICTS[id]


def test_a_verdict_falls_with_its_counterexample(monkeypatch):
    monkeypatch.setattr(cyclic, "escape_after", lambda *_: Fraction(0))
    assert CLAIMS["4.8-min"].check().verdict == Verdict.UNDECIDED
    assert CLAIMS["4.8-rescued"].check().verdict == Verdict.REPRODUCED


def test_the_other_verdicts_follow_the_counts(monkeypatch):
    monkeypatch.setattr(cyclic, "tuned_counts", lambda **_: {1: 6, 2: 6, 3: 7})
    monkeypatch.setattr(cyclic.Proof, "holds", lambda self: True)
    assert CLAIMS["4.8-order"].check().verdict == Verdict.REPRODUCED
    for counts, verdict in (
        ((9, 5, 7), Verdict.REPRODUCED),
        ((9, 8, 7), Verdict.CONDITIONAL),
        ((8, 8, 7), Verdict.REFUTED),
    ):
        monkeypatch.setattr(cyclic, "orbit_counts", lambda counts=counts, **_: dict(zip("abc", counts, strict=True)))
        assert CLAIMS["4.8-faster"].check().verdict == verdict


def test_the_smallest_counterexamples_can_be_followed_by_hand():
    constant, tuned = cyclic.smallest_counterexample(), cyclic.smallest_counterexample(tuned_to_cycle=True)
    two_thirds = Fraction(2, 3)
    assert (constant.escape_0, constant.gamma, constant.delta, constant.length, constant.steps) == (
        two_thirds, two_thirds, Fraction(1, 3), 2, 3,
    )  # fmt: skip
    assert constant.escape == two_thirds - Fraction(2, 9) - Fraction(8, 81) == Fraction(28, 81)
    assert tuned.escape == two_thirds * Fraction(9, 16) ** 2 == Fraction(27, 128) > tuned.delta == Fraction(1, 5)
    assert tuned.limit == 0 < constant.limit == Fraction(4, 15)
    assert cyclic.smallest_counterexample((1,)).length == 1


def test_the_min_form_counts_the_same_in_fractions_and_in_floats():
    for gamma in (Fraction(1, 10), Fraction(1, 2), Fraction(9, 10)):
        for delta in (Fraction(1, 4), Fraction(1, 10), Fraction(1, 1000)):
            for order in (1, 2, 5, 40):
                got = chain.paper_cyclic_steps(float(delta), float(gamma), order)
                assert got == cyclic.paper_count(delta, gamma, order), (gamma, delta, order)
