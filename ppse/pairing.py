"""Which enhanced file belongs to which reference: by place and name, never by guess."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

from . import audio
from .mixing import read_manifest


class Item(NamedTuple):
    """One file to judge: waveform files of the reference, the noisy input and the estimate; what is known of the noise."""

    name: str
    clean: Path
    noisy: Path
    enhanced: Path
    snr: float | None = None
    noise_type: str | None = None


Pairs = tuple[list[Item], list[str]]
"""Items, and for every file that has no partner or several, the reason."""


def items_from_manifest(manifest: str | os.PathLike[str], enhanced: str | os.PathLike[str]) -> Pairs:
    """Pair the entries of a manifest with the files in a folder of enhanced files.

    An enhanced file has the place in its folder that the noisy one has in its own (or in that of the manifest), whatever their
    types; else its name without suffix, if that is unique.

    Raises:
        AudioError: when the manifest cannot be read, or the folder has no audio.
    """
    entries, found = read_manifest(manifest), _Files(enhanced)
    noisy = {name: Path(entry["noisy_wav"]).absolute() for name, entry in entries.items()}
    stems = Counter(path.stem for path in noisy.values())
    roots = [Path(os.path.commonpath([path.parent for path in noisy.values()])) if noisy else Path(), Path(manifest).absolute().parent]
    items, problems = [], []
    for name, entry in entries.items():
        path = noisy[name]
        places = [path.relative_to(root).with_suffix("") for root in roots if path.is_relative_to(root)]
        try:
            file = found.pick(places, path.stem if stems[path.stem] == 1 else None)
        except audio.AudioError as error:
            problems.append(str(error))
            continue
        items.append(Item(name, Path(entry["clean_wav"]), Path(entry["noisy_wav"]), file, entry.get("snr"), entry.get("noise_type")))
    return items, problems


def items_from_folders(clean: str | os.PathLike[str], noisy: str | os.PathLike[str], enhanced: str | os.PathLike[str]) -> Pairs:
    """Pair the files of three folders, by place or by unique name as :func:`items_from_manifest` does.

    ``NAME.noise.*`` beside ``NAME.*`` is the noise estimate of 'ppse enhance --keep-noise', no estimate of speech; it is left alone.

    Raises:
        AudioError: when a folder has no audio.
    """
    references, inputs, found = _Files(clean), _Files(noisy), _Files(enhanced)
    items, problems = [], []
    for place in found.places:
        by_product = place.suffix == ".noise" and place.with_suffix("") in found.places and place not in references.places
        if by_product:
            continue
        stem = place.name if len(found.stems[place.name]) == 1 else None
        try:
            items.append(Item(str(place), references.pick([place], stem), inputs.pick([place], stem), found.pick([place], None)))
        except audio.AudioError as error:
            problems.append(str(error))
    return items, problems


class _Files:
    """The audio files of a folder by place (their path in it without suffix), and by name."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.places: dict[Path, list[Path]] = defaultdict(list)
        self.stems: dict[str, list[Path]] = defaultdict(list)
        for file in audio.find([folder]):
            self.places[file.relative_to(self.folder).with_suffix("") if self.folder.is_dir() else Path(file.stem)].append(file)
            self.stems[file.stem].append(file)

    def pick(self, places: list[Path], stem: str | None) -> Path:
        """The one file at the first of the places that has any, else the one of this name.

        Raises:
            AudioError: when there is none, or several could be meant.
        """
        candidates = [self.places[place] for place in places if place in self.places] + [self.stems.get(stem, []) if stem else []]
        found = next((files for files in candidates if files), [])
        wanted = str(places[0]) if places else stem
        if len(found) > 1:
            raise audio.AudioError(f"{self.folder}: '{wanted}' may be {' or '.join(map(str, found))}; keep one of them, or the folders of the input")
        if not found:
            raise audio.AudioError(f"{self.folder}: no file for '{wanted}'; enhance all of the corpus into one folder, which keeps its places")
        return found[0]
