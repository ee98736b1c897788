"""Theorem 4.5, as summarised, proved where it holds and refuted where it does not.

``n`` counts updates, ``G`` stands for gamma^n, and kappa = alpha b / ((1 - gamma) e_0) is the bias in store
over the bias needed. The rules themselves, and what each symbol means, are in :mod:`safetylib.chain.updates`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import count, product

import sympy as sp

from safetylib.chain import updates
from safetylib.claims import Basis, Finding, Verdict, register
from safetylib.proofs.core import Entailment, Identity, Instances, Mutation, Proof, Step

SOURCE = "Theorem 4.5 (as summarised)"

e0, q0, e, b, c, m = sp.symbols("e_0 q_0 e b c m", positive=True)
alpha, beta, gamma, delta, eta, kappa, G = sp.symbols("alpha beta gamma delta eta kappa G", positive=True)
n = sp.Symbol("n", integer=True, nonnegative=True)

additive_G = e0 * (1 - kappa * (1 - G))
in_window = sp.And(additive_G >= -delta, additive_G <= delta)
enough = 1 - delta / e0

# --- exact rationals --------------------------------------------------------------------------------------------------


def additive_path(escape_0: Fraction, bias: Fraction, alpha: Fraction, gamma: Fraction) -> Iterator[Fraction]:
    """e_0, e_1, ... of the additive rule, exactly, by iteration."""
    escape, step = escape_0, alpha * bias
    while True:
        yield escape
        escape, step = escape - step, step * gamma


def paper_count(delta: Fraction, gamma: Fraction) -> int:
    """The smallest n with gamma^n <= delta (1 - gamma), exactly, by iteration."""
    return _first_power(delta * (1 - gamma), gamma)


def _first_power(target: Fraction, gamma: Fraction) -> int:
    power = Fraction(1)
    for steps in count():
        if power <= target:
            return steps
        power *= gamma


@dataclass(frozen=True)
class Counterexample:
    """Parameters (b = 1) for which the paper's number of updates leaves the refusal state short of delta."""

    escape_0: Fraction
    gamma: Fraction
    alpha: Fraction
    delta: Fraction
    steps: int
    escape: Fraction

    def __str__(self) -> str:
        return (
            f"e_0 = {self.escape_0}, b = 1, gamma = {self.gamma}, alpha = {self.alpha}, delta = "
            f"{self.delta}: "
            f"the bound asks for n = {self.steps} updates, after which e_n = {self.escape} > {self.delta}"
        )


def smallest_counterexample(largest_denominator: int = 6) -> Counterexample | None:
    """The first failure of the bound, read without a condition on alpha, in order of the largest denominator.

    Only rows that stay distributions are searched (0 <= e_n), so that no projection would change anything.
    """
    for largest in range(2, largest_denominator + 1):
        fractions = sorted({Fraction(p, q) for q in range(2, largest + 1) for p in range(1, q)})
        for escape_0, gamma, alpha, delta in product(fractions, repeat=4):
            if delta >= escape_0:
                continue
            steps = paper_count(delta, gamma)
            path = additive_path(escape_0, Fraction(1), alpha, gamma)
            escape = [next(path) for _ in range(steps + 1)][-1]
            if escape > delta:
                return Counterexample(escape_0, gamma, alpha, delta, steps, escape)
    return None


def _exact_counts() -> Iterator[tuple[str, bool]]:
    """The formula with the ceiling, against iteration, on a grid; never is checked at the limit."""
    fractions = [Fraction(p, 10) for p in (1, 3, 5, 7, 9)]
    ratios = [Fraction(p, 10) for p in (4, 9, 10, 13, 25)]
    for escape_0, gamma, kappa in product(fractions, fractions, ratios):
        for delta in (escape_0 / 2, escape_0 / 10, escape_0 / 16, escape_0 / 1000):
            alpha = kappa * (1 - gamma) * escape_0
            if escape_0 * (1 - kappa) >= delta:
                steps = float("inf")
            else:
                path = additive_path(escape_0, Fraction(1), alpha, gamma)
                steps = next(i for i, escape in enumerate(path) if escape <= delta)
            got = updates.additive_steps(
                float(delta), escape_0=float(escape_0), bias=1, alpha=float(alpha), gamma=float(gamma)
            )
            yield f"e_0 = {escape_0}, gamma = {gamma}, kappa = {kappa}, delta = {delta}", got == steps


COUNTS = {("9/10", "1/100"): (41, 66), ("99/100", "1/10"): (194, 688), ("999/1000", "1/10"): (1945, 9206)}


def _paper_counts() -> Iterator[tuple[str, bool]]:
    for (gamma, delta), counts in COUNTS.items():
        gamma, delta = Fraction(gamma), Fraction(delta)
        got = _first_power(delta / Fraction(7, 10), gamma), paper_count(delta, gamma)
        yield f"gamma = {gamma}, delta = {delta}: {got}", got == counts


def _empty_window() -> Iterator[tuple[str, bool]]:
    half, delta = Fraction(1, 2), Fraction(1, 20)
    path = additive_path(half, Fraction(1), Fraction(3, 4), half)
    first = [next(path) for _ in range(40)]
    yield "e_0 to e_3", first[:4] == [half, -half / 2, -half * Fraction(5, 4), -Fraction(13, 16)]
    yield "no e_n in the window, and e_n falls from n = 1 on", all(abs(escape) > delta for escape in first)


def _harmonic_cases() -> Iterator[tuple[str, bool]]:
    for alpha, gamma in product((Fraction(1, 10), Fraction(1), Fraction(10**9)), (Fraction(1, 2), Fraction(9, 10))):
        escape = escape_0 = Fraction(7, 10)
        for t in range(12):
            escape = escape / (1 + min(alpha * gamma**t, escape))
            floor = escape_0 / (1 + escape_0 * (t + 1))
            yield f"alpha = {alpha}, gamma = {gamma}, n = {t + 1}", escape >= floor


# --- the additive rule ------------------------------------------------------------------------------------------------


def _additive(steps):
    return e0 * (1 - kappa * (1 - gamma**steps))


