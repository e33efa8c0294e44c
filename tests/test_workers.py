"""Several processes that train one model: they agree, and one writes."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ppse import audio
from ppse.models import RVAESpeech
from ppse.workers import Alone, average_gradients, workers

SCRIPT = """
import sys, torch
from pathlib import Path
from ppse import STFT
from ppse.corpus import Speech
from ppse.models import RVAESpeech
from ppse.optimisation import Schedule
from ppse.training import train_sequences
from ppse.workers import workers

folder = Path(sys.argv[1])
team = workers(2, "cpu")
assert team.average(torch.tensor(float(team.rank))) == 0.5
speech = Speech(sorted(folder.glob("*.wav")), STFT(64, 16))
torch.manual_seed(0)
prior = RVAESpeech(33, 2, 4)
log = train_sequences(prior, speech, speech, folder / "out.safetensors", Schedule(2), batch=4, frames=8, team=team)
weight = sum(p.sum().item() for p in prior.parameters())
(folder / f"{team.rank}.txt").write_text(repr((weight, [entry[:3] for entry in log])))
"""


@pytest.mark.slow
def test_two_processes_train_one_model(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(2):
        audio.write(tmp_path / f"{i}.wav", 0.1 * rng.standard_normal(4000), 16_000)
    (tmp_path / "run.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, str(tmp_path / "run.py"), str(tmp_path)], check=True, timeout=300, env=environment, capture_output=True)
    first, second = ((tmp_path / f"{rank}.txt").read_text() for rank in (0, 1))
    assert first == second  # same weights, same log
    assert RVAESpeech.pretrained(str(tmp_path / "out.safetensors")).n_freqs == 33 and not (tmp_path / "out.resume").exists()


def test_one_process_needs_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)  # as if it were not installed
    team, layer = workers(1, "cpu"), nn.Linear(2, 1)
    assert isinstance(team, Alone) and team.device.type == "cpu" and team.average(torch.tensor(3.0)) == 3
    layer(torch.ones(2)).sum().backward()
    average_gradients(layer.parameters(), team)
    assert layer.weight.grad is not None and layer.weight.grad.eq(1).all()
    with pytest.raises(ValueError, match="install ppse\\[train\\]"):
        workers(2, "cpu")


def test_gpus_that_are_not_there_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="2 GPUs: there are 1"):
        workers(2, "cuda")


class Pair:
    """A team of two, whose other member has gradients of twice the size."""

    count, rank, device = 2, 0, torch.device("cpu")

    def average(self, value: torch.Tensor) -> torch.Tensor:
        return 1.5 * value

    def wait(self) -> None:
        pass


def test_gradients_become_their_mean() -> None:
    layer = nn.Linear(2, 3)
    idle = nn.Parameter(torch.ones(1))  # has no gradient, and is left alone
    layer(torch.tensor([1.0, 2.0])).sum().backward()
    average_gradients([*layer.parameters(), idle], Pair())
    assert layer.weight.grad is not None and layer.bias.grad is not None and idle.grad is None
    torch.testing.assert_close(layer.weight.grad, torch.tensor([[1.5, 3.0]] * 3))
    torch.testing.assert_close(layer.bias.grad, torch.full((3,), 1.5))
