"""The verdicts on open question 3, and that each falls with what carries it."""

from dataclasses import replace

import pytest

from safetylib import claims
from safetylib.chain import tradeoff as chain
from safetylib.claims import Verdict
from safetylib.proofs import tradeoff
from safetylib.proofs.core import Step

CLAIMS = {claim.id: claim for claim in claims.ledger(5)}
VERDICTS = {
    "oq3-relation": Verdict.CONDITIONAL,
    "oq3-compensates": Verdict.CONDITIONAL,
    "oq3-replaces": Verdict.REFUTED,
    "oq3-balance": Verdict.CONDITIONAL,
    "oq3-hoeffding": Verdict.REFUTED,
}


def test_chapter_5_claims_are_these():
    assert set(CLAIMS) == set(VERDICTS)


@pytest.mark.parametrize("id", VERDICTS)
def test_the_verdicts_on_open_question_3(id):
    assert CLAIMS[id].check().verdict == VERDICTS[id]


@pytest.mark.parametrize(
    ("id", "broken"),
    [
        ("oq3-replaces", "depth_floor"),
        ("oq3-balance", "bang_bang"),
        ("oq3-balance", "trained_once"),
        ("oq3-hoeffding", "hoeffding"),
        ("oq3-hoeffding", "majority_ends"),
    ],
)
def test_a_verdict_falls_with_its_proof(monkeypatch, id, broken):
    proof = getattr(tradeoff, broken)
    monkeypatch.setattr(tradeoff, broken, replace(proof, steps=(Step("mutated", proof.mutations[0].check),)))
    assert CLAIMS[id].check().verdict != VERDICTS[id]


def test_the_relation_falls_with_the_frontier(monkeypatch):
    monkeypatch.setattr(chain, "frontier", lambda width, *_, **__: 0 * width)
    assert CLAIMS["oq3-relation"].check().verdict == Verdict.REFUTED
    assert CLAIMS["oq3-compensates"].check().verdict == Verdict.REFUTED


def test_where_the_bound_and_the_count_agree_nothing_is_refuted(monkeypatch):
    monkeypatch.setattr(chain, "hoeffding_optimum", chain.cheapest)
    assert CLAIMS["oq3-hoeffding"].check().verdict == Verdict.REPRODUCED


def test_exact_counting_gives_the_depths_of_the_example():
    assert tradeoff.exact_majority_depths() == [37, 20, 14, 10, 6, 2]