closed_form = Proof(
    label="ch02-closed-form",
    title="Closed form of the escape probability",
    hypotheses=(gamma < 1,),
    setting=(
        r"Take the additive rule $Q_{t+1} = Q_t + \alpha\gamma^t B$ with the discount $\gamma$, $b = B(r,r) > 0$, and "
        r"$\kappa = \alpha b/((1-\gamma)e_0)$."
    ),
    statement=(
        r"The escape probability after $n$ updates is "
        r"$e_n = e_0\,(1 - \kappa(1-\gamma^n))$. Its limit is $e_\infty = e_0(1-\kappa)$, and $e_n - "
        r"e_\infty$ "
        r"shrinks by the factor $\gamma$ with every update."
    ),
    steps=(
        Step("Before any update the formula gives $e_0$.", Identity(sp.Subs(_additive(n), n, 0), e0)),
        Step(
            r"Update $n$ subtracts $\alpha b\gamma^n = \kappa(1-\gamma)e_0\gamma^n$, and the formula "
            r"follows it.",
            Identity(_additive(n) - kappa * (1 - gamma) * e0 * gamma**n, _additive(n + 1)),
        ),
        Step(
            "It splits into a limit and a geometric tail.",
            Identity(_additive(n), e0 * (1 - kappa) + kappa * e0 * gamma**n),
        ),
        Step(
            r"So the distance to the limit, and in general not $e_n$ itself, is a geometric sequence.",
            Identity((_additive(n + 1) - e0 * (1 - kappa)) / (_additive(n) - e0 * (1 - kappa)), gamma),
        ),
    ),
    mutations=(
        Mutation(
            "the discount starts one update earlier",
            Identity(_additive(n) - kappa * (1 - gamma) * e0 * gamma ** (n + 1), _additive(n + 1)),
        ),
        Mutation("the escape probability itself is geometric", Identity(_additive(n + 1) / _additive(n), gamma)),
    ),
    source=SOURCE,
)

exact_steps = Proof(
    label="ch02-exact-steps",
    title="The exact number of updates",
    hypotheses=(e0 <= 1, delta < e0, G < 1),
    setting=(
        r"Under the additive rule the escape probability starts at $e_0$, and $\delta$ is tolerated; $G$ stands for "
        r"$\gamma^n$."
    ),
    statement=(
        r"Then $e_n \le \delta$ for some $n$ if and only if $\kappa > 1 - \delta/e_0$, that is "
        r"$\alpha > (1-\gamma)(e_0-\delta)/b$, strictly; and if so, exactly from"
        "\n\n"
        r"$$n_{\min} = \left\lceil \frac{1}{\ln\gamma} \ln\!\left(1 - \frac{1-\delta/e_0}{\kappa}\right) \right\rceil$$"
        "\n\n"
        r"on."
    ),
    steps=(
        Step(
            r"Solve $e_n \le \delta$ for $G = \gamma^n$.",
            Entailment(sp.Equivalent(additive_G <= delta, kappa * G <= kappa - enough)),
        ),
        Step(
            "Too little bias in store: no number of updates will do, not even at equality.",
            Entailment(additive_G > delta, given=(kappa <= enough,)),
        ),
        Step(
            r"Enough of it: the bound on $\gamma^n$ lies strictly between 0 and 1, so powers of $\gamma$ "
            r"pass it.",
            Entailment(sp.And(1 - enough / kappa > 0, 1 - enough / kappa < 1), given=(kappa > enough,)),
        ),
        Step(
            r"With $\gamma < 1$ the power falls in $n$, so the first whole $n$ is the logarithm rounded up. "
            r"The formula is "
            "compared with iteration on 500 cases, those that end exactly on an integer among them.",
            Instances(
                r"n_{\min} = \left\lceil \frac{\ln(1 - (1-\delta/e_0)/\kappa)}{\ln\gamma} \right\rceil", _exact_counts
            ),
        ),
    ),
    mutations=(
        Mutation(
            "the threshold itself is enough",
            Entailment(additive_G <= delta, given=(sp.Eq(kappa, enough), G < delta)),
        ),
        Mutation("with kappa below one it never happens", Entailment(additive_G > delta, given=(kappa < 1,))),
    ),
    source=SOURCE,
)

paper_sufficient = Proof(
    label="ch02-sufficient",
    title="When the paper's number of updates is enough",
    hypotheses=(e0 <= 1, delta < e0, gamma < 1, G <= delta * (1 - gamma)),
    setting=(
        r"The additive rule starts at the escape probability $e_0$ with the discount $\gamma$, and $\delta$ is tolerated. "
        r"$G$ stands for $\gamma^n$, so the paper's condition $n = T + 1 \ge \ln(\delta(1-\gamma))/\ln\gamma$ is the last of "
        r"the following."
    ),
    statement=(
        r"If $\kappa = 1$, then $e_n \le \delta$, and even "
        r"$e_n \le \delta\,e_0(1-\gamma)$. More generally $|e_n| \le \delta$ if"
        "\n\n"
        r"$$\frac{1-\delta/e_0}{1-\delta(1-\gamma)} \le \kappa \le 1 + \frac{\delta}{e_0},$$"
        "\n\n"
        r"and neither end can be "
        r"moved."
    ),
    steps=(
        Step(
            "What the bound controls is the geometric tail, the discounts not yet spent.",
            Identity(1 / (1 - gamma) - (1 - gamma**n) / (1 - gamma), gamma**n / (1 - gamma)),
        ),
        Step(r"At $\kappa = 1$ the escape probability is $e_0 G$.", Identity(sp.Subs(additive_G, kappa, 1), e0 * G)),
        Step("That is at most delta, with room to spare.", Entailment(e0 * G <= delta * e0 * (1 - gamma))),
        Step(
            "The bound still works for kappa near one.",
            Entailment(in_window, given=(kappa * (1 - delta * (1 - gamma)) >= enough, kappa <= 1 + delta / e0)),
        ),
        Step(
            r"The lower end is sharp: where $\gamma^n$ equals the bound, a smaller kappa is not enough.",
            Entailment(
                sp.Equivalent(additive_G <= delta, kappa * (1 - delta * (1 - gamma)) >= enough),
                given=(sp.Eq(G, delta * (1 - gamma)),),
            ),
        ),
        Step(
            "The upper end is sharp: beyond it the limit undershoots.",
            Entailment(e0 * (1 - kappa) < -delta, given=(kappa > 1 + delta / e0,)),
        ),
    ),
    mutations=(
        Mutation("no condition on kappa", Entailment(in_window)),
        Mutation("kappa at least one", Entailment(in_window, given=(kappa >= 1,))),
        Mutation("kappa above the threshold", Entailment(in_window, given=(kappa > enough, kappa <= 1))),
    ),
    source=SOURCE,
)

