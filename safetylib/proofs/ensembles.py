"""Proposition 4.11, as summarised: what a vote requires of its members, and what any joint law allows.

``W`` is the number of members, ``p`` the risk of one, ``m`` the quorum of harmful members from which the ensemble is
unsafe, ``epsilon`` the risk that is tolerated, ``E`` = ln(1/epsilon). Voting rules are in
:mod:`safetylib.chain.ensemble`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import comb

import sympy as sp

from safetylib.chain import ensemble
from safetylib.claims import Basis, Finding, Verdict, register
from safetylib.proofs.core import Entailment, Identity, Instances, Mutation, Proof, Step

SOURCE = "Proposition 4.11 (as summarised)"

p, q, W, m, epsilon, E, k = sp.symbols("p q W m epsilon E k", positive=True)
x, y, r, h, s, c, t = sp.symbols("x y r h s c t", positive=True)
u, v, S, I, R = sp.symbols("u v S I R", real=True)
half = sp.Rational(1, 2)

SINGLE = Fraction(42, 100), Fraction(46, 100)  #: safety scores reported for single models, lowest and highest
ENSEMBLE = Fraction(9, 10)  #: the lowest safety score reported for ensembles

# --- exact rationals --------------------------------------------------------------------------------------------------


def binomial_tail(risk: Fraction, width: int, quorum: int) -> Fraction:
    """P(at least ``quorum`` of ``width`` independent members are harmful), exactly."""
    return sum(
        (comb(width, i) * risk**i * (1 - risk) ** (width - i) for i in range(quorum, width + 1)), start=Fraction(0)
    )


def majority_safety(safety: Fraction, width: int) -> Fraction:
    """P(more than half of ``width`` independent members are safe), exactly."""
    return binomial_tail(safety, width, width // 2 + 1)


def best_majority_safety(safety: Fraction, width: int) -> Fraction:
    """The largest safety score of a majority over all joint laws, if each member's is ``safety``."""
    return min(Fraction(1), width * safety / (width // 2 + 1))


@dataclass(frozen=True)
class Excluded:
    """An ensemble that is safe enough although Proposition 4.11's condition for a majority excludes it."""

    width: int
    risk: Fraction
    epsilon: Fraction
    ensemble_risk: Fraction
    bound: float

    def __str__(self) -> str:
        return (
            f"W = {self.width} independent members with p = {self.risk}: a majority's risk is exactly "
            f"{self.ensemble_risk} = "
            f"{float(self.ensemble_risk):.5f} <= {float(self.epsilon):g}, while the condition asks for p <= "
            f"{self.bound:.3f}"
        )


def smallest_excluded(epsilon: Fraction = Fraction(1, 100), largest_width: int = 9) -> Excluded | None:
    """The narrowest such vote of three or more, with the largest unit fraction p = 1/i that will do."""
    for width in range(3, largest_width + 1, 2):
        bound = float(ensemble.hoeffding_required_p(float(epsilon), width))
        for i in range(3, 1000):
            exact = binomial_tail(Fraction(1, i), width, (width + 1) // 2)
            if exact <= epsilon and 1 / i > bound:
                return Excluded(width, Fraction(1, i), epsilon, exact, bound)
    return None


def _tails() -> Iterator[tuple[str, bool]]:
    """Both tie rules, squared so that odd W needs no root."""
    for width in range(1, 13):
        for i in range(1, 11):
            risk = Fraction(i, 20)
            for quorum in {(width + 1) // 2, width // 2 + 1}:
                below = binomial_tail(risk, width, quorum) ** 2 <= (4 * risk * (1 - risk)) ** width
                yield f"W = {width}, p = {risk}, m = {quorum}", below


def _without_square_root() -> Iterator[tuple[str, bool]]:
    for width in range(1, 13):
        yield f"W = {width}", binomial_tail(Fraction(1, 10), width, (width + 1) // 2) <= Fraction(36, 100) ** width


def _extreme_laws() -> Iterator[tuple[str, bool]]:
    """The laws of :func:`safetylib.chain.ensemble.extreme_law`, in fractions: right mean, and the bound is met."""
    for width in range(1, 9):
        for quorum in range(1, width + 1):
            for i in range(0, 11):
                mean = width * Fraction(i, 10)
                ends = {
                    quorum: min(Fraction(1), mean / quorum),
                    quorum - 1: max(Fraction(0), (mean - quorum + 1) / (width - quorum + 1)),
                }
                for cut, bound in ends.items():
                    low, high = (0, cut) if mean <= cut else (cut, width)
                    weight = (mean - low) / (high - low) if high > low else Fraction(0)
                    law = {low: 1 - weight} | ({high: weight} if high > low else {})
                    right = sum(value * share for value, share in law.items()) == mean and min(law.values()) >= 0
                    risk = sum(share for value, share in law.items() if value >= quorum)
                    yield f"W = {width}, m = {quorum}, p = {Fraction(i, 10)}", right and risk == bound


# --- union ------------------------------------------------------------------------------------------------------------

union = Proof(
    label="ch04-union",
    title="The union bound, and which union it belongs to",
    hypotheses=(p <= 1, epsilon < 1),
    setting=(
        r"An ensemble of $W$ members is unsafe as soon as *any* member is harmful, each member is harmful with probability "
        r"$p$, and a risk of $\varepsilon$ is tolerated."
    ),
    statement=(
        r"Its risk is at most $Wp$ under every joint law, and for $Wp \le 1$ some law attains it. So the risk is at most "
        r"$\varepsilon$ whatever the dependence if and only if $p \le \varepsilon/W$. Independent members may have "
        r"$p \le 1-(1-\varepsilon)^{1/W}$, which is no less than $\varepsilon/W$ and less than $\varepsilon$ for $W > "
        r"1$: "
        r"under this union, width tightens the requirement."
    ),
    steps=(
        Step(
            r"One more member adds at most its own risk to the probability $u$ that one of the first $k$ is harmful. "
            r"By induction the risk $v$ of $W$ members is at most $Wp$.",
            Entailment(v <= (k + 1) * p, given=(u <= k * p, v <= u + p)),
        ),
        Step(
            r"Let exactly member $i$ be harmful with probability $p$, for each $i$, and nobody otherwise. What is left "
            r"over is a probability, and the risk is $Wp$.",
            Entailment(sp.And(1 - W * p >= 0, sp.Eq(1 - (1 - W * p), W * p)), given=(W * p <= 1,)),
        ),
        Step(r"Hence the requirement, exactly.", Entailment(sp.Equivalent(W * p <= epsilon, p <= epsilon / W))),
        Step(
            r"Independent members: solve $1-(1-p)^W = \varepsilon$. Here $q = 1-\varepsilon$.",
            Identity(sp.Subs(1 - (1 - p) ** W, p, 1 - q ** (1 / W)), 1 - q),
        ),
        Step(
            r"That is no stricter than the union bound: with $x = (1-\varepsilon)^{1/W}$, $1-x^W \le W(1-x)$, by "
            r"induction, where "
            r"$y$ stands for $x^k$.",
            Entailment(1 - x * y <= (k + 1) * (1 - x), given=(x <= 1, y <= 1, 1 - y <= k * (1 - x))),
        ),
        Step(
            r"And stricter than for a single member: $x^W < x$ where $0 < x < 1$ and $W > 1$, here with $y$ for "
            r"$x^{W-1} < 1$.",
            Entailment(1 - x < 1 - x * y, given=(x < 1, y < 1)),
        ),
    ),
    mutations=(
        Mutation("a member's risk of epsilon is enough", Entailment(W * p <= epsilon, given=(p <= epsilon, W > 1))),
        Mutation("the bound is attained at any p", Entailment(1 - W * p >= 0)),
        Mutation(
            "a new member adds half of its risk",
            Entailment(v <= (k + half) * p, given=(u <= k * p, v <= u + p)),
        ),
    ),
    source=SOURCE,
)

any_refusal = Proof(
    label="ch04-any-refusal",
    title="The other union: one refusal is enough",
    hypotheses=(epsilon < 1,),
    setting=(
        r"An ensemble of $W$ members is safe as soon as *any* member refuses, each member is harmful with probability $p$, "
        r"and a risk of $\varepsilon$ is tolerated."
    ),
    statement=(
        r"With independent members its risk is $p^W$, so "
        r"$p \le \varepsilon^{1/W}$ is required, which relaxes with width. With identical members the risk is $p$: "
        r"under an arbitrary joint law only $p \le \varepsilon$ is safe, and width buys nothing."
    ),
    steps=(
        Step(r"Solve $p^W = \varepsilon$.", Identity(sp.Subs(p**W, p, epsilon ** (1 / W)), epsilon)),
        Step(
            r"The requirement relaxes: $x = \varepsilon^{1/W}$ is above $x^W = \varepsilon$, by induction, where $y$ "
            r"stands for $x^k$.",
            Entailment(x * y < x, given=(x < 1, y < 1)),
        ),
        Step(
            r"Markov's inequality for $S \ge W$: the risk $R$ of all members at once is at most $p$.",
            Entailment(R <= p, given=(W * R <= W * p,)),
        ),
    ),
    mutations=(
        Mutation("the union bound's formula", Identity((epsilon / W) ** W, epsilon)),
        Mutation("wide votes have no risk under any law", Entailment(R < p, given=(W * R <= W * p,))),
    ),
    source=SOURCE,
)

# --- any joint law ----------------------------------------------------------------------------------------------------

indicator = sp.Or(sp.And(sp.Eq(I, 1), S >= m), sp.And(sp.Eq(I, 0), S <= m - 1))

any_joint = Proof(
    label="ch04-any-joint",
    title="What the members' risks alone allow",
    hypotheses=(m >= 1, m <= W, p <= 1),
    setting=r"Of $W$ members $S$ are harmful, with mean risk $p$, so that $\mathbb E S = Wp$; $m$ is a quorum.",
    statement=(
        r"Under every joint law"
        "\n\n"
        r"$$\max\left(0, \frac{Wp-m+1}{W-m+1}\right) \le P(S \ge m) \le \min\left(1, \frac{Wp}{m}\right),$$"
        "\n\n"
        r"and both ends are attained. $I$ stands for the indicator of $S \ge m$, and $R$ for its mean."
    ),
    steps=(
        Step(
            r"Markov's inequality, outcome by outcome.",
            Entailment(m * I <= S, given=(indicator, S >= 0)),
        ),
        Step(r"Take means on both sides, and divide.", Entailment(R <= W * p / m, given=(m * R <= W * p,))),
        Step(
            r"From the other side: short of the quorum there are at most $m-1$ harmful members, else at most $W$.",
            Entailment(S <= m - 1 + (W - m + 1) * I, given=(indicator, S <= W)),
        ),
        Step(
            r"Take means and solve for the risk.",
            Entailment(R >= (W * p - m + 1) / (W - m + 1), given=(W * p <= m - 1 + (W - m + 1) * R,)),
        ),
        Step(
            r"Laws on two values of $S$ attain both ends: on 0 and $m$ (or $m$ and $W$), and on $m-1$ and $W$ (or 0 "
            r"and $m-1$). "
            r"They have the right mean and the stated risk for all $m \le W \le 8$ and eleven values of $p$.",
            Instances(
                r"P(S \ge m) = \min\left(1, \tfrac{Wp}{m}\right), \qquad "
                r"P(S \ge m) = \max\left(0, \tfrac{Wp-m+1}{W-m+1}\right)",
                _extreme_laws,
            ),
        ),
    ),
    mutations=(
        Mutation("one harmful member too many", Entailment((m + 1) * I <= S, given=(indicator, S >= 0))),
        Mutation(
            "the lower end without its one",
            Entailment(R >= (W * p - m + 1) / (W - m), given=(W * p <= m - 1 + (W - m + 1) * R, m < W)),
        ),
    ),
    source=SOURCE,
)

P = sp.symbols("P_0:8", real=True)


def law_of_safe_members(width: int, safety) -> tuple:
    """P_0, ..., P_W are the probabilities that so many members are safe; the mean is at most W times ``safety``."""
    outcomes = P[: width + 1]
    mean = sum(number * share for number, share in enumerate(outcomes))
    return (*(share >= 0 for share in outcomes), sp.Eq(sum(outcomes), 1), mean <= width * sp.Rational(safety))


def majority_is_safe(width: int):
    """P(more than half are safe)."""
    return sum(P[width // 2 + 1 : width + 1])


def _at_most(bound: str, width: int, safety=SINGLE[1]) -> Entailment:
    return Entailment(majority_is_safe(width) <= sp.Rational(bound), given=law_of_safe_members(width, safety))


def _attained() -> Iterator[tuple[str, bool]]:
    for width, bound in ((3, Fraction(69, 100)), (5, Fraction(23, 30)), (7, Fraction(161, 200))):
        yield f"W = {width}", best_majority_safety(SINGLE[1], width) == bound


def _vote(width: int):
    return sum(comb(width, i) * s**i * (1 - s) ** (width - i) for i in range(width // 2 + 1, width + 1))


reported = Proof(
    label="ch04-reported",
    title="What the reported members can vote to",
    hypotheses=(),
    statement=(
        r"If every member of an ensemble is safe with probability at most $0.46$, a majority of 3 is safe with "
        r"probability at most "
        r"$0.69$, of 5 at most $\tfrac{23}{30}$, of 7 at most $0.805$, under any joint law whatever, and each bound is "
        r"attained. For "
        r"odd $W$ it stays below $2 \cdot 0.46 = 0.92$, and $0.9$ takes 45 members at least. With independent members a majority is *less* safe than one of "
        r"them. "
        r"Here $P_i$ is the probability that exactly $i$ members are safe, and $s < 1/2$ the safety of one."
    ),
    steps=(
        Step(
            r"Three members: two safe ones are needed, and there are $3 \cdot 0.46$ on average.", _at_most("69/100", 3)
        ),
        Step("Five.", _at_most("23/30", 5)),
        Step("Seven.", _at_most("161/200", 7)),
        Step(
            r"Any odd number: Markov's bound is $Ws/\frac{W+1}{2}$.",
            Entailment(W * s / ((W + 1) / 2) < 2 * s),
        ),
        Step(
            r"For members of safety $0.46$ it reaches $0.9$ at 45.",
            Entailment(sp.Equivalent((W * s / ((W + 1) / 2)).subs(s, SINGLE[1]) >= sp.Rational(9, 10), W >= 45)),
        ),
        Step(
            r"Attained: just over half of the members, drawn at random, are safe together, and nobody is otherwise.",
            Instances(r"\frac{Ws}{(W+1)/2} = \tfrac{69}{100},\ \tfrac{23}{30},\ \tfrac{161}{200}", _attained),
        ),
        Step(
            "Independent members, three of them: the vote is worse than one.",
            Entailment(sp.expand(_vote(3)) < s, given=(s < half,)),
        ),
        Step("Five are worse than three.", Entailment(sp.expand(_vote(5)) < sp.expand(_vote(3)), given=(s < half,))),
        Step("Seven are worse than five.", Entailment(sp.expand(_vote(7)) < sp.expand(_vote(5)), given=(s < half,))),
    ),
    mutations=(
        Mutation("three could not even reach .68", _at_most("68/100", 3)),
        Mutation("three members of safety .5 stay below .69 too", _at_most("69/100", 3, Fraction(1, 2))),
        Mutation("an independent vote always hurts", Entailment(sp.expand(_vote(3)) < s, given=(s < 1,))),
    ),
    source=SOURCE,
)

# --- majority ---------------------------------------------------------------------------------------------------------

divergence = (sp.log(half / p) + sp.log(half / q)) / 2
excess = (sp.log(half / p) + sp.log(half / (1 - p))) / 2 - 2 * (half - p) ** 2
slope = (1 - 2 * p) * (4 * p * (1 - p) - 1) / (2 * p * (1 - p))

majority_bounds = Proof(
    label="ch04-majority-bounds",
    title="Three answers for a majority, one sharper than the next",
    hypotheses=(p <= half,),
    setting=(
        r"Each of $W$ independent members is harmful with probability $p$; $q$ stands for $1-p$, and "
        r"$\mathrm{KL}(\tfrac12\|p)$ for $\tfrac12\ln\tfrac1{2p} + \tfrac12\ln\tfrac1{2q}$."
    ),
    statement=(
        r"The risk of a majority, whether ties are safe or not, is at most"
        "\n\n"
        r"$$e^{-W\,\mathrm{KL}(1/2\|p)} = (4p(1-p))^{W/2},$$"
        "\n\n"
        r"and this is at most Hoeffding's $e^{-2W(1/2-p)^2}$."
    ),
    steps=(
        Step(
            r"Chernoff: where $S \ge W/2$, $t^{S-W/2} \ge 1$ for $t = q/p \ge 1$. A member's factor in the mean of "
            r"$t^S$ is "
            r"$q + pt$; squared and divided by $t$ it is $4pq$ (using $q + p = 1$ in $q + pt = 2q$).",
            Identity(sp.Subs((2 * q) ** 2 / t, t, q / p), 4 * p * q),
        ),
        Step(r"This is the divergence in the exponent.", Identity(-2 * divergence, sp.log(4) + sp.log(p) + sp.log(q))),
        Step(
            r"Exact tails of both tie rules are below it, for 240 pairs of $W$ and $p$ (squared, to avoid roots).",
            Instances(r"P(S \ge m)^2 \le (4p(1-p))^W", _tails),
        ),
        Step(
            r"Now against Hoeffding. The difference of the exponents, $\mathrm{KL}(\tfrac12\|p) - 2(\tfrac12-p)^2$, is "
            r"0 at "
            r"$p = 1/2$ and has this slope:",
            Identity(sp.Derivative(excess, p), slope),
        ),
        Step(
            r"The slope is not positive, so to the left of $1/2$ the difference is not negative.",
            Entailment(slope <= 0),
        ),
    ),
    mutations=(
        Mutation("a bound without the square root", Instances(r"P(S \ge m) \le (4p(1-p))^W", _without_square_root)),
        Mutation("Hoeffding with a twice as large exponent", Identity(sp.diff(excess - 2 * (half - p) ** 2, p), slope)),
        Mutation("the slope has one sign on all of (0, 1)", Entailment(slope <= 0), hypotheses=(p < 1,)),
    ),
    source=SOURCE,
)

closed = (1 - r) / 2

majority_required = Proof(
    label="ch04-majority-required",
    title="What a majority requires of its members",
    hypotheses=(epsilon < 1, p <= half),
    setting=(
        r"Each of $W$ independent members is harmful with probability $p$, a risk of $\varepsilon$ is tolerated, and "
        r"$E = \ln(1/\varepsilon)$."
    ),
    statement=(
        r"A majority, whether ties are safe or not, has a risk of at "
        r"most $\varepsilon$ if $p \le \frac12\left(1-\sqrt{1-\varepsilon^{2/W}}\right)$, a bound that is positive for "
        r"every $W$. It is also enough that $p \le \frac12 - \sqrt{E/(2W)}$, the condition of Proposition 4.11; but no "
        r"$p > 0$ meets that one if and only if $W \le 2\ln(1/\varepsilon)$."
    ),
    steps=(
        Step(
            r"Solve $(4p(1-p))^{W/2} \le \varepsilon$, that is $4p(1-p) \le y = \varepsilon^{2/W}$. Here $r = "
            r"\sqrt{1-y}$.",
            Entailment(sp.Equivalent(4 * p * (1 - p) <= y, p <= closed), given=(sp.Eq(r**2, 1 - y), r <= 1)),
        ),
        Step(r"It admits some $p > 0$ for every $W$.", Entailment(closed > 0, given=(sp.Eq(r**2, 1 - y), y < 1))),
        Step(
            r"Solve Hoeffding's $2W(\frac12-p)^2 \ge E$. Here $h = \sqrt{E/(2W)}$.",
            Entailment(sp.Equivalent(2 * W * (half - p) ** 2 >= E, p <= half - h), given=(sp.Eq(2 * W * h**2, E),)),
        ),
        Step(
            r"When that excludes every $p > 0$.",
            Entailment(sp.Equivalent(half - h <= 0, W <= 2 * E), given=(sp.Eq(2 * W * h**2, E),)),
        ),
    ),
    mutations=(
        Mutation(
            "vacuous up to half that width",
            Entailment(sp.Equivalent(half - h <= 0, W <= E), given=(sp.Eq(2 * W * h**2, E),)),
        ),
        Mutation(
            "the closed form without its half",
            Entailment(sp.Equivalent(4 * p * (1 - p) <= y, p <= 1 - r), given=(sp.Eq(r**2, 1 - y), r <= 1)),
        ),
        Mutation(
            "the closed form for every p up to one",
            Entailment(sp.Equivalent(4 * p * (1 - p) <= y, p <= closed), given=(sp.Eq(r**2, 1 - y), r <= 1)),
            hypotheses=(epsilon < 1, p <= 1),
        ),
    ),
    source=SOURCE,
)

# --- correlation ------------------------------------------------------------------------------------------------------

shared_cause = Proof(
    label="ch04-shared-cause",
    title="A shared cause puts a floor under every vote",
    hypotheses=(p <= 1, c <= 1, v >= 0, v <= 1),
    setting=(
        r"With probability $c$ one coin decides for all members alike, and otherwise each tosses its own; every coin is "
        r"harmful with probability $p$, and $v$ is the risk of a voting rule with independent coins."
    ),
    statement=(
        r"Then each member is harmful with probability $p$, two members are "
        r"correlated by exactly $c$, and the risk of *every* voting rule at *every* width is at least $cp$. So "
        r"$p \le \varepsilon/c$ is necessary, however wide the ensemble."
    ),
    steps=(
        Step(
            r"Covariance of two members over their variance: they are harmful together with probability $cp + "
            r"(1-c)p^2$.",
            Identity((c * p + (1 - c) * p**2 - p**2) / (p * (1 - p)), c),
        ),
        Step(
            r"When the coin is shared, all members agree, so every quorum has risk $p$.",
            Entailment(c * p + (1 - c) * v >= c * p),
        ),
        Step(
            r"A risk of at most $\varepsilon$ therefore needs this.",
            Entailment(p <= epsilon / c, given=(c * p + (1 - c) * v <= epsilon,)),
        ),
    ),
    mutations=(
        Mutation("the floor is the member's own risk", Entailment(c * p + (1 - c) * v >= p)),
        Mutation("the correlation is c squared", Identity((c * p + (1 - c) * p**2 - p**2) / (p * (1 - p)), c**2)),
    ),
    source="Proposition 4.11's assumption (as summarised)",
)

PROOFS = (union, any_refusal, any_joint, reported, majority_bounds, majority_required, shared_cause)

# --- the scorecard's rows for Proposition 4.11 ------------------------------------------------------------------------

MEMBERS = "W members, each harmful on a prompt with probability p; risk = P(the ensemble's output is unsafe)."
TOLERATED = 0.01


@register(
    id="4.11-union",
    chapter=4,
    source="Proposition 4.11",
    statement="A union of W models requires p <= epsilon/W of each.",
    reading=(
        f"{MEMBERS} Unsafe iff any member is harmful; risk at most epsilon under every joint law iff p <= epsilon/W."
    ),
    basis=Basis.PROOF,
)
def union_formula() -> Finding:
    """Reproduced by the union bound and the law that attains it."""
    if not union.holds():
        return Finding(Verdict.REFUTED, "the union bound is not what is required")
    independent = ensemble.required_p(TOLERATED, 5, 1)
    return Finding(
        Verdict.REPRODUCED,
        "exactly right for this reading, without any assumption of independence; independence would relax it hardly at "
        f"all (W = 5, epsilon = {TOLERATED:g}: {TOLERATED / 5:.6f} against {independent:.6f})",
    )


@register(
    id="4.11-union-relaxed",
    chapter=4,
    source="Proposition 4.11",
    statement="With a union, the required individual risk p can be relaxed.",
    reading=(
        f"{MEMBERS} The p allowed by epsilon/W, or by independent members, at some W >= 2 exceeds the one allowed at W "
        f"= 1."
    ),
    basis=Basis.PROOF,
)
def union_relaxes() -> Finding:
    """Refuted for the union that the formula belongs to; the other union does relax."""
    if not (union.holds() and any_refusal.holds()):
        return Finding(Verdict.UNDECIDED, "the proofs on the two unions do not check")
    widths = range(2, 102)
    if any(max(TOLERATED / w, ensemble.required_p(TOLERATED, w, 1)) > TOLERATED for w in widths):
        return Finding(Verdict.REPRODUCED, "some width allows a larger p")
    return Finding(
        Verdict.REFUTED,
        "if any harmful member makes the output unsafe, every added member tightens the requirement; if instead any "
        "refusal "
        f"makes it safe, independent members need p <= epsilon^(1/W), which does relax (W = 3, epsilon = "
        f"{TOLERATED:g}: "
        f"{TOLERATED / 3:.4f} against {ensemble.required_p(TOLERATED, 3, 3):.3f}), but is not the stated formula",
    )


@register(
    id="4.11-majority",
    chapter=4,
    source="Proposition 4.11",
    statement="A majority vote reaches risk epsilon if p <= 1/2 - sqrt(ln(1/epsilon)/(2W)).",
    reading=f"{MEMBERS} Members are independent; unsafe iff at least half, or more than half, are harmful.",
    basis=Basis.PROOF,
)
def majority_formula() -> Finding:
    """Reproduced: Hoeffding's inequality, through the sharper bound."""
    if not (majority_bounds.holds() and majority_required.holds()):
        return Finding(Verdict.REFUTED, "the bound does not follow")
    return Finding(Verdict.REPRODUCED, "it is Hoeffding's inequality, and holds for both ways to count a tie")


@register(
    id="4.11-majority-required",
    chapter=4,
    source="Proposition 4.11",
    statement="A majority vote requires p <= 1/2 - sqrt(ln(1/epsilon)/(2W)).",
    reading=f"{MEMBERS} Members are independent; no larger p has a risk of at most epsilon.",
    basis=Basis.CERTIFICATE,
)
def majority_is_not_tight() -> Finding:
    """Refuted by an exact count; with the tight closed form beside it."""
    example = smallest_excluded()
    if example is None or not majority_required.holds():
        return Finding(Verdict.UNDECIDED, "no ensemble was found that the condition excludes wrongly")
    vacuous = ensemble.hoeffding_vacuous_width(TOLERATED)
    return Finding(
        Verdict.REFUTED,
        f"{example}; the condition admits no p > 0 iff W <= 2 ln(1/epsilon) = {vacuous:.2f}, while "
        "p <= (1 - sqrt(1 - epsilon^(2/W)))/2 suffices at every W and is never smaller",
    )


@register(
    id="4.11-independence",
    chapter=4,
    source="Proposition 4.11",
    statement="The guarantee rests on sufficiently independent failure modes.",
    reading=(
        f"{MEMBERS} Without independence, the p that the majority's condition admits can have a risk above epsilon."
    ),
    basis=Basis.CERTIFICATE,
)
def independence_is_needed() -> Finding:
    """Reproduced if a shared cause breaks the condition."""
    width, correlation = 101, 0.1
    admitted = float(ensemble.hoeffding_required_p(TOLERATED, width))
    floor = correlation * admitted
    if not shared_cause.holds() or floor <= TOLERATED:
        return Finding(Verdict.UNDECIDED, "the floor under correlated members does not settle it")
    beta = ensemble.beta_binomial_floor(admitted, correlation)
    return Finding(
        Verdict.REPRODUCED,
        f"and a little dependence is enough to break it: W = {width} admits p = {admitted:.3f}, where a shared cause "
        f"with pair "
        f"correlation {correlation:g} leaves a risk of at least {floor:.3f} at every width (epsilon = {TOLERATED:g}), "
        f"and "
        f"beta-binomial members one of {beta:.3f}",
    )


@register(
    id="4.11-reported",
    chapter=4,
    source="Experiments (as summarised)",
    statement="Ensembles (by majority) reach safety scores of 0.9-1.0 with members of 0.42-0.46.",
    reading="Score = P(safe); every member's is at most 0.46; a majority of 3, 5 or 7; any joint law.",
    basis=Basis.CERTIFICATE,
)
def majority_cannot_reach() -> Finding:
    """Refuted by the largest safety over all joint laws."""
    if not reported.holds():
        return Finding(Verdict.UNDECIDED, "the bounds over all joint laws do not check")
    best = {width: best_majority_safety(SINGLE[1], width) for width in (3, 5, 7)}
    if max(best.values()) >= ENSEMBLE:
        return Finding(Verdict.REPRODUCED, "some joint law gets there")
    listed = ", ".join(f"{float(value):.3f} of {width}" for width, value in best.items())
    first = next(width for width in range(3, 999, 2) if best_majority_safety(SINGLE[1], width) >= ENSEMBLE)
    return Finding(
        Verdict.REFUTED,
        f"no joint law gives a majority more than {listed}; among odd widths 0.9 is first possible at W = {first}. So the scores are "
        f"not "
        "probabilities of this kind, the members are not those single models, or the vote is another",
    )


@register(
    id="4.11-explains",
    chapter=4,
    source="Proposition 4.11",
    statement="The ensembles' scores validate the proposition's condition for a majority.",
    reading=(
        "Score = P(safe); members of 0.42-0.46, so p of 0.54-0.58, meet p <= 1/2 - sqrt(ln(1/epsilon)/(2W)) at some W."
    ),
    basis=Basis.PROOF,
)
def condition_is_not_met() -> Finding:
    """Refuted: the condition asks for less than one half at every width."""
    if not reported.holds():
        return Finding(Verdict.UNDECIDED, "the votes of independent members do not check")
    if 1 - SINGLE[1] < Fraction(1, 2):
        return Finding(Verdict.UNDECIDED, "a wide enough ensemble would meet it")
    votes = ", ".join(f"{float(majority_safety(SINGLE[1], width)):.3f}" for width in (3, 5, 7))
    return Finding(
        Verdict.REFUTED,
        f"the condition asks for p < 1/2 at every W and these members have p >= {float(1 - SINGLE[1]):g}; independent "
        f"ones of 0.46 "
        f"vote to {votes} (W = 3, 5, 7), below a single one",
    )


@register(
    id="4.11-reported-any-refusal",
    chapter=4,
    source="Experiments (as summarised)",
    statement="Ensembles (by a union) reach safety scores of 0.9-1.0 with members of 0.42-0.46.",
    reading="Score = P(safe); the ensemble is safe if any member refuses; independent members.",
    basis=Basis.PROOF,
)
def any_refusal_can_reach() -> Finding:
    """True from some width on, which is computed in exact rationals."""
    if not any_refusal.holds():
        return Finding(Verdict.UNDECIDED, "the risk of a vote by any refusal does not check")
    needed = [next(w for w in range(1, 99) if 1 - (1 - safety) ** w >= ENSEMBLE) for safety in SINGLE]
    three = [float(1 - (1 - safety) ** 3) for safety in SINGLE]
    verdict = Verdict.CONDITIONAL if max(needed) > 1 else Verdict.REPRODUCED
    return Finding(
        verdict,
        f"from W = {needed[1]} (members of 0.46) or W = {needed[0]} (0.42) on; W = 3 gives {three[0]:.2f} to "
        f"{three[1]:.2f}. "
        "Identical members stay at 0.42-0.46 whatever W",
    )
