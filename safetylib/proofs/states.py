"""What a language model has in common with a Markov chain, and what a lumped chain can and cannot predict.

The chain on windows, lumping and its errors are computed in :mod:`safetylib.chain.states`. Exact fractions are used
here wherever a statement is checked on instances.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import product

import numpy as np
import sympy as sp
from scipy.special import softmax as normalised_exponential

from safetylib.chain import states
from safetylib.claims import Basis, Finding, Verdict, register
from safetylib.proofs.core import Entailment, Identity, Instances, Mutation, Proof, Step

SOURCE = "Markov chain equivalence (as summarised)"

V, N, M, p, q, s, x, y, X = sp.symbols("V N M p q s x y X", positive=True)
K = sp.Symbol("K", integer=True, positive=True)

# --- exact rationals --------------------------------------------------------------------------------------------------

Matrix = list[list[Fraction]]


def exact_matrix(rows: list[list[int]]) -> Matrix:
    """A transition matrix from whole-number weights."""
    return [[Fraction(weight, sum(row)) for weight in row] for row in rows]


def exact_product(left: Matrix, right: Matrix) -> Matrix:
    """The product of two matrices of fractions."""
    return [
        [sum(a * b for a, b in zip(row, column, strict=True)) for column in zip(*right, strict=True)] for row in left
    ]


def exact_power(matrix: Matrix, n: int) -> Matrix:
    """The n-th power of a matrix of fractions."""
    result = [[Fraction(i == j) for j in range(len(matrix))] for i in range(len(matrix))]
    for _ in range(n):
        result = exact_product(result, matrix)
    return result


def exact_windows(vocabulary: int, context: int) -> tuple[list[tuple[int, ...]], Matrix]:
    """All windows of a small model, listed one by one, and its exact chain with unequal next-token weights."""
    windows = [w for length in range(1, context + 1) for w in product(range(vocabulary), repeat=length)]
    matrix = [[Fraction(0)] * len(windows) for _ in windows]
    for i, window in enumerate(windows):
        weights = [1 + (sum(window) + 2 * len(window) + 3 * token) % 4 for token in range(vocabulary)]
        for token, weight in enumerate(weights):
            matrix[i][windows.index((*window, token)[-context:])] += Fraction(weight, sum(weights))
    return windows, matrix


def exact_position_lumped(matrix: Matrix, blocks: list[int], start: list[Fraction], n: int) -> list[Matrix]:
    """The blocks' one-step conditionals at times 0 to n - 1 under one start; a block without mass gets zeros."""
    count, law, chain = max(blocks) + 1, [start], []
    for _ in range(n):
        joint = [[Fraction(0)] * count for _ in range(count)]
        for i, row in enumerate(matrix):
            for j, entry in enumerate(row):
                joint[blocks[i]][blocks[j]] += law[0][i] * entry
        chain.append([[entry / sum(row) if sum(row) else Fraction(0) for entry in row] for row in joint])
        law = exact_product(law, matrix)
    return chain


def exact_blocks(law: list[Fraction], blocks: list[int]) -> list[Fraction]:
    """The law of the block."""
    return [
        sum((m for m, b in zip(law, blocks, strict=True) if b == block), Fraction(0))
        for block in range(max(blocks) + 1)
    ]


def _counts() -> Iterator[tuple[str, bool]]:
    for vocabulary, context in product(range(2, 5), range(1, 5)):
        listed = sum(1 for length in range(1, context + 1) for _ in product(range(vocabulary), repeat=length))
        yield f"V = {vocabulary}, K = {context}", states.count_states(vocabulary, context) == listed


def _reached(steps_short: int = 0) -> Iterator[tuple[str, bool]]:
    """Whether every full window is reached from every window in K steps with probability p^K at least."""
    for vocabulary, context in ((2, 1), (2, 2), (2, 3), (3, 2)):
        windows, matrix = exact_windows(vocabulary, context)
        least = min(entry for row in matrix for entry in row if entry)
        power = exact_power(matrix, context - steps_short)
        reached = min(row[j] for row in power for j, window in enumerate(windows) if len(window) == context)
        yield f"V = {vocabulary}, K = {context}: least {reached}", reached >= least**context


