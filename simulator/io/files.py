"""Writing a file whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from simulator.errors import InputError, Problem


@contextlib.contextmanager
def replaced(path: Path, *, force: bool = False) -> Iterator[BinaryIO]:
    """A binary file that becomes `path` when the block ends without an error: written beside it, flushed, renamed.

    Raises InputError where the folder is missing or cannot be written, or where `path` exists and `force` is false.
    """
    if not force and (path.exists() or path.is_symlink()):
        raise InputError([Problem("exists already.", str(path), "--force replaces it.")])
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.")
    except OSError as error:
        raise InputError([Problem(f"cannot be written: {error.strerror}.", str(path))]) from None
    draft = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes private files; the answer gets the permissions that any new file of this user gets.
        draft.chmod(0o666 & ~_umask())
        if path.is_dir():
            raise InputError([Problem("is a folder.", str(path))])
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_bytes(path: Path, content: bytes, *, force: bool = False) -> None:
    """Write `content` to `path`, whole or not at all. Raises InputError as `replaced` does."""
    with replaced(path, force=force) as file:
        file.write(content)
