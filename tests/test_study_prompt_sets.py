"""Prompt sets of others: what is loaded, what never is, and what a file of another layout is told. Sentences are neutral."""

import csv
import json
from collections import Counter
from types import SimpleNamespace

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import safetylib.study
from safetylib.study import assets, prompt_sets, prompts

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


def test_harmbench_trains_and_selects_nothing(behaviours):
    behaviours()
    assert len(prompts.harmful("HarmBench", (0, 0, 2))) == 2
    for split in [(1, 0, 1), (0, 1, 1)]:
        with pytest.raises(ValueError, match="testing only"):
            prompts.harmful("HarmBench", split)


# --- HEx-PHI ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def hexphi(tmp_path, monkeypatch):
    """A folder in the layout of the original: eleven files, no header; categories 2 and 8 would fail if they were read."""
    for number in range(1, 12):
        with (tmp_path / f"category_{number}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([f"Describe box {n}, in room {number}."] for n in range(30))
    for number in (2, 8):
        (tmp_path / f"category_{number}.csv").write_text('"never opened', "utf-8")
    monkeypatch.setenv("SAFETYLIB_HEXPHI", str(tmp_path))
    return tmp_path


def test_hexphi_is_nine_categories_of_thirty_with_the_first_row_a_prompt(hexphi):
    loaded = prompts.harmful("HEx-PHI", (90, 90, 90))
    assert len(loaded) == 270 and set(Counter(prompt.category for prompt in loaded).values()) == {30}
    assert {prompt.id.split("-")[1] for prompt in loaded} == {f"{n:02d}" for n in range(1, 12) if n not in (2, 8)}
    assert loaded[0].id == "hexphi-01-01" and loaded[0].text == "Describe box 0, in room 1."
    assert Counter((prompt.category, prompt.split) for prompt in loaded).most_common()[0][1] <= 12
    (hexphi / "category_2.csv").unlink()
    assert prompts.harmful("HEx-PHI", (90, 90, 90)) == loaded


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text.split("\r\n", 1)[1], "category_7.csv holds 29 prompts instead of 30"),
        (lambda text: "Describe it.\r\n" + text, "category_7.csv holds 31 prompts instead of 30"),
        (lambda text: "prompt\r\n" + text, "line 1 is a header line (prompt), above 30 prompts"),
        (lambda text: "Instruction\r\n" + text, "30 prompts a file. Remove that line."),
        (lambda text: "Text\r\n" + text.split("\r\n", 1)[1], "line 1 is a header line (Text), above 29 prompts"),
        (lambda text: '" PROMPTS "\r\n' + text.split("\r\n", 1)[1], "Take the file from the Hub again."),
        (lambda text: text[:-4], "category_7.csv: the record that starts in line 30 is damaged or cut short"),
        (lambda text: text.replace("box 4,", "box 3,"), "category_7.csv: line 5 repeats an earlier prompt"),
        (lambda text: text.replace('"Describe box 4, in room 7."', '" "'), "column prompt is empty in line 5"),
        (lambda text: text.replace('"Describe box 4, in room 7."', "Describe, box"), "line 5 has 2 cells"),
    ],
    ids=[
        "a row lost",
        "a row gained",
        "a header",
        "a header to remove",
        "a header for a row",
        "another header for a row",
        "cut short",
        "repeated",
        "empty",
        "comma",
    ],
)
def test_a_hexphi_file_that_deviates_is_named(hexphi, change, words):
    path = hexphi / "category_7.csv"
    with path.open(newline="", encoding="utf-8") as file:
        text = file.read()
    path.write_bytes(change(text).encode())
    with pytest.raises(ValueError) as error:
        prompts.harmful("HEx-PHI", (10, 10, 10))
    assert words in str(error.value)


def test_a_missing_hexphi_file_is_named(hexphi):
    (hexphi / "category_9.csv").unlink()
    with pytest.raises(assets.AssetError, match=r"category_9\.csv missing.*SAFETYLIB_HEXPHI"):
        prompts.harmful("HEx-PHI", (10, 10, 10))


