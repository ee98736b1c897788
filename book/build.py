"""Build the book: execute a copy of every notebook, then publish HTML under ``_build/html``.

Usage: ``python book/build.py``, or ``make book``, which also installs what is needed.

1. Every notebook of ``_toc.yml`` is executed top to bottom in ``_build/source``, a copy of the pages. A
   notebook whose code, library, results and packages are unchanged keeps the outputs of its last execution
   (``_build/executed``).
2. The scorecard is written anew from the ledger of claims, under the same rule.
3. Jupyter Book renders the copy; a warning is an error.
4. The pages are checked: they load nothing from another host. Only then do they replace ``_build/html``.

Nothing outside ``_build`` is written.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import nbformat
import yaml
from bs4 import BeautifulSoup
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from tqdm.auto import tqdm

ROOT = Path(__file__).resolve().parents[1]
CELL_TIMEOUT = 600  # seconds

# Kernels are quiet and offline, so that stored outputs can be compared; pytest uses the same (conftest.py).
KERNEL_ENV = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONHASHSEED": "0",
}

# Addresses inside a script that are loaded only when a reader asks for it, each with the reason it may stay.
LOADED_ON_REQUEST = {
    "https://unpkg.com/thebe@": "live cells, at the press of a button that this book does not have",
}

Notebook = nbformat.NotebookNode


class BookError(Exception):
    """The book cannot be built; the message says where, why and what to do."""


# What is built, and from what


def toc_files(root: Path) -> list[str]:
    """Every file that ``_toc.yml`` names, in reading order, as written there."""

    def walk(node) -> Iterator[str]:
        if isinstance(node, list):
            for item in node:
                yield from walk(item)
        elif isinstance(node, dict):
            for key, value in node.items():
                if key in ("root", "file"):
                    yield value
                else:
                    yield from walk(value)

    return list(walk(yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))))


def toc_notebooks(root: Path) -> list[str]:
    """The notebooks among :func:`toc_files`."""
    return [file for file in toc_files(root) if file.endswith(".ipynb")]


def digest(*parts: str | bytes) -> str:
    """A hash of the parts; their borders count."""
    inner = (hashlib.sha256(p if isinstance(p, bytes) else p.encode()).digest() for p in parts)
    return hashlib.sha256(b"".join(inner)).hexdigest()


def tree_digest(folder: Path) -> str:
    """A hash of every file below ``folder``, names included; byte code and hidden files do not count."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    names = [(p.relative_to(folder).as_posix(), p) for p in files]
    kept = [(n, p) for n, p in names if "__pycache__" not in n and not re.search(r"(^|/)\.", n)]
    return digest(*(x for name, path in kept for x in (name, path.read_bytes())))


def surroundings(root: Path) -> dict[str, str]:
    """Hashes of all that an execution rests on besides the notebook itself."""
    constraints = root / "constraints.txt"
    return {
        "library": tree_digest(root / "safetylib"),
        "results": tree_digest(root / "results"),
        "packages": digest(constraints.read_bytes() if constraints.exists() else b"", platform.python_version()),
    }


def fingerprint(notebook: Notebook, root: Path) -> dict[str, str]:
    """What a notebook's outputs depend on. Prose and captions are no part of it: they need no execution."""
    return {"code": digest(*(cell.source for cell in code_cells(notebook))), **surroundings(root)}


