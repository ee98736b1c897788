"""The chain on positions times {harmful, refusal}: completion, leak, safety depth, and which depth is ideal.

The quantities are defined in :mod:`safetylib.chain.depth`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate, product
from operator import mul

import sympy as sp
from sympy.logic.boolalg import Boolean

from safetylib.chain import depth
from safetylib.claims import Basis, Finding, Verdict, register
from safetylib.proofs import states
from safetylib.proofs.core import Entailment, Identity, Instances, Mutation, Proof, Step

SOURCE = "safety depth (our reading)"


@dataclass(frozen=True)
class MatrixIdentity:
    """``left`` times ``right`` equals ``result``, entry by entry, for all values of the symbols; by sympy."""

    left: sp.ImmutableMatrix
    right: sp.ImmutableMatrix
    result: sp.ImmutableMatrix
    method = "sympy: every entry of both sides simplifies to the same expression"

    def latex(self) -> str:
        return f"{sp.latex(self.left)} {sp.latex(self.right)} = {sp.latex(self.result)}"

    def counterexample(self, hypotheses: tuple[Boolean, ...] = ()) -> str | None:
        """An entry and a point at which the sides differ, or None."""
        found = self.left * self.right
        for i, j in product(*map(range, found.shape)):
            failure = Identity(found[i, j], self.result[i, j]).counterexample(hypotheses)
            if failure is not None:
                return f"entry ({i + 1}, {j + 1}){failure and f', {failure}'}"
        return None


# --- exact rationals --------------------------------------------------------------------------------------------------


def exact_completion(rho: list[Fraction], k: int) -> Fraction:
    """F_k, multiplied out."""
    *_, completed = accumulate((1 - refuse for refuse in rho[k:]), mul, initial=Fraction(1))
    return completed


def exact_leak(rho: list[Fraction], k: int) -> Fraction:
    """A_k, added up."""
    return sum(accumulate((1 - refuse for refuse in rho[k:]), mul), Fraction(0))


def one_position(length: int, position: int, trained: Fraction, untrained: Fraction) -> list[Fraction]:
    """Refusal probabilities with one trained position, counted from 1."""
    return [trained if i == position else untrained for i in range(1, length + 1)]


def ideal_positions(length: int = 12, untrained: Fraction = Fraction(3, 100)) -> dict[str, list[int]]:
    """The best single positions to train, fully, by three criteria. Exact, by trying all."""
    criteria = {
        "completion, worst prefix": lambda rho: max(exact_completion(rho, k) for k in range(length)),
        "leak, no prefix": lambda rho: exact_leak(rho, 0),
        "leak, worst prefix": lambda rho: max(exact_leak(rho, k) for k in range(length)),
    }
    best = {}
    for name, cost in criteria.items():
        costs = [cost(one_position(length, d, Fraction(1), untrained)) for d in range(1, length + 1)]
        best[name] = [d for d, c in enumerate(costs, start=1) if c == min(costs)]
    return best


def _one_position_depths() -> Iterator[tuple[str, bool]]:
    for length, trained, untrained in product(
        (2, 5, 8), (Fraction(9, 10), Fraction(99, 100)), (Fraction(1, 50), Fraction(0))
    ):
        for position in range(1, length + 1):
            rho, epsilon = one_position(length, position, trained, untrained), Fraction(1, 5)
            survived = max(k for k in range(-1, length + 1) if k < 0 or exact_completion(rho, k) <= epsilon)
            yield f"K = {length}, D = {position}, rho* = {trained}", survived == position - 1


def _uniform_depths() -> Iterator[tuple[str, bool]]:
    for length, orbit, rho, untrained in product(
        (8, 12), (4, 8), (Fraction(1, 5), Fraction(1, 2)), (Fraction(0), Fraction(1, 50))
    ):
        each = [rho if i < orbit else untrained for i in range(length)]
        for epsilon in (Fraction(1, 2), Fraction(1, 10), Fraction(1, 100), Fraction(1, 8)):
            survived = max(k for k in range(-1, length + 1) if k < 0 or exact_completion(each, k) <= epsilon)
            got = depth.uniform_depth(
                float(epsilon), length=length, orbit=orbit, rho=float(rho), rho_0=float(untrained)
            )
            yield f"K = {length}, L = {orbit}, rho = {rho}, epsilon = {epsilon}", got == survived


def _worst_leaks(floor_shift: int = 0) -> Iterator[tuple[str, bool]]:
    for length, untrained in product(range(1, 13), (Fraction(3, 100), Fraction(1, 4))):
        s = 1 - untrained
        floor = sum(s**i for i in range(1, (length - 1 + 1) // 2 + 1 + floor_shift))
        for position in range(1, length + 1):
            rho = one_position(length, position, Fraction(1), untrained)
            worst = max(exact_leak(rho, k) for k in range(length))
            yield f"K = {length}, D = {position}: {worst}", worst >= floor


def _leaky_powers() -> Iterator[tuple[str, bool]]:
    """The closed forms against powers of the two-state chain."""
    rates = [Fraction(i, 10) for i in (1, 4, 9)]
    for turn, leaking, n in product(rates, rates, range(5)):
        (from_harm, from_refusal) = states.exact_power([[1 - turn, turn], [leaking, 1 - leaking]], n)
        share, forgotten = turn / (turn + leaking), (1 - turn - leaking) ** n
        expected = share * (1 - forgotten), share + (1 - share) * forgotten
        yield f"rho = {turn}, lambda = {leaking}, n = {n}", (from_harm[1], from_refusal[1]) == expected


# --- proofs -----------------------------------------------------------------------------------------------------------

s1, s2, s3, s4 = sp.symbols("s_1 s_2 s_3 s_4", positive=True)
F, A, s, r, S, m, epsilon, rho = sp.symbols("F A s rho^* S m epsilon rho", positive=True)
X = sp.Symbol("X", positive=True)
transient = sp.ImmutableMatrix([[1, -s1, 0, 0], [0, 1, -s2, 0], [0, 0, 1, -s3], [0, 0, 0, 1]])
fundamental = sp.ImmutableMatrix([[1, s1, s1 * s2, s1 * s2 * s3], [0, 1, s2, s2 * s3], [0, 0, 1, s3], [0, 0, 0, 1]])
harmful = sp.ImmutableMatrix([s1, s2, s3, s4])
tokens = sp.ImmutableMatrix(
    [s1 + s1 * s2 + s1 * s2 * s3 + s1 * s2 * s3 * s4, s2 + s2 * s3 + s2 * s3 * s4, s3 + s3 * s4, s4]
)
at_end = sp.ImmutableMatrix([0, 0, 0, s4])
completed = sp.ImmutableMatrix([s1 * s2 * s3 * s4, s2 * s3 * s4, s3 * s4, s4])

chain = Proof(
    label="ch01-depth-chain",
    title="Completion and leak",
    hypotheses=(s <= 1, F <= 1),
    setting=(
        r"After a harmful prefix, position $i$ holds a harmful token with probability $s_i = 1 - \rho_i$; $s$ is one of "
        r"these, and $F$ the probability that some prefix is completed."
    ),
    statement=(
        r"A prefix of $k$ tokens is completed with probability $F_k = \prod_{i>k} s_i$, and is followed by "
        r"$A_k = \sum_{i>k}\prod_{j=k+1}^{i} s_j$ further harmful tokens on average. $F_k$ does not fall in $k$."
    ),
    steps=(
        Step(
            "Four positions. The fundamental matrix, the inverse of $I - T$ on $H_0, \\dots, H_3$, counts visits.",
            MatrixIdentity(transient, fundamental, sp.ImmutableMatrix(sp.eye(4))),
        ),
        Step("Each visit of $H_{i-1}$ emits a harmful token with probability $s_i$: the leaks $A_0, \\dots, A_3$.",
             MatrixIdentity(fundamental, harmful, tokens)),
        Step("The last one completes the answer: $F_0, \\dots, F_3$.", MatrixIdentity(fundamental, at_end, completed)),
        Step(
            "Any number of positions: look one token ahead.",
            Identity(s1 * (1 + tokens[1]), tokens[0]),
        ),
        Step("A longer prefix is completed no less often.", Entailment(s * F <= F)),
    ),
    mutations=(
        Mutation("visits without the start", MatrixIdentity(transient, sp.ImmutableMatrix(fundamental - sp.eye(4)),
                                                            sp.ImmutableMatrix(sp.eye(4)))),
        Mutation("a longer prefix is completed strictly more often", Entailment(s * F < F)),
    ),
    source=SOURCE,
)  # fmt: skip

after = sp.Symbol("g", positive=True)


def _leak_before(power):
    """The leak before the trained position: untrained tokens, then the trained one and what follows it."""
    return s * (1 - power) / (1 - s) + power * (1 - r) * (1 + after)


one_hot = Proof(
    label="ch01-one-position",
    title="One trained position D gives safety depth D - 1",
    hypotheses=(r <= 1, s <= 1, S <= 1, epsilon < 1),
    setting=(
        r"Of $K$ positions $D$ alone refuses with probability $\rho^{*}$ and every other with $\rho_0 = 1 - s$; $S$ stands "
        r"for $s^{K-D}$, and $\varepsilon$ is the probability of completion that is tolerated."
    ),
    statement=(
        r"If $S > \varepsilon \ge (1-\rho^*)S$, the longest harmful prefix that is completed with probability "
        r"at most $\varepsilon$ has $D - 1$ tokens. In particular a refusal trained at the first position alone has "
        r"safety depth 0."
    ),
    steps=(
        Step(
            r"A prefix of $k < D$ tokens has the trained position before it, $F_k = s^{D-1-k}(1-\rho^*)\,s^{K-D}$. "
            r"($X = s^{D-1-k}$.)",
            Entailment(X * (1 - r) * S <= epsilon, given=(X <= 1, (1 - r) * S <= epsilon)),
        ),
        Step(
            r"A prefix of $k \ge D$ tokens has jumped over it: $F_k = s^{K-k} = s^{K-D}/s^{k-D}$. ($X = s^{k-D}$.)",
            Entailment(S / X > epsilon, given=(X <= 1, S > epsilon)),
        ),
        Step(
            r"The leak of $m$ untrained positions, $g(m) = s(1-s^m)/(1-s)$, by looking one token ahead. ($S = s^m$.)",
            Identity(s * (1 + s * (1 - S) / (1 - s)), s * (1 - s * S) / (1 - s)),
        ),
        Step(
            r"So before position $D$, with $X = s^{D-1-k}$ and $g$ the leak after it, $A_k = s(1-X)/(1-s) + X(1-\rho^*)(1+g)$: "
            r"again by looking one token ahead.",
            Identity(s * (1 + _leak_before(X)), _leak_before(s * X)),
        ),
        Step(
            r"In fractions, $\varepsilon = 1/5$, every position.",
            Instances(r"D_\varepsilon = D - 1", _one_position_depths),
        ),
    ),
    mutations=(
        Mutation("the trained position itself is survived", Entailment(S <= epsilon, given=((1 - r) * S <= epsilon,))),
        Mutation("a leak without its first token", Identity(s * (s * (1 - S) / (1 - s)), s * (1 - s * S) / (1 - s))),
    ),
    source=SOURCE,
)

k, L, K = sp.symbols("k L K", positive=True)
E = sp.Symbol("E", positive=True)
real_depth = L - (E - (K - L) * sp.log(1 / s)) / sp.log(1 / (1 - rho))

even = Proof(
    label="ch01-even-positions",
    title="Safety depth of evenly trained positions",
    hypotheses=(),
    statement=(
        r"Let positions 1 to $L$ refuse with probability $\rho$ and the rest with $\rho_0 = 1 - s$; let "
        r"$E = \ln(1/\varepsilon)$. If the untrained positions alone do not suffice, $(K-L)\ln\frac1s < E$, then"
        "\n\n"
        r"$$D_\varepsilon = \left\lfloor L - \frac{E-(K-L)\ln(1/s)}{\ln(1/(1-\rho))} \right\rfloor,$$"
        "\n\n"
        r"and a negative value means that even no prefix is too much."
    ),
    steps=(
        Step(
            r"At the real number inside the brackets, $-\ln F_k = (L-k)\ln\frac{1}{1-\rho} + (K-L)\ln\frac1s$ is exactly "
            r"$E$; and $F_k$ rises with $k$.",
            Identity(sp.Subs((L - k) * sp.log(1 / (1 - rho)) + (K - L) * sp.log(1 / s), k, real_depth), E),
        ),
        Step("With the brackets, against multiplying fractions.", Instances(r"D_\varepsilon = \lfloor \cdot \rfloor", _uniform_depths)),
    ),
    mutations=(
        Mutation("the untrained positions do not help", Identity((L - real_depth) * sp.log(1 / (1 - rho)), E)),
    ),
    source=SOURCE,
)  # fmt: skip

D = sp.Symbol("D", positive=True)

worst_leak = Proof(
    label="ch01-worst-leak",
    title="Coverage bounds the leak, one position cannot",
    hypotheses=(m <= 1, s <= 1, D >= 1, D <= K),
    setting=(
        r"Of $K$ positions the untrained ones refuse with probability $1-s$; $m$ is a probability, and $D$ one position."
    ),
    statement=(
        r"If no position refuses with a probability below $m$, no harmful prefix is followed by more than $(1-m)/m$ "
        r"harmful tokens on average. If one position $D$ alone is trained, however well, some prefix is followed by at "
        r"least $g(\lceil (K-1)/2\rceil)$ of them, where $g(j) = s + s^2 + \dots + s^j$."
    ),
    steps=(
        Step(
            "Look one token ahead: the bound is handed from each position to the one before.",
            Entailment((1 - rho) * (1 + A) <= (1 - m) / m, given=(rho >= m, rho <= 1, A <= (1 - m) / m)),
        ),
        Step("Position $D$ has $D-1$ untrained positions before it and $K-D$ after it.",
             Entailment(sp.Or(D - 1 >= (K - 1) / 2, K - D >= (K - 1) / 2))),
        Step("In fractions, with a position that always refuses, up to twelve positions.",
             Instances(r"\max_k A_k \ge g(\lceil (K-1)/2 \rceil)", _worst_leaks)),
    ),
    mutations=(
        Mutation("a leak below one over m minus two", Entailment((1 - rho) * (1 + A) <= (1 - 2 * m) / m,
                                                                 given=(rho >= m, rho <= 1, A <= (1 - 2 * m) / m))),
        Mutation("one more untrained token on some side", Instances("g(j + 1)", lambda: _worst_leaks(1))),
    ),
    source=SOURCE,
)  # fmt: skip

lam = sp.Symbol("lambda", positive=True)
stationary = rho / (rho + lam)
turning = 1 - rho - lam

leaky = Proof(
    label="ch01-leaky",
    title="A refusal that leaks forgets how it began",
    hypotheses=(rho <= 1, lam <= 1, rho + lam < 2),
    setting=(
        r"A harmful token turns to refusal with probability $\rho$ and a refusing one to harm with probability $\lambda$; "
        r"$\mu = 1-\rho-\lambda$, $\pi = \rho/(\rho+\lambda)$, and $X$ stands for $\mu^n$."
    ),
    statement=(
        r"After $n$ more "
        r"tokens the response is in refusal with probability $\pi(1-\mu^n)$ from a harmful token and "
        r"$\pi + (1-\pi)\mu^n$ from a refusing one. Both tend to $\pi$: in a long response the risk is "
        r"$\lambda/(\rho+\lambda)$, whatever the depth."
    ),
    steps=(
        Step(
            r"One more token after a harmful start: those who refuse go on, the others turn.",
            Identity(
                stationary * (1 - X) * (1 - lam) + (1 - stationary * (1 - X)) * rho, stationary * (1 - turning * X)
            ),
        ),
        Step(
            r"The same after a refusing start.",
            Identity(
                (stationary + (1 - stationary) * X) * (1 - lam) + (1 - stationary - (1 - stationary) * X) * rho,
                stationary + (1 - stationary) * turning * X,
            ),
        ),
        Step(
            "What is left of the start is the power of a number between -1 and 1.",
            Entailment(sp.And(turning < 1, turning > -1)),
        ),
        Step(
            "Powers of the two-state chain, in fractions.",
            Instances(r"\pi(1-\mu^n),\ \pi + (1-\pi)\mu^n, \qquad n = 0, \dots, 4", _leaky_powers),
        ),
        Step("The risk that remains.", Identity(1 - stationary, lam / (rho + lam))),
    ),
    mutations=(
        Mutation(
            "the start is forgotten at the rate of refusing alone",
            Identity(
                stationary * (1 - X) * (1 - lam) + (1 - stationary * (1 - X)) * rho, stationary * (1 - (1 - rho) * X)
            ),
        ),
        Mutation("always forgotten", Entailment(sp.And(turning < 1, turning > -1)), hypotheses=(rho <= 1, lam <= 1)),
    ),
    source=SOURCE,
)

PROOFS = (chain, one_hot, even, worst_leak, leaky)

# --- the scorecard's row for the ideal depth --------------------------------------------------------------------------


@register(
    id="depth-ideal",
    chapter=1,
    source="Core contribution",
    statement="The chain identifies the ideal depth for safety alignment.",
    reading=(
        "One position D of K = 12 is trained until it always refuses, the others refuse with probability 0.03. Ideal: the "
        "D with the least completion, or leak, over harmful prefixes of 0 to 11 tokens."
    ),
    basis=Basis.CERTIFICATE,
)
def ideal_depth() -> Finding:
    """Conditional as long as criteria disagree about the best position."""
    if not (chain.holds() and worst_leak.holds()):
        return Finding(Verdict.UNDECIDED, "completion and leak do not check")
    best = ideal_positions()
    shown = "; ".join(f"{name}: D = {' or '.join(map(str, ideal))}" for name, ideal in best.items())
    agreed = set.intersection(*map(set, best.values()))
    if agreed:
        return Finding(Verdict.REPRODUCED, f"all criteria agree. {shown}")
    return Finding(
        Verdict.CONDITIONAL, f"an ideal depth exists once a criterion is chosen, and the criteria disagree. {shown}"
    )