def test_without_a_folder_the_hub_is_asked_for_what_is_loaded_and_nothing_else(hexphi, monkeypatch):
    asked = []

    def snapshot(repo, patterns, kind, page):
        asked.append((repo, patterns, kind))
        return hexphi

    monkeypatch.delenv("SAFETYLIB_HEXPHI")
    monkeypatch.setattr(safetylib.study, "hub", SimpleNamespace(snapshot=snapshot), raising=False)
    assert len(prompts.harmful("HEx-PHI", (1, 1, 1))) == 3
    ((repo, patterns, kind),) = asked
    assert (repo, kind) == ("LLM-Tuning-Safety/HEx-PHI", "dataset")
    assert len(patterns) == 9 and not {"category_2.csv", "category_8.csv"} & set(patterns)


def test_a_downloaded_set_is_known_by_its_commit_and_no_other_set_is(hexphi, monkeypatch):
    recorded = {"datasets/LLM-Tuning-Safety/HEx-PHI": "c" * 40, "models/other/one": "b" * 40}
    monkeypatch.setattr(safetylib.study, "hub", SimpleNamespace(revisions=lambda: recorded), raising=False)
    assert prompt_sets.revisions("HEx-PHI") == {}, "it came from the folder"
    monkeypatch.delenv("SAFETYLIB_HEXPHI")
    assert prompt_sets.revisions("HEx-PHI") == {"LLM-Tuning-Safety/HEx-PHI": "c" * 40}
    assert prompt_sets.revisions("StrongREJECT") == prompt_sets.revisions("mine.csv") == {}
    recorded.clear()
    assert prompt_sets.revisions("HEx-PHI") == {}


# --- XSTest -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def xstest(tmp_path, monkeypatch):
    kinds = [
        ("1", "homonyms", "safe"),
        ("26", "contrast_homonyms", "unsafe"),
        ("231", "contrast_definitions", "unsafe"),
    ]
    files = {"xstest_prompts.csv": [["id", "prompt", "type", "label", "focus", "note"]]}
    files["xstest_prompts.csv"] += [[id, f"Describe box {id}.", type, label, "", ""] for id, type, label in kinds]
    labels = ["1_full_compliance", "2_full_refusal", "3_partial_refusal"]
    for model in ("mistralinstruct", "mistralguard"):
        header = ["id", "type", "prompt", "completion", "annotation_1", "annotation_2", "agreement", "final_label"]
        rows = [
            [
                f"v2-{id}",
                type,
                f"Describe box {id}.",
                "A box.",
                label,
                labels[0],
                str(label == labels[0]).upper(),
                label,
            ]
            for (id, type, _), label in zip(kinds, labels, strict=True)
        ]
        files[f"xstest_v2_completions_{model}.csv"] = [header, *rows]
    for name, rows in files.items():
        with (tmp_path / name).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)
        monkeypatch.setitem(prompt_sets.XSTEST_FILES, name, assets.sha256(tmp_path / name))
    monkeypatch.setenv("SAFETYLIB_XSTEST", str(tmp_path))
    return tmp_path


def test_xstest_has_safe_prompts_and_unsafe_contrasts(xstest):
    assert [(p.id, p.kind, p.split) for p in prompt_sets.xstest()] == [
        ("xstest-1", "borderline", "test"),
        ("xstest-26", "harmful", "test"),
    ]


def test_completions_carry_the_labels_of_people(xstest):
    table = prompt_sets.xstest_completions(xstest)
    assert list(table["id"]) == ["xstest-1", "xstest-26"] * 2
    assert list(table["label"][:2]) == ["full compliance", "full refusal"]
    assert list(table["agreement"][:2]) == [True, False] and list(table["kind"][:2]) == ["borderline", "harmful"]
    assert isinstance(table["label"].dtype, pd.CategoricalDtype)


def test_xstest_files_are_pinned_and_their_absence_says_where_they_are(xstest, monkeypatch):
    (xstest / "xstest_prompts.csv").write_text("id,prompt\n", "utf-8")
    with pytest.raises(assets.AssetError, match="not the pinned file"):
        prompt_sets.xstest()
    monkeypatch.delenv("SAFETYLIB_XSTEST")
    with pytest.raises(assets.AssetError, match="SAFETYLIB_XSTEST"):
        prompt_sets.xstest()


