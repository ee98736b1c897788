"""Prompt sets of others: what is loaded, what never is, and what a file of another layout is told. Sentences are neutral."""

import csv

import pytest

from safetylib.study import assets, prompt_sets

HARMBENCH = ["Behavior", "FunctionalCategory", "SemanticCategory", "Tags", "ContextString", "BehaviorID"]


@pytest.fixture
def behaviours(tmp_path, monkeypatch):
    """Writes the file that stands in for HarmBench's: two standard behaviours, two contextual ones of one text, those never loaded."""
    path = tmp_path / "made.csv"
    monkeypatch.setattr(assets, "fetch", lambda asset: {assets.HARMBENCH: path}[asset])

    def write(columns=HARMBENCH):
        ids = ["red_box", "blue_box", "context_a", "context_b", *prompt_sets.HARMBENCH_NEVER_LOADED]
        with path.open("w", newline="", encoding="utf-8") as file:
            out = csv.writer(file)
            out.writerow(columns)
            for id in ids:
                text, kind = ("Describe it.", "contextual") if "context" in id else (f"Describe {id}.", "standard")
                out.writerow([text, kind, "boxes", "", "", id])

    return write


def test_harmbench_is_its_standard_behaviours_without_those_never_loaded(behaviours):
    behaviours()
    loaded = prompt_sets.harmbench()
    assert [prompt.id for prompt in loaded] == ["harmbench-red_box", "harmbench-blue_box"]
    assert {(prompt.kind, prompt.category, prompt.split) for prompt in loaded} == {("harmful", "boxes", "test")}
    assert loaded[0].text == "Describe red_box."


def test_a_harmbench_file_of_another_layout_is_refused(behaviours):
    behaviours(["prompt", *HARMBENCH[1:]])
    with pytest.raises(ValueError, match=r"made\.csv has no column Behavior"):
        prompt_sets.harmbench()


def test_each_behaviour_stands_there_once(behaviours, tmp_path):
    behaviours()
    path = tmp_path / "made.csv"
    path.write_text(path.read_text("utf-8") + "Describe it.,standard,boxes,,,red_box\n", "utf-8")
    with pytest.raises(ValueError, match=r"made\.csv: .*repeats an earlier BehaviorID"):
        prompt_sets.harmbench()
