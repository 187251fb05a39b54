"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path as FilePath

from neurograph.errors import OptionError
from neurograph.utils.checks import is_path, shown

__all__ = ["check_writable", "write_atomically"]


def check_writable(path: str | os.PathLike[str]) -> FilePath:
    """Check before the work that a file can be written at its end; OptionError if not."""
    if not is_path(path):
        raise OptionError(f"path={shown(path)} is no path of a file")
    path = FilePath(path)
    folder = path.parent
    if path.is_dir():
        raise OptionError(f"{str(path)!r} is a folder: name a file in it")
    if not folder.is_dir():
        raise OptionError(f"there is no folder {str(folder)!r} to write {path.name!r} to: make it")
    if not os.access(folder, os.W_OK):
        raise OptionError(f"the folder {str(folder)!r} is not writable: choose another")
    return path


def write_atomically(path: str | FilePath, content: bytes) -> None:
    """Write a file so that it is there whole or as it was before."""
    path = check_writable(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        # mkstemp makes files private; a result is as readable as any other file.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        FilePath(temporary).unlink(missing_ok=True)
        raise
