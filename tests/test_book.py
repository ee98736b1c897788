"""The book: its notebooks can be published as they stand, and the builder does what it says."""

import json
import re
import shutil
from pathlib import Path

import jupytext
import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from book import address, build, front, outputs, scorecard
from safetylib.claims import Basis, Claim, Finding, Verdict

ROOT = build.ROOT
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


# The committed notebooks


def test_the_contents_list_exactly_the_notebooks_that_exist():
    listed = build.toc_notebooks(ROOT)
    assert listed, "_toc.yml lists no notebook"
    assert sorted(listed) == [f"notebooks/{path.name}" for path in NOTEBOOKS]


@every_notebook
def test_a_notebook_and_its_markdown_twin_say_the_same(path):
    twin = path.with_suffix(".md").read_text(encoding="utf-8")
    written = jupytext.writes(jupytext.read(path), fmt="md:myst")
    assert written == twin, f"run: jupytext --sync {path.relative_to(ROOT)}"


@every_notebook
def test_every_code_cell_was_run_and_none_wrote_to_stderr(path):
    notebook = read(path)
    assert build.unfit(notebook) == []
    assert any(cell.outputs for cell in build.code_cells(notebook)), "no cell has an output"


@every_notebook
def test_the_first_code_cell_is_the_one_for_colab(path):
    first = build.code_cells(read(path))[0]
    assert first.source == address.colab_cell(address.current()), "run: make address"
    assert "remove-cell" in first.metadata.get("tags", []), "run: make address"


@every_notebook
def test_no_cell_ends_in_a_semicolon(path):
    for cell in build.code_cells(read(path)):
        hint = "nbval ignores a final semicolon and would see an output; write _ = ... instead"
        assert not cell.source.rstrip().endswith(";"), f"{cell.source}\n{hint}"


@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if path.stem < "06"], ids=lambda path: path.stem)
def test_theory_chapters_fit_their_column(path):
    """Cells of at most 25 lines, and printed lines that a page need not wrap; claims are wrapped where they are printed."""
    for cell in build.code_cells(read(path)):
        assert len(cell.source.splitlines()) <= 25, cell.source
        if "claims.report" not in cell.source:
            printed = "".join(output.get("text", "") for output in cell.outputs)
            assert max(map(len, printed.splitlines()), default=0) <= 68, printed


@every_notebook
def test_every_exercise_says_how_hard_and_how_long_it_is(path):
    prose = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    rated = re.findall(r"\{exercise\}[^\n]*\n:label: \S+\n\*Difficulty: \w+ of five, \d+ minutes", prose)
    assert len(rated) == prose.count("{exercise}")


def shows_a_picture(cell) -> bool:
    return any(mime.startswith("image/") for output in cell.outputs for mime in output.get("data", {}))


@every_notebook
def test_every_figure_has_a_caption_and_an_alternative_text(path):
    for cell in filter(shows_a_picture, build.code_cells(read(path))):
        settings = cell.metadata.get("mystnb", {})
        caption = settings.get("figure", {}).get("caption", "")
        alternative = settings.get("image", {}).get("alt", "")
        assert caption.strip() and alternative.strip() and caption != alternative, cell.source


@every_notebook
def test_there_is_an_exercise_with_a_solution_that_unfolds(path):
    prose = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    exercises = re.findall(r"\{exercise(?:-start)?\}[^\n]*\n:label: (\S+)", prose)
    solutions = re.findall(r"\{solution(?:-start)?\} (\S+)\n(?::label:[^\n]*\n)?:class: dropdown", prose)
    assert exercises and set(exercises) == set(solutions)


@every_notebook
def test_outputs_are_small_and_name_no_place_on_a_machine(path):
    for cell in build.code_cells(read(path)):
        for output in cell.outputs:
            data = {"text/plain": output.get("text", "")} | output.get("data", {})
            for mime, content in data.items():
                limit = 400_000 if mime.startswith("image/") else 20_000
                assert len(str(content)) <= limit, f"{mime} output of {len(str(content))} characters"
                if not mime.startswith("image/"):
                    assert not re.search(r"/(home|root|work|tmp|Users|content)/", str(content)), content


