"""Parts: named pieces of the study beyond its main plan, each measured, stored and compared by itself.

``transfer``    members on HarmBench, which trained and selected nothing
``xstest``      members on XSTest's safe prompts and their unsafe contrasts, nothing before the response
``forced``      transition probabilities by teacher forcing beside refusals by generation
``along``       refusal by depth at checkpoints along training
``ablations``   the literal rotation of phrases, orbits of two and eight positions, members trained on disjoint prompts
``chain``       transition probabilities along training, for several step sizes, decays and optimisers
``longer``      the same along four times as many steps
``rated``       the judge's ratings of the answers to benign prompts, for votes that average ratings
"""

from __future__ import annotations

from importlib import import_module

from safetylib.study.part import Part

MODULES = {
    "transfer": "transfer",
    "xstest": "xstest",
    "forced": "forced",
    "along": "along",
    "ablations": "ablations",
    "chain": "measured_chain",
    "longer": "longer_chain",
    "rated": "rated",
}


def part(name: str) -> type[Part]:
    """The part of that name.

    Raises
    ------
    ValueError
        Unknown name; the message lists the known ones.
    """
    if name not in MODULES:
        raise ValueError(f"unknown part {name!r}; known: {', '.join(MODULES)}")
    module = import_module(f"safetylib.study.{MODULES[name]}")
    return next(
        value for value in vars(module).values() if isinstance(value, type) and getattr(value, "part", "") == name
    )