paper_not_needed = Proof(
    label="ch02-not-necessary",
    title="The paper's number of updates is more than needed, before rounding",
    hypotheses=(e0 <= 1, delta < e0, gamma < 1),
    setting=(
        r"The additive rule starts at the escape probability $e_0$ with the discount $\gamma$, and $\delta$ is tolerated."
    ),
    statement=(
        r"At $\kappa = 1$ the refusal state is $\delta$-absorbing as soon as $\gamma^n \le \delta/e_0$. "
        r"Before rounding, "
        r"the paper's count exceeds this by $\ln\frac{1}{e_0(1-\gamma)} / \ln\frac1\gamma$ updates, "
        r"whatever $\delta$."
    ),
    steps=(
        Step(
            r"At $\gamma^n = \delta/e_0$ the goal is met, and the paper's condition is not.",
            Entailment(sp.And(e0 * G <= delta, G > delta * (1 - gamma)), given=(sp.Eq(G, delta / e0),)),
        ),
        Step(
            r"The difference of the two logarithms does not contain delta. Here $\eta = 1 - \gamma$.",
            Identity(
                sp.log(delta * eta) / sp.log(gamma) - sp.log(delta / e0) / sp.log(gamma),
                sp.log(1 / (e0 * eta)) / sp.log(1 / gamma),
            ),
        ),
        Step(
            r"Exact counts for $e_0 = 7/10$, by multiplying fractions.",
            Instances(
                r"(n_{\min}, n_{\text{paper}}) = (41, 66),\ (194, 688),\ (1945, 9206) \text{ for } "
                r"(\gamma,\delta) = (0.9, 0.01),\ (0.99, 0.1),\ (0.999, 0.1)",
                _paper_counts,
            ),
        ),
    ),
    mutations=(
        Mutation("the paper's condition is needed", Entailment(G <= delta * (1 - gamma), given=(e0 * G <= delta,))),
        Mutation(
            "the excess without the starting point",
            Identity(
                sp.log(delta * eta) / sp.log(gamma) - sp.log(delta / e0) / sp.log(gamma),
                sp.log(1 / eta) / sp.log(1 / gamma),
            ),
        ),
    ),
    source=SOURCE,
)

window = Proof(
    label="ch02-window",
    title="Too large a learning rate overshoots",
    hypotheses=(e0 <= 1, delta < e0, G < 1),
    setting=(
        r"The additive rule without projection starts at the escape probability $e_0$, and $\delta$ is tolerated; $G$ stands "
        r"for $\gamma^n$."
    ),
    statement=(
        r"Then $|e_n| \le \delta$ for all large $n$ if and only if "
        r"$1 - \delta/e_0 < \kappa \le 1 + \delta/e_0$. Beyond that, only a window of $n$ remains, and it "
        r"can be empty."
    ),
    steps=(
        Step(
            r"Both sides at once, with $G = \gamma^n$.",
            Entailment(sp.Equivalent(in_window, sp.And(kappa * (1 - G) >= enough, kappa * (1 - G) <= 1 + delta / e0))),
        ),
        Step(
            r"At the limit, $G = 0$; the lower end is excluded because $e_n$ stays above its limit.",
            Entailment(
                sp.Equivalent(
                    sp.And(e0 * (1 - kappa) >= -delta, e0 * (1 - kappa) < delta),
                    sp.And(kappa > enough, kappa <= 1 + delta / e0),
                )
            ),
        ),
        Step(
            r"The sequence can jump over the window: $\gamma = e_0 = 1/2$, $b = 1$, $\alpha = 3/4$ ($\kappa "
            r"= 3$), "
            r"$\delta = 1/20$.",
            Instances(
                r"e_n = \tfrac12,\ -\tfrac14,\ -\tfrac58,\ -\tfrac{13}{16},\ \dots \to -1, \qquad |e_n| > "
                r"\delta",
                _empty_window,
            ),
        ),
    ),
    mutations=(
        Mutation("above the threshold is enough", Entailment(e0 * (1 - kappa) >= -delta, given=(kappa > enough,))),
    ),
    source=SOURCE,
)

qh, qv, Bh, Bv = sp.symbols("q_h q_\\nu B_h B_\\nu", real=True)
row = (qh >= 0, qv >= 0, sp.Eq(qh + qv, e0), sp.Eq(b + Bh + Bv, 0))
stays = (qh + beta * Bh >= 0, qv + beta * Bv >= 0)

