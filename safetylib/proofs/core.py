"""What a proof is here: hypotheses, a statement, and ordered steps that a machine has checked.

A step asserts one thing and gives one reason. It is checked in one of three ways, and says which:

:class:`Identity`
    sympy shows that two expressions are the same, for all values of their symbols;
:class:`Entailment`
    z3 shows that a conclusion follows from the hypotheses over the reals, after showing that the hypotheses can be
    met at all (nothing follows from an empty case) and that no denominator vanishes;
:class:`Instances`
    what neither can express (ceilings of logarithms, iterations) is computed in exact rationals, case by case. That is
    evidence, not proof, and the page says so.

The formula on the page is printed from the very expression that is checked, so the two cannot drift apart. The
sign that a symbol is declared with holds for both sympy and z3. Every proof also carries *mutations*: statements that are slightly
wrong and that the same machinery has to refute. A checker that refutes nothing has checked nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import sympy as sp
import z3
from sympy.logic.boolalg import Boolean, BooleanFalse, BooleanTrue


class ProofError(Exception):
    """A step is false; the message names the proof, the step and a counterexample."""


class Undecided(Exception):
    """The machine could neither prove nor refute: a fault of the proof's formulation, never a verdict."""


@dataclass(frozen=True)
class Identity:
    """``left`` equals ``right`` for all values of the symbols; by sympy.

    Derivatives (``sp.Derivative``) and values put in for symbols (``sp.Subs``) are printed as they stand and carried
    out for the check: what sympy evaluates at once would be shown as an empty identity.
    """

    left: sp.Expr
    right: sp.Expr
    method = "sympy: both sides simplify to the same expression"

    def latex(self) -> str:
        return f"{_latex(self.left)} = {_latex(self.right)}"

    def counterexample(self, hypotheses: tuple[Boolean, ...] = ()) -> str | None:
        """A point at which the sides differ, or None if they are shown to be equal."""
        left, right = (sp.sympify(side).doit() for side in (self.left, self.right))
        difference = sp.simplify(sp.expand_log(left - right))
        if difference == 0:
            return None
        symbols = sorted(difference.free_symbols, key=str)
        for shift in range(6):
            values = [sp.Integer(2 + i + shift) if s.is_integer else sp.Rational(1 + i, 2 + 2 * i + shift)
                      for i, s in enumerate(symbols)]  # fmt: skip
            point = dict(zip(symbols, values, strict=True))
            value = sp.N(difference.subs(point), 30)
            if value.is_number and abs(value) > sp.Float("1e-20"):
                return _point(point.items())
        raise Undecided(f"sympy does not decide {self.left} = {self.right}")


@dataclass(frozen=True)
class Entailment:
    """``conclusion`` follows from the proof's hypotheses and from ``given``, over the reals; by z3."""

    conclusion: Boolean
    given: tuple[Boolean, ...] = ()
    method = "z3: the hypotheses can be met, and with them the negation cannot"

    def latex(self) -> str:
        conclusion = _latex(self.conclusion)
        if not self.given:
            return conclusion
        conditions = list(map(_latex, self.given))
        if sum(map(len, conditions)) + len(conclusion) < 100:
            return f"{_LISTED.join(conditions)} \\;\\Longrightarrow\\; {conclusion}"
        lines = [_LISTED.join(line) for line in _lines(conditions)]
        body = f",{_LINE_END} & ".join(lines)
        return f"\\begin{{aligned}} & {body} {_LINE_END} & \\Longrightarrow\\; {conclusion} \\end{{aligned}}"

    def counterexample(self, hypotheses: tuple[Boolean, ...] = ()) -> str | None:
        """Values that meet the hypotheses and break the conclusion, or None if z3 shows that there are none."""
        translate = _Translation()
        assumed = [translate(formula) for formula in (*hypotheses, *self.given)]
        conclusion = translate(self.conclusion)
        assumed += [condition for symbol in translate.symbols for condition in _sign(symbol)]
        if _solve(assumed) is None:
            raise ProofError(f"the hypotheses of {self.conclusion} cannot be met: nothing would be proved")
        model = _solve([*assumed, z3.Not(z3.And(conclusion, *(d != 0 for d in translate.denominators)))])
        if model is None:
            return None
        return _point((s, model.eval(z3.Real(s.name), True)) for s in sorted(translate.symbols, key=str))


