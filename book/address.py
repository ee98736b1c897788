"""The book's public address. It is kept in one place: ``repository`` in ``_config.yml`` (url and branch).

To change it: edit ``repository.url`` (and ``branch``) there, then run ``make address``, which carries it to
every link, Colab link, citation and install cell. ``CITATION.cff`` is rewritten last: until then it remembers
the address that the other files still have, so an interrupted run is finished by the next one.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import jupytext
import nbformat
import yaml

ROOT = Path(__file__).resolve().parents[1]
PLACEHOLDER = "OWNER/REPO"
PATTERNS = (
    "README.md",
    "CONTRIBUTING.md",
    "pyproject.toml",
    "book/**/*.md",
    "notebooks/**/*.md",
    "notebooks/**/*.ipynb",
    "CITATION.cff",
)


@dataclass(frozen=True)
class Address:
    """A repository on GitHub: ``slug`` is ``owner/name``, ``branch`` what the Colab links open."""

    slug: str
    branch: str = "main"

    @property
    def url(self) -> str:
        return f"https://github.com/{self.slug}"

    @property
    def site(self) -> str:
        """Where GitHub publishes the book."""
        owner, name = self.slug.split("/")
        return f"{owner}.github.io/{name}"


def slug_of(url: str, where: str) -> str:
    """``owner/name`` of a repository's URL; ValueError names the place of a malformed one."""
    match = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+?)(?:\.git)?/?", url)
    if match is None:
        raise ValueError(f"{where} is {url!r}; it must look like https://github.com/{PLACEHOLDER}")
    return match[1]


def current(root: Path = ROOT) -> Address:
    """The address in ``_config.yml``."""
    repository = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))["repository"]
    return Address(slug_of(repository["url"], "repository.url in _config.yml"), repository["branch"])


def recorded(root: Path = ROOT) -> str:
    """The slug that the other files have: the one in ``CITATION.cff``."""
    citation = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
    return slug_of(citation["repository-code"], "repository-code in CITATION.cff")


def colab_cell(address: Address) -> str:
    """The first code cell of every notebook. The clone brings the stored results; pip upgrades what is too old for the library."""
    clone = f"git clone -q --depth 1 -b {address.branch} {address.url} /content/book"
    return (
        "import sys\n\n"
        'if "google.colab" in sys.modules:  # fetch the book and install its library\n'
        f"    !test -d /content/book || {clone}\n"
        "    %pip install -q /content/book\n"
        "    %cd -q /content/book"
    )


def in_step(text: str, old: str, new: Address) -> str:
    """``text`` with every mention of the repository ``old`` (or of the placeholder) turned into ``new``."""
    for slug in dict.fromkeys((old, PLACEHOLDER)):
        if slug != new.slug:
            text = re.sub(rf"(github\.com/){re.escape(slug)}(?![\w-])", rf"\g<1>{new.slug}", text)
            owner, name = slug.split("/")
            text = re.sub(rf"{re.escape(owner)}\.github\.io/{re.escape(name)}(?![\w-])", new.site, text)
    colab = r"(colab\.research\.google\.com/github/)[\w.-]+/[\w.-]+/blob/[\w.-]+/"
    return re.sub(colab, rf"\g<1>{new.slug}/blob/{new.branch}/", text)


def notebook_in_step(text: str, old: str, new: Address) -> str:
    """The same for an .ipynb file; its Colab cell, if it has one, is written anew and kept off the page."""
    text = in_step(text, old, new)
    notebook = nbformat.reads(text, as_version=4)
    first = next((cell for cell in notebook.cells if cell.cell_type == "code"), None)
    if first is None or "google.colab" not in first.source:
        return text
    wanted = nbformat.from_dict({**first, "source": colab_cell(new)})
    wanted.metadata["tags"] = sorted({*first.metadata.get("tags", []), "remove-cell"})
    if wanted == first:
        return text
    first.update(wanted)
    return nbformat.writes(notebook) + "\n"


def twin(notebook_text: str) -> str:
    """The MyST Markdown twin of an .ipynb file's text."""
    return jupytext.writes(jupytext.reads(notebook_text, fmt="ipynb"), fmt="md:myst")


def out_of_step(root: Path = ROOT) -> dict[Path, str]:
    """The files that do not show the current address yet, each with the text it should have."""
    old, new = recorded(root), current(root)
    wanted: dict[Path, str] = {}
    for pattern in PATTERNS:
        for path in sorted(root.glob(pattern)):
            text = path.read_text(encoding="utf-8")
            notebook = path.with_suffix(".ipynb")
            if path.suffix == ".ipynb":
                result = notebook_in_step(text, old, new)
            elif notebook.exists():
                before = notebook.read_text(encoding="utf-8")
                after = notebook_in_step(before, old, new)
                result = text if after == before else twin(after)
            else:
                result = in_step(text, old, new)
            if result != text:
                wanted[path] = result
    return wanted


def main() -> None:
    try:
        new, wanted = current(), out_of_step()
    except ValueError as error:
        sys.exit(str(error))
    for path, text in wanted.items():
        path.write_text(text, encoding="utf-8")
        print(f"rewrote {path.relative_to(ROOT)}")
    print(f"{len(wanted)} files rewritten; the book's address is {new.url}, branch {new.branch}")


if __name__ == "__main__":
    main()