pinned = Proof(
    label="ch02-pinned",
    title="A valid chain pins the learning rate and the bias",
    hypotheses=(e0 <= 1, delta < e0, gamma < 1, *row),
    setting=(
        r"In row $r$, $q_h$ and $q_\nu$ are the entries of $Q_0$, and $B_h$ and $B_\nu$ those of $B$, towards harmful and "
        r"neutral states; $e_0 = 1 - Q_0(r,r)$, $b = B(r,r)$, $\gamma$ is the discount, $\beta = \alpha/(1-\gamma)$, and "
        r"$\delta$ is tolerated."
    ),
    statement=(
        r"If every $Q_t$ of the additive rule is stochastic, then "
        r"$\kappa \le 1$, so "
        r"a $\delta$-absorbing refusal confines $\alpha$ to an interval of relative width $\delta/e_0$. At "
        r"$\kappa = 1$ the "
        r"bias has to be proportional, $B(r,\cdot) = (b/e_0)(\mathbf 1_r - Q_0(r,\cdot))$. If the bias "
        r"leaves neutral states "
        r"alone, $e_n$ stays at or above $Q_0(r,N)$."
    ),
    steps=(
        Step(
            r"Every $Q_t$ with $t \le n$ is a mixture of $Q_0$ and $Q_n$: the last one decides. ($\kappa$ "
            r"here is $S_t/S_n$, "
            r"$\beta$ is $\alpha S_n$.)",
            Identity(qh + kappa * beta * Bh, (1 - kappa) * qh + kappa * (qh + beta * Bh)),
        ),
        Step(
            "No entry of the limit is negative, so the bias cannot exceed what is needed.",
            Entailment(beta * b <= e0, given=stays),
        ),
        Step(
            "The two ends of the learning rate.",
            Identity(((1 - gamma) * e0 / b - (1 - gamma) * (e0 - delta) / b) / ((1 - gamma) * e0 / b), delta / e0),
        ),
        Step(
            r"At $\kappa = 1$ nothing is left beside the diagonal, so each entry is used up exactly. (Let $q_h, B_h$ be "
            r"those of any one column and $q_\nu, B_\nu$ the sums over all others: it holds for every column.)",
            Entailment(sp.And(sp.Eq(e0 * Bh, -b * qh), sp.Eq(e0 * Bv, -b * qv)), given=(*stays, sp.Eq(beta * b, e0))),
        ),
        Step(
            "A bias against harmful states alone leaves the way to neutral ones open.",
            Entailment(e0 - beta * b >= qv, given=(*stays, sp.Eq(Bv, 0))),
        ),
    ),
    mutations=(
        Mutation(
            "a valid chain has a proportional bias at any kappa", Entailment(sp.Eq(e0 * Bh, -b * qh), given=stays)
        ),
        Mutation("kappa is at most one without validity", Entailment(beta * b <= e0)),
    ),
    source=SOURCE,
)

# --- Algorithm 1: clip, then normalise --------------------------------------------------------------------------------

R, lower, upper = sp.symbols("R l u", real=True)
projected = (e - R) / (1 + c - R)

clip_and_normalise = Proof(
    label="ch02-clip",
    title="One step of clip-and-normalise",
    hypotheses=(e <= 1, R >= 0, R <= e),
    setting=(
        r"An update finds the escape probability $e$; the diagonal gains $c$, and the entries beside it lose $R$ after clipping "
        r"at zero."
    ),
    statement=(
        r"Then the escape probability "
        r"becomes $e' = (e-R)/(1+c-R)$, which falls in $R$; and if $R \le c$, then $e - c \le e' \le "
        r"e/(1+c)$. If no entry is clipped at one and $R \le c = \alpha b\gamma^t$ at every update, then after $n$ of them"
        "\n\n"
        r"$$\max(0, e_0 - \alpha b S_n) \le e_n \le \frac{e_0}{\prod_{t<n}(1+\alpha b\gamma^t)}.$$"
    ),
    steps=(
        Step(r"The row then sums to $1 + c - R$; divide by it.", Identity(1 - (1 - e + c) / (1 + c - R), projected)),
        Step(
            "The more is removed, the less escapes.",
            Identity(sp.Derivative(projected, R), -(1 - e + c) / (1 + c - R) ** 2),
        ),
        Step(
            r"The extremes are $R = c$, where normalising changes nothing, and $R = 0$, where it does all the work.",
            Entailment(sp.And(projected >= e - c, projected <= e / (1 + c)), given=(R <= c,)),
        ),
        Step("A proportional bias removes what it adds,", Identity(sp.Subs(projected, R, c), e - c)),
        Step("a diagonal one removes nothing: both ends are met.", Identity(sp.Subs(projected, R, 0), e / (1 + c))),
        Step(
            r"A lower bound $l$ and an upper bound $u$ are handed on to the next update, as $l - c$ and $u/(1+c)$; no escape is "
            r"negative. By induction over the updates, with $c = \alpha b\gamma^t$, the sums and products of the statement.",
            Entailment(
                sp.And(projected >= lower - c, projected <= upper / (1 + c), projected >= 0),
                given=(R <= c, e >= lower, e <= upper),
            ),
        ),
    ),
    mutations=(
        Mutation("removing more than the diagonal gains", Entailment(projected >= e - c)),
        Mutation("a clip at one as well", Entailment(e / (1 + m) <= e / (1 + c), given=(m <= c, m <= e))),
        Mutation("normalising for nothing", Entailment(projected <= e - c, given=(R <= c,))),
    ),
    source="Algorithm 1 (as reconstructed)",
)

s, share, surplus, q1, q2, w1, w2 = sp.symbols("s w x q_1 q_2 w_1 w_2", positive=True)
entry, r1, r2 = sp.symbols("q r_1 r_2", real=True)


def _tuned_surpluses() -> Iterator[tuple[str, bool, list[Fraction]]]:
    """e_n - e_0 gamma^n for sixteen exact updates of clip-and-normalise at the tuned rate, and whether B is proportional."""
    third, half, quarter = Fraction(1, 3), Fraction(1, 2), Fraction(1, 4)
    shares = (
        (third,) * 3,
        (half, quarter, quarter),
        (Fraction(1), Fraction(0), Fraction(0)),
        (Fraction(0), half, half),
    )
    for start, discount, held, taken in product((half, Fraction(1)), (half, 3 * quarter), shares, shares):
        entries, gain, store, surpluses = [start * part for part in held], start * (1 - discount), start, []
        for _ in range(16):
            left = [max(mass - gain * part, Fraction(0)) for mass, part in zip(entries, taken, strict=True)]
            total = 1 - sum(entries) + gain + sum(left)
            entries, gain, store = [mass / total for mass in left], gain * discount, store * discount
            surpluses.append(sum(entries) - store)
        case = f"e_0 = {start}, gamma = {discount}, shares {held}, bias {taken}: {float(surpluses[-1]):.3g}"
        yield case.replace("Fraction", ""), held == taken, surpluses


def _only_proportional() -> Iterator[tuple[str, bool]]:
    for case, proportional, surpluses in _tuned_surpluses():
        if proportional:
            yield case, set(surpluses) == {0}
        else:
            yield case, surpluses == sorted(surpluses) and 0 <= surpluses[0] and surpluses[-1] > 0