LUMPABLE = exact_matrix([[1, 2, 3, 0, 2], [3, 0, 1, 2, 2], [1, 1, 4, 0, 2], [0, 2, 1, 3, 2], [2, 0, 1, 1, 4]])
NOT_LUMPABLE = exact_matrix([[1, 2, 3, 0, 2], [2, 0, 1, 3, 2], [1, 1, 4, 0, 2], [0, 3, 0, 3, 2], [2, 0, 1, 1, 4]])
BLOCKS = [0, 0, 1, 1, 2]


def _row_of_block(matrix: Matrix, block: int) -> list[Fraction]:
    """The mean over a block of the rows of PU."""
    rows = [exact_blocks(row, BLOCKS) for row, b in zip(matrix, BLOCKS, strict=True) if b == block]
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def _lumped_powers(matrix: Matrix) -> Iterator[tuple[int, int, Fraction]]:
    """For n = 0 to 6 and each state, the L1 error of the lumped chain's law after n steps."""
    lumped = [_row_of_block(matrix, block) for block in range(3)]
    for n in range(7):
        exact, predicted = exact_power(matrix, n), exact_power(lumped, n)
        for i, row in enumerate(exact):
            difference = zip(exact_blocks(row, BLOCKS), predicted[BLOCKS[i]], strict=True)
            yield n, i, sum(abs(a - b) for a, b in difference)


def _lumpable_powers() -> Iterator[tuple[str, bool]]:
    for n, i, error in _lumped_powers(LUMPABLE):
        yield f"n = {n}, start {i}", error == 0


def _error_bounds() -> Iterator[tuple[str, bool]]:
    lumped = [_row_of_block(NOT_LUMPABLE, block) for block in range(3)]
    eta = max(error for n, _, error in _lumped_powers(NOT_LUMPABLE) if n == 1)
    tau = max(sum(abs(a - b) for a, b in zip(u, v, strict=True)) / 2 for u, v in product(lumped, repeat=2))
    for n, i, error in _lumped_powers(NOT_LUMPABLE):
        yield f"n = {n}, start {i}: error {error}", error <= min(n * eta, eta * (1 - tau**n) / (1 - tau))


def _hitting_bounds() -> Iterator[tuple[str, bool]]:
    """Refuse (1) or comply (2) first; the rest, blocks {0, 1} and {2}, is not lumpable."""
    stopped = [[3, 1, 2, 1, 1], [1, 2, 1, 3, 1], [1, 1, 4, 1, 1], [0, 0, 0, 1, 0], [0, 0, 0, 0, 1]]
    blocks, matrix = [0, 0, 1, 2, 3], exact_matrix(stopped)
    lumped = [exact_blocks(row, blocks) for row in matrix]
    lumped = [[(a + b) / 2 for a, b in zip(lumped[0], lumped[1], strict=True)], *lumped[2:]]
    onwards = sp.Matrix(matrix)
    exact = (sp.eye(3) - onwards[:3, :3]).LUsolve(onwards[:3, 3])
    steps = (sp.eye(3) - onwards[:3, :3]).LUsolve(sp.ones(3, 1))
    small = sp.Matrix(lumped)
    predicted = (sp.eye(2) - small[:2, :2]).LUsolve(small[:2, 2])
    rows = [exact_blocks(row, blocks) for row in matrix[:3]]
    eta = max(sum(abs(a - b) for a, b in zip(row, lumped[blocks[i]], strict=True)) for i, row in enumerate(rows))
    for i in range(3):
        error = abs(exact[i] - predicted[blocks[i]])
        yield f"start {i}: error {error}", bool(error <= eta / 2 * steps[i])


def _contraction() -> Iterator[tuple[str, bool]]:
    lumped = [_row_of_block(NOT_LUMPABLE, block) for block in range(3)]
    tau = max(sum(abs(a - b) for a, b in zip(u, v, strict=True)) / 2 for u, v in product(lumped, repeat=2))
    for a, b in product(range(-4, 5), repeat=2):
        vector = [Fraction(a), Fraction(b), Fraction(-a - b)]
        (image,) = exact_product([vector], lumped)
        yield f"({a}, {b}, {-a - b})", sum(map(abs, image)) <= tau * sum(map(abs, vector))


# Two harmful states, 0 and 1, and a refusal, 2. Left alone the chain runs 0, 1, refusal.
FORCED = exact_matrix([[0, 1, 0], [0, 0, 1], [0, 0, 1]])
# State 0 stays harmful, 1 turns to refusal, and a refusal turns back to 1.
RETURNING = exact_matrix([[1, 0, 0], [0, 0, 1], [0, 1, 0]])
HARMFUL = [0, 0, 1]