def changed(now: dict[str, str], stamp: Path) -> list[str]:
    """The parts of a fingerprint that differ from the stored one; all of them when nothing was stored."""
    try:
        before = json.loads(stamp.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return list(now)
    return [part for part in now if now[part] != before.get(part)]


# Executing notebooks


def code_cells(notebook: Notebook) -> list[Notebook]:
    """The code cells that hold code."""
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


class ThisPython(AsyncKernelManager):
    """Starts the interpreter that runs the build, whichever kernelspecs are installed elsewhere."""

    @property
    def kernel_spec(self) -> KernelSpec:
        return KernelSpec(**get_kernel_dict())


def execute(notebook: Notebook, name: str, folder: Path) -> None:
    """Execute ``notebook`` in place, in ``folder``, showing progress; raise BookError where it stops."""
    where = 0

    def on_start(cell, cell_index):
        nonlocal where
        where = cell_index

    with tqdm(total=len(notebook.cells), desc=f"   {name}", unit="cell", leave=False) as bar:
        client = NotebookClient(
            notebook,
            kernel_manager_class=ThisPython,
            resources={"metadata": {"path": str(folder)}},
            extra_arguments=["--log-level=ERROR"],
            timeout=CELL_TIMEOUT,
            record_timing=False,
            coalesce_streams=True,
            on_cell_start=on_start,
            on_cell_complete=lambda cell, cell_index: bar.update(cell_index + 1 - bar.n),
        )
        try:
            client.execute(env={**os.environ, **KERNEL_ENV})
        except CellExecutionError as error:
            reason, text = f"{error.ename}: {error.evalue}", str(error)
        except CellTimeoutError:
            reason = f"no end after {CELL_TIMEOUT} seconds; if another program keeps the cores busy, end it and run the command again"
            text = notebook.cells[where].source
        except DeadKernelError:
            reason, text = "the kernel died (out of memory?)", notebook.cells[where].source
        else:
            return
    raise BookError(f"{name}, cell {where + 1} of {len(notebook.cells)}: {reason}\n\n{text.strip()}")


def unfit(notebook: Notebook) -> list[str]:
    """Why a notebook's outputs cannot be published: code never run, or output on stderr."""
    problems = []
    for number, cell in enumerate(notebook.cells, start=1):
        if cell.cell_type != "code" or not cell.source.strip():
            continue
        if cell.execution_count is None:
            problems.append(f"cell {number} was not executed")
        if any(output.get("name") == "stderr" for output in cell.outputs):
            problems.append(f"cell {number} writes to stderr")
    return problems


def with_outputs(notebook: Notebook, executed: Notebook) -> Notebook:
    """``notebook``'s prose, code and captions with the outputs of an execution of the same code."""
    for cell, done in zip(code_cells(notebook), code_cells(executed), strict=True):
        cell.outputs, cell.execution_count = done.outputs, done.execution_count
    return notebook


def published_notebook(name: str, root: Path, build: Path) -> Notebook:
    """The notebook with fresh outputs: executed now, or kept from an execution that nothing has outdated."""
    if not (root / name).exists():
        raise BookError(f"_toc.yml lists {name}, which does not exist.")
    notebook = nbformat.read(root / name, as_version=4)
    kept, stamp = build / "executed" / name, build / "executed" / f"{name}.fingerprint"
    now = fingerprint(notebook, root)
    if kept.exists() and not (parts := changed(now, stamp)):
        print(f"   {name}: skipped ({', '.join(now)} unchanged)")
        return with_outputs(notebook, nbformat.read(kept, as_version=4))

    print(
        f"   {name}: executing ({', '.join(parts) + ' changed' if stamp.exists() else 'first time'})",
        flush=True,
    )
    start = time.monotonic()
    stamp.unlink(missing_ok=True)
    execute(notebook, name, (build / "source" / name).parent)
    if problems := unfit(notebook):
        raise BookError(f"{name}: " + "; ".join(problems))
    write(kept, nbformat.writes(notebook))
    write(stamp, json.dumps(now, indent=1))
    print(f"   {name}: executed in {time.monotonic() - start:.0f} s")
    return notebook


def published_scorecard(root: Path, build: Path) -> str:
    """The scorecard written from the ledger now, or kept under the rule for notebooks."""
    name = "book/scorecard.md"
    kept, stamp = build / "executed" / name, build / "executed" / f"{name}.fingerprint"
    now = {"contents": digest((root / "_toc.yml").read_bytes()), **surroundings(root)}
    if kept.exists() and not changed(now, stamp):
        print(f"   {name}: skipped ({', '.join(now)} unchanged)")
        return kept.read_text(encoding="utf-8")
    sys.path.insert(0, str(root))
    from book.scorecard import render

    print(f"   {name}: checking every claim", flush=True)
    page = render(root)
    write(kept, page)
    write(stamp, json.dumps(now, indent=1))
    if page != (root / name).read_text(encoding="utf-8"):
        print(f"   {name} is out of date; the fresh page is published. To keep it: make scorecard, then commit.")
    return page


# Rendering and checking pages


def lay_out(root: Path, source: Path) -> None:
    """Copy the pages to ``source``, without the notebooks' Markdown twins: they are no pages of their own."""
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir(parents=True)
    for name in ("_config.yml", "_toc.yml"):
        shutil.copy2(root / name, source / name)
    for name, left_out in (("book", ()), ("results", ()), ("notebooks", ("*.md",))):
        if (root / name).is_dir():
            ignore = shutil.ignore_patterns("__pycache__", ".*", *left_out)
            shutil.copytree(root / name, source / name, ignore=ignore)


def render_html(source: Path, work: Path) -> Path:
    """Render ``source`` from nothing and return the folder of pages; a warning is an error."""
    shutil.rmtree(work, ignore_errors=True)
    jupyter_book = Path(sys.executable).with_name("jupyter-book")
    options = ["--path-output", str(work), "-W", "-n", "--keep-going", "--quiet"]
    command = [str(jupyter_book), "build", str(source), *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    html = work / "_build" / "html"
    if done.returncode or not (html / "index.html").exists():
        raise BookError(f"{done.stdout}\nA warning of Jupyter Book is an error: correct the pages named above.")
    return html


def foreign(address: str) -> bool:
    """Whether an address points to another host."""
    return re.match(r"\s*(https?:)?//", address, re.IGNORECASE) is not None


def css_addresses(css: str) -> list[str]:
    """Addresses that a style sheet loads."""
    return re.findall(r"""(?:url\(\s*|@import\s+)["']?([^"')\s;]+)""", css)


def foreign_loads(page: str) -> list[str]:
    """Addresses on other hosts that opening a page would load; links that a reader follows do not count."""
    quiet = {"canonical", "license", "next", "prev", "author", "search", "index", "help", "alternate"}
    soup = BeautifulSoup(page, "html.parser")
    addresses: list[str] = []
    for tag in soup.find_all(True):
        follows = tag.name in ("a", "area", "form") or (tag.name == "link" and quiet & set(tag.get("rel", [])))
        if not follows:
            addresses += [str(tag[key]) for key in ("src", "href", "data", "poster", "xlink:href") if tag.has_attr(key)]
            addresses += [part.split()[0] for part in str(tag.get("srcset", "")).split(",") if part.split()]
        addresses += css_addresses(str(tag.get("style", "")))
    for style in soup.find_all("style"):
        addresses += css_addresses(style.get_text())
    loads = [address.strip() for address in addresses if foreign(address)]
    for script in soup.find_all("script", src=False):
        if "json" in script.get("type", ""):
            continue
        named = re.findall(r"""["'`]\s*((?:https?:)?//[^"'`\s]+)""", script.get_text())
        loads += [address for address in named if not address.startswith(tuple(LOADED_ON_REQUEST))]
    return loads


def check_html(html: Path) -> None:
    """Raise BookError, naming page and address, if a page or style sheet loads anything from another host."""
    found = []
    for page in sorted(html.rglob("*.html")):
        loads = foreign_loads(page.read_text(encoding="utf-8"))
        found += [f"{page.relative_to(html)} loads {address}" for address in loads]
    for sheet in sorted(html.rglob("*.css")):
        loads = filter(foreign, css_addresses(sheet.read_text(encoding="utf-8")))
        found += [f"{sheet.relative_to(html)} loads {address}" for address in loads]
    if found:
        raise BookError("The book may load nothing from another host:\n  " + "\n  ".join(found))


def write(path: Path, text: str) -> None:
    """Write a whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


def page_inputs(root: Path, pages: Iterable[str]) -> str:
    """A hash of all that the HTML is made from; ``pages`` are those that executions made."""
    fixed = [digest((root / name).read_bytes()) for name in ("_config.yml", "_toc.yml")]
    return digest(*fixed, tree_digest(root / "book"), *surroundings(root).values(), *pages)


def build_book(root: Path) -> None:
    """Everything, in order; see the module's docstring."""
    start = time.monotonic()
    build, html = root / "_build", root / "_build" / "html"
    source, html_stamp = build / "source", build / "html.inputs"
    lay_out(root, source)

    print("== Notebooks")
    pages = {name: nbformat.writes(published_notebook(name, root, build)) for name in toc_notebooks(root)}
    if (root / "book" / "scorecard.md").exists():
        pages["book/scorecard.md"] = published_scorecard(root, build)
    for name, text in pages.items():
        write(source / name, text)

    print("== Pages")
    inputs = page_inputs(root, pages.values())
    if (html / "index.html").exists() and html_stamp.exists() and html_stamp.read_text() == inputs:
        print("   html: skipped (nothing that the pages are made from has changed)")
    else:
        print("   html: rendering", flush=True)
        began = time.monotonic()
        fresh = render_html(source, build / "work")
        check_html(fresh)
        html_stamp.unlink(missing_ok=True)
        shutil.rmtree(html, ignore_errors=True)
        shutil.move(fresh, html)
        shutil.rmtree(build / "work")
        write(html_stamp, inputs)
        print(f"   html: rendered in {time.monotonic() - began:.0f} s; nothing is loaded from another host")
    print(f"== The book is in _build/html/index.html ({time.monotonic() - start:.0f} s)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--root", type=Path, default=ROOT, help="the book's folder (default: this repository)")
    try:
        build_book(parser.parse_args().root.resolve())
    except BookError as error:
        sys.exit(f"\n{error}")


if __name__ == "__main__":
    main()