tuned_clip = Proof(
    label="ch02-tuned-clip",
    title="At the tuned learning rate only a proportional bias survives clipping",
    hypotheses=(e0 <= 1, gamma < 1, e <= 1, R >= 0, R <= e),
    setting=(
        r"Beside the diagonal, row $r$ of $B$ has no positive entry; $w_j = -B(r,j)/b$ are the shares of its columns, "
        r"$\sum_{j\ne r} w_j = 1$. The escape probability starts at $e_0$, the discount is $\gamma$, and the learning rate is "
        r"tuned, $\alpha = (1-\gamma)e_0/b$. An update finds the escape probability $e$, adds $c$ to the diagonal, removes $R$ "
        r"beside it, clips to $[0,1]$ and normalises."
    ),
    statement=(
        r"Then $e_n \to 0$ if and only if the bias is proportional, $w_j = Q_0(r,j)/e_0$ for every $j \ne r$. If it is, no "
        r"entry is ever clipped and $e_n = e_0\gamma^n$. If it is not, some update clips an entry, and from there on "
        r"$e_n - e_0\gamma^n$ is positive and never falls."
    ),
    steps=(
        Step(
            r"Update $t$ adds $c = (1-\gamma)s$ to the diagonal, where $s = e_0\gamma^t$. So $s$ is what all updates from $t$ on "
            r"add together: it starts at $e_0$, and after the update $\gamma s$ is left of it.",
            Identity(sp.Subs(s - c, c, (1 - gamma) * s), gamma * s),
        ),
        Step(
            r"**If.** Let every entry $q$ beside the diagonal be $sw$, as at $t = 0$, where $w$ is its column's share. The update "
            r"takes $cw$ from it, which is no more than there is: nothing is clipped, $R = c$, and $\gamma sw$ is left.",
            Entailment(
                sp.And(entry - c * share >= 0, sp.Eq(entry - c * share, gamma * s * share)),
                given=(sp.Eq(entry, s * share), sp.Eq(c, (1 - gamma) * s)),
            ),
        ),
        Step(
            r"Normalising then changes nothing, so every entry is $sw$ at each update, and $e_n$, their sum, is $e_0\gamma^n$.",
            Identity(sp.Subs((entry - c * share) / (1 + c - R), R, c), entry - c * share),
        ),
        Step(
            r"**Only if.** The entries sum to $e_0$ and the shares to one. If they are not proportional, some column has more of "
            r"the bias than of the row. (One column, and all others together.)",
            Entailment(
                sp.Or(e0 * w1 > q1, e0 * w2 > q2),
                given=(sp.Eq(q1 + q2, e0), sp.Eq(w1 + w2, 1), sp.Ne(e0 * w1, q1)),
            ),
        ),
        Step(
            r"If no update clipped, that column would hold $q - we_0(1-\gamma^n)$. This is negative once $G = \gamma^n$ is below "
            r"a positive number, and powers of $\gamma$ pass every positive number. So some update clips.",
            Entailment(
                sp.And(
                    1 - entry / (share * e0) > 0,
                    sp.Implies(G < 1 - entry / (share * e0), entry - share * e0 * (1 - G) < 0),
                ),
                given=(e0 * share > entry,),
            ),
        ),
        Step(
            r"An update removes at most $cw_j$ from a column, and less exactly where it clips. So $R \le c$, with equality if "
            r"and only if no column is clipped. (Two columns, of which $r_1$ and $r_2$ are removed.)",
            Entailment(
                sp.And(r1 + r2 <= c, sp.Equivalent(sp.Eq(r1 + r2, c), sp.And(sp.Eq(r1, c * w1), sp.Eq(r2, c * w2)))),
                given=(r1 <= c * w1, r2 <= c * w2, sp.Eq(w1 + w2, 1)),
            ),
        ),
        Step(
            r"Before the first clipped update $e$ is exactly $s$. That update removes less than it adds, and leaves more than the "
            r"$\gamma s$ that is still to come.",
            Entailment(projected > gamma * s, given=(sp.Eq(e, s), sp.Eq(c, (1 - gamma) * s), R < c)),
        ),
        Step(
            r"From then on the surplus $x = e - s$ never falls, so $e_n$ stays above it.",
            Entailment(projected >= gamma * s + surplus, given=(e >= s + surplus, sp.Eq(c, (1 - gamma) * s), R <= c)),
        ),
        Step(
            r"Nothing is clipped at one, in either case: $e \ge s$ throughout, so the diagonal $1 - e + c$ is at most 1.",
            Entailment(1 - e + c <= 1, given=(e >= s, sp.Eq(c, (1 - gamma) * s))),
        ),
        Step(
            "Sixteen exact updates of 64 rows with three columns, proportional and not.",
            Instances(
                r"e_n = e_0\gamma^n \quad\text{or}\quad 0 < e_n - e_0\gamma^n \text{, never falling}",
                _only_proportional,
            ),
        ),
    ),
    mutations=(
        Mutation(
            "a clipped update removes as much as it adds",
            Entailment(projected <= gamma * s, given=(sp.Eq(e, s), sp.Eq(c, (1 - gamma) * s), R < c)),
        ),
        Mutation(
            "at twice the tuned learning rate the surplus is kept, too",
            Entailment(
                projected >= gamma * s + surplus, given=(e >= s + surplus, sp.Eq(c, 2 * (1 - gamma) * s), R <= c)
            ),
        ),
        Mutation(
            "any bias without positive entries will do",
            Instances("e_n = e_0 gamma^n", lambda: ((case, rest[-1] == 0) for case, _, rest in _tuned_surpluses())),
        ),
    ),
    source="Algorithm 1 (as reconstructed)",
)

x = sp.Symbol("n", real=True)

