"""What a person sees when a command of the study ends badly: one sentence, not a traceback."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from safetensors import SafetensorError

from safetylib.study.assets import AssetError
from safetylib.study.store import StoreError


@contextmanager
def told(name: str) -> Iterator[None]:
    """End the process with a sentence that starts with the command's name where something expected goes wrong."""
    try:
        yield
    except KeyboardInterrupt:
        sys.exit("\nInterrupted. Finished units are kept; the same command goes on where it stopped.")
    except torch.OutOfMemoryError:
        sys.exit(
            f"{name}: the GPU ran out of memory, against the estimate above. Finished units are kept; end other programs that "
            "use it, or take a device with more memory, and run the same command again."
        )
    except (AssetError, FloatingPointError, MemoryError, StoreError, ValueError) as error:
        sys.exit(f"{name}: {error}")
    except (OSError, SafetensorError) as error:
        if isinstance(error, FileNotFoundError) and error.errno is None:  # our own sentence, not the system's
            sys.exit(f"{name}: {error}")
        sys.exit(
            f"{name}: a file or folder could not be read or written ({error}). Look whether the disk is full, the folder writable "
            "and a model of yours complete, or choose another folder with --into. Finished units are kept."
        )
