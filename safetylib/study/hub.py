"""Files from the Hugging Face Hub: a revision is resolved once, recorded, and used from then on.

No revision is written from memory. The first download of a repository asks the Hub for the commit behind its main branch and
records it in ``hub-revisions.json`` in this project's cache; every later call takes that commit, so that a study never
changes under a reader's feet. Files lie in the Hub's own cache (``HF_HOME``). Weights are safetensors only: nothing that
could hold code is ever fetched. Gated repositories need an account that has accepted their licence; its token is read by
huggingface_hub itself (``HF_TOKEN``, ``hf auth login``, or a Colab secret) and never seen here.
"""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from safetylib.study.assets import AssetError, cache_dir

Kind = Literal["model", "dataset"]

_NEVER = ("*.py", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.h5", "*.msgpack", "*.gguf")
_UNGATED = "choose a preset that needs no licence (--preset colab on a GPU, --preset cpu without one)"


def _record() -> Path:
    return cache_dir() / "hub-revisions.json"


def revisions() -> dict[str, str]:
    """Commits recorded on this machine: ``models/OWNER/NAME`` or ``datasets/OWNER/NAME`` -> commit.

    Raises
    ------
    AssetError
        The record is damaged.
    """
    try:
        found = json.loads(_record().read_text("utf-8"))
        if isinstance(found, dict) and all(isinstance(commit, str) for commit in found.values()):
            return found
    except FileNotFoundError:
        return {}
    except ValueError:
        pass
    raise AssetError(
        f"The record of Hub revisions {_record()} is damaged; delete it and run the command again: revisions are resolved anew."
    )


def _remember(key: str, commit: str) -> None:
    target = _record()
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(prefix=".incoming-", dir=target.parent)
    with open(handle, "w", encoding="utf-8") as file:
        json.dump(dict(sorted({**revisions(), key: commit}.items())), file, indent=1)
    os.replace(scratch, target)


def snapshot(repo: str, patterns: tuple[str, ...], kind: Kind, page: str) -> Path:
    """The local folder with a repository's files, downloaded at the first call.

    Parameters
    ----------
    repo
        ``OWNER/NAME`` on the Hub.
    patterns
        Files to take, as shell patterns. Pickles and code are left out whatever the patterns say.
    kind
        A model must come with safetensors.
    page
        Where a person accepts the licence, named when the repository turns out to be gated.

    Raises
    ------
    AssetError
        Licence not accepted or no token, unknown repository, no network, full disk, weights that are no safetensors: each in
        one sentence that says what to do.
    """
    from huggingface_hub import snapshot_download

    with _told(repo, kind, page):
        folder = snapshot_download(
            repo,
            repo_type=kind,
            revision=_commit(repo, kind),
            allow_patterns=list(patterns),
            ignore_patterns=list(_NEVER),
        )
    if kind == "model" and not any(Path(folder).glob("*.safetensors")):
        raise AssetError(
            f"{repo} at {_commit(repo, kind)} holds no safetensors, and no other format is loaded: use another model."
        )
    return Path(folder)


def require_access(repo: str, kind: Kind, page: str) -> None:
    """Ask whether this account may download a repository, unless its revision was recorded before.

    Raises
    ------
    AssetError
        As for :func:`snapshot`.
    """
    if f"{kind}s/{repo}" not in revisions():
        from huggingface_hub import HfApi

        with _told(repo, kind, page):
            HfApi().auth_check(repo, repo_type=kind)


def _commit(repo: str, kind: Kind) -> str:
    """The recorded commit of a repository; resolved, and recorded, at the first call."""
    from huggingface_hub import HfApi

    commit = revisions().get(f"{kind}s/{repo}")
    if commit is None:
        commit = HfApi().repo_info(repo, repo_type=kind).sha
        _remember(f"{kind}s/{repo}", commit)
    return commit


@contextmanager
def _told(repo: str, kind: Kind, page: str) -> Iterator[None]:
    """Say in a sentence what the Hub refuses, and what to do."""
    # Imported late: the Hub's client takes a second, and most commands never need it.
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    # The Hub's own messages may carry signed addresses: they are replaced, not chained.
    except GatedRepoError:
        raise AssetError(
            f"{repo} is gated: accept its licence at {page} and give a read token of that account (environment variable "
            f"HF_TOKEN, `hf auth login`, or a Colab secret named HF_TOKEN), or {_UNGATED}."
        ) from None
    except RevisionNotFoundError:
        raise AssetError(
            f"{repo} no longer has the recorded commit {revisions().get(f'{kind}s/{repo}')}; delete its line from {_record()} to "
            "resolve a new one, and measure into an empty folder (--into): what was measured with the old one does not belong to it."
        ) from None
    except RepositoryNotFoundError:
        raise AssetError(
            f"The Hub knows no {kind} {repo}, or hides it from this account: look at {page}, check the token (HF_TOKEN), or {_UNGATED}."
        ) from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        remedy = "check the token in HF_TOKEN or remove it" if status in (401, 403) else "try again later"
        raise AssetError(f"The Hub answered {status} when asked for {repo}: {remedy}, or {_UNGATED}.") from None
    except (HTTPError, OSError, RuntimeError) as error:
        if isinstance(error, AssetError):
            raise
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise AssetError(
                f"The disk is full: free some room for {repo} or point HF_HOME at another disk, and run the command again."
            ) from None
        raise AssetError(
            f"{repo} is not complete in the cache and the Hub could not be reached ({type(error).__name__}): connect to the "
            "network and run the command again (what was downloaded is kept), or use --preset cpu, which needs no Hub."
        ) from None
