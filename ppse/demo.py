"""The demonstration: a bundled recording, synthesised speech in synthetic noise, before and after."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from . import audio, metrics
from .enhance import Enhancement, enhance
from .methods import Method
from .mixture import Mixture

NOISY = Path(__file__).parent / "data" / "demo_noisy.flac"
CLEAN = Path(__file__).parent / "data" / "demo_clean.flac"


def run(
    out: Path, recording: Path | None = None, model: Mixture | None = None, method: Method | None = None,
    report: Callable[[float], None] | None = None,
) -> tuple[Enhancement, dict[str, dict[str, float]]]:
    """Enhance a recording; write ``noisy.wav``, ``enhanced.wav``, ``noise.wav`` and ``enhanced.png`` into a folder.

    The waveforms have the sample format of the recording, or floats where they go beyond full scale.

    Args:
        out: the folder.
        recording: another one than the bundled.
        model, method: as for :func:`ppse.enhance`.
        report: called with the fraction done.

    Returns:
        the result; and for the bundled recording its scores before and after, which also go to ``scores.json``.

    Raises:
        AudioError: when the recording cannot be read, or the folder not be written to.
    """
    files = [out / f"{name}.wav" for name in ("noisy", "enhanced", "noise")]
    for file in files:
        audio.check_writable(file)
    subtype = audio.encoding(recording or NOISY, files[0])
    result = enhance(recording or NOISY, model, method, report=report)
    for file, wave in zip(files, (result.noisy, result.estimates["speech"], result.estimates["noise"]), strict=True):
        audio.write(file, wave, result.sample_rate, audio.unclipped(file, wave, subtype))
    result.plot(out / "enhanced.png")
    scores: dict[str, dict[str, float]] = {}
    if recording is None:
        clean, _ = audio.read(CLEAN)
        pairs = {"noisy": result.noisy[0], "enhanced": result.estimates["speech"][0]}
        scores = {name: metrics.score(clean[0], wave) for name, wave in pairs.items()}
        audio.write_text(out / "scores.json", json.dumps(scores, indent=1))
    return result, scores