def forced_prefix_counterexample() -> tuple[Fraction, Fraction, Fraction]:
    """Probability of refusing one step after a forced harmful token, with its prediction, and the worst error of a law.

    The prediction is that of the position-indexed lumped chain of ``FORCED``, started in state 0 and so exact at all
    times; the prefix sets the chain down in state 1.
    """
    start, forced = [Fraction(1), Fraction(0), Fraction(0)], [Fraction(0), Fraction(1), Fraction(0)]
    lumped = exact_position_lumped(FORCED, HARMFUL, start, 4)
    law, blocks, worst = [start], [exact_blocks(start, HARMFUL)], Fraction(0)
    for step in lumped:
        law, blocks = exact_product(law, FORCED), exact_product(blocks, step)
        worst = max(worst, *(abs(a - b) for a, b in zip(exact_blocks(law[0], HARMFUL), blocks[0], strict=True)))
    (after,) = exact_product([forced], FORCED)
    (predicted,) = exact_product([exact_blocks(forced, HARMFUL)], lumped[0])
    return exact_blocks(after, HARMFUL)[1], predicted[1], worst


def _forced() -> Iterator[tuple[str, bool]]:
    refused, predicted, worst = forced_prefix_counterexample()
    yield f"worst error of a law {worst}", worst == 0
    yield f"forced: {refused}, predicted {predicted}", (refused, predicted) == (1, 0)


def _several_times() -> Iterator[tuple[str, bool]]:
    half, steps = Fraction(1, 2), 3
    lumped = exact_position_lumped(RETURNING, HARMFUL, [half, half, Fraction(0)], steps)
    exact, predicted = [half, half], Fraction(1)
    for step in lumped:
        exact = [sum(exact[i] * RETURNING[i][j] for i in range(2)) for j in range(2)]
        predicted *= step[0][0]
    yield f"harmful at times 0 to 3: {sum(exact)}, predicted {predicted}", (sum(exact), predicted) == (half, half / 2)


# --- the chain --------------------------------------------------------------------------------------------------------


def _number(length):
    return V * (V**length - 1) / (V - 1)


count = Proof(
    label="ch01-count",
    title="How many states a language model has",
    hypotheses=(V > 1, X >= V),
    setting=r"A model has a vocabulary of $V$ tokens and a context window of $K$; $X$ stands for $V^K$.",
    statement=(
        r"The windows of one to $K$ tokens number $N = V(V^K-1)/(V-1)$, and $V^K \le N \le V^K\cdot\frac{V}{V-1}$. A row "
        r"of the transition matrix has at most $V$ entries, so at most the share $(V-1)/(V^K-1)$ of the matrix is not zero."
    ),
    steps=(
        Step("A window of one token: $V$ states.", Identity(sp.Subs(_number(K), K, 1), V)),
        Step(
            "One more token of context adds all windows of that length.",
            Identity(_number(K) + V ** (K + 1), _number(K + 1)),
        ),
        Step("Windows listed one by one.", Instances(r"N = \frac{V(V^K-1)}{V-1}, \qquad V, K \le 4", _counts)),
        Step(
            "Almost all windows are full ones.",
            Entailment(sp.And(V * (X - 1) / (V - 1) >= X, V * (X - 1) / (V - 1) <= X * V / (V - 1))),
        ),
        Step(
            "The share of entries that can be different from zero.",
            Identity(sp.Subs(V / N, N, _number(K)), (V - 1) / (V**K - 1)),
        ),
    ),
    mutations=(
        Mutation("one more token of context adds no longer windows", Identity(_number(K) + V**K, _number(K + 1))),
        Mutation("full windows alone", Entailment(sp.Eq(V * (X - 1) / (V - 1), X))),
        Mutation("a share of one over V to the K", Identity(V / _number(K), V**-K)),
    ),
    source=SOURCE,
)

t = sp.Symbol("S", positive=True)

