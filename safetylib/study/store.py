"""Finished units of work on disk: written whole or not at all, found again, with provenance.

A unit is a folder that appears by one rename, when everything in it has been written; its name holds the fingerprint of
what produced it (code, plan, data), so that a unit is reused only by the study that would make the same one, and a
changed study never overwrites what an earlier one finished.
"""

from __future__ import annotations

import ast
import fcntl
import hashlib
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import IO

_PACKAGE = Path(__file__).parent
_REPORTED_PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "numpy", "pandas", "tokenizers")

# What each stage's results depend on: the modules whose code they run, and the data files they read.
STAGES: dict[str, tuple[str, ...]] = {
    "data": ("units.py", "prompts.py", "detectors.py", "data/benign.csv", "data/refusals.csv"),
    "training": ("units.py", "attention.py", "augment.py", "models.py", "train.py"),
    "generation": (
        "units.py",
        "attention.py",
        "detectors.py",
        "generate.py",
        "models.py",
        "prepacked.py",
        "registry.py",
    ),
    "judging": ("units.py", "attention.py", "detectors.py", "judge.py"),
}


class StoreError(RuntimeError):
    """The store cannot be used as it is; the message says what to do."""


def digest(*parts: object) -> str:
    """Short digest of values (as JSON) and bytes."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(part if isinstance(part, bytes) else json.dumps(part, sort_keys=True, default=list).encode())
    return whole.hexdigest()[:16]


def code_without_prose(source: str) -> bytes:
    """Python source without comments, docstrings and layout: what a result can depend on."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            if isinstance(body[0].value.value, str):
                body[0] = ast.Pass()
    return ast.unparse(tree).encode()


def stage_fingerprints() -> dict[str, str]:
    """One fingerprint a stage, over its code without prose and its data files."""

    def content(name: str) -> bytes:
        path = _PACKAGE / name
        return code_without_prose(path.read_text("utf-8")) if path.suffix == ".py" else path.read_bytes()

    return {stage: digest(*(content(name) for name in names)) for stage, names in STAGES.items()}


def machine() -> str:
    """What kind of machine this is; on Linux with an x86 processor's instructions for bfloat16, as machines that differ in
    these round otherwise."""
    try:
        flags = Path("/proc/cpuinfo").read_text("utf-8").split()
    except OSError:
        flags = []
    instructions = [name for name in ("amx_bf16", "avx512_bf16") if name in flags]
    return ", ".join([f"{platform.machine()}, {os.cpu_count()} cores", *instructions])


def provenance() -> dict:
    """When, on what kind of machine and with which packages: no host names, no paths."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "machine": machine(),
        "packages": {name: metadata.version(name) for name in _REPORTED_PACKAGES},
    }


def _locked(lock: IO, how: int) -> bool:
    """Take a lock if nobody stands in the way."""
    try:
        fcntl.flock(lock, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class Store:
    """A folder of finished units.

    Parameters
    ----------
    root
        Created when it is first held or written. One run at a time may hold it: one process, or the several of one launch.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.stages = root, stage_fingerprints()

    @contextmanager
    def held(self, together: bool = False) -> Iterator[None]:
        """Hold the store for this process, and clear what a killed one left half-written.

        ``together`` shares it with the other processes of the same launch; the first of them clears it, alone.

        Raises
        ------
        StoreError
            Another run holds it.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("w") as lock:
            if _locked(lock, fcntl.LOCK_EX):
                for leftover in self.root.glob(".incoming-*"):
                    shutil.rmtree(leftover, ignore_errors=True)
                if together:
                    fcntl.flock(lock, fcntl.LOCK_SH)
            elif not (together and self._joined(lock)):
                raise StoreError(
                    f"Another run is measuring into {self.root}. Wait for it, stop it, or choose another folder with --into."
                )
            yield

    @staticmethod
    def _joined(lock: IO, seconds: float = 10) -> bool:
        """Whether the lock could be shared, once the first process has done its clearing."""
        deadline = time.monotonic() + seconds
        while not _locked(lock, fcntl.LOCK_SH):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True

    def path(self, unit: str, fingerprint: str) -> Path:
        """Where a unit lies, finished or not."""
        return self.root / f"{unit}-{fingerprint}"

    def finished(self, unit: str, fingerprint: str) -> bool:
        """Whether the unit was written to its end."""
        return (self.path(unit, fingerprint) / "unit.json").is_file()

    @contextmanager
    def writing(self, unit: str, fingerprint: str) -> Iterator[Path]:
        """A scratch folder that becomes the unit when the block ends without an exception."""
        self.root.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".incoming-", dir=self.root))
        try:
            yield scratch
            (scratch / "unit.json").write_text(
                json.dumps({"unit": unit, "fingerprint": fingerprint, "stages": self.stages, **provenance()}, indent=1)
            )
            for file in scratch.rglob("*"):
                if file.is_file():
                    with file.open("rb") as handle:
                        os.fsync(handle.fileno())
            if not self.finished(unit, fingerprint):  # a folder that was never finished stands in nobody's way
                shutil.rmtree(self.path(unit, fingerprint), ignore_errors=True)
            os.replace(scratch, self.path(unit, fingerprint))
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def replace_folder(source: Path, target: Path, keep: tuple[str, ...] = ()) -> None:
    """Put a folder in another's place; a kill in between leaves the old one or the new one under ``target``'s name or
    beside it as ``.previous``, never a mixture. Files and folders of the old one named in ``keep`` are carried over."""
    incoming = target.with_name(f".{target.name}.incoming")
    previous = target.with_name(f".{target.name}.previous")
    if previous.exists() and not target.exists():  # killed between the two renames: the old one is still the one
        os.replace(previous, target)
    shutil.rmtree(incoming, ignore_errors=True)
    shutil.copytree(source, incoming)
    for name in keep:
        if (target / name).is_dir():
            shutil.copytree(target / name, incoming / name, dirs_exist_ok=True)
        elif (target / name).is_file():
            shutil.copy2(target / name, incoming / name)
    shutil.rmtree(previous, ignore_errors=True)
    if target.exists():
        os.replace(target, previous)
    os.replace(incoming, target)
    shutil.rmtree(previous, ignore_errors=True)
