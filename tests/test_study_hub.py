"""Files from the Hub: revisions recorded once, refusals said in one sentence, no secret in any message. No network is used."""

import errno
import json
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import errors

from safetylib.study import hub
from safetylib.study.assets import AssetError

REPO, PAGE = "owner/name", "https://huggingface.co/owner/name"
SECRET = "hf_abcdefghijklmnop"
PATTERNS = ("*.safetensors", "*.json")


class Hub:
    """A Hub in memory: says which commit is the newest, and writes files into a folder; both can be made to fail."""

    def __init__(self, folder):
        self.folder, self.commit, self.calls, self.checked, self.resolved = folder, "a" * 40, [], [], 0
        self.fails_to_resolve = self.fails_to_download = None
        self.files = ["model.safetensors", "config.json"]

    def repo_info(self, repo, repo_type):
        self.resolved += 1
        if self.fails_to_resolve:
            raise self.fails_to_resolve
        return SimpleNamespace(sha=self.commit)

    def snapshot_download(self, repo, **options):
        self.calls.append((repo, options))
        if self.fails_to_download:
            raise self.fails_to_download
        for name in self.files:
            (self.folder / name).touch()
        return str(self.folder)

    def auth_check(self, repo, repo_type):
        self.checked.append((repo, repo_type))
        if self.fails_to_resolve:
            raise self.fails_to_resolve


@pytest.fixture
def remote(tmp_path, monkeypatch):
    monkeypatch.setenv("SAFETYLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", SECRET)
    (tmp_path / "snapshot").mkdir()
    made = Hub(tmp_path / "snapshot")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: made)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", made.snapshot_download)
    return made


def answer(status, kind=errors.HfHubHTTPError):
    """An error of the Hub whose own text holds what nobody should see."""
    response = SimpleNamespace(status_code=status, headers={}, request=None)
    return kind(f"{status} for https://cdn.example/?Signature={SECRET}", response=response)


def fetch(kind="model"):
    return hub.snapshot(REPO, PATTERNS, kind, PAGE)


def test_the_revision_is_resolved_once_recorded_and_used_from_then_on(remote):
    assert fetch() == remote.folder
    remote.commit = "b" * 40
    fetch()
    assert remote.resolved == 1
    assert [options["revision"] for _, options in remote.calls] == ["a" * 40] * 2
    assert hub.revisions() == {"models/owner/name": "a" * 40}
    assert json.loads((hub.cache_dir() / "hub-revisions.json").read_text()) == hub.revisions()


def test_models_and_datasets_of_one_name_have_records_of_their_own(remote):
    fetch()
    remote.commit = "b" * 40
    fetch("dataset")
    assert hub.revisions() == {"models/owner/name": "a" * 40, "datasets/owner/name": "b" * 40}
    assert [options["repo_type"] for _, options in remote.calls] == ["model", "dataset"]


def test_an_interrupted_download_goes_on_with_the_commit_that_it_began_with(remote):
    remote.fails_to_download = ConnectionResetError()
    with pytest.raises(AssetError):
        fetch()
    remote.fails_to_download, remote.commit = None, "b" * 40
    fetch()
    assert {options["revision"] for _, options in remote.calls} == {"a" * 40}


def test_only_what_is_asked_for_and_nothing_that_holds_code_is_fetched(remote):
    fetch()
    ((repo, options),) = remote.calls
    assert repo == REPO and options["allow_patterns"] == list(PATTERNS)
    assert {"*.bin", "*.pt", "*.pth", "*.pkl", "*.py"} <= set(options["ignore_patterns"])


def test_a_model_without_safetensors_is_refused_and_a_data_set_needs_none(remote):
    remote.files = ["data.csv"]
    with pytest.raises(AssetError, match="holds no safetensors"):
        fetch()
    assert fetch("dataset") == remote.folder


REFUSALS = {
    "gated": (answer(403, errors.GatedRepoError), (PAGE, "HF_TOKEN", "Colab secret", "--preset colab", "--preset cpu")),
    "unknown or private": (answer(401, errors.RepositoryNotFoundError), (PAGE, "HF_TOKEN", "--preset cpu")),
    "token not accepted": (answer(401), ("401", "HF_TOKEN", "--preset cpu")),
    "the Hub is down": (answer(503), ("503", "later")),
    "commit gone": (answer(404, errors.RevisionNotFoundError), ("a" * 40, "hub-revisions.json")),
    "no network": (errors.HTTPError(f"connect {SECRET}"), ("network", "--preset cpu")),
    "nothing cached": (errors.LocalEntryNotFoundError(f"Got: {SECRET}"), ("network", "--preset cpu")),
    "offline": (errors.OfflineModeIsEnabled(SECRET), ("network", "--preset cpu")),
    "disk full": (OSError(errno.ENOSPC, SECRET), ("disk is full", "HF_HOME")),
}


@pytest.mark.parametrize(("error", "says"), REFUSALS.values(), ids=REFUSALS)
def test_what_goes_wrong_is_said_in_one_sentence_that_tells_what_to_do(remote, error, says):
    remote.fails_to_download = error
    with pytest.raises(AssetError) as raised:
        fetch()
    text = str(raised.value)
    assert REPO in text and all(word in text for word in says)
    assert text.endswith(".") and "\n" not in text and ". " not in text, "one sentence"
    assert SECRET not in text and raised.value.__suppress_context__, "nothing of the Hub's own message is shown"


def test_a_gate_that_shows_when_the_revision_is_asked_for_is_no_different(remote):
    remote.fails_to_resolve = answer(401, errors.GatedRepoError)
    with pytest.raises(AssetError, match="is gated: accept its licence at " + PAGE):
        fetch("dataset")
    assert hub.revisions() == {} and remote.calls == []


@pytest.mark.parametrize("content", ["", "{", "[]", '{"models/owner/name": 3}'])
def test_a_damaged_record_is_named(remote, content):
    hub.cache_dir().mkdir(parents=True)
    (hub.cache_dir() / "hub-revisions.json").write_text(content)
    with pytest.raises(AssetError, match=r"hub-revisions\.json is damaged; delete it"):
        fetch()


def test_access_is_asked_for_once_before_the_first_download(remote):
    hub.require_access(REPO, "model", PAGE)
    assert remote.checked == [(REPO, "model")] and not remote.calls and not remote.resolved
    hub.snapshot(REPO, PATTERNS, "model", PAGE)
    hub.require_access(REPO, "model", PAGE)
    assert len(remote.checked) == 1, "what was downloaded once needs no network"


def test_a_gate_shows_when_access_is_asked_for(remote):
    remote.fails_to_resolve = answer(403, errors.GatedRepoError)
    with pytest.raises(AssetError, match="is gated: accept its licence"):
        hub.require_access(REPO, "model", PAGE)
