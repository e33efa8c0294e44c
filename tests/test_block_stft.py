"""An STFT piece by piece is the STFT."""

from __future__ import annotations

import pytest
import torch

from ppse import STFT
from ppse.block_stft import Analyser, Synthesiser

CUTS = [[7], [16, 1, 200, 3, 55], [300], [64] * 5]


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("stft", [STFT(64, 16), STFT(64, 32), STFT(60, 10)])
def test_frames_and_samples_are_those_of_the_whole(stft: STFT, cuts: list[int]) -> None:
    wave = torch.randn(sum(cuts))
    missing = stft.n_frames(len(wave)) * stft.hop - len(wave)
    analyse, synthesise = Analyser(stft), Synthesiser(stft)
    frames = [analyse(piece) for piece in torch.split(wave, cuts)]
    assert [len(f) for f in frames] == [(sum(cuts[: i + 1]) // stft.hop) - (sum(cuts[:i]) // stft.hop) for i in range(len(cuts))]
    frames.append(analyse(torch.zeros(missing)))
    torch.testing.assert_close(torch.cat(frames), stft.analysis(wave))
    samples = torch.cat([synthesise(f) for f in frames])
    torch.testing.assert_close(samples[: len(wave)], wave, atol=1e-5, rtol=0)


def test_samples_come_out_as_soon_as_no_frame_touches_them() -> None:
    stft = STFT(64, 16)
    synthesise = Synthesiser(stft)
    assert [len(synthesise(torch.ones(1, 33, dtype=torch.complex64))) for _ in range(5)] == [0, 0, 0, 16, 16]
    assert len(synthesise(torch.zeros(0, 33, dtype=torch.complex64))) == 0