harmonic = Proof(
    label="ch02-harmonic",
    title="A diagonal bias with clipping at one is only harmonic",
    hypotheses=(e0 <= 1, e <= 1, m <= e, x >= 0),
    setting=(
        r"$B$ has no entry beside the diagonal; each of $n$ updates adds it, clips to $[0, 1]$ and normalises. The escape "
        r"probability starts at $e_0$; an update finds it at $e$ and adds $m$ to the diagonal."
    ),
    statement=(
        r"For every learning rate and discount, $e_n \ge e_0/(1 + e_0 n)$. So $n \ge 1/\delta - 1/e_0$ is necessary: "
        r"the number of "
        r"updates grows like $1/\delta$, not like $\ln(1/\delta)$."
    ),
    steps=(
        Step(
            r"The diagonal gains $m = \min(\alpha b\gamma^t, e)$, nothing is removed, the row is divided by "
            r"$1 + m$.",
            Identity(1 - (1 - e + m) / (1 + m), e / (1 + m)),
        ),
        Step(r"Since $m \le e$, the reciprocal of $e$ grows by one at most.", Entailment((1 + m) / e <= 1 / e + 1)),
        Step(
            "So the floor is handed on from each update to the next.",
            Entailment(e / (1 + m) >= e0 / (1 + e0 * (x + 1)), given=(e >= e0 / (1 + e0 * x),)),
        ),
        Step(
            "Below delta the floor has to be below delta too.",
            Entailment(x >= 1 / delta - 1 / e0, given=(e0 / (1 + e0 * x) <= delta,)),
        ),
        Step(
            r"Twelve exact updates at learning rates from $1/10$ to $10^9$ respect the floor.",
            Instances(r"e_n \ge \frac{e_0}{1 + e_0 n}, \qquad e_0 = \tfrac{7}{10}", _harmonic_cases),
        ),
    ),
    mutations=(
        Mutation("the reciprocal grows by one half at most", Entailment((1 + m) / e <= 1 / e + sp.Rational(1, 2))),
        Mutation(
            "without the clip at one",
            Entailment((1 + m) / e <= 1 / e + 1),
            hypotheses=(e0 <= 1, e <= 1),
        ),
    ),
    source="Algorithm 1 (as reconstructed)",
)

h, v, w, nu = sp.symbols("h v w nu", positive=True)
unmatched = sp.Symbol("x", nonnegative=True)


def _neutral_cases(tighter: Fraction) -> Iterator[tuple[str, bool]]:
    """Whether forty exact updates stay above the floor times ``tighter``; the exponential rounded down."""
    start = Fraction(7, 10)
    for share, ratio, discount in product(
        (Fraction(1, 10), Fraction(4, 7), Fraction(9, 10)),
        (Fraction(1), Fraction(3, 2)),
        (Fraction(1, 2), Fraction(9, 10)),
    ):
        harmful, neutral, gain = (1 - share) * start, share * start, ratio * start * (1 - discount)
        floor = Fraction(float(updates.neutral_floor(float(start), float(share), float(ratio)))) * (
            1 - Fraction(1, 10**9)
        )
        for _ in range(40):
            removed = min(harmful, gain)
            harmful, neutral = (
                (mass / (1 + gain - removed)).limit_denominator(10**30) for mass in (harmful - removed, neutral)
            )
            gain *= discount
        yield f"share {share}, kappa {ratio}, gamma {discount}", harmful + neutral >= floor * tighter


neutral = Proof(
    label="ch02-neutral",
    title="A way out that the bias does not close",
    hypotheses=(nu <= 1, kappa >= 1 - nu),
    setting=(
        r"A share $\nu$ of the escape probability leads to neutral states, the bias is $-b$ on harmful states and 0 on neutral "
        r"ones, each step clips at zero and normalises, and $\kappa = \alpha b/((1-\gamma)e_0)$."
    ),
    statement=(
        r"Then "
        r"$e_n \ge \nu e_0 \exp(-e_0(\kappa-1+\nu))$ for every $n$, whatever $\gamma < 1$. At $\kappa = 1$ that is at "
        r"least $\nu e_0 e^{-\nu e_0}$: no number of updates helps."
    ),
    steps=(
        Step(
            r"As long as the harmful mass $h$ is at least $c_t$, what the diagonal gains is what $h$ loses ($R = c$), and "
            r"normalising leaves the neutral mass $v$ alone.",
            Identity(sp.Subs(v / (1 + c - R), R, c), v),
        ),
        Step(
            "The update that clips takes all that is left of the harmful mass, which is zero from then on.",
            Identity(sp.Subs((h - R) / (1 + c - R), R, h), sp.Integer(0)),
        ),
        Step(
            r"So harmful mass of $(1-\nu)e_0$ is removed in all, out of gains that sum to $\kappa e_0$ at most; the rest "
            r"of the gains is matched by no removal.",
            Identity(kappa * e0 - (1 - nu) * e0, e0 * (kappa - 1 + nu)),
        ),
        Step(
            r"An unmatched gain $x$ divides the neutral mass by $1+x \le e^x$: the slope of $x - \ln(1+x)$, which is 0 at "
            "0,",
            Identity(sp.Derivative(unmatched - sp.log(1 + unmatched), unmatched), unmatched / (1 + unmatched)),
        ),
        Step("is never negative.", Entailment(sp.Ge(unmatched / (1 + unmatched), 0, evaluate=False))),
        Step(
            r"The neutral mass is a part of the escape, so a lower bound $w$ on it, divided by as much, bounds the escape.",
            Entailment((h + v) / (1 + unmatched) >= w / (1 + unmatched), given=(v >= w,)),
        ),
        Step(
            "Forty exact updates respect the floor (quotients kept to thirty digits).",
            Instances(r"e_{40} \ge \nu e_0 e^{-e_0(\kappa-1+\nu)}", lambda: _neutral_cases(Fraction(1))),
        ),
    ),
    mutations=(
        Mutation("the neutral share is matched too", Identity(kappa * e0 - (1 - nu) * e0, e0 * (kappa - 1))),
        Mutation(
            "a floor half as high again",
            Instances(r"e_{40} \ge \tfrac32\nu e_0 e^{-e_0(\kappa-1+\nu)}", lambda: _neutral_cases(Fraction(3, 2))),
        ),
    ),
    source="Algorithm 1 (as reconstructed)",
)

# --- logits -----------------------------------------------------------------------------------------------------------

X, Y = sp.symbols("X Y", positive=True)
Delta = sp.Symbol("Delta", positive=True)


def _logistic(pushed):
    return e0 / (e0 + q0 * pushed)


