"""The store: a unit is there whole or not at all, one process at a time, and its name sees code but not prose."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from safetylib.study import store
from safetylib.study.store import STAGES, Store, StoreError, code_without_prose, replace_folder, stage_fingerprints

PRINT = "abc"


def python(code, *arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True, **options
    )


def contents(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def write(at, unit="boxes", text="red"):
    with at.writing(unit, PRINT) as folder:
        (folder / "boxes.txt").write_text(text)


# --- units ------------------------------------------------------------------------------------------------------------


def test_a_unit_appears_when_its_block_ends_and_not_before(tmp_path):
    at = Store(tmp_path)
    with at.writing("boxes", PRINT) as folder:
        (folder / "boxes.txt").write_text("red")
        assert not at.finished("boxes", PRINT) and not at.path("boxes", PRINT).exists()
    assert at.finished("boxes", PRINT)
    assert set(contents(at.path("boxes", PRINT))) == {"boxes.txt", "unit.json"}
    assert [path.name for path in tmp_path.iterdir()] == ["boxes-abc"]


def test_a_unit_is_found_by_its_fingerprint_only(tmp_path):
    at = Store(tmp_path)
    write(at)
    assert not at.finished("boxes", "other") and not at.finished("box", PRINT)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_interrupted_unit_leaves_nothing(tmp_path, error):
    at = Store(tmp_path)
    with pytest.raises(error), at.writing("boxes", PRINT) as folder:
        (folder / "boxes.txt").write_text("half")
        raise error
    assert list(tmp_path.iterdir()) == [] and not at.finished("boxes", PRINT)


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    at = Store(tmp_path)

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write(at)
    assert list(tmp_path.iterdir()) == []


def test_a_unit_that_lost_its_record_is_done_again(tmp_path):
    at = Store(tmp_path)
    write(at)
    (at.path("boxes", PRINT) / "unit.json").unlink()
    assert not at.finished("boxes", PRINT)
    write(at, text="blue")
    assert contents(at.path("boxes", PRINT))["boxes.txt"] == "blue"


HALF_WRITTEN = """
import pathlib, sys, time
from safetylib.study.store import Store
at = Store(pathlib.Path(sys.argv[1]))
with at.held():
    with at.writing("first", "abc") as folder:
        (folder / "boxes.txt").write_text("red")
    with at.writing("second", "abc") as folder:
        (folder / "boxes.txt").write_text("ha")
        print("writing", flush=True)
        time.sleep(60)
"""


def test_a_killed_process_leaves_no_finished_unit_and_the_next_one_clears_up(tmp_path):
    process = python(HALF_WRITTEN, tmp_path)
    assert process.stdout.readline() == "writing\n"
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    at = Store(tmp_path)
    assert at.finished("first", PRINT) and not at.finished("second", PRINT)
    assert len(list(tmp_path.glob(".incoming-*"))) == 1
    with at.held():
        assert list(tmp_path.glob(".incoming-*")) == []
        write(at, "second")
    assert at.finished("first", PRINT) and at.finished("second", PRINT)


def test_a_store_has_one_holder(tmp_path):
    process = python(HALF_WRITTEN, tmp_path)
    assert process.stdout.readline() == "writing\n"
    try:
        with (
            pytest.raises(StoreError, match=r"Another run .*choose another folder with --into"),
            Store(tmp_path).held(),
        ):
            raise AssertionError("held twice")
        assert len(list(tmp_path.glob(".incoming-*"))) == 1, "the holder's scratch folder must stay"
    finally:
        process.kill()
        process.wait()
    with Store(tmp_path).held():
        pass


def test_a_store_is_free_again_after_its_holder(tmp_path):
    for _ in range(2):
        with Store(tmp_path).held():
            pass


def test_processes_of_one_launch_hold_it_together_and_nobody_clears_what_another_writes(tmp_path):
    (tmp_path / ".incoming-killed").mkdir()
    with Store(tmp_path).held(together=True):
        assert list(tmp_path.glob(".incoming-*")) == [], "the first clears"
        with Store(tmp_path).writing("boxes", PRINT) as folder:
            (folder / "boxes.txt").write_text("red")
            with Store(tmp_path).held(together=True):
                assert folder.is_dir(), "the second does not"
            with pytest.raises(StoreError, match="Another run"), Store(tmp_path).held():
                raise AssertionError("a run of its own came in between")
        assert Store(tmp_path).finished("boxes", PRINT)
    with Store(tmp_path).held():
        pass


def test_a_launch_does_not_join_a_run_of_another(tmp_path, monkeypatch):
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(store.time, "monotonic", lambda: next(clock))
    with (
        Store(tmp_path).held(),
        pytest.raises(StoreError, match="Another run"),
        Store(tmp_path).held(together=True),
    ):
        raise AssertionError("held twice")


# --- fingerprints -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("x = 1", "x = 1  # one", True),
        ("x = 1", "\n\nx   =  1\n", True),
        ('"""Prose."""\nx = 1', '"""Other prose."""\nx = 1', True),
        ('def f():\n    """Prose."""\n    return 1', 'def f():\n    """Other."""\n    return 1', True),
        ('class A:\n    """Prose."""\n    b = 1', 'class A:\n    """Other."""\n    b = 1', True),
        ("x = (1,\n     2)", "x = (1, 2)", True),
        ("x = 1", "x = 2", False),
        ("x = 'a # b'", "x = 'a # c'", False),
        ('x = """text"""', 'x = """other"""', False),
        ("def f(a=1): pass", "def f(a=2): pass", False),
        ("@cache\ndef f(): pass", "def f(): pass", False),
        ("x = a + b", "x = a - b", False),
        ("def f():\n    return 1", "def g():\n    return 1", False),
        ("x = 1.0", "x = 1", False),
    ],
)
def test_a_fingerprint_sees_code_and_not_prose(first, second, same):
    assert (code_without_prose(first) == code_without_prose(second)) is same


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the study's modules that may be changed."""
    copied = tmp_path / "study"
    shutil.copytree(Path(store.__file__).parent, copied, ignore=shutil.ignore_patterns("__pycache__"))
    before = stage_fingerprints()
    monkeypatch.setattr(store, "_PACKAGE", copied)
    assert stage_fingerprints() == before
    return copied