MEASURED = re.compile(r"(?<![\w.,-])(?:\d+(?:\.\d+)?\s?%|0?\.\d+\b)")
NOT_MEASURED = re.compile(r"\b9[059]\s?% (?:confidence|prediction|interval)")
ASIDE = re.compile(r"```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$]*\$|\]\([^)]*\)|https?://\S+", re.DOTALL)


def typed_numbers(prose: str) -> list[str]:
    """Percentages and proportions typed in prose. Code, formulas and paragraphs that cite are not looked at."""
    paragraphs = re.split(r"\n\s*\n", re.sub(r"\{cite[^}`]*\}`[^`]*`", "{cite}", prose))
    own = [NOT_MEASURED.sub("", ASIDE.sub("", text)) for text in paragraphs if "{cite}" not in text]
    return [number for text in own for number in MEASURED.findall(text)]


@pytest.mark.parametrize(
    "prose, found",
    [
        ("It refuses 83 % of them.", ["83 %"]),
        ("The score rises from .42 to 0.46.", [".42", "0.46"]),
        ("With $\\delta = 0.05$ and `rate=0.1`, and a 95 % confidence interval.", []),
        ("The paper reports .42 {cite}`kao2025safety`.", []),
        ("Reported {cite:p}`a2025`.\n\nWe measure 83 % with `make`.", ["83 %"]),
        ("Theorem 4.5 on Qwen2.5-1.5B, arXiv 2502.00669.", []),
    ],
)
def test_typed_numbers_are_found(prose, found):
    assert typed_numbers(prose) == found


@every_notebook
def test_no_measured_number_is_typed_in_prose(path):
    for cell in read(path).cells:
        if cell.cell_type == "markdown":
            assert typed_numbers(cell.source) == [], "print the number in a cell, or cite its source"


def test_no_measured_number_is_typed_in_the_introduction():
    assert typed_numbers((ROOT / "book" / "introduction.md").read_text(encoding="utf-8")) == []


def test_the_first_page_and_the_readme_say_what_the_results_say():
    for path, text in front.rendered(ROOT).items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is out of date; run: make front"
    assert (ROOT / "README.md").read_text(encoding="utf-8").count(front.BEGIN) == 1


# The builder


@pytest.fixture
def small_book(tmp_path):
    """A folder with one notebook and just enough around it to be fingerprinted and executed."""
    for name in ("safetylib", "results", "notebooks", "_build/source/notebooks"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "safetylib" / "one.py").write_text("x = 1\n")
    (tmp_path / "constraints.txt").write_text("numpy==1\n")
    save(tmp_path, "import os\nprint(6 * 7, os.environ['HF_HUB_OFFLINE'])")
    return tmp_path


def save(root: Path, *code: str, prose: str = "# A page") -> nbformat.NotebookNode:
    notebook = new_notebook(cells=[new_markdown_cell(prose), *map(new_code_cell, code)])
    nbformat.write(notebook, root / "notebooks" / "a.ipynb")
    return notebook


def publish(root: Path) -> nbformat.NotebookNode:
    return build.published_notebook("notebooks/a.ipynb", root, root / "_build")


def test_a_notebook_is_executed_again_only_when_something_under_it_changes(small_book, capsys):
    before = (small_book / "notebooks" / "a.ipynb").read_bytes()
    assert publish(small_book).cells[1].outputs[0].text == "42 1\n"
    assert "executing (first time)" in capsys.readouterr().out
    assert (small_book / "notebooks" / "a.ipynb").read_bytes() == before, "the repository's notebook was changed"

    save(small_book, "import os\nprint(6 * 7, os.environ['HF_HUB_OFFLINE'])", prose="# Other prose")
    page = publish(small_book)
    assert "skipped (code, library, results, packages unchanged)" in capsys.readouterr().out
    assert page.cells[0].source == "# Other prose" and page.cells[1].outputs[0].text == "42 1\n"

    (small_book / "safetylib" / "one.py").write_text("x = 2\n")
    publish(small_book)
    assert "executing (library changed)" in capsys.readouterr().out


