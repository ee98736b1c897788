"""Run notebooks again from their texts and store what comes out: ``make outputs NOTEBOOKS="07 09"``.

The pair's ``.md`` is the source. Its cells are executed top to bottom in the kernel that the book is built with, the
``.ipynb`` is written with their outputs, and the ``.md`` again from it, so that the pair stays in step. Cells that did not
change keep their ids: the difference to review is what changed. Nothing is written unless every cell ran.
"""

from __future__ import annotations

import sys
from difflib import SequenceMatcher

import jupytext
import nbformat
from nbformat import NotebookNode as Notebook

from book import build


def keep_ids(fresh: Notebook, stored: Notebook) -> None:
    """Give the cells of ``fresh`` the ids of the stored cells they equal or stand in for, in place."""
    sources = [[(cell.cell_type, cell.source) for cell in notebook.cells] for notebook in (stored, fresh)]
    for change, i, i_end, j, j_end in SequenceMatcher(None, *sources, autojunk=False).get_opcodes():
        if change == "equal" or (change == "replace" and i_end - i == j_end - j):
            for old, new in zip(stored.cells[i:i_end], fresh.cells[j:j_end], strict=True):
                new["id"] = old["id"]


def renew(prefix: str) -> str:
    """Run the notebook whose name starts with ``prefix`` and store both files of its pair; returns the name.

    Raises
    ------
    BookError
        No notebook or several start so, or a cell fails.
    """
    found = sorted((build.ROOT / "notebooks").glob(f"{prefix}*.md"))
    if len(found) != 1:
        names = ", ".join(path.stem for path in found) or "none"
        raise build.BookError(f"{prefix!r} should name one notebook under notebooks/; it names {names}.")
    text, stored = found[0], found[0].with_suffix(".ipynb")
    notebook = jupytext.read(text)
    if stored.is_file():
        keep_ids(notebook, nbformat.read(stored, 4))
    build.execute(notebook, text.stem, text.parent)
    if problems := build.unfit(notebook):
        raise build.BookError(f"{text.stem}: " + "; ".join(problems))
    written = nbformat.writes(notebook) + "\n"
    build.write(text, jupytext.writes(nbformat.reads(written, 4), fmt="md:myst"))
    build.write(stored, written)
    return text.stem


if __name__ == "__main__":
    if not sys.argv[1:]:
        sys.exit('Name the notebooks by their numbers: make outputs NOTEBOOKS="07 09".')
    try:
        for prefix in sys.argv[1:]:
            print(f"stored the outputs of {renew(prefix)}")
    except build.BookError as error:
        sys.exit(f"outputs: {error}")