def changed(before):
    after = stage_fingerprints()
    return {stage for stage in after if after[stage] != before[stage]}


MODULES = sorted({name for names in STAGES.values() for name in names if name.endswith(".py")})
DATA = sorted({name for names in STAGES.values() for name in names if name.endswith(".csv")})


@pytest.mark.parametrize("name", MODULES)
def test_prose_in_a_module_changes_no_stage_and_code_changes_its_own_stages(package, name):
    before, path = stage_fingerprints(), package / name
    source = path.read_text()
    path.write_text(re.sub(r'^(r?)"""', r'\1"""Newly said: ', source, count=1) + "\n# a remark\n")
    assert path.read_text().count("Newly said") == 1 and changed(before) == set()
    path.write_text(source + "\nADDED = 1\n")
    assert changed(before) == {stage for stage, names in STAGES.items() if name in names}


@pytest.mark.parametrize("name", DATA)
def test_a_changed_data_file_changes_the_data_stage(package, name):
    before, path = stage_fingerprints(), package / name
    path.write_bytes(path.read_bytes() + b"\n")
    assert changed(before) == {"data"}


@pytest.mark.parametrize("name", ["units.py", "generate.py", "judge.py", "train.py", "prompts.py", "augment.py"])
def test_code_that_makes_rows_belongs_to_some_stage(package, name):
    before, path = stage_fingerprints(), package / name
    path.write_text(path.read_text() + "\nADDED = 1\n")
    assert changed(before)


# --- replacing stored results -----------------------------------------------------------------------------------------

OLD = {"manifest.json": "old", "outcomes.csv": "old"}
NEW = {"manifest.json": "new", "outcomes.csv": "new", "timings.csv": "new"}


def fill(folder, files):
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def folders(tmp_path):
    return fill(tmp_path / "fresh", NEW), fill(tmp_path / "results" / "cpu", OLD)


def test_a_folder_takes_another_ones_place_and_the_source_stays(folders):
    source, target = folders
    replace_folder(source, target)
    assert contents(target) == NEW == contents(source)
    assert [path.name for path in target.parent.iterdir()] == ["cpu"]


def test_a_place_that_was_empty_is_filled(tmp_path):
    replace_folder(fill(tmp_path / "fresh", NEW), tmp_path / "results" / "cpu")
    assert contents(tmp_path / "results" / "cpu") == NEW


DIES = """
import os, pathlib, shutil, signal, sys
from safetylib.study import store
fatal, calls = int(sys.argv[3]), [0]
def deadly(function):
    def call(*arguments, **options):
        calls[0] += 1
        if calls[0] == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return call
os.replace, shutil.rmtree, shutil.copy2 = deadly(os.replace), deadly(shutil.rmtree), deadly(shutil.copy2)
shutil.copytree.__kwdefaults__ = None
shutil.copytree.__defaults__ = (False, None, shutil.copy2, False, False)
store.replace_folder(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
print("done")
"""


def dies(source, target, at):
    process = python(DIES, source, target, at)
    process.communicate()
    return process.returncode


@pytest.mark.parametrize("at", range(1, 9))
def test_a_kill_while_replacing_leaves_the_old_or_the_new_never_a_mixture(folders, at):
    source, target = folders
    assert dies(source, target, at) == -signal.SIGKILL
    previous = target.with_name(".cpu.previous")
    if target.exists():
        assert contents(target) in (OLD, NEW)
    else:
        assert contents(previous) == OLD
    replace_folder(source, target)
    assert contents(target) == NEW
    assert [path.name for path in target.parent.iterdir()] == ["cpu"]


def test_a_kill_beyond_the_last_step_changes_nothing(folders):
    source, target = folders
    assert dies(source, target, 9) == 0
    assert contents(target) == NEW


@pytest.mark.parametrize(
    "second",
    [*range(1, 6), 6, 7, 8],
)
def test_two_kills_in_a_row_leave_the_old_or_the_new(folders, second):
    source, target = folders
    assert dies(source, target, 7) == -signal.SIGKILL
    assert not target.exists(), "the first kill falls between the two renames"
    dies(source, target, second)
    whole = [contents(place) for place in (target, target.with_name(".cpu.previous")) if place.exists()]
    assert whole and all(files in (OLD, NEW) for files in whole)


def test_a_failed_copy_leaves_the_old_and_nothing_beside_it(folders, monkeypatch):
    source, target = folders

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.shutil, "copytree", full)
    with pytest.raises(OSError, match="No space"):
        replace_folder(source, target)
    assert contents(target) == OLD
    assert os.listdir(target.parent) == ["cpu"]