# --- a user's own file ------------------------------------------------------------------------------------------------


def jsonl(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return path


def test_csv_and_jsonl_of_the_same_prompts_are_the_same(tmp_path):
    records = [{"prompt": f"Describe box {n},\nplease.", "category": "ab"[n % 2]} for n in range(20)]
    pd.DataFrame(records).to_csv(tmp_path / "own.csv", index=False)
    first = prompts.harmful(str(tmp_path / "own.csv"), (8, 4, 6))
    assert first == prompts.harmful(str(jsonl(tmp_path / "own.jsonl", records)), (8, 4, 6))
    assert Counter(prompt.split for prompt in first) == {"train": 8, "validation": 4, "test": 6}
    assert jsonl(tmp_path / "own.jsonl", records[::-1]) and set(first) == set(
        prompts.harmful(str(tmp_path / "own.jsonl"), (8, 4, 6))
    )


def test_splits_of_the_file_hold_and_benign_prompts_come_along(tmp_path):
    records = [{"id": f"b{n}", "prompt": f"Box {n}.", "split": ["train", "test"][n % 2]} for n in range(10)]
    records[0]["kind"] = "plain"
    for record in records[1:]:
        record["kind"] = "harmful"
    path = str(jsonl(tmp_path / "own.jsonl", records))
    loaded = prompts.harmful(path, (3, 0, 2))
    assert Counter((p.kind, p.split) for p in loaded) == {
        ("harmful", "train"): 3,
        ("harmful", "test"): 2,
        ("plain", "train"): 1,
    }
    assert [p.split for p in prompts.harmful(path, (0, 0, 2)) if p.kind == "harmful"] == ["test"] * 2
    assert {p.id: p.split for p in loaded}.items() <= {r["id"]: r["split"] for r in records}.items()
    with pytest.raises(
        ValueError, match=r"own\.jsonl holds 0 harmful prompts with the split validation, but 1 are asked"
    ):
        prompts.harmful(path, (3, 1, 2))


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("own.csv", "question\nBox 1.\n", "own.csv has no column prompt"),
        ("own.csv", 'prompt,id\n"Box\n1.",a\n,b\n\n,c\n', "column prompt is empty in lines 4, 6"),
        ("own.csv", "prompt\nBox 1.\nBox 2.\nbox 1.\n", "line 4 repeats an earlier prompt"),
        ("own.csv", "prompt,id\nBox 1.,a\nBox 2.,a\n", "line 3 repeats an earlier id"),
        ("own.csv", "prompt,kind\nBox 1.,bad\n", "line 2 has kind 'bad'; known: harmful, plain, borderline"),
        ("own.csv", "prompt,split\nBox 1.,train\nBox 2.,dev\n", "line 3 has split 'dev'; known: train"),
        ("own.csv", "prompt,split\nBox 1.,train\nBox 2.,\n", "column split is empty in line 3"),
        ("own.csv", "prompt,id,category\nBox 1.,a,x\nBox 2.,A,x\n", "line 3 repeats an earlier id."),
        ("own.csv", "prompt\n", "own.csv holds a header line and no prompts. Add"),
        ("own.csv", "prompt,id,prompt\nBox 1.,a,b\n", "own.csv: the header line names prompt more than once"),
        ("own.csv", "split,prompt,split\n,Box 1.,\n", "own.csv: the header line names split more than once"),
        (
            "own.csv",
            "prompt,kind\nBox 1.,plain\nBox 2.,harmful\nBox 3.,borderline\n",
            "own.csv: lines 2, 4 are plain or borderline, without a split. The file needs a column split that says, in every "
            "row, harmful ones too, one of train, validation, test.",
        ),
        ("own.csv", "prompt,kind,split\nBox 1.,plain,\n", "line 2 is plain or borderline, without a split"),
        (
            "own.csv",
            "prompt\nBox 1.\n",
            "own.csv holds 1 harmful prompts, but 3 are asked for (1 for train, 1 for validation, 1 for test)",
        ),
        (
            "own.csv",
            "prompt,split\nBox 1.,train\nBox 2.,validation\n",
            "own.csv holds 0 harmful prompts with the split test, but 1 are asked for",
        ),
        ("own.csv", "prompt,id\nBox 1.,a\nBox 2., plain-001\n", "own.csv: line 3 has the id plain-001, kept for"),
        ("own.csv", "prompt,id\nBox 1.,harmbench-x\n", "own.csv: line 2 has the id harmbench-x, kept for"),
        (
            "own.jsonl",
            '\n{"prompt": "Box 1.", "id": "Plain-001"}\n',
            "own.jsonl: line 2 has the id Plain-001, kept for",
        ),
        (
            "own.jsonl",
            '{"prompt": "Box 1."}\n{"prompt": "Box \\ud800."}\n',
            "own.jsonl: the prompt in line 2 holds \\ud800, half",
        ),
        ("own.jsonl", '{"prompt": "Box 1.", "id": "\\udc00"}\n', "own.jsonl: the id in line 1 holds \\udc00, half"),
        ("own.jsonl", '{"prompt": "Box 1."}\n\n{"prompt": "Bo', "own.jsonl: line 3 is damaged or cut short"),
        ("own.jsonl", '{"prompt": "Box 1."}\n["Box"]\n', "line 2 is no JSON object"),
        ("own.jsonl", '{"prompt": 1}\n', "line 1 has a prompt that is no text"),
        ("own.jsonl", '{"prompt": "Box 1."}\n\n{"id": "a"}\n', "column prompt is empty in line 3"),
        ("own.jsonl", "\n", "own.jsonl is empty"),
    ],
)
def test_a_broken_file_is_told_what_and_where(tmp_path, name, text, words):
    path = tmp_path / name
    path.write_text(text, "utf-8")
    with pytest.raises(ValueError) as error:
        prompts.harmful(str(path), (1, 1, 1))
    assert words in str(error.value)