@pytest.mark.parametrize(
    "file, part",
    [
        ("safetylib/one.py", "library"),
        ("safetylib/table.csv", "library"),
        ("results/cpu/outcomes.csv", "results"),
        ("constraints.txt", "packages"),
    ],
)
def test_the_fingerprint_sees_what_a_notebook_rests_on(small_book, file, part):
    notebook = read(small_book / "notebooks" / "a.ipynb")
    before = build.fingerprint(notebook, small_book)
    assert build.fingerprint(notebook, small_book) == before
    (small_book / file).parent.mkdir(exist_ok=True)
    (small_book / file).write_text("changed\n")
    after = build.fingerprint(notebook, small_book)
    assert {name for name in after if after[name] != before[name]} == {part}


def test_the_fingerprint_sees_the_python_version(small_book, monkeypatch):
    before = build.surroundings(small_book)
    monkeypatch.setattr(build.platform, "python_version", lambda: "3.99.0")
    assert build.surroundings(small_book)["packages"] != before["packages"]


def test_the_fingerprint_sees_code_and_not_prose(small_book):
    first = build.fingerprint(save(small_book, "1 + 1"), small_book)
    assert build.fingerprint(save(small_book, "1 + 2"), small_book)["code"] != first["code"]
    assert build.fingerprint(save(small_book, "1 + 1", prose="# Else"), small_book) == first


def test_a_failing_cell_is_named_with_its_error_and_leaves_no_outputs_behind(small_book):
    publish(small_book)
    save(small_book, "a = 1", "a / 0")
    with pytest.raises(build.BookError, match=r"notebooks/a\.ipynb, cell 3 of 3: ZeroDivisionError"):
        publish(small_book)
    assert not list((small_book / "_build" / "executed").rglob("*.fingerprint"))


def test_output_on_stderr_cannot_be_published(small_book):
    save(small_book, "import sys\nprint('careful', file=sys.stderr)")
    with pytest.raises(build.BookError, match="cell 2 writes to stderr"):
        publish(small_book)


def test_a_cell_that_was_never_run_cannot_be_published():
    notebook = new_notebook(cells=[new_code_cell("1 + 1"), new_code_cell("")])
    assert build.unfit(notebook) == ["cell 1 was not executed"]


def test_a_listed_notebook_that_is_missing_is_named(small_book):
    (small_book / "notebooks" / "a.ipynb").unlink()
    with pytest.raises(build.BookError, match=r"lists notebooks/a\.ipynb, which does not exist"):
        publish(small_book)


@pytest.mark.parametrize(
    "html, loads",
    [
        ('<script src="https://a.example/x.js"></script>', ["https://a.example/x.js"]),
        ('<script src="//a.example/x.js"></script>', ["//a.example/x.js"]),
        ('<link rel="stylesheet" href="https://a.example/x.css">', ["https://a.example/x.css"]),
        ('<link rel="preconnect" href="https://a.example">', ["https://a.example"]),
        ('<img src="http://a.example/x.png">', ["http://a.example/x.png"]),
        ('<img srcset="x.png 1x, https://a.example/x.png 2x">', ["https://a.example/x.png"]),
        ('<iframe src="https://a.example"></iframe>', ["https://a.example"]),
        ("<p style=\"background: url('https://a.example/x.png')\"></p>", ["https://a.example/x.png"]),
        ("<style>@import 'https://a.example/x.css';</style>", ["https://a.example/x.css"]),
        ("<script>load('https://a.example/x.js')</script>", ["https://a.example/x.js"]),
        ("<script>const THEBE_JS_URL = 'https://unpkg.com/thebe@0.8.2/lib/index.js'</script>", []),
        ("<script>load('https://unpkg.com/other@1/index.js')</script>", ["https://unpkg.com/other@1/index.js"]),
        ('<a href="https://a.example">a link</a>', []),
        ('<link rel="canonical" href="https://a.example/page">', []),
        ('<script src="../_static/x.js"></script><img src="data:image/png;base64,AA//"><a href="#top">', []),
        ("<pre>src=&quot;https://a.example&quot;</pre>", []),
    ],
)
def test_foreign_loads_are_found(html, loads):
    assert build.foreign_loads(f"<html><body>{html}</body></html>") == loads


