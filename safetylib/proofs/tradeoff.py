"""Open question 3: depth against width, the optima and where they are only artefacts.

``n`` counts updates, ``W`` members; ``p_0`` is a member's risk before training, a = ln(1/p_0), s = ln(1/gamma),
E = ln(1/epsilon); ``c_t`` and ``c_i`` are the costs of an update and of a member. See :mod:`safetylib.chain.tradeoff`.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from math import ceil

import numpy as np
import sympy as sp

from safetylib.chain import tradeoff
from safetylib.claims import Basis, Finding, Verdict, register
from safetylib.proofs.core import Entailment, Identity, Instances, Mutation, Proof, Step
from safetylib.proofs.ensembles import binomial_tail

SOURCE = "Open question 3 (as summarised)"

W, V, E, a, s, c_t, c_i, c = sp.symbols("W V E a s c_t c_i c", positive=True)
p, p0, pinf, A, eta, eps = sp.symbols("p p_0 p_inf A eta epsilon", positive=True)
y, w, k, h, G, rho = sp.symbols("y w k h G rho", positive=True)
n = sp.Symbol("n", nonnegative=True)
x, C = sp.symbols("x C", real=True)
phi = sp.Function("phi")(n)
half = sp.Rational(1, 2)

# --- every member is trained, one refusal is enough -------------------------------------------------------------------

boundary_steps = (E / W - a) / s
boundary_cost = c_t * E / s + W * (c_i - c_t * a / s)
cost_at = {width: c_t * E / s + width * (c_i - c_t * a / s) for width in (1, V)}


def _whole_designs() -> Iterator[tuple[str, bool]]:
    """Whole numbers, exactly: no design between the ends is cheaper than both ends by more than rounding can
    explain."""
    start, factor, tolerated = (
        Fraction(1, 4),
        Fraction(1, 2),
        Fraction(1, 2**20),
    )  # a = 2, s = 1, E = 20, in powers of two
    for member in (Fraction(1, 2), Fraction(1), Fraction(3), Fraction(10)):
        designs = []
        for width in range(1, 11):
            steps = next(i for i in range(30) if (start * factor**i) ** width <= tolerated)
            designs.append((width * (steps + member), width, steps))
        best = min(designs)[1]
        yield f"c_i/c_t = {member}: W = {best}", best == (10 if member < 2 else 1)


bang_bang = Proof(
    label="ch05-bang-bang",
    title="Deep and narrow, or wide and shallow, but nothing between",
    hypotheses=(),
    statement=(
        r"Let every member be trained, a member's risk be $p_0\gamma^n$, members be independent and one refusal "
        r"enough. The "
        r"ensemble reaches $\varepsilon$ if and only if $W(a + sn) \ge E$. On this boundary the cost $W(c_tn + c_i)$ "
        r"is "
        r"affine in $W$, so an end is cheapest: one member and $n = (E-a)/s$ if $c_i/c_t > a/s$, no training and $W = "
        r"E/a$ if "
        r"$c_i/c_t < a/s$. The crossover does not depend on $\varepsilon$. Here $V$ is the width at the wide end."
    ),
    steps=(
        Step(
            r"The ensemble fails if all members do. Take logarithms.",
            Identity(-sp.log((p0 * sp.exp(-s * n)) ** W), W * (sp.log(1 / p0) + s * n)),
        ),
        Step(
            r"Where that is exactly $E$, the cost is affine in the width.",
            Identity(W * (c_t * boundary_steps + c_i), boundary_cost),
        ),
        Step(
            "An affine function is never below both of its ends.",
            Entailment(sp.Or(boundary_cost >= cost_at[1], boundary_cost >= cost_at[V]), given=(W >= 1, W <= V)),
        ),
        Step(
            r"Which end it is depends on one sign; with $V = E/a$, the difference of the ends is",
            Identity((cost_at[1] - cost_at[V]).subs(V, E / a), (E / a - 1) * (c_t * a / s - c_i)),
        ),
        Step(
            "and so the wide end is cheaper exactly below the crossover, whatever the target.",
            Entailment(sp.Equivalent((E / a - 1) * (c_t * a / s - c_i) > 0, c_i / c_t < a / s), given=(E > a,)),
        ),
        Step(
            r"Whole numbers of updates round the boundary up. An exact case, $p_0 = \frac14$, $\gamma = \frac12$, "
            r"$\varepsilon = 2^{-20}$, so that $a/s = 2$:",
            Instances(
                r"\tfrac{c_i}{c_t} < 2 \Rightarrow W = 10,\ n = 0; \quad "
                r"\tfrac{c_i}{c_t} > 2 \Rightarrow W = 1,\ n = 18",
                _whole_designs,
            ),
        ),
    ),
    mutations=(
        Mutation(
            "the crossover depends on the target",
            Entailment(sp.Equivalent((E / a - 1) * (c_t * a / s - c_i) > 0, c_i / c_t < E / s), given=(E > a,)),
        ),
        Mutation("the deep end is always best", Entailment(boundary_cost >= cost_at[1], given=(W >= 1, W <= V))),
        Mutation(
            "a member's own cost is free", Identity(W * (c_t * boundary_steps + c_i), c_t * E / s - W * c_t * a / s)
        ),
    ),
    source=SOURCE,
)

# --- the general picture: cost over exponent --------------------------------------------------------------------------

spent = c_t * n + c_i
numerator = sp.diff(spent, n) * phi - spent * sp.diff(phi, n)
geometric = sp.log(1 / p0) + s * n
levelling = -sp.log(pinf + A * sp.exp(-s * n))
below = sp.Symbol("q", positive=True)
overshooting = -sp.log(A * sp.exp(-s * n) - below)
harmonic = sp.log((1 + eta * n) / p0)

tangent = Proof(
    label="ch05-tangent",
    title="An optimum inside needs training that slows down",
    hypotheses=(),
    statement=(
        r"Every member is trained and one refusal is enough; a member's risk is $p(n)$ and $\varphi = -\ln p$. With "
        r"$W = E/\varphi(n)$ members the cost is $E(c_tn + c_i)/\varphi(n)$, and its derivative has the sign of "
        r"$N = c_t\varphi - (c_tn+c_i)\varphi'$, where $N' = -(c_tn + c_i)\varphi''$. If $\varphi$ is convex or "
        r"linear, $N$ does "
        r"not rise, a stationary point is no strict minimum, and an end is cheapest. If $\varphi$ is strictly concave, "
        r"$N$ rises, and the one "
        r"point where $N = 0$, the tangent $c_t\varphi = (c_tn+c_i)\varphi'$, is the minimum; if there is none, an end is."
    ),
    steps=(
        Step("The derivative of the quotient.", Identity(sp.Derivative(spent / phi, n) * phi**2, numerator)),
        Step("The derivative of its numerator.", Identity(sp.Derivative(numerator, n), -spent * sp.diff(phi, n, 2))),
        Step(r"Geometric training: $\varphi$ is linear.", Identity(sp.Derivative(geometric, (n, 2)), sp.Integer(0))),
        Step(
            r"Training that levels off at $p_\infty$ (a learning rate below the tuned one): concave. Here "
            r"$p = p_\infty + Ae^{-sn}$.",
            Identity(
                sp.Derivative(levelling, (n, 2)),
                -(s**2) * A * pinf * sp.exp(-s * n) / (pinf + A * sp.exp(-s * n)) ** 2,
            ),
        ),
        Step(
            r"Training that overshoots (a learning rate above the tuned one), as long as the risk is positive: convex. Here "
            r"$p = Ae^{-sn} - q$.",
            Identity(
                sp.Derivative(overshooting, (n, 2)),
                s**2 * A * below * sp.exp(-s * n) / (A * sp.exp(-s * n) - below) ** 2,
            ),
        ),
        Step(
            r"Training that slows down harmonically (gradient descent on the cross-entropy): concave.",
            Identity(sp.Derivative(harmonic, (n, 2)), -(eta**2) / (1 + eta * n) ** 2),
        ),
    ),
    mutations=(
        Mutation(
            "the numerator rises with a convex exponent",
            Identity(sp.diff(numerator.subs(phi, n**2).doit(), n), 2 * spent),
        ),
        Mutation("harmonic training is linear", Identity(sp.diff(harmonic, n, 2), sp.Integer(0))),
    ),
    source=SOURCE,
)

ratio = k / w  # u* = k / w with w = W_0(k / (e p_0)), so p_0 = k e^(-w - 1) / w
start = k * sp.exp(-w - 1) / w

cross_entropy = Proof(
    label="ch05-cross-entropy",
    title="The optimum for harmonic training",
    hypotheses=(),
    statement=(
        r"Under $p(n) = p_0/(1+\eta n)$, with $u = 1 + \eta n$ and $k = c_i\eta/c_t - 1$, the cost is "
        r"$E\frac{c_t}{\eta}\cdot\frac{u+k}{\ln(u/p_0)}$. It is least at $u^* = k/W_0\!\left(\frac{k}{ep_0}\right)$, "
        r"with "
        r"$W^* = \frac{E}{1 + k/u^*}$ members and $n^* = (u^*-1)/\eta$ updates (none if $u^* \le 1$; if $W^* < 1$, one member and $u = p_0/\varepsilon$). "
        r"Steps are shown for $k > 0$; $w$ is the value of Lambert's function, so $we^w = k/(ep_0)$ and $p_0 = "
        r"ke^{-w-1}/w$."
    ),
    steps=(
        Step(
            r"The cost in terms of $u$.",
            Identity(
                (c_t * n + c_i) / sp.log((1 + eta * n) / p0),
                (c_t / eta) * ((1 + eta * n) + (c_i * eta / c_t - 1)) / sp.log((1 + eta * n) / p0),
            ),
        ),
        Step(
            r"Stationary where $\ln(u/p_0) = 1 + k/u$; here $y$ is $u$.",
            Identity(sp.Derivative((y + k) / sp.log(y / p0), y) * sp.log(y / p0) ** 2, sp.log(y / p0) - (1 + k / y)),
        ),
        Step(
            r"At $u = k/w$ both sides are $1 + w$: their difference vanishes.",
            Identity(sp.Subs(sp.log(y / p0) - (1 + k / y), (y, p0), (ratio, start)), sp.Integer(0)),
        ),
    ),
    mutations=(
        Mutation("the other sign", Identity(sp.log(ratio / start), 1 - k / ratio)),
        Mutation("without the factor e", Identity(sp.log(ratio / (start * sp.E)), 1 + k / ratio)),
    ),
    source=SOURCE,
)

# --- majority ---------------------------------------------------------------------------------------------------------

risk = p0 * sp.exp(-s * n)
sharp = -sp.log(4 * risk * (1 - risk))

majority_ends = Proof(
    label="ch05-majority",
    title="A majority has no optimum inside either",
    hypotheses=(p < 1,),
    setting=r"Every member is trained to the risk $p = p_0\gamma^n$, below one half, and a majority decides.",
    statement=(
        r"By Chernoff's bound "
        r"$W = 2E/L(n)$ members are enough, $L = \ln\frac{1}{4p(1-p)}$. Since $L'' = s^2p/(1-p)^2 > 0$, "
        r"{prf:ref}`ch05-tangent` puts the least cost at an end. Untrained, $W_0 = 2E/L(0)$; against one deep member "
        r"with $p = \varepsilon$ this pays, as $\varepsilon \to 0$, if and only if $c_i/c_t < L(0)/(2s)$."
    ),
    steps=(
        Step(r"The exponent is convex.", Identity(sp.Derivative(sharp, (n, 2)), s**2 * risk / (1 - risk) ** 2)),
        Step("Strictly.", Entailment(s**2 * p / (1 - p) ** 2 > 0)),
        Step(
            r"So the derivative of the cost, $N$ above, falls: a stationary point is a maximum. Here $V = L''$, $y = "
            r"c_tn + c_i$.",
            Entailment(sp.Lt(-y * V, 0, evaluate=False)),
        ),
        Step(
            r"The ends, for large $E$: $c_i\,2E/L(0)$ against $c_tE/s$. Here $V = L(0)$.",
            Entailment(sp.Equivalent(c_i * 2 * E / V < c_t * E / s, c_i / c_t < V / (2 * s))),
        ),
    ),
    mutations=(
        Mutation("the second derivative without its square", Identity(sp.diff(sharp, n, 2), s**2 * risk / (1 - risk))),
        Mutation(
            "the crossover of one refusal is enough",
            Entailment(sp.Equivalent(c_i * 2 * E / V < c_t * E / s, c_i / c_t < V / s)),
        ),
    ),
    source=SOURCE,
)

room = half - p0 * sp.exp(-s * n)
lambert_start = sp.exp(-half - s * c + y / 2) / (2 * y)  # p_0, solved from (-y/2) e^(-y/2) = -e^(-1/2-sc) / (4 p_0)
lambert_steps = (y - 1) / (2 * s) - c

hoeffding = Proof(
    label="ch05-hoeffding",
    title="The optimum that Hoeffding's bound invents",
    hypotheses=(),
    statement=(
        r"Every member is trained, $p = p_0\gamma^n$, and the width is the one that Proposition 4.11 certifies, "
        r"$W = E/\big(2(\frac12-p)^2\big)$. With $c = c_i/c_t$ the cost is stationary where $p\,(1 + 2s(n+c)) = "
        r"\frac12$. The minimum "
        r"is $n^* = \frac{y-1}{2s} - c$ with $y = -2W_{-1}\!\left(-\frac{e^{-1/2-sc}}{4p_0}\right)$, if that is real "
        r"and "
        r"positive and cheaper than no training. It is an artefact: with the sharp exponent ({prf:ref}`ch05-majority`) "
        r"there is "
        r"none, because Hoeffding's exponent never exceeds $W/2$, however small $p$."
    ),
    steps=(
        Step(
            r"Where the cost is stationary.",
            Identity(sp.Derivative((n + c) / room**2, n) * room**3, half - p0 * sp.exp(-s * n) * (1 + 2 * s * (n + c))),
        ),
        Step(
            r"With $y = 1 + 2s(n+c)$ this is $-\frac y2e^{-y/2} = -\frac{e^{-1/2-sc}}{4p_0}$, which Lambert's function "
            r"solves. "
            r"Solved for $p_0$ and put back:",
            Identity(lambert_start * sp.exp(-s * lambert_steps) * y, half),
        ),
        Step(
            r"The derivative rises there if and only if $y > 2$: that is the branch $W_{-1}$. Here $p$ is the risk at "
            r"$n$.",
            Identity(sp.Derivative(half - risk * (1 + 2 * s * (n + c)), n), s * risk * ((1 + 2 * s * (n + c)) - 2)),
        ),
        Step(
            r"Hoeffding's exponent per member, $2(\frac12-p)^2$, stays below one half.",
            Entailment(2 * (half - p) ** 2 < half, given=(p < half,)),
        ),
    ),
    mutations=(
        Mutation(
            "stationary without the factor two",
            Identity(sp.diff((n + c) / room**2, n) * room**3, half - p0 * sp.exp(-s * n) * (1 + s * (n + c))),
        ),
        Mutation(
            "the starting point without its half",
            Identity(2 * lambert_start * sp.exp(-s * lambert_steps) * y, half),
        ),
    ),
    source=SOURCE,
)

# --- trained once -----------------------------------------------------------------------------------------------------

once_cost = c_t * boundary_steps + c_i * W
spare = a * c_t / s

trained_once = Proof(
    label="ch05-once",
    title="If training is paid once, depth and width do balance",
    hypotheses=(),
    statement=(
        r"Let one refusal be enough, $p = p_0\gamma^n$, and the cost be $c_tn + c_iW$. For a target $\varepsilon$ it "
        r"is least at "
        r"$W^* = \sqrt{c_tE/(sc_i)}$, $n^* = (E/W^*-a)/s$ (if $1 \le W^* \le E/a$). For a budget "
        r"$C \ge ac_t/s$ with $C + ac_t/s \ge 2c_i$ (so that $W \ge 1$) the least risk is "
        r"$\varepsilon^* = \exp\!\left(-\frac{s(C + ac_t/s)^2}{4c_ic_t}\right)$, at $W = \frac{C + ac_t/s}{2c_i}$ and "
        r"$n = \frac{C - ac_t/s}{2c_t}$: the budget is halved between depth and width, but for the head start $a$. "
        r"Here $h$ is $W^*$, and $x$ any number of updates."
    ),
    steps=(
        Step(r"The cost on the boundary.", Identity(once_cost, c_t * E / (s * W) + c_i * W - spare)),
        Step(
            r"It is at least $2c_iW^* - ac_t/s$, by the inequality of means,",
            Entailment(c_t * E / (s * W) + c_i * W >= 2 * c_i * h, given=(sp.Eq(s * c_i * h**2, c_t * E),)),
        ),
        Step(
            "which is attained there.",
            Identity(sp.Subs(c_t * E / (s * W) + c_i * W, E, s * c_i * W**2 / c_t), 2 * c_i * W),
        ),
        Step(
            r"A budget: the exponent $W(a+sn)$ at the stated point.",
            Identity(
                (C + spare) / (2 * c_i) * (a + s * (C - spare) / (2 * c_t)), s * (C + spare) ** 2 / (4 * c_i * c_t)
            ),
        ),
        Step(
            "No other division of the budget has a larger one.",
            Entailment((C - c_t * x) / c_i * (a + s * x) <= s * (C + spare) ** 2 / (4 * c_i * c_t)),
        ),
    ),
    mutations=(
        Mutation(
            "the root of twice as much",
            Entailment(c_t * E / (s * W) + c_i * W >= 2 * c_i * h, given=(sp.Eq(s * c_i * h**2, 2 * c_t * E),)),
        ),
        Mutation(
            "a budget without its head start",
            Entailment((C - c_t * x) / c_i * (a + s * x) <= s * C**2 / (4 * c_i * c_t)),
        ),
    ),
    source=SOURCE,
)

# --- correlation ------------------------------------------------------------------------------------------------------

depth_floor = Proof(
    label="ch05-floor",
    title="A depth that no width replaces",
    hypotheses=(rho <= 1, G <= 1, W >= 1),
    setting=(
        r"The failures of any two of $W$ members are correlated by $\rho$ through a shared cause "
        r"({prf:ref}`ch04-shared-cause`), so that every vote has a risk of at least $\rho p$; $G$ stands for $\gamma^n$."
    ),
    statement=(
        r"Then $p_0\gamma^n \le \varepsilon/\rho$ is necessary, that is "
        r"$n \ge \ln(\rho p_0/\varepsilon)/s$, whatever the rule and the width. Here $x$ is the ensemble's "
        r"risk."
    ),
    steps=(
        Step(
            "A vote at or below the target needs this.",
            Entailment(G <= eps / (rho * p0), given=(x >= rho * p0 * G, x <= eps)),
        ),
        Step(
            r"In updates, where $\varepsilon = \rho p_0\gamma^n$.",
            Identity(sp.Subs(sp.log(rho * p0 / eps) / s, eps, rho * p0 * sp.exp(-s * n)), n),
        ),
        Step(
            "Without correlation the width can do everything: with one refusal enough and $n = 0$, $W = E/a$ is "
            "finite.",
            Identity(sp.Subs(W * (a + s * n), (W, n), (E / a, 0)), E),
        ),
    ),
    mutations=(
        Mutation("the floor of a single member", Entailment(G <= eps / p0, given=(x >= rho * p0 * G, x <= eps))),
        Mutation(
            "a width that lowers the floor", Entailment(G <= eps / (W * rho * p0), given=(x >= rho * p0 * G, x <= eps))
        ),
    ),
    source=SOURCE,
)

PROOFS = (bang_bang, tangent, cross_entropy, majority_ends, hoeffding, trained_once, depth_floor)

# --- the scorecard's rows for open question 3 -------------------------------------------------------------------------

SETTING = {"risk_0": 0.45, "gamma": 0.9}
TOLERATED = 0.01
WIDTHS = (1, 3, 5, 9, 21, 101)
READING = "A member's risk is p_0 gamma^n after n updates; n(W) is the depth that W members need for risk epsilon."
EXAMPLE = "p_0 = 0.45, gamma = 0.9, epsilon = 0.01"


def depths(rule: str = "majority", **names) -> list[float]:
    """n(W) over ``WIDTHS`` for the chapter's example."""
    return list(tradeoff.frontier(np.array(WIDTHS), TOLERATED, rule, **SETTING, **names))