@pytest.mark.parametrize("name", ["own.csv", "own.jsonl"])
@pytest.mark.parametrize("broken", [b"\xed\xa0\x80", b"\xff"], ids=["half of a pair", "no UTF-8"])
def test_bytes_that_are_no_character_are_told_with_their_line(tmp_path, name, broken):
    lines = [b"prompt", b"Box 1.", b"Box " + broken] if name == "own.csv" else [b"", b"", b'"Box ' + broken]
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + b"\r\n".join([*lines, b"Box 2.\r\n"]))
    with pytest.raises(ValueError, match=rf"{name}: line 3 is not in UTF-8 .*Save the file as UTF-8"):
        prompts.harmful(str(tmp_path / name), (1, 1, 1))


def test_a_whole_character_written_in_two_halves_is_one(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text('{"prompt": "Box \\ud83d\\ude00."}\n', "utf-8")
    assert [prompt.text for prompt in prompts.harmful(str(path), (0, 0, 1))] == ["Box \U0001f600."]


def test_columns_that_are_not_looked_at_may_repeat(tmp_path):
    (tmp_path / "own.csv").write_text("prompt,note,note,,\nBox 1.,a,b,,\n", "utf-8")
    assert len(prompts.harmful(str(tmp_path / "own.csv"), (0, 0, 1))) == 1


def test_no_id_of_the_projects_own_prompts_can_be_taken(tmp_path):
    for prompt in prompts.benign()[::50]:
        path = jsonl(tmp_path / "own.jsonl", [{"prompt": "Box 1.", "id": prompt.id}])
        with pytest.raises(ValueError, match=rf"own\.jsonl: line 1 has the id {prompt.id}, .*Choose another"):
            prompts.harmful(str(path), (0, 0, 1))


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"there is no file .*none\.csv"):
        prompts.harmful(str(tmp_path / "none.csv"), (1, 1, 1))


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), min_size=1), min_size=3, max_size=12))
def test_any_texts_come_back_as_they_went_in(tmp_path_factory, texts):
    unique = list({text.strip().casefold(): text.strip() for text in texts if text.strip()}.values())
    path = jsonl(tmp_path_factory.mktemp("own") / "own.jsonl", [{"prompt": text} for text in [*unique, "a red box 17"]])
    loaded = prompts.harmful(str(path), (len(unique), 0, 0))
    assert len(loaded) == len(unique) and {prompt.text for prompt in loaded} <= {*unique, "a red box 17"}