def _sum(steps):
    return (1 - gamma**steps) / (1 - gamma)


softmax = Proof(
    label="ch02-softmax",
    title="Bias added to the logits",
    hypotheses=(sp.Eq(q0 + e0, 1), delta < 1),
    setting=(
        r"The row is updated by $Q_{t+1}(r,j) \propto Q_t(r,j)\exp(\alpha\gamma^t B(r,j))$ with equal gaps "
        r"$\Delta = B(r,r) - B(r,j)$. It starts from $q_0 = Q_0(r,r)$ and the escape probability $e_0$; $\delta$ is tolerated."
    ),
    statement=(
        r"The logit of $Q_n(r,r)$ is $\ln(q_0/e_0) + \alpha\Delta S_n$, where "
        r"$S_n = (1-\gamma^n)/(1-\gamma)$. So $e_n \le \delta$ if and only if "
        r"$\alpha\Delta S_n \ge \Lambda = \ln\frac{(1-\delta)e_0}{\delta q_0}$, and $e_n$ is never 0."
    ),
    steps=(
        Step(
            r"One step multiplies the odds. Here $X = \exp(\alpha\Delta S_n)$ and $Y = "
            r"\exp(\alpha\Delta\gamma^n)$.",
            Identity(_logistic(X) / (_logistic(X) + (1 - _logistic(X)) * Y), _logistic(X * Y)),
        ),
        Step("The discounts add up.", Identity(_sum(n) + gamma**n, _sum(n + 1))),
        Step(
            "So the logit is linear in their sum.",
            Identity(sp.log((1 - _logistic(X)) / _logistic(X)), sp.log(q0 / e0) + sp.log(X)),
        ),
        Step(
            r"Solve for $X$; its logarithm is the budget $\Lambda$.",
            Entailment(sp.Equivalent(_logistic(X) <= delta, X >= (1 - delta) * e0 / (delta * q0))),
        ),
        Step("However large the push, something escapes.", Entailment(sp.Gt(_logistic(X), 0, evaluate=False))),
    ),
    mutations=(
        Mutation(
            "a budget without the starting point",
            Entailment(sp.Equivalent(_logistic(X) <= delta, X >= (1 - delta) / delta)),
        ),
        Mutation("an undiscounted push", Identity(_sum(n) + 1, _sum(n + 1))),
    ),
    source="softmax variant of Theorem 4.5 (ours)",
)

margin, z_r, z_h = sp.symbols("m z_r z_h", real=True)
loss = -sp.log(sp.exp(z_r) / (sp.exp(z_r) + sp.exp(z_h)))
escaping = sp.exp(z_h) / (sp.exp(z_r) + sp.exp(z_h))

cross_entropy = Proof(
    label="ch02-cross-entropy",
    title="What gradient descent on the refusal's loss does",
    hypotheses=(),
    statement=(
        r"With two outcomes and loss $-\ln Q(r,r)$, gradient flow moves the margin $m = z_r - z_h$ at the speed "
        r"$2e$, where $e = 1/(1+e^m)$ and time is the sum of the learning rates. Hence $m + e^m$ grows at the "
        r"constant speed 2, and after $n$ updates of size $\alpha$ the escape probability is about $1/(2\alpha n)$: "
        r"it falls harmonically, not geometrically."
    ),
    steps=(
        Step(
            "The gradient pulls the refusal's logit up by the escape probability.",
            Identity(-sp.Derivative(loss, z_r), escaping),
        ),
        Step("It pushes the other logit down by as much.", Identity(-sp.Derivative(loss, z_h), -escaping)),
        Step(
            r"So by the chain rule the clock $m + e^m$ runs evenly.",
            Identity(sp.Derivative(margin + sp.exp(margin), margin) * 2 / (1 + sp.exp(margin)), sp.Integer(2)),
        ),
    ),
    mutations=(
        Mutation(
            "the margin itself runs evenly",
            Identity(2 / (1 + sp.exp(margin)), sp.Integer(2)),
        ),
    ),
    source="cross-entropy variant of Theorem 4.5 (ours)",
)

a, p, N = sp.symbols("a p N", positive=True)

mixing = Proof(
    label="ch02-mixing",
    title="A rule that is always valid",
    hypotheses=(a <= 1, e <= 1),
    setting=(
        r"The rule is $Q_{t+1}(r,\cdot) = (1-a_t)Q_t(r,\cdot) + a_t\mathbf 1_r$. An update with $a = a_t$ finds the escape "
        r"probability $e$."
    ),
    statement=(
        r"The rule keeps every row a distribution, and $e_{t+1} = (1-a_t)e_t$. A refusal of $N$ tokens survives with probability "
        r"$(1-e)^N \ge 1 - Ne$."
    ),
    steps=(
        Step("Only what is not mixed in can escape.", Identity(1 - ((1 - a) * (1 - e) + a), (1 - a) * e)),
        Step("It stays a probability.", Entailment(sp.And((1 - a) * e >= 0, (1 - a) * e <= 1))),
        Step(
            r"For the response, by induction on its length: if $N$ tokens survive with probability $p \ge 1 - Ne$, a further one "
            r"costs at most one more escape.",
            Entailment(p * (1 - e) >= 1 - (N + 1) * e, given=(p >= 1 - N * e,)),
        ),
    ),
    mutations=(
        Mutation("a longer refusal costs nothing", Entailment(p * (1 - e) >= 1 - N * e, given=(p >= 1 - N * e,))),
    ),
    source="a repaired rule (ours)",
)

PROOFS = (
    closed_form, exact_steps, paper_sufficient, paper_not_needed, window, pinned, clip_and_normalise, tuned_clip, harmonic,
    neutral, softmax, cross_entropy, mixing,
)  # fmt: skip

# --- the scorecard's rows for Theorem 4.5 -----------------------------------------------------------------------------

READING = "Additive rule Q_(t+1) = Q_t + alpha gamma^t B, n = T + 1 updates, e_n = 1 - Q_n(r,r)."