def exact_majority_depths() -> list[int]:
    """The same for an independent majority, in exact rationals: updates counted one by one."""
    found = []
    for width in WIDTHS:
        member, steps = Fraction(9, 20), 0
        while binomial_tail(member, width, (width + 1) // 2) > Fraction(1, 100):
            member, steps = member * Fraction(9, 10), steps + 1
        found.append(steps)
    return found


def _listed(values) -> str:
    return ", ".join(f"{value:g}" for value in values)


@register(
    id="oq3-relation",
    chapter=5,
    source="Open question 3",
    statement=(
        "What is the precise relationship between ensemble width W and required safety depth for a target epsilon?"
    ),
    reading=(
        f"{READING} Independent members, majority: n(W) = ceil(ln(p_0/p_req)/ln(1/gamma)), p_req = betaincinv(m, "
        f"W-m+1, epsilon)."
    ),
    basis=Basis.CERTIFICATE,
)
def relation() -> Finding:
    """Answered under the chapter's condition, if the formula agrees with exact counting."""
    exact = exact_majority_depths()
    if depths() != exact:
        return Finding(Verdict.REFUTED, f"the formula gives {_listed(depths())}, exact counting {_listed(exact)}")
    return Finding(
        Verdict.CONDITIONAL,
        f"answered for geometric training and a known dependence; {EXAMPLE}: W = {_listed(WIDTHS)} need n = "
        f"{_listed(exact)}, as "
        "exact counting of updates confirms",
    )


@register(
    id="oq3-compensates",
    chapter=5,
    source="Proposition 4.11",
    statement="Broader ensembles can compensate for shallower alignments.",
    reading=(
        f"{READING} n(W) falls with W: for a majority, for any-refusal, for the union epsilon/W; without and with "
        f"correlation."
    ),
    basis=Basis.CERTIFICATE,
)
def compensates() -> Finding:
    """Conditional as long as it holds for some rules and fails for others or stops at a floor."""
    paths = {
        "majority": depths(),
        "any-refusal": depths("any-refusal"),
        "union": depths("any-harmful", bound="any-joint"),
    }
    falls = {rule: bool((np.diff(path) <= 0).all() and path[-1] < path[0]) for rule, path in paths.items()}
    floor = float(tradeoff.depth_floor(TOLERATED, 0.2, **SETTING))
    evidence = (
        f"{EXAMPLE}, W = {_listed(WIDTHS)}: majority {_listed(paths['majority'])}; any-refusal "
        f"{_listed(paths['any-refusal'])}; "
        f"union (any harmful) {_listed(paths['union'])}; with latent correlation 0.2 a majority of any odd width needs "
        f"{ceil(floor)}"
    )
    if all(falls.values()) and floor == 0:
        return Finding(Verdict.REPRODUCED, evidence)
    return Finding(Verdict.CONDITIONAL if any(falls.values()) else Verdict.REFUTED, evidence)


@register(
    id="oq3-replaces",
    chapter=5,
    source="Proposition 4.11",
    statement="A wide enough ensemble makes up for any lack of depth.",
    reading=(
        f"{READING} A majority; members correlated through a shared cause or a Gaussian factor; some W needs no "
        f"training."
    ),
    basis=Basis.PROOF,
)
def replaces() -> Finding:
    """Refuted by the floor under depth."""
    if not depth_floor.holds():
        return Finding(Verdict.UNDECIDED, "the floor under depth does not check")
    correlation = 0.2
    needed = np.log(correlation * SETTING["risk_0"] / TOLERATED) / -np.log(SETTING["gamma"])
    if needed <= 0:
        return Finding(Verdict.UNDECIDED, "the floor does not bind")
    latent = float(tradeoff.depth_floor(TOLERATED, correlation, **SETTING))
    return Finding(
        Verdict.REFUTED,
        f"{EXAMPLE}: a shared cause with pair correlation {correlation:g} needs at least {ceil(needed)} updates at any "
        f"width and under any rule, a "
        f"Gaussian factor with latent correlation {correlation:g} at least {ceil(latent)} for a majority; independent "
        f"members may go untrained",
    )


@register(
    id="oq3-balance",
    chapter=5,
    source="Design trade-offs (as summarised)",
    statement="Depth and width are to be balanced: a deep single model against shallower ones in a larger ensemble.",
    reading=f"{READING} Some W > 1 and n > 0 together cost less than either end.",
    basis=Basis.PROOF,
)
def balance() -> Finding:
    """True under two conditions, each with its proof; otherwise an end is cheapest."""
    if not all(proof.holds() for proof in (bang_bang, majority_ends, tangent, cross_entropy, trained_once)):
        return Finding(Verdict.UNDECIDED, "a proof on the optima does not check")
    costs = {"epsilon": TOLERATED, "risk_0": SETTING["risk_0"], "step_cost": 1}
    once = tradeoff.trained_once_optimum(**costs, gamma=SETTING["gamma"], member_cost=5)
    slow = tradeoff.cross_entropy_optimum(**costs, rate=1, member_cost=2)
    if not all(design.width > 1 and design.steps > 0 for design in (once, slow)):
        return Finding(Verdict.REFUTED, "the examples of an optimum inside are at an end")
    return Finding(
        Verdict.CONDITIONAL,
        "not for geometric training that each member pays: there one end is cheapest, for any-refusal and majority "
        "alike. A balance exists "
        f"if training is paid once (one refusal enough, c_i = 5 c_t: W = {once.width:.1f}, n = {once.steps:.1f}) or "
        f"slows down "
        f"(p_0/(1+n), c_i = 2 c_t: W = {slow.width:.1f}, n = {slow.steps:.1f})",
    )


@register(
    id="oq3-hoeffding",
    chapter=5,
    source="Proposition 4.11",
    statement="The bound p <= 1/2 - sqrt(ln(1/epsilon)/(2W)) governs the trade-off of depth and width.",
    reading=f"{READING} Each member is trained, cost W (c_t n + c_i): the bound's cheapest design is the cheapest one.",
    basis=Basis.CERTIFICATE,
)
def bound_misleads() -> Finding:
    """Refuted if the exact optimum is elsewhere and cheaper."""
    if not (hoeffding.holds() and majority_ends.holds()):
        return Finding(Verdict.UNDECIDED, "the optimum of the bound does not check")
    names = {**SETTING, "step_cost": 1, "member_cost": 5}
    claimed = tradeoff.hoeffding_optimum(TOLERATED, **names)
    exact = tradeoff.cheapest(TOLERATED, **names)
    if abs(claimed.width - exact.width) < 2:
        return Finding(Verdict.REPRODUCED, "the two designs agree")
    return Finding(
        Verdict.REFUTED,
        f"{EXAMPLE}, c_i = 5 c_t: the bound's optimum is W = {claimed.width:.1f}, n = {claimed.steps:.1f} at cost "
        f"{claimed.cost:.0f}; the "
        f"exact one is W = {exact.width}, n = {exact.steps} at cost {exact.cost:.0f}. The optimum inside is an "
        f"artefact of the bound",
    )