def test_the_check_names_page_and_address(tmp_path):
    (tmp_path / "fine.html").write_text('<img src="x.png">')
    build.check_html(tmp_path)
    (tmp_path / "bad.html").write_text('<script src="https://a.example/x.js"></script>')
    (tmp_path / "bad.css").write_text("@font-face { src: url(https://a.example/x.woff2) }")
    with pytest.raises(build.BookError) as caught:
        build.check_html(tmp_path)
    assert "bad.html loads https://a.example/x.js" in str(caught.value)
    assert "bad.css loads https://a.example/x.woff2" in str(caught.value)
    assert "fine.html" not in str(caught.value)


def test_the_book_is_not_configured_to_execute_or_to_load_mathjax_from_elsewhere():
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    assert config["execute"]["execute_notebooks"] == "off"
    assert "sphinx-mathjax-offline" in config["sphinx"]["extra_extensions"]


# The scorecard


def test_the_committed_scorecard_is_what_the_ledger_says_now():
    committed = (ROOT / "book" / "scorecard.md").read_text(encoding="utf-8")
    assert committed == scorecard.render(), "run: make scorecard"


def test_the_scorecard_shows_claims_by_chapter_and_takes_their_text_literally(tmp_path):
    (tmp_path / "_toc.yml").write_text("root: a\nchapters: [{file: notebooks/02-a-page.ipynb}]")
    claim = Claim("4.5-a", 2, "Theorem 4.5", "|Q_T(r,r)| <= 1\nalways", "a*b*c", Basis.PROOF, lambda: None)
    later = Claim("5.1", 11, "Theorem 5.1", "width", "union", Basis.MEASUREMENT, lambda: None)
    found = Finding(Verdict.REFUTED, "$0.3$ <script>"), Finding(Verdict.REPRODUCED, "yes")
    page = scorecard.render_claims(list(zip((claim, later), found, strict=True)), tmp_path)
    assert "2 claims: 1 reproduced; 1 does not hold as summarised." in page
    assert r"\|Q\_T(r,r)\| \<= 1 always | a\*b\*c | \$0.3\$ \<script\> |" in page
    assert page.index("## Chapter 2") < page.index("Theorem 4.5") < page.index("## Chapter 11")
    assert "{doc}`../notebooks/02-a-page`" in page
    assert "We have read a summary of the paper, not the paper" in page and "Corrections are welcome" in page


# The public address


def test_every_file_shows_the_address_in_the_configuration():
    assert [path.name for path in address.out_of_step()] == [], "run: make address"
    assert address.recorded() == address.current().slug
    for name in ("README.md", "CONTRIBUTING.md", "CITATION.cff"):
        assert address.current().url in (ROOT / name).read_text(encoding="utf-8"), name