@dataclass(frozen=True)
class Instances:
    """A statement checked in exact rationals, case by case: ``cases`` yields each case's name and whether it holds."""

    statement: str
    cases: Callable[[], Iterable[tuple[str, bool]]]
    method = "exact rationals, case by case: evidence, not proof"

    def latex(self) -> str:
        return self.statement

    def counterexample(self, hypotheses: tuple[Boolean, ...] = ()) -> str | None:
        """The first case that fails, or None; a check without cases is an error."""
        cases = list(self.cases())
        if not cases:
            raise ProofError(f"no case was checked of {self.statement}")
        return next((name for name, holds in cases if not holds), None)


Check = Identity | Entailment | Instances


@dataclass(frozen=True)
class Step:
    """One assertion with the reason why it belongs here."""

    reason: str
    check: Check


@dataclass(frozen=True)
class Mutation:
    """A statement that is slightly wrong: ``change`` says what was changed, ``check`` has to fail."""

    change: str
    check: Check
    hypotheses: tuple[Boolean, ...] | None = None  #: in place of the proof's, if given


@dataclass(frozen=True, repr=False)
class Proof:
    """Hypotheses, statement and steps of one result.

    Parameters
    ----------
    label
        Its label in the book, e.g. ``"ch02-exact-steps"``.
    title
        Its name.
    hypotheses
        Relations between symbols; every z3 step may use them. Positivity is carried by the symbols themselves.
    statement
        Markdown; it follows the hypotheses.
    steps
        In order.
    mutations
        Wrong variants; at least one.
    source
        What is proved or corrected, e.g. ``"Theorem 4.5 (as summarised)"``.
    setting
        Markdown, one or more sentences: what the symbols stand for that the hypotheses name. The box begins with it.
    """

    label: str
    title: str
    hypotheses: tuple[Boolean, ...]
    statement: str
    steps: tuple[Step, ...]
    mutations: tuple[Mutation, ...]
    source: str = ""
    setting: str = ""

    def check(self) -> Proof:
        """Check every step; return the proof itself, so that a cell ending in ``proof.check()`` shows it.

        Raises
        ------
        ProofError
            Naming the step that fails and values at which it does.
        """
        for number, step in enumerate(self.steps, start=1):
            failure = step.check.counterexample(self.hypotheses)
            if failure is not None:
                raise ProofError(f"{self.title}, step {number} ({step.reason}) fails at {failure}")
        return self

    def holds(self) -> bool:
        """Whether every step is checked. An undecided step still raises :class:`Undecided`."""
        try:
            self.check()
        except ProofError:
            return False
        return True

    def refutations(self) -> dict[str, str]:
        """For each mutation, values at which it fails.

        Raises
        ------
        ProofError
            If a mutation passes: the steps would then prove too much.
        """
        found = {}
        for mutation in self.mutations:
            hypotheses = self.hypotheses if mutation.hypotheses is None else mutation.hypotheses
            failure = mutation.check.counterexample(hypotheses)
            if failure is None:
                raise ProofError(f"{self.title}: the mutation {mutation.change!r} is not refuted")
            found[mutation.change] = failure
        return found

    def theorem_box(self, kind: str = "theorem") -> str:
        """The statement as a MyST directive, to be placed on a page."""
        assumed = f"Let {', '.join(f'${_latex(h)}$' for h in self.hypotheses)}." if self.hypotheses else ""
        text = " ".join(filter(None, (self.setting, assumed, self.statement)))
        return f":::{{prf:{kind}}} {self.title}\n:label: {self.label}\n\n{keep_punctuation(text)}\n:::"

    def __repr__(self) -> str:
        return f"<Proof {self.label}: {len(self.steps)} steps, {len(self.mutations)} mutations>"

    def _repr_markdown_(self) -> str:
        source = f" *({self.source})*" if self.source else ""
        lines = [f"**Proof: {self.title}.**{source}", ""]  # the statement stands in its box
        for number, step in enumerate(self.steps, start=1):
            lines += [
                f"{number}. {keep_punctuation(step.reason)}",
                "",
                f"   $${step.check.latex()}$$",
                "",
                f"   *{step.check.method}*",
                "",
            ]
        return "\n".join(lines)


