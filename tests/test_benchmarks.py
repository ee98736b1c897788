"""The benchmarks' table: stored rows, the page written from them, and rows that stay when others are measured again."""

from types import SimpleNamespace

import pandas as pd
import pytest

from benchmarks import __main__ as command
from benchmarks import timing
from benchmarks.timing import Comparison

SHORT = Comparison("work", "a peer", (2.92e-3,), (1.51e-5,))


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """The command with made-up measurements, writing elsewhere."""
    ratios = {"slow": 2.0, "fast": 40.0}

    class Module:
        def __init__(self, name):
            self.main = lambda: Comparison(
                f"{name} work", "a peer", (ratios[name], 3 * ratios[name], ratios[name]), (1.0, 1.0, 2.0)
            )

    monkeypatch.setattr(command, "BENCHMARKS", {"slow": {"main": 3.0}, "fast": {"main": 30.0}})
    monkeypatch.setattr(command, "import_module", lambda path: Module(path.removeprefix("benchmarks.")))
    monkeypatch.setattr(command, "ROOT", tmp_path)
    monkeypatch.setattr(command, "STORED", tmp_path / "benchmarks.csv")
    monkeypatch.setattr(command, "PAGE", tmp_path / "table.md")
    return ratios


def test_ratios_are_stored_beside_their_aims_and_shown(bench, tmp_path):
    command.main([])
    stored = pd.read_csv(tmp_path / "benchmarks.csv")
    assert list(stored["benchmark"]) == ["slow", "fast"]
    assert list(stored["ratio"]) == [2.0, 40.0] and list(stored["target"]) == [3.0, 30.0]
    page = (tmp_path / "table.md").read_text().replace("\u00a0", " ")
    assert "| slow work | a peer | 2 | 3 | 1 to 6 | 2 s | 1 s |" in page and "cores" in page


def test_a_row_may_have_no_aim(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "BENCHMARKS", {"slow": {"main": None}, "fast": {"main": 30.0}})
    command.main([])
    command.main(["fast"])
    page = (tmp_path / "table.md").read_text().replace("\u00a0", " ")
    assert "| slow work | a peer | 2 |  | 1 to 6 |" in page and "| fast work | a peer | 40 | 30 |" in page


def test_short_times_are_told_in_small_units(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "import_module", lambda path: SimpleNamespace(main=lambda: SHORT))
    command.main(["slow"])
    page = (tmp_path / "table.md").read_text()
    assert "| 2.92\u00a0ms | 15.1\u00a0µs |" in page, "and a number is not parted from its unit"


def test_rows_that_are_not_measured_again_stay(bench, tmp_path):
    command.main([])
    bench.update(slow=5.0, fast=50.0)
    command.main(["fast"])
    stored = pd.read_csv(tmp_path / "benchmarks.csv")
    assert list(zip(stored["benchmark"], stored["ratio"], strict=True)) == [("slow", 2.0), ("fast", 50.0)]


def test_a_missing_peer_has_no_row(bench, monkeypatch, tmp_path):
    class Missing:
        main = staticmethod(lambda: None)

    whole = command.import_module
    monkeypatch.setattr(command, "import_module", lambda path: Missing if path.endswith("slow") else whole(path))
    command.main([])
    assert list(pd.read_csv(tmp_path / "benchmarks.csv")["benchmark"]) == ["fast"]


def test_a_peer_that_is_missing_today_leaves_its_stored_row(bench, monkeypatch, tmp_path):
    command.main([])

    class Missing:
        main = staticmethod(lambda: None)

    monkeypatch.setattr(command, "import_module", lambda path: Missing)
    command.main(["slow"])
    stored = pd.read_csv(tmp_path / "benchmarks.csv")
    assert list(zip(stored["benchmark"], stored["ratio"], strict=True)) == [("slow", 2.0), ("fast", 40.0)]


def test_unknown_benchmarks_are_refused_by_name(bench, tmp_path):
    with pytest.raises(ValueError, match="unknown benchmark 'quick'; known: slow, fast"):
        command.main(["quick"])
    assert not (tmp_path / "benchmarks.csv").exists()


def test_the_real_commands_exist():
    from importlib import import_module

    pytest.importorskip("torch")
    for name, functions in command.BENCHMARKS.items():
        module = import_module(f"benchmarks.{name}")
        assert all(callable(getattr(module, function)) for function in functions)


def test_what_was_measured_before_an_interruption_is_stored(bench, monkeypatch, tmp_path):
    class Interrupted:
        @staticmethod
        def main():
            raise KeyboardInterrupt

    whole = command.import_module
    monkeypatch.setattr(command, "import_module", lambda path: Interrupted if path.endswith("fast") else whole(path))
    with pytest.raises(KeyboardInterrupt):
        command.main([])
    assert list(pd.read_csv(tmp_path / "benchmarks.csv")["benchmark"]) == ["slow"]


def test_both_trainers_learn_the_targets_alone():
    pytest.importorskip("torch")
    from benchmarks import training_step
    from safetylib.study.augment import Example

    batch = [Example([1, 2, 3], [4, 5], "refusal", 0), Example([6], [7], "anchor", 0)]
    assert [training_step.masked(example) for example in batch] == [
        {"input_ids": [1, 2, 3, 4, 5], "completion_mask": [0, 0, 0, 1, 1]},
        {"input_ids": [6, 7], "completion_mask": [0, 1]},
    ]
    found = training_step.padded(batch, pad=9)
    assert found["input_ids"].tolist() == [[1, 2, 3, 4, 5], [6, 7, 9, 9, 9]]
    assert found["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]
    assert found["labels"].tolist() == [[-100, -100, -100, 4, 5], [-100, 7, -100, -100, -100]]


def test_a_run_is_so_many_calls_and_more_until_it_has_lasted(monkeypatch):
    """A clock on which theirs takes a second a call and ours a hundredth."""
    now, calls = [0.0], {"theirs": 0, "ours": 0}
    monkeypatch.setattr(timing.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def side(name, seconds):
        def run():
            calls[name] += 1
            now[0] += seconds

        return run

    found = timing.compare("work", "a peer", side("theirs", 1.0), side("ours", 1 / 128), repeats=2, seconds_a_run=0.5)
    assert (found.peer_seconds, found.our_seconds) == (1.0, 1 / 128)
    assert calls == {"theirs": 3, "ours": 3 * 64}, "a warm-up and two runs of each"
    timing.compare("work", "a peer", side("theirs", 1.0), side("ours", 1 / 128), repeats=1, calls=5)
    assert calls == {"theirs": 3 + 10, "ours": 3 * 64 + 10}
