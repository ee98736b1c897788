"""Proofs that a machine checks, one module a result; importing the package enters their claims in the ledger.

A module of proofs names them in ``PROOFS``; to add one, list it in ``MODULES`` below, and its proofs are tested with
all others: every step checked, every mutation refuted.
"""

from safetylib.proofs import cyclic, depth, ensembles, states, tradeoff, updates
from safetylib.proofs.core import Proof

MODULES = (states, updates, cyclic, depth, ensembles, tradeoff)


def all_proofs() -> list[Proof]:
    """Every proof of the book, in order."""
    return [proof for module in MODULES for proof in module.PROOFS]