never_absorbing = Proof(
    label="ch01-never-absorbing",
    title="Under a softmax of finite logits nothing absorbs",
    hypotheses=(V >= 2, M >= 1, p <= 1),
    setting=(
        r"A model has $V$ tokens and a context window of $K$, and no two logits after the same window differ by more than "
        r"$g$; $M$ stands for $e^g$ and $p$ for $1/(1+(V-1)M)$."
    ),
    statement=(
        r"Then every next-token probability is at least $p > 0$. From any window every full window is reached in exactly "
        r"$K$ steps with probability at least $p^K$. A set of states that lacks a full window is therefore left: after "
        r"$nK$ steps the chain has stayed in it with probability at most $(1-p^K)^n$. If instead windows that end in "
        r"an end token are made absorbing, the text has not ended after $n$ steps with probability at most $(1-p)^n$."
    ),
    steps=(
        Step(
            r"A softmax probability $x/(x+s)$, where $x = e^{z}$ of one token and $s$ is the sum of the other $V-1$.",
            Entailment(x / (x + s) >= 1 / (1 + (V - 1) * M), given=(s <= (V - 1) * M * x,)),
        ),
        Step("It is never zero.", Entailment(1 / (1 + (V - 1) * M) > 0)),
        Step(
            r"Append the $K$ tokens of the full window one by one: each costs a factor of $p$ at most. ($t$ tokens have "
            r"the probability $X \ge y$, the next one $q$.)",
            Entailment(X * q >= y * p, given=(X >= y, q >= p)),
        ),
        Step(
            "Exact chains, all windows: every full window is reached in $K$ steps.",
            Instances(r"\min_{x,\,y\ \text{full}} Q^K(x,y) \ge p^K > 0, \qquad (V,K) = (2,1), (2,2), (2,3), (3,2)", _reached),
        ),
        Step(
            r"Whatever the chance $S$ of having stayed so far, $K$ more steps leave at most $(1-p^K)S$. ($y = p^K$.)",
            Entailment(t * (1 - q) <= t * (1 - y), given=(q >= y, q <= 1)),
        ),
        Step("With an end token that absorbs, each step ends the text with probability $p$ at least.",
             Entailment(t * (1 - q) <= t * (1 - p), given=(q >= p, q <= 1))),
    ),
    mutations=(
        Mutation(
            "a floor that forgets the vocabulary",
            Entailment(x / (x + s) >= 1 / (1 + M), given=(s <= (V - 1) * M * x,)),
        ),
        Mutation("without a bound on the logits", Entailment(x / (x + s) >= 1 / (1 + (V - 1) * M))),
        Mutation("K - 1 steps are enough", Instances("Q^{K-1} > 0", lambda: _reached(steps_short=1))),
    ),
    source="absorbing refusal states (as summarised)",
)  # fmt: skip

# --- lumping ----------------------------------------------------------------------------------------------------------

f, g, w, x1, x2, xh = sp.symbols("f g w x_1 x_2 \\hat{x}", real=True)

lumpability = Proof(
    label="ch01-lumpability",
    title="When blocks of states form a Markov chain",
    hypotheses=(),
    statement=(
        r"Blocks $\{1,2\}$ and $\{3,4\}$; $x_i$ is the probability of moving from state $i$ to the second block. The "
        r"lumped chain with $\hat P(1,2) = \hat x$ is right from every start if and only if $x_1 = x_2 = \hat x$ (and "
        r"likewise for 3 and 4). In general: if and only if $PU = U\hat P$, where $U$ is the indicator of the blocks, "
        r"and then $P^nU = U\hat P^n$ for all $n$."
    ),
    steps=(
        Step(
            r"Let state 1 move to states 1 to 4 with probabilities $p,\ 1-x-p,\ q,\ x-q$. A function with the value $f$ "
            r"on one block and $g$ on the other is averaged to a number in which $p$ and $q$ do not appear.",
            Identity(p * f + (1 - x - p) * f + q * g + (x - q) * g, (1 - x) * f + x * g),
        ),
        Step(
            "So functions of the block stay functions of the block, step after step. A chain of five states and three "
            "blocks, in fractions.",
            Instances(r"P^n U = U \hat P^n, \qquad n = 0, \dots, 6", _lumpable_powers),
        ),
        Step(
            r"Conversely, if two states of a block differ, no $\hat x$ is right from both.",
            Entailment(sp.Or(sp.Ne(xh, x1), sp.Ne(xh, x2)), given=(sp.Ne(x1, x2),)),
        ),
        Step(
            r"The larger of their defects $2|x_i - \hat x|$ is then at least $|x_1 - x_2|$, whatever $\hat x$.",
            Entailment(sp.Or(2 * (x1 - xh) >= x1 - x2, 2 * (xh - x2) >= x1 - x2), given=(x1 >= x2,)),
        ),
    ),
    mutations=(
        Mutation(
            "the mean over the block is enough", Entailment(sp.Eq(w * x1 + (1 - w) * x2, x1), given=(w > 0, w < 1))
        ),
        Mutation(
            "rows that differ are lumped without error",
            Instances(
                r"P^n U = U \hat P^n", lambda: ((f"n = {n}", e == 0) for n, _, e in _lumped_powers(NOT_LUMPABLE))
            ),
        ),
    ),
    source="lumpability (Kemeny and Snell)",
)