def keep_punctuation(markdown: str) -> str:
    """Move punctuation that follows a formula into it: a browser may begin a line with what stands outside."""
    return _FOLLOWED.sub(lambda found: f"${found[1]}{_INSIDE.get(found[2], found[2])}$", markdown)


_FOLLOWED = re.compile(r"(?<!\$)\$([^$\n]+)\$([,.;:])")
_INSIDE = {":": "{:}", ";": "{;}"}  # mathematics would set these with space on both sides
_LISTED, _LINE_END = ",\\ ", "\\\\"


def _latex(expression) -> str:
    return sp.latex(expression, order="none").replace("\\epsilon", "\\varepsilon")


def _lines(formulas: list[str], longest: int = 90) -> list[list[str]]:
    """Formulas in lines of about so many characters of LaTeX, so that a page need not scroll to the conclusion."""
    lines: list[list[str]] = []
    for formula in formulas:
        if lines and sum(map(len, lines[-1])) + len(formula) <= longest:
            lines[-1].append(formula)
        else:
            lines.append([formula])
    return lines


def _point(values) -> str:
    return ", ".join(f"{symbol} = {value}" for symbol, value in values)


def _sign(symbol: sp.Symbol) -> list[z3.BoolRef]:
    """What a symbol's declared sign says: sympy drops a condition that it knows already, so z3 has to be told."""
    x = z3.Real(symbol.name)
    declared = {"positive": x > 0, "nonnegative": x >= 0, "negative": x < 0, "nonpositive": x <= 0, "nonzero": x != 0}
    return [condition for name, condition in declared.items() if getattr(symbol, f"is_{name}")]


def _solve(formulas: list) -> z3.ModelRef | None:
    """A model, or None if there is none."""
    solver = z3.SolverFor("QF_NRA")
    solver.set("timeout", 10_000)
    solver.add(*formulas)
    answer = solver.check()
    if answer == z3.unknown:
        raise Undecided(f"z3 gives up: {solver.reason_unknown()}")
    return solver.model() if answer == z3.sat else None


class _Translation:
    """From sympy's rational expressions and formulas to z3's, noting symbols and denominators on the way."""

    def __init__(self) -> None:
        self.symbols: set[sp.Symbol] = set()
        self.denominators: list[z3.ArithRef] = []

    def __call__(self, e):
        match e:
            case sp.Symbol():
                self.symbols.add(e)
                return z3.Real(e.name)
            case sp.Rational():
                return z3.Q(int(e.p), int(e.q))
            case BooleanTrue() | BooleanFalse():
                return z3.BoolVal(bool(e))
        parts = None if isinstance(e, sp.Pow) else [self(part) for part in e.args]
        match e:
            case sp.Add():
                return z3.Sum(parts)
            case sp.Mul():
                return z3.Product(parts)
            case sp.Pow(args=(base, sp.Integer() as exponent)):
                power = z3.Product([self(base)] * abs(int(exponent)))
                if exponent > 0:
                    return power
                self.denominators.append(power)
                return 1 / power
            case sp.Le():
                return parts[0] <= parts[1]
            case sp.Lt():
                return parts[0] < parts[1]
            case sp.Ge():
                return parts[0] >= parts[1]
            case sp.Gt():
                return parts[0] > parts[1]
            case sp.Eq():
                return parts[0] == parts[1]
            case sp.Ne():
                return parts[0] != parts[1]
            case sp.And():
                return z3.And(*parts)
            case sp.Or():
                return z3.Or(*parts)
            case sp.Not():
                return z3.Not(parts[0])
            case sp.Implies():
                return z3.Implies(*parts)
            case sp.Equivalent():
                return parts[0] == parts[1]
        raise TypeError(f"z3 gets polynomials and their quotients only, not {e!r}")
