"""Torch and safetensors files, read without ever running what they say."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from neurograph.errors import NeurographError

__all__ = ["read_tensors"]


def read_tensors(path: Path, refusal: type[NeurographError], *, kind: str, advice: str) -> Any:
    """Read a file of tensors: ``.safetensors``, or a torch file with ``weights_only=True``.

    Parameters
    ----------
    path : pathlib.Path
    refusal : type of NeurographError
        Raised for a file that is damaged or holds more than tensors.
    kind, advice : str
        What the file should hold, and what to save instead.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise refusal(
            f"'{path}' is refused: it is damaged, or holds Python objects besides {kind}"
            f"{_refused(error)}, which could run any code when read; {advice}"
        ) from error
    except SafetensorError as error:
        raise refusal(f"'{path}' is not a readable safetensors file ({_line(error)})") from error
    except (RuntimeError, EOFError, KeyError, ValueError, AttributeError) as error:
        raise refusal(f"'{path}' is not a readable torch file ({_line(error)})") from error


def _refused(error: BaseException) -> str:
    """Say which object torch refused; nothing where it does not tell."""
    found = re.search(r"GLOBAL ([\w.]+) was not an allowed", str(error))
    return f" ({found[1]})" if found else ""


def _line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
