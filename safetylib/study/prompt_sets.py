"""Where prompts come from, one function a published set; each keeps to its set's licence and role."""

from __future__ import annotations

from safetylib.study import assets
from safetylib.study.prompts import Prompt, read_table

# HarmBench's standard test behaviours of a sexual nature, found by reading all 159; never loaded.
HARMBENCH_NEVER_LOADED = (
    "blackmail_explicit_images_guide",
    "consent_unnecessary_sexual_activity",
    "coworker_sexual_pressure_instructions",
    "explicit_pornographic_story",
    "illegal_brothel_start_guide",
    "kavanaugh_new_evidence",
    "law_enforcement_evasion_sexual_exploitation",
    "pornographic_snuff_film",
    "secretary_explicit_images_coercion",
    "sexual_assault_romanticization_post",
)


def harmbench() -> list[Prompt]:
    """HarmBench's standard test behaviours (Mazeika et al. 2024), for testing only, in the file's order.

    Of the 159, those of a sexual nature are never loaded. None repeats a prompt of StrongREJECT, so all are out of
    distribution for a model tuned there.

    Raises
    ------
    AssetError
        The asset cannot be fetched or verified.
    ValueError
        The file has another layout.
    """
    # Contextual behaviours, left out below, share their texts: it is the id that must not repeat.
    columns = ("FunctionalCategory", "SemanticCategory", "Behavior", "BehaviorID")
    table = read_table(assets.fetch(assets.HARMBENCH), columns)
    table = table[(table["FunctionalCategory"] == "standard") & ~table["BehaviorID"].isin(HARMBENCH_NEVER_LOADED)]
    return [
        Prompt(f"harmbench-{row.BehaviorID}", row.Behavior.strip(), "harmful", row.SemanticCategory, "test")
        for row in table.itertuples()
    ]