def test_one_edit_moves_every_link_citation_and_install_cell(tmp_path):
    for name in ("README.md", "CITATION.cff", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    config = (ROOT / "_config.yml").read_text(encoding="utf-8")
    here, there = address.current(), address.Address("someone/elsewhere", "v2")
    moved = config.replace(here.url, there.url).replace(f"branch: {here.branch}", f"branch: {there.branch}")
    (tmp_path / "_config.yml").write_text(moved)
    (tmp_path / "notebooks").mkdir()
    save(tmp_path, address.colab_cell(here), "1 + 1", prose=f"# A\n[issues]({here.url}/issues)")
    notebook = tmp_path / "notebooks" / "a.ipynb"
    notebook.with_suffix(".md").write_text(address.twin(notebook.read_text()))

    for path, text in address.out_of_step(tmp_path).items():
        path.write_text(text)

    assert address.out_of_step(tmp_path) == {}
    assert address.recorded(tmp_path) == "someone/elsewhere"
    texts = {path.name: path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    assert [name for name, text in texts.items() if here.slug in text] == []
    assert "colab.research.google.com/github/someone/elsewhere/blob/v2/notebooks/02-" in texts["README.md"]
    assert read(notebook).cells[1].source == address.colab_cell(there)
    assert texts["a.md"] == address.twin(texts["a.ipynb"])
    assert "https://github.com/someone/elsewhere/issues" in texts["a.md"]


@pytest.mark.parametrize(
    "text, moved",
    [
        ("https://github.com/a/b.git", "https://github.com/c/d.git"),
        ("https://github.com/a/b-two", "https://github.com/a/b-two"),
        ("https://github.com/OWNER/REPO/issues", "https://github.com/c/d/issues"),
        ("https://a.github.io/b/index.html", "https://c.github.io/d/index.html"),
        ("https://github.com/other/b", "https://github.com/other/b"),
    ],
)
def test_only_our_own_address_is_rewritten(text, moved):
    assert address.in_step(text, "a/b", address.Address("c/d")) == moved


def test_a_malformed_address_is_explained(tmp_path):
    (tmp_path / "_config.yml").write_text("repository: {url: git@github.com:a/b, branch: main}")
    with pytest.raises(ValueError, match=r"repository\.url in _config\.yml .* must look like https://github"):
        address.current(tmp_path)


def test_stored_fingerprints_that_are_damaged_count_as_changed(tmp_path):
    stamp = tmp_path / "stamp"
    assert build.changed({"code": "1"}, stamp) == ["code"]
    stamp.write_text("{half")
    assert build.changed({"code": "1"}, stamp) == ["code"]
    stamp.write_text(json.dumps({"code": "1"}))
    assert build.changed({"code": "1"}, stamp) == []


# --- storing outputs --------------------------------------------------------------------------------------------------


def notebook_of(*sources):
    return new_notebook(cells=[new_markdown_cell(source) for source in sources])


@pytest.mark.parametrize(
    ("before", "after", "kept"),
    [
        ("abc", "abc", [0, 1, 2]),
        ("abc", "abXc", [0, 1, None, 2]),
        ("abc", "ac", [0, 2]),
        ("abc", "aXc", [0, 1, 2]),
        ("abc", "aXYc", [0, None, None, 2]),
    ],
    ids=["the same", "a cell added", "a cell removed", "a cell changed", "two for one"],
)
def test_cells_keep_their_ids_when_outputs_are_stored_again(before, after, kept):
    stored, fresh = notebook_of(*before), notebook_of(*after)
    own = [cell["id"] for cell in fresh.cells]
    outputs.keep_ids(fresh, stored)
    expected = [own[place] if index is None else stored.cells[index]["id"] for place, index in enumerate(kept)]
    assert [cell["id"] for cell in fresh.cells] == expected


@pytest.mark.parametrize("prefix", ["0", "99"])
def test_a_name_that_is_not_one_notebook_is_refused_and_nothing_is_written(prefix):
    before = {path: path.stat().st_mtime_ns for path in (ROOT / "notebooks").iterdir()}
    with pytest.raises(build.BookError, match=f"'{prefix}' should name one notebook"):
        outputs.renew(prefix)
    assert {path: path.stat().st_mtime_ns for path in (ROOT / "notebooks").iterdir()} == before
