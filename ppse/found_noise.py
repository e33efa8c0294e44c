"""The noise of recordings, known or as EM finds it: drawn once from its posterior, to be heard under other speech (:mod:`ppse.remixing`)."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor

from . import audio, weights
from .enhance import enhance
from .method import Method
from .mixture import Mixture
from .recordings import Recordings
from .workers import Alone, Workers

FOUND = re.compile(r"\.+[0-9a-f]{24}-[0-9a-f]{8}\.wav(\..*)?")
"""Names of files of noise that was found: of which recording, and by what. Hidden, so that they are taken for no recordings."""


def noise_found(
    model: Mixture, recordings: Recordings, work: Path, method: Method, seed: int, report: Callable[[int, int], None] | None = None,
    team: Workers | None = None,
) -> list[Tensor]:
    """Of every recording its noise (N,): where the speech is known what is left, elsewhere a draw from the posterior that EM ends with.

    A draw, as the mean has holes where the speech was. Random from the seed, the same whether interrupted or not, by one worker or several.
    A recording that is known whole takes no EM.

    Args:
        model: with a source named "noise".
        recordings: of the length and level at which their noise is wanted.
        work: folder of what was found, made unless it is there; what lies in it already, of the same model, method and seed, is read.
        method, seed: of :func:`ppse.enhance`.
        report: called with (recordings done, in all), of all workers.
        team: every worker takes its share, on its device, and has all of it in the end.

    Raises:
        AudioError: when nothing can be written there.
    """
    try:
        work.mkdir(exist_ok=True)
    except OSError as error:
        raise audio.AudioError(f"{work}: no folder for the noise of the recordings ({error.strerror}); move away what is there") from error
    team, run = team or Alone(), method.suited(model)
    plain = [{name: value for name, value in vars(part).items() if isinstance(value, int | float) and name[0] != "_"} for part in model.modules()]
    made_by = weights.checksum(model.state_dict().values(), f"{model} {plain} {run.name} {run.all_iterations} {run.average} {run.starts} {seed}")
    rate, total = recordings.stft.sample_rate, len(recordings.waves)
    paths = [work / f".{sha256(wave.numpy().tobytes()).hexdigest()[:24]}-{made_by:08x}.wav" for wave in recordings.waves]
    left = recordings.left
    unknown = [not known.all() for _, known in left]
    for i in range(team.rank, total, team.count):
        if unknown[i] and not _is_whole(paths[i], recordings.waves[i], rate):
            result = enhance(recordings.waves[i], model, method, sample_rate=rate, seed=seed, device=str(team.device), draws=1)
            audio.write(paths[i], result.draws["noise"][0, 0], rate, "FLOAT")
        if report:
            report(min(i + team.count, total), total)
    team.wait()
    return [
        torch.where(known, rest, torch.from_numpy(audio.read_mono(path, rate))) if unsure else rest
        for (rest, known), path, unsure in zip(left, paths, unknown, strict=True)
    ]


def _is_whole(path: Path, wave: Tensor, rate: int) -> bool:
    """Whether the noise of a recording can be read there."""
    try:
        return path.is_file() and len(audio.read_mono(path, rate)) == len(wave)
    except audio.AudioError:
        return False


def forget(work: Path) -> None:
    """Remove what :func:`noise_found` keeps in a folder, and the folder unless something else is in it. What cannot be removed stays."""
    with suppress(OSError):
        found = [path for path in work.iterdir() if FOUND.fullmatch(path.name)]
        for path in found:
            path.unlink()
        if found:
            work.rmdir()
