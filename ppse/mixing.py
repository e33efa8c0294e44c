"""Noisy corpora from clean speech and noise, with a manifest that says what every file is."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
import soundfile

from . import __version__, audio

RATE = 16_000


class Entry(TypedDict):
    """One mixture: files relative to the manifest, length in samples, SNR in dB, and what made it.

    Every entry says what made it, so that a part of a manifest, or several in one, still do.
    Manifests of other toolkits lack some fields and may give the length in seconds.
    """

    utt_name: str
    noisy_wav: str
    clean_wav: str
    noise_wav: str
    length: int
    noise_type: str
    snr: float
    seed: int
    versions: dict[str, str]


def noise_type(path: Path) -> str:
    """Name of a noise: the file name without a trailing number.

    >>> noise_type(Path("cafe-2.ogg")), noise_type(Path("street.wav"))
    ('cafe', 'street')
    """
    return re.sub(r"[-_]?\d+$", "", path.stem.rsplit("_", 1)[-1]) or path.stem


def mix(
    clean: Iterable[str | os.PathLike[str]], noise: Iterable[str | os.PathLike[str]], out: str | os.PathLike[str], snrs: Sequence[float],
    count: int | None = None, seed: int = 0, report: Callable[[int, int], None] | None = None,
    left_out: Callable[[str], None] | None = None,
) -> Path:
    """Write ``noisy/``, ``clean/``, ``noise/`` (32-bit float wav, 16 kHz, noisy = clean + noise) and ``manifest.json``.

    Utterances come in random order without repetition until all are used. SNRs take turns, and so do the noise files (in
    random order), shifted against each other so that all pairs come up: the counts of SNRs and of noise files differ by one
    at most. The SNR is that of the powers over the whole utterance. A noise starts at a random place and is
    repeated when it is too short.

    Args:
        clean, noise: files, folders or patterns.
        count: number of mixtures; as many as utterances unless given.
        seed: same seed and files, same corpus.
        report: called with (mixtures done, mixtures in all).
        left_out: called with the reason for every mixture that is left out, as one of its files cannot be used; without it, the first
            such file is an error.

    Returns:
        the path of the manifest.

    Raises:
        AudioError: when there is no audio, the corpus cannot be written, or the folder has another; when a file cannot be read, is silent or
            not finite (it is named), and nothing takes it as left out, or no mixture is left.
        ValueError: no SNR, one that is not finite, or a count below one.
    """
    if not snrs or not all(math.isfinite(snr) for snr in snrs):
        raise ValueError(f"SNRs {list(snrs)}: expected at least one finite number of dB")
    if count is not None and count < 1:
        raise ValueError(f"count is {count}: expected at least one mixture")
    rng, root = np.random.default_rng(seed), Path(out)
    speech_files, noise_files = audio.find(clean), audio.find(noise)
    total = len(speech_files) if count is None else count
    order = np.concatenate([rng.permutation(len(speech_files)) for _ in range(-(-total // len(speech_files)))])[:total]
    noise_order = rng.permutation(len(noise_files))
    period = math.lcm(len(snrs), len(noise_files))  # after which the same pairs would come again
    planned = [
        (speech_files[choice], noise_files[noise_order[(i + i // period) % len(noise_files)]], float(snrs[i % len(snrs)]))
        for i, choice in enumerate(order)
    ]
    names = [f"{i:04d}_{s.stem}_{noise_type(n)}_{snr:+g}dB" for i, (s, n, snr) in enumerate(planned)]
    path = root / "manifest.json"
    if path.exists() and not read_manifest(path).keys() <= set(names):
        raise audio.AudioError(f"{path}: is that of another corpus, which would be lost; choose another folder, or delete it")
    versions = {"ppse": __version__, "numpy": np.__version__, "soundfile": soundfile.__version__}
    manifest: dict[str, Entry] = {}
    for i, (name, (speech_file, noise_file, snr)) in enumerate(zip(names, planned, strict=True)):
        try:
            s, n = _pair(speech_file, noise_file, snr, rng)
        except audio.AudioError as error:
            if left_out is None or (i + 1 == total and not manifest):
                raise
            left_out(str(error))
        else:
            for kind, wave in (("noisy", s + n), ("clean", s), ("noise", n)):
                audio.write(root / kind / f"{name}.wav", wave, RATE, subtype="FLOAT")
            manifest[name] = Entry(
                utt_name=name, noisy_wav=f"noisy/{name}.wav", clean_wav=f"clean/{name}.wav", noise_wav=f"noise/{name}.wav",
                length=int(s.size), noise_type=noise_type(noise_file), snr=snr, seed=seed, versions=versions,
            )
        if report:
            report(i + 1, total)
    audio.write_text(path, json.dumps(manifest, indent=1))
    return path


def _pair(speech_file: Path, noise_file: Path, snr: float, rng: np.random.Generator) -> tuple[audio.Wave, audio.Wave]:
    """Speech (N,), and the noise (N,) to add to it, from a random place in its file."""
    s, n = _read(speech_file), _read(noise_file)
    start = int(rng.integers(max(1, n.size - s.size + 1)))
    n = np.resize(n[start:], s.size)
    if not s.any() or not n.any():
        raise audio.AudioError(f"{speech_file if not s.any() else noise_file}: is silent where it is needed; no SNR can be set")
    return s, n * np.float32(np.sqrt(np.square(s, dtype=np.float64).mean() / np.square(n, dtype=np.float64).mean() * 10 ** (-snr / 10)))


def _read(path: Path) -> audio.Wave:
    """A file that can be mixed, (N,)."""
    wave = audio.read_mono(path, RATE)
    audio.check(wave[None], str(path))
    return wave


def read_manifest(
    path: str | os.PathLike[str], *, noisy_root: str | os.PathLike[str] | None = None, clean_root: str | os.PathLike[str] | None = None
) -> dict[str, Entry]:
    """A manifest with its files as full paths.

    Args:
        path: the JSON file.
        noisy_root: what the template ``{noisy_root}`` of other toolkits stands for; the folder of the manifest unless given.
        clean_root: the same for ``{clean_root}``.

    Raises:
        AudioError: when the file is missing, no JSON, or without entries, or one lacks a field.
    """
    path = Path(path)
    roots = {"{noisy_root}": noisy_root, "{clean_root}": clean_root}
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
        result: dict[str, Entry] = {}
        for name, entry in entries.items():
            for key in ("noisy_wav", "clean_wav", *({"noise_wav"} & entry.keys())):
                root, _, rest = entry[key].rpartition("}/")
                entry[key] = str(Path(roots.get(root + "}") or path.parent) / rest)
            result[name] = entry
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise audio.AudioError(f"{path}: no readable manifest ({type(error).__name__}: {error}); expected the JSON that 'ppse mix' writes") from error
    if not result:
        raise audio.AudioError(f"{path}: no entries in it; expected the JSON that 'ppse mix' writes")
    return result
