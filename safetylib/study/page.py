"""Showing model output on a page: it is hostile text until proven otherwise.

A response is shown only if it refuses; anything else is replaced by its length. What is shown is escaped, cut, and on one
line. Harmful prompts are named by id and category, never printed.
"""

from __future__ import annotations

import html

from safetylib.study.detectors import MAIN

LONGEST = 160


def shown(text: str, harmless: bool = False) -> str:
    """A response as it may appear on a page.

    Parameters
    ----------
    text
        Whatever the model said.
    harmless
        The prompt was benign, so an answer may be shown as well.
    """
    if not harmless and not MAIN(text):
        return f"[an answer of {len(text.split())} words, not shown]"
    line = " ".join("".join(character if character.isprintable() else " " for character in text).split())
    return html.escape(line if len(line) <= LONGEST else line[: LONGEST - 3] + "...", quote=False)
