"""Showing model output on a page: it is hostile text until proven otherwise.

A response to a harmful prompt is shown only if its first clause refuses, and then only that clause; anything else is
replaced by its length. What is shown is escaped, cut, and on one line. Harmful prompts are named by id and category, never printed.
"""

from __future__ import annotations

import html
import re

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
    if not harmless:
        first, *rest = re.split(r"(?<=[.!?;:])\s|\n", text.strip(), maxsplit=1)
        if not MAIN(first):
            return f"[an answer of {len(text.split())} words, not shown]"
        text = first + (" ..." if rest else "")
    line = " ".join("".join(character if character.isprintable() else " " for character in text).split())
    return html.escape(line if len(line) <= LONGEST else line[: LONGEST - 3] + "...", quote=False)