# Real, with the conditions written out: a sign in a declaration would not be printed among the hypotheses.
tau, eta, d, d1, T, nn = sp.symbols("tau eta d d' T n", real=True)
h1, h2, h3, s1, s2, g1, g2, e = sp.symbols("h_1 h_2 h_3 s_1 s_2 g_1 g_2 e", real=True)
a1, a2, a3, b1, b2, b3 = sp.symbols("a_1 a_2 a_3 b_1 b_2 b_3", real=True)
mu, Pn, P, U, Phn, Ph = sp.symbols(r"\mu P^n P U \hat{P}^n \hat{P}", commutative=False)
non_negative = tuple(symbol >= 0 for symbol in (tau, eta, d, T, nn))

lumping_error = Proof(
    label="ch01-lumping-error",
    title="What lumping costs",
    hypotheses=(),
    statement=(
        r"Let $\eta$ be the defect of a lumping, $\tau$ the Dobrushin coefficient of $\hat P$. From any start $\mu$,"
        "\n\n"
        r"$$\lVert\mu P^nU - \mu U\hat P^n\rVert_1 \le \min\left(n\eta,\ \eta\,\frac{1-\tau^n}{1-\tau}\right).$$"
        "\n\n"
        r"The probability of hitting given blocks is predicted with an error of at most $\frac\eta2$ times the expected "
        r"number of steps until the chain is absorbed."
    ),
    steps=(
        Step(
            "One more step: the old error moves on, and a new one is made.",
            Identity(mu * Pn * P * U - mu * U * Phn * Ph, (mu * Pn * U - mu * U * Phn) * Ph + mu * Pn * (P * U - U * Ph)),
        ),
        Step(
            r"The old error sums to zero, and $\hat P$ shrinks such a vector by the factor $\tau$ at least. (Two blocks: "
            "only the difference of the rows is left.)",
            Identity(w * x1 + (-w) * x2, w * (x1 - x2)),
        ),
        Step("Three blocks, in fractions.", Instances(r"\lVert v\hat P\rVert_1 \le \tau\lVert v\rVert_1", _contraction)),
        Step(
            r"So $d' \le \tau d + \eta$ hands the geometric bound on. ($T = \tau^n$.)",
            Entailment(
                d1 <= eta * (1 - tau * T) / (1 - tau),
                given=(*non_negative, tau < 1, d <= eta * (1 - T) / (1 - tau), d1 <= tau * d + eta),
            ),
        ),
        Step(
            "And the linear one.",
            Entailment(d1 <= (nn + 1) * eta, given=(*non_negative, tau <= 1, d <= nn * eta, d1 <= tau * d + eta)),
        ),
        Step(
            r"For hitting probabilities: a vector $a - b$ that sums to zero, of size $\eta$, moves the mean of a "
            r"function with values in $[0,1]$ by $\eta/2$ at most.",
            Entailment(
                (a1 - b1) * h1 + (a2 - b2) * h2 + (a3 - b3) * h3 <= eta / 2,
                given=(
                    *(symbol >= 0 for symbol in (a1, a2, a3, b1, b2, b3, h1, h2, h3)),
                    h1 <= 1, h2 <= 1, h3 <= 1,
                    sp.Eq(a1 + a2 + a3, b1 + b2 + b3),
                    a1 + a2 + a3 + b1 + b2 + b3 <= eta,
                ),
            ),
        ),
        Step(
            r"Each step until absorption adds that much. ($g_i$ is the error and $s_i$ the expected number of steps after "
            r"one of two moves.)",
            Entailment(
                e <= eta / 2 * (1 + p * s1 + (1 - p) * s2),
                given=(eta >= 0, p <= 1, g1 <= eta / 2 * s1, g2 <= eta / 2 * s2, e <= eta / 2 + p * g1 + (1 - p) * g2),
            ),
        ),
        Step(
            "Both bounds on chains that are not lumpable, in fractions.",
            Instances(
                r"\text{error} \le \text{bound}", lambda: (case for cases in (_error_bounds, _hitting_bounds) for case in cases())
            ),
        ),
    ),
    mutations=(
        Mutation(
            "the error does not add up",
            Entailment(d1 <= eta, given=(*non_negative, tau <= 1, d <= eta, d1 <= tau * d + eta)),
        ),
        Mutation(
            "without contraction the geometric bound is handed on",
            Entailment(
                d1 <= eta * (1 - tau * T) / (1 - tau),
                given=(*non_negative, tau < 1, d <= eta * (1 - T) / (1 - tau), d1 <= d + eta),
            ),
        ),
        Mutation(
            "the order of lumping and stepping does not matter", Identity(mu * P * U, mu * U * Ph)
        ),
    ),
    source="lumping (ours)",
)  # fmt: skip

