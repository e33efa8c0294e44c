"""Weights of pretrained networks: safetensors files that carry their constructor arguments and their model card."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from . import files

FORMAT = "ppse-1"
SHIPPED = Path(__file__).parent / "weights"
M = TypeVar("M", bound=nn.Module)


class WeightsError(ValueError):
    """A weights file is missing, damaged, or of another model; the message says which and what to do."""


def shipped() -> list[str]:
    """Names of the weights that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.safetensors"))


def load(cls: type[M], name: str | os.PathLike[str]) -> M:
    """The frozen model of class ``cls`` in a weights file.

    Args:
        cls: class of the model; its constructor gets the settings in the file.
        name: a shipped name (:func:`shipped`) or the path of a file that :func:`write` made.

    Raises:
        WeightsError: no such file; not a weights file; of another class; tensors missing, spare, of another
            shape, or not finite. Nothing in the file is executed.
    """
    path = _located(name)
    tensors, metadata = read(path)
    found = metadata.get("class")
    if metadata.get("format") != FORMAT or found != cls.__name__:
        raise WeightsError(f"{path}: holds {found or 'no model of this package'}, expected {cls.__name__}; give the weights of that model")
    try:
        model = cls(**json.loads(metadata["settings"]))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise WeightsError(f"{path}: its settings do not build a {cls.__name__} ({error}); the file was altered, get it again") from error
    expected = model.state_dict()
    wrong = sorted(
        key for key in expected.keys() | tensors.keys()
        if key not in expected or key not in tensors or expected[key].shape != tensors[key].shape
    )
    if wrong:
        raise WeightsError(f"{path}: {len(wrong)} tensors are missing, spare or of another shape, the first '{wrong[0]}'; "
                           "the file is damaged, or of another version of this package: get it again, or train anew")
    broken = [key for key, value in tensors.items() if not torch.isfinite(value).all()]
    if broken:
        raise WeightsError(f"{path}: '{broken[0]}' has values that are not finite; the file was altered, get it again")
    model.load_state_dict(tensors)
    return model.eval().requires_grad_(False)


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        WeightsError: when the file is no safetensors file, or is cut short.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118  (no mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path}: not a readable weights file ({error}); it is damaged, cut short, or of another format") from error


def write(model: nn.Module, path: str | os.PathLike[str], card: Mapping[str, Any]) -> None:
    """Write a model with ``settings`` (its constructor arguments) and its card (data, licence, scores), as :func:`write_tensors` does."""
    metadata = {
        "format": FORMAT,
        "class": type(model).__name__,
        "settings": json.dumps(model.settings),
        "card": json.dumps(card, sort_keys=True),
    }
    write_tensors(model.state_dict(), path, metadata)


def write_tensors(tensors: Mapping[str, Tensor], path: str | os.PathLike[str], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file in one move: it is there whole, or not at all.

    Raises:
        WeightsError: when the folder cannot be written to, or the disk is full.
    """
    payload = save({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, dict(metadata))
    try:
        files.atomically(path, lambda file: file.write(payload))
    except OSError as error:
        raise WeightsError(f"{path}: cannot be written ({error.strerror or error}); check the folder, its permissions and the free space") from error


def check_new(path: Path) -> None:
    """Refuse to replace what somebody may have trained for days.

    Raises:
        WeightsError: when the file is there already.
    """
    if path.exists():
        raise WeightsError(f"{path}: is there already; delete it, or choose another name")


def checksum(values: Iterable[Tensor], text: str = "") -> int:
    """Of a text and the values of tensors."""
    found = zlib.crc32(text.encode())
    for value in values:
        found = zlib.crc32(value.cpu().numpy().tobytes(), found)
    return found


def halve(path: str | os.PathLike[str]) -> None:
    """Store the tensors of a weights file in half precision (float16), as the shipped ones are: half the size; models load in float32 as before.

    Raises:
        WeightsError: when the file cannot be read or written, or a value is out of the range of half precision; the file then stays as it is.
    """
    tensors, metadata = read(path)
    halved = {key: value.half() if value.is_floating_point() else value for key, value in tensors.items()}
    large = [key for key, value in halved.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if large:
        raise WeightsError(f"{path}: '{large[0]}' has values beyond 65504, which half precision cannot hold; keep the file as it is")
    write_tensors(halved, path, metadata)


def load_any(classes: Sequence[type[M]], name: str | os.PathLike[str]) -> M:
    """The frozen model in a weights file, of that one of the classes which the file names; as :func:`load`."""
    path, named = _located(name), held(name)
    for cls in classes:
        if cls.__name__ == named:
            return load(cls, path)
    known = ", ".join(cls.__name__ for cls in classes)
    raise WeightsError(f"{path}: holds {named or 'no model of this package'}, expected one of {known}; give the weights of one of these")


def held(name: str | os.PathLike[str]) -> str:
    """Name of the class that a weights file holds; empty where it tells none. Raises WeightsError when it cannot be read."""
    return read(_located(name))[1].get("class", "")


def card(name: str | os.PathLike[str]) -> dict[str, Any]:
    """Model card of a weights file: data, licence, training settings, scores."""
    text = read(_located(name))[1].get("card", "{}")
    try:
        result: dict[str, Any] = json.loads(text)
    except ValueError as error:
        raise WeightsError(f"{name}: its model card is damaged ({error}); make the file anew") from None
    return result


def _located(name: str | os.PathLike[str]) -> Path:
    """The file of a shipped name, or the path itself. Raises WeightsError when it is no file."""
    path = SHIPPED / f"{name}.safetensors" if str(name) in shipped() else Path(name)
    if not path.is_file():
        raise WeightsError(f"no weights '{name}': not a file, and not one of the shipped {shipped()}")
    return path


def annotate(path: str | os.PathLike[str], **entries: Any) -> None:
    """Put entries into the model card of a weights file, in place of those of the same name; nothing else changes.

    ``annotate("prior.safetensors", scores={"si_sdr": 7.1})`` notes what an evaluation found.

    Raises:
        WeightsError: when the file cannot be read or written, or has no card.
    """
    tensors, metadata = read(path)
    if "card" not in metadata:
        raise WeightsError(f"{path}: has no model card; give a file of 'ppse train'")
    write_tensors(tensors, path, metadata | {"card": json.dumps(json.loads(metadata["card"]) | entries, sort_keys=True)})
