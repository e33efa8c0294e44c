"""Every test starts from the same seed and empty parameter store, and leaves the global settings as it found them."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch

import ppse  # noqa: F401  (changes a setting of Pyro once, on import)

with warnings.catch_warnings():  # once a day, importing it announces its next major version; tests turn warnings into errors
    warnings.simplefilter("ignore", FutureWarning)
    import arviz  # noqa: F401  (for the warning alone)


def _settings() -> dict[str, object]:
    return {
        "torch default dtype": torch.get_default_dtype(),
        "torch default device": torch.get_default_device(),
        "torch gradients enabled": torch.is_grad_enabled(),
        "torch distribution validation": torch.distributions.Distribution._validate_args,
        "torch threads": torch.get_num_threads(),
        "pyro validation": pyro.infer.util.is_validation_enabled(),
        "pyro handlers": len(pyro.poutine.runtime._PYRO_STACK),
    } | {f"pyro.settings {name}": value for name, value in pyro.settings.get().items()}


@pytest.fixture(autouse=True)
def clean_slate() -> Iterator[None]:
    """Fixed seed, no parameters, and a failure when the test changed a global setting."""
    pyro.set_rng_seed(20_240_501)
    pyro.clear_param_store()
    before = _settings()
    yield
    after = _settings()
    changed = {name: (before[name], after[name]) for name in before if before[name] != after[name]}
    assert not changed, f"the test changed global settings (before, after): {changed}"


@pytest.fixture
def make_clip(tmp_path: Path) -> Callable[..., Path]:
    """Writes a video: frames (V, height, width) of grey bytes, or with 3 or 4 channels, each at its time; sound (channels, N), or none."""
    import av

    def make(
        frames: np.ndarray, times: Sequence[float], sound: np.ndarray | None = None, rate: int = 16_000, name: str = "clip.mp4",
        codec: str = "libx264", delay: float = 0.0,
    ) -> Path:
        path = tmp_path / name
        form = {3: "rgb24", 4: "rgba"}[frames.shape[-1]] if frames.ndim == 4 else "gray"
        with av.open(str(path), "w") as output:
            seen = output.add_stream(codec, 30)
            seen.width, seen.height, seen.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
            if codec == "libx264":
                seen.codec_context.time_base, seen.options = Fraction(1, 90_000), {"crf": "12"}
            if sound is not None:
                heard = output.add_stream(output.default_audio_codec, rate, layout={1: "mono", 2: "stereo"}[len(sound)])
                heard.bit_rate = 128_000
                frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound, np.float32), format="fltp", layout=heard.layout.name)
                frame.sample_rate, frame.pts, frame.time_base = rate, round(delay * rate), Fraction(1, rate)
                output.mux([*heard.encode(frame), *heard.encode(None)])
            for pixels, time in zip(frames, times, strict=True):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format=form)
                frame.time_base = seen.codec_context.time_base
                frame.pts = round(time / frame.time_base)
                output.mux(seen.encode(frame))
            output.mux(seen.encode(None))
        return path

    return make


@pytest.fixture
def terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    """A command as a user types it, without 'ppse' → its exit code, and all that it said."""
    from ppse import cli

    def run(*args: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["ppse", *map(str, args)])
        try:
            cli.main()
            code: object = 0
        except SystemExit as stop:
            code = stop.code
        out = capsys.readouterr()
        return int(code or 0), " ".join((out.out + out.err).split())  # type: ignore[call-overload]  # argparse-like codes are int or None

    return run


@pytest.fixture(name="ppse")
def quick_terminal(terminal: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    """The same with two iterations, whatever the method."""
    from ppse import choices, methods

    quick = methods.mala_em(iterations=2, draws=1, burn_in=0)
    monkeypatch.setattr(choices, "method", lambda *_: quick)
    return terminal


@pytest.fixture
def prior(tmp_path: Path) -> Path:
    """The weights file of a tiny VAE that was never trained."""
    from ppse import weights
    from ppse.models import VAESpeech

    torch.manual_seed(0)
    path = tmp_path / "tiny.safetensors"
    weights.write(VAESpeech(513, 4, (16,), 8), path, {})
    return path
