"""The measured chain along four times as many steps: far enough for laws to part that agree while refusal is rare.

The law of a transition probability cannot be read off runs in which it hardly moves: below one half the softmax and the
cross-entropy law are the same curve, and the additive one is its tangent. These runs go on to 64 steps, half of them
without any decay. They were planned after the runs of :mod:`safetylib.study.measured_chain` had been looked at, with the
step sizes at which those of gradient descent were steady; the number of steps, the checkpoints and the rule for a verdict
were fixed before any of these was made.
"""

from __future__ import annotations

from safetylib.study.measured_chain import MeasuredChain, Run

RUNS = {
    f"{optimiser}{place}": Run(optimiser, alpha, gamma)
    for optimiser, alphas in (("adamw", (1.5e-3, 3e-3)), ("sgd", (0.0625, 0.125)))
    for place, (alpha, gamma) in enumerate((alpha, gamma) for alpha in alphas for gamma in (0.96, 1.0))
}


class LongerChain(MeasuredChain):
    """Two step sizes each of AdamW and of plain gradient descent, with a slow decay and with none."""

    part = "longer"
    code = (*MeasuredChain.code, "longer_chain.py")
    renewed = "longer-adamw0-0"
    runs, steps, looked_at = RUNS, 64, (4, 8, 16, 32, 64)
    _longer = MeasuredChain._chain