ma, mb, xa, xb = sp.symbols("m_a m_b x_a x_b", positive=True)
mean = (ma * xa + mb * xb) / (ma + mb)

positions = Proof(
    label="ch01-positions",
    title="One start predicts every law, and no forced prefix",
    hypotheses=(xa <= 1, xb <= 1),
    setting=(
        r"At time $t$ a block holds two states $a, b$ with probabilities $m_a, m_b$, from where the chain moves to another "
        r"block with probabilities $x_a, x_b$."
    ),
    statement=(
        r"The lumped chain built from the conditionals at time $t$ moves with "
        r"$\hat x = (m_a x_a + m_b x_b)/(m_a+m_b)$. Then the law of the block at time $t+1$ is exact, lumpable or not. "
        r"But if the chain is *set* into $a$, the error is $\frac{m_b}{m_a+m_b}(x_a - x_b)$, which is zero if and only "
        r"if $x_a = x_b$. Nor are events at several times exact."
    ),
    steps=(
        Step("The mass that moves is the mass that is predicted to move.", Identity(sp.Subs((ma + mb) * xh, xh, mean), ma * xa + mb * xb)),
        Step("Set into $a$, the chain moves with $x_a$.", Identity(xa - mean, mb / (ma + mb) * (xa - xb))),
        Step("So the prediction is right only where the block is lumpable.",
             Entailment(sp.Equivalent(sp.Eq(mean, xa), sp.Eq(xa, xb)))),
        Step(
            r"The smallest example: harmful states $a \to b \to$ refusal. Started in $a$, every law is exact. Set into "
            r"$b$, the chain refuses at once; the prediction is that it never does.",
            Instances(r"\mathbf{P}(\text{refusal} \mid \text{set into } b) = 1, \qquad \text{predicted } 0", _forced),
        ),
        Step(
            r"Events at several times: $a$ stays, $b$ refuses, and a refusal goes back to $b$; started in $a$ or $b$, "
            "evenly.",
            Instances(r"\mathbf{P}(\text{harmful at times 0 to 3}) = \tfrac12, \qquad \text{predicted } \tfrac14", _several_times),
        ),
    ),
    mutations=(
        Mutation("right after a forced prefix, too", Entailment(sp.Eq(mean, xa))),
        Mutation("right on average, whatever the weights", Identity(mean, (xa + xb) / 2)),
    ),
    source=SOURCE,
)  # fmt: skip

PROOFS = (count, never_absorbing, lumpability, lumping_error, positions)

# --- the scorecard's rows for the chain -------------------------------------------------------------------------------

Rule = Callable[[tuple[int, ...]], Fraction]


def window_rule(text: tuple[int, ...], context: int = 2) -> Fraction:
    """The probability of token 1 under a model that sees the last ``context`` tokens."""
    return Fraction(1 + sum(text[-context:]), 2 + context)


def counting_rule(text: tuple[int, ...], limit: int = 3) -> Fraction:
    """The same model behind a filter that counts: after ``limit`` tokens 1 it never lets another pass."""
    return Fraction(0) if sum(text) >= limit else window_rule(text)


def same_window_different_law(rule: Rule, context: int = 2, longest: int = 6) -> tuple[tuple, tuple] | None:
    """Two texts that end in the same full window and go on with different probabilities, the shortest, or None."""
    seen: dict[tuple, tuple] = {}
    for length in range(context, longest + 1):
        for text in product((0, 1), repeat=length):
            first = seen.setdefault(text[-context:], text)
            if rule(text) != rule(first):
                return first, text
    return None


