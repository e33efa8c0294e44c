"""Files of published speech models: a checkpoint of tensors and the config.ini beside it, read without running anything in them."""

from __future__ import annotations

import configparser
import os
import pickle
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .weights import WeightsError


class Network:
    """The description of a network in a config.ini: sections Network and STFT.

    Args:
        path: the file.

    Raises:
        WeightsError: when it cannot be read, or a section is missing; likewise when a setting that is asked for is missing or no number.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = path
        self._parser = configparser.ConfigParser(interpolation=None)
        try:
            with open(path, encoding="utf-8-sig") as file:
                self._parser.read_file(file)
        except (OSError, UnicodeDecodeError, configparser.Error) as error:
            raise WeightsError(f"{path}: not a readable config ({error}); give the config.ini that was published beside the checkpoint") from error
        for section in ("Network", "STFT"):
            if section not in self._parser:
                raise WeightsError(f"{path}: has no section [{section}], only {self._parser.sections()}; give the whole config.ini")

    def text(self, key: str, default: str | None = None, section: str = "Network") -> str:
        """A setting as it is written."""
        found = self._parser.get(section, key, fallback=default)
        if found is None:
            raise WeightsError(f"{self.path}: '{key}' is missing in section [{section}]; give the whole config.ini of this architecture")
        return found

    def number(self, key: str, section: str) -> float:
        """A number, 0 or more."""
        found = self.text(key, section=section)
        try:
            value = float(found)
        except ValueError:
            value = float("nan")
        if not 0 <= value < 1e9:
            raise WeightsError(f"{self.path}: {key} = '{found}' in section [{section}]; expected a number from 0 to 1e9")
        return value

    def size(self, key: str) -> int:
        """A size of a layer, 1 or more."""
        return self._size(key, self.text(key))

    def sizes(self, key: str) -> tuple[int, ...]:
        """Sizes of dense layers, such as ``64,32``. Nothing, or 0, is none."""
        found = self.text(key).strip()
        return () if found in ("", "0") else tuple(self._size(key, item) for item in found.split(","))

    def flag(self, key: str) -> bool:
        """True or False."""
        found = self.text(key)
        if found.lower() not in self._parser.BOOLEAN_STATES:
            raise WeightsError(f"{self.path}: {key} = '{found}'; expected True or False")
        return self._parser.BOOLEAN_STATES[found.lower()]

    def _size(self, key: str, found: str) -> int:
        if not found.strip().isdecimal() or len(found.strip()) > 9 or not 0 < int(found) <= LARGEST:
            expected = f"sizes of layers, whole numbers from 1 to {LARGEST}, with commas between"
            raise WeightsError(f"{self.path}: {key} = '{found[:40]}'; expected {expected}")
        return int(found)


LARGEST = 65_536
"""No layer of a published network is larger; what is asks for memory that is not there."""


def read_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a checkpoint that ``torch.save`` wrote: a state dict, or a dict with one under ``model_state_dict`` or ``state_dict``.

    Raises:
        WeightsError: no such file; damaged; or it holds other things than tensors, which could run code when they are read.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error}); give a checkpoint, a .pt file") from error
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path}: holds other things than tensors, which could run any code when they are read, so it was not read; "
            "let who made it save model.state_dict() alone"
        ) from error
    except Exception as error:  # what a damaged file leads to inside of torch is not documented
        raise WeightsError(f"{path}: not a readable checkpoint ({type(error).__name__}); it is damaged, cut short, or of another format") from error
    found = _state_dict(found)
    if not isinstance(found, Mapping) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise WeightsError(f"{path}: expected a state dict, tensors by name, found {_kind(found)}; let who made it save model.state_dict()")
    return {str(key).removeprefix("module."): value for key, value in found.items()}  # which training on several GPUs puts before


def _state_dict(found: Any) -> Any:
    """What the training loop put beside other things, or all of it."""
    for key in ("model_state_dict", "state_dict"):
        if isinstance(found, Mapping) and key in found:
            return found[key]
    return found


def _kind(found: object) -> str:
    """What it is, in a few words."""
    if not isinstance(found, Mapping):
        return f"a {type(found).__name__}"
    return "nothing" if not found else f"a dict with {', '.join(sorted({type(value).__name__ for value in found.values()}))}"