@register(
    id="4.5-sufficient",
    chapter=2,
    source="Theorem 4.5",
    statement="After T >= ln(delta(1-gamma))/ln(gamma) - 1 steps, |Q_T(r,r) - 1| <= delta.",
    reading=f"{READING} The bound, where kappa = alpha b/((1-gamma) e_0) is one, or in an interval around it.",
    basis=Basis.PROOF,
)
def bound_suffices_when_tuned() -> Finding:
    """True for the tuned learning rate; conditional as long as some other learning rate breaks it."""
    if not paper_sufficient.holds():
        return Finding(Verdict.REFUTED, "the bound fails even at kappa = 1")
    verdict = Verdict.CONDITIONAL if smallest_counterexample() else Verdict.REPRODUCED
    low, high = updates.paper_kappa(0.01, escape_0=0.7, gamma=0.9)
    return Finding(
        verdict,
        "the bound suffices for (1 - delta/e_0)/(1 - delta(1-gamma)) <= kappa <= 1 + delta/e_0, and neither end can be "
        f"moved; for e_0 = 0.7, gamma = 0.9, delta = 0.01 that is {low:.4f} <= kappa <= {high:.4f}",
    )


@register(
    id="4.5-any-alpha",
    chapter=2,
    source="Theorem 4.5",
    statement="The number of training steps that is needed depends on delta and gamma alone.",
    reading=f"{READING} The same bound with no condition on alpha, B or Q_0.",
    basis=Basis.CERTIFICATE,
)
def bound_needs_alpha() -> Finding:
    """Refuted by the first counterexample that the search finds."""
    example = smallest_counterexample()
    if example is None:
        return Finding(Verdict.UNDECIDED, "no counterexample among fractions with denominators up to 6")
    rest = example.escape_0 - example.alpha / (1 - example.gamma)
    more = f"; e_n falls towards {rest}, so no number of updates will do" if rest >= example.delta else ""
    return Finding(Verdict.REFUTED, f"{example}{more}")


@register(
    id="4.5-threshold",
    chapter=2,
    source="Theorem 4.5",
    statement="A learning rate below a threshold prevents the refusal state from becoming absorbing.",
    reading=f"{READING} Some n has e_n <= delta iff alpha > (1-gamma)(e_0-delta)/b.",
    basis=Basis.PROOF,
)
def threshold_exists() -> Finding:
    """Reproduced, with the value of the threshold."""
    if not exact_steps.holds():
        return Finding(Verdict.REFUTED, "the stated threshold is not the right one")
    threshold = updates.additive_threshold(0.01, escape_0=0.7, bias=1, gamma=0.9)
    return Finding(
        Verdict.REPRODUCED,
        f"and the threshold is exact and strict; for e_0 = 0.7, b = 1, gamma = 0.9, delta = 0.01 it is {threshold:.3f}",
    )


@register(
    id="4.5-necessary",
    chapter=2,
    source="Theorem 4.5",
    statement="The bound is the number of training steps needed, a precise calculation.",
    reading=f"{READING} kappa = 1: no smaller number of updates reaches delta.",
    basis=Basis.PROOF,
)
def bound_is_not_tight() -> Finding:
    """Refuted by exact counts."""
    if not (paper_not_needed.holds() and exact_steps.holds()):
        return Finding(Verdict.UNDECIDED, "the exact counts do not check")
    if all(exact == paper for exact, paper in COUNTS.values()):
        return Finding(Verdict.REPRODUCED, "the exact counts agree with the bound")
    pairs = "; ".join(
        f"gamma = {float(Fraction(gamma)):g}, delta = {float(Fraction(delta)):g}: {exact} updates do, "
        f"the bound asks for {paper}"
        for (gamma, delta), (exact, paper) in COUNTS.items()
    )
    return Finding(Verdict.REFUTED, f"with e_0 = 0.7, {pairs}")


@register(
    id="4.5-geometric",
    chapter=2,
    source="Theorem 4.5",
    statement="The escape probability 1 - Q_T(r,r) decreases geometrically.",
    reading=f"{READING} e_(n+1)/e_n is the constant gamma.",
    basis=Basis.PROOF,
)
def decrease_is_geometric() -> Finding:
    """True of the distance to the limit; of the escape probability only where the limit is zero."""
    if not closed_form.holds():
        return Finding(Verdict.REFUTED, "not even the distance to the limit is geometric")
    ratio = sp.simplify(_additive(n + 1) / _additive(n))
    if sp.simplify(ratio - gamma) == 0:
        return Finding(Verdict.REPRODUCED, "e_n = e_0 gamma^n for every kappa")
    if sp.simplify(ratio.subs(kappa, 1) - gamma) != 0:
        return Finding(Verdict.REFUTED, "not even at kappa = 1")
    return Finding(
        Verdict.CONDITIONAL,
        "e_n - e_infinity is geometric for every kappa; e_n itself is at kappa = 1 (e_infinity = 0), and "
        "otherwise "
        "levels off at e_0(1 - kappa) or, for kappa > 1, leaves [0, 1] unless it is clipped",
    )


@register(
    id="4.5-clipped",
    chapter=2,
    source="Theorem 4.5 with Algorithm 1",
    statement="The same number of steps serves when each update is clipped and its rows are normalised.",
    reading="B on the diagonal alone; each step adds, clips to [0, 1], divides rows by their sums; any alpha.",
    basis=Basis.PROOF,
)
def clipping_breaks_the_law() -> Finding:
    """Refuted if the harmonic floor, at the paper's number of updates, lies above delta."""
    if not harmonic.holds():
        return Finding(Verdict.UNDECIDED, "the harmonic floor does not check")
    escape_0, gamma, delta = Fraction(1, 2), Fraction(1, 2), Fraction(1, 100)
    steps = paper_count(delta, gamma)
    floor = escape_0 / (1 + escape_0 * steps)
    if floor <= delta:
        return Finding(Verdict.UNDECIDED, f"the floor {floor} does not settle it")
    needed = 1 / delta - 1 / escape_0
    return Finding(
        Verdict.REFUTED,
        "e_n >= e_0/(1 + e_0 n) for every alpha; "
        f"with e_0 = {escape_0}, gamma = {gamma}, delta = {delta} the bound asks for {steps} updates, where the "
        f"floor is still {floor}; no learning rate does it in fewer than {needed}",
    )