@register(
    id="mc-finite",
    chapter=1,
    source="Mechanism 1, core assumption",
    statement="An autoregressive language model is equivalent to a Markov chain on a finite set of states.",
    reading=(
        "States: all windows of one to K of the V tokens. Steps: append a token, forget the oldest beyond K. The next "
        "token's law depends on nothing but the window."
    ),
    basis=Basis.PROOF,
)
def finite_chain() -> Finding:
    """True if the window is all that matters; conditional as long as some decoding rule remembers more."""
    if not count.holds() or same_window_different_law(window_rule):
        return Finding(Verdict.REFUTED, "the windows are not the states of a chain")
    memory = same_window_different_law(counting_rule)
    if memory is None:
        return Finding(Verdict.REPRODUCED, "every rule tried is a function of the window")
    words = [" ".join(map(str, text)) for text in memory]
    return Finding(
        Verdict.CONDITIONAL,
        "N = V(V^K-1)/(V-1) states, V^K up to a factor V/(V-1); for V = 50257, K = 1024 a number of "
        f"{int(states.log10_states(50257, 1024)) + 1} digits. The condition: decoding keeps no other memory. A filter "
        f"that counts over the whole text tells '{words[0]}' from '{words[1]}', which end in the same two tokens",
    )


@register(
    id="mc-absorbing",
    chapter=1,
    source="Mechanism 1",
    statement="Fine-tuning creates absorbing refusal states: once entered, they cannot be left.",
    reading="A closed set of windows (delta = 0) of a softmax of finite logits that is sampled in full.",
    basis=Basis.PROOF,
)
def absorbing_only_with_an_end() -> Finding:
    """Impossible without an end token; conditional if making one absorbing creates closed classes."""
    if not never_absorbing.holds():
        return Finding(Verdict.UNDECIDED, "the floor under the probabilities does not check")
    windows = states.Windows(3, 3)
    law = normalised_exponential(3 * np.random.default_rng(1).normal(size=(len(windows), 3)), axis=1)
    free = states.closed_classes(states.window_chain(windows, law))
    ended = states.closed_classes(states.window_chain(windows, law, end=2))
    if len(free) != 1 or len(free[0]) != windows.vocabulary**windows.context:
        return Finding(Verdict.REPRODUCED, f"{len(free)} closed classes without an end token")
    if any(len(c) > 1 or windows.last()[c[0]] != 2 for c in ended):
        return Finding(Verdict.REFUTED, "no class is closed, end token or not")
    return Finding(
        Verdict.CONDITIONAL,
        "true if the end token is made absorbing: a refusal that has ended stays one. Otherwise every class without "
        "all full windows is left, with probability at least p^K in K steps, p = 1/(1+(V-1)e^g) for logits within g; "
        f"so refusals are delta-absorbing at best. A random model, V = K = 3: one closed class of {len(free[0])} windows; "
        f"with an end token {len(ended)}, each an ended text",
    )


@register(
    id="mc-lumped",
    chapter=1,
    source="Mechanism 1",
    statement="A chain on a few states (harmful, refusal) with a transition matrix describes what the model does.",
    reading=(
        "The position-indexed lumped chain of a model's own outputs, which has every law right, also predicts refusal "
        "after a forced harmful prefix."
    ),
    basis=Basis.CERTIFICATE,
)
def lumped_chain_under_prefill() -> Finding:
    """Refuted by three states as long as the laws are exact and the prediction is not."""
    refused, predicted, worst = forced_prefix_counterexample()
    if worst != 0:
        return Finding(Verdict.UNDECIDED, f"the lumped chain has a law wrong by {worst}")
    if refused == predicted:
        return Finding(Verdict.REPRODUCED, "the prediction is right on the example tried")
    if not positions.holds():
        return Finding(Verdict.UNDECIDED, "the statement on conditionals does not check")
    return Finding(
        Verdict.REFUTED,
        f"harmful states a -> b -> refusal, started in a: all laws exact; set into b by a prefix, the chain refuses "
        f"with probability {refused}, predicted {predicted}. It holds where the blocks are lumpable, or if the "
        "conditionals are estimated under the prefix",
    )
