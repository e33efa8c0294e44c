"""Published checkpoints: networks of the published layout, written out from the formulas here, give what the imported priors give."""

from __future__ import annotations

import configparser
import json
import os
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyro.poutine as poutine
import pytest
import soundfile
import torch
from torch import Tensor

from ppse import cli, weights
from ppse.import_dvae import GAIN, import_dvae
from ppse.mixture import Mixture
from ppse.models import NMFNoise
from ppse.models.encoders import RecurrentEncoder
from ppse.stft import POWER_FLOOR
from ppse.weights import WeightsError

Weights = dict[str, Tensor]
Settings = dict[str, str]

STFT_SECTION = {"wlen_sec": "64e-3", "hop_percent": "0.25", "fs": "16000", "zp_percent": "0", "trim": "True"}
PUBLISHED_RVAE = {
    "name": "RVAE", "x_dim": "513", "z_dim": "16", "activation": "tanh", "dense_x_gx": "", "dim_RNN_g_x": "128", "num_RNN_g_x": "1",
    "bidir_g_x": "True", "dense_z_gz": "", "dim_RNN_g_z": "128", "num_RNN_g_z": "1", "dense_g_z": "", "dense_z_h": "", "dim_RNN_h": "128",
    "num_RNN_h": "1", "bidir_h": "True", "dense_h_x": "", "dropout_p": "0", "tag": "RVAE-NonCausal",
}
RVAE = PUBLISHED_RVAE | {"x_dim": "9", "z_dim": "3", "dim_RNN_g_x": "5", "dim_RNN_g_z": "4", "dim_RNN_h": "6"}
DENSE = {"dense_x_gx": "8", "dense_z_gz": "4,7", "dense_g_z": "7,6", "dense_z_h": "4, 5", "dense_h_x": "8", "dropout_p": "0.2"}
CAUSAL = {"bidir_g_x": "False", "bidir_h": "False"}
DEEP = {"num_RNN_g_x": "3", "num_RNN_g_z": "2", "num_RNN_h": "2"}
VAE = {"name": "VAE", "x_dim": "9", "z_dim": "3", "activation": "tanh", "dense_x_z": "7,5", "dropout_p": "0"}
ALL = {
    "vae": VAE, "vae relu": VAE | {"activation": "relu", "dense_x_z": "6"}, "vae linear": VAE | {"dense_x_z": ""},
    "rvae": RVAE, "rvae dense": RVAE | DENSE, "rvae causal": RVAE | CAUSAL, "rvae causal dense": RVAE | CAUSAL | DENSE | {"activation": "relu"},
    "rvae deep": RVAE | DEEP, "rvae deep dense causal": RVAE | DEEP | DENSE | CAUSAL,
    "rvae reads both ways": RVAE | {"bidir_h": "False"}, "rvae writes both ways": RVAE | DEEP | {"bidir_g_x": "False"},
}


# ---- networks of the published layout, with random weights ----


def linear(name: str, n_in: int, n_out: int) -> Weights:
    return {f"{name}.weight": torch.randn(n_out, n_in) / n_in**0.5, f"{name}.bias": 0.3 * torch.randn(n_out)}


def dense(name: str, n_in: int, listed: str) -> tuple[Weights, int]:
    found: Weights = {}
    for i, size in enumerate(int(item) for item in listed.split(",") if item):
        found |= linear(f"{name}.linear{i}", n_in, size)
        n_in = size
    return found, n_in


def recurrent(name: str, n_in: int, size: int, depth: int, both_ways: bool) -> Weights:
    lstm = torch.nn.LSTM(n_in, size, depth, bidirectional=both_ways)
    return {f"{name}.{key}": torch.randn_like(value) / value.shape[-1] ** 0.5 for key, value in lstm.state_dict().items()}


def vae_weights(s: Settings) -> Weights:
    n_freqs, n_latent = int(s["x_dim"]), int(s["z_dim"])
    encoder, n_encoded = dense("mlp_x_z", n_freqs, s["dense_x_z"])
    decoder, n_decoded = dense("mlp_z_x", n_latent, ",".join(reversed(s["dense_x_z"].split(","))))
    heads = linear("inf_mean", n_encoded, n_latent) | linear("inf_logvar", n_encoded, n_latent)
    return encoder | heads | decoder | linear("gen_logvar", n_decoded, n_freqs)


def rvae_weights(s: Settings) -> Weights:
    n_freqs, n_latent = int(s["x_dim"]), int(s["z_dim"])
    found: Weights = {}
    ends = {}
    for rnn, mlp, n_in, both_ways in (
        ("g_x", "x_gx", n_freqs, s["bidir_g_x"] == "True"), ("g_z", "z_gz", n_latent, False), ("h", "z_h", n_latent, s["bidir_h"] == "True"),
    ):
        before, n_dense = dense(f"mlp_{mlp}", n_in, s[f"dense_{mlp}"])
        size = int(s[f"dim_RNN_{rnn}"])
        found |= before | recurrent(f"rnn_{rnn}", n_dense, size, int(s[f"num_RNN_{rnn}"]), both_ways)
        ends[rnn] = size * (1 + both_ways)
    after, n_inferred = dense("mlp_g_z", ends["g_x"] + ends["g_z"], s["dense_g_z"])
    last, n_generated = dense("mlp_h_x", ends["h"], s["dense_h_x"])
    found |= after | linear("inf_mean", n_inferred, n_latent) | linear("inf_logvar", n_inferred, n_latent)
    return found | last | linear("gen_logvar", n_generated, n_freqs)


MAKERS: dict[str, Callable[[Settings], Weights]] = {"VAE": vae_weights, "RVAE": rvae_weights}


# ---- what they compute, from the formulas; powers (T, F) and latents (T, L) in float64 ----


class Published:
    """A published network: encoder and decoder of one recording, frame by frame."""

    def __init__(self, settings: Settings, w: Weights) -> None:
        self.w = {key: value.double() for key, value in w.items()}
        self.activation = torch.relu if settings["activation"] == "relu" else torch.tanh
        self.recurrent = settings["name"] == "RVAE"

    def linear(self, name: str, value: Tensor) -> Tensor:
        return value @ self.w[f"{name}.weight"].mT + self.w[f"{name}.bias"]

    def mlp(self, name: str, value: Tensor) -> Tensor:
        for i in range(sum(key.startswith(f"{name}.") for key in self.w) // 2):
            value = self.activation(self.linear(f"{name}.linear{i}", value))
        return value

    def lstm(self, name: str, value: Tensor) -> Tensor:
        """All layers; the second direction goes through the frames from the end."""
        for layer in range(sum(key.startswith(f"{name}.weight_hh") and not key.endswith("reverse") for key in self.w)):
            ways = [self.one_way(name, f"l{layer}", value)]
            if f"{name}.weight_hh_l{layer}_reverse" in self.w:
                ways.append(self.one_way(name, f"l{layer}_reverse", value.flip(0)).flip(0))
            value = torch.cat(ways, -1)
        return value

    def one_way(self, name: str, layer: str, frames: Tensor) -> Tensor:
        w_in, w_past, b_in, b_past = (self.w[f"{name}.{kind}_{layer}"] for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        hidden = cell = frames.new_zeros(w_past.shape[1])
        out = []
        for frame in frames:
            enter, forget, content, leave = (w_in @ frame + b_in + w_past @ hidden + b_past).chunk(4)
            cell = forget.sigmoid() * cell + enter.sigmoid() * content.tanh()
            hidden = leave.sigmoid() * cell.tanh()
            out.append(hidden)
        return torch.stack(out)

    def encode(self, power: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of every z_t given the frames, and the z before it."""
        if not self.recurrent:
            read = self.mlp("mlp_x_z", power)
        else:
            heard = self.lstm("rnn_g_x", self.mlp("mlp_x_gx", power).flip(0)).flip(0)
            before = torch.cat([torch.zeros_like(z[:1]), z[:-1]])
            read = self.mlp("mlp_g_z", torch.cat([heard, self.lstm("rnn_g_z", self.mlp("mlp_z_gz", before))], -1))
        return self.linear("inf_mean", read), (0.5 * self.linear("inf_logvar", read)).exp()

    def decode(self, z: Tensor) -> Tensor:
        """Powers."""
        hidden = self.mlp("mlp_h_x", self.lstm("rnn_h", self.mlp("mlp_z_h", z))) if self.recurrent else self.mlp("mlp_z_x", z)
        return self.linear("gen_logvar", hidden).exp()


# ---- files ----


class Files:
    """A checkpoint and its config in a folder; keyword arguments change them."""

    def __init__(self, folder: Path) -> None:
        self.checkpoint, self.config, self.out = folder / "model.pt", folder / "config.ini", folder / "prior.safetensors"

    def write(self, settings: Settings, sections: tuple[str, ...] = ("User", "STFT", "Network", "Training")) -> Weights:
        parser = configparser.ConfigParser()
        parser.optionxform = str  # type: ignore[assignment,method-assign]  # as the published files have it: names keep their capitals
        content = {"STFT": STFT_SECTION, "Network": settings, "Training": {"beta": "1e-2"}, "User": {"saved_root": "/x/%d"}}
        for section in sections:
            parser[section] = {key: value.replace("%", "%%") for key, value in content[section].items()}
        with open(self.config, "w") as file:
            file.write("# dense_*** can be empty\n\n")
            parser.write(file)
        self.config.write_text(self.config.read_text().replace("%%", "%"))
        found = MAKERS[settings["name"]](settings)
        torch.save(OrderedDict(found), self.checkpoint)
        return found


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@pytest.mark.parametrize("settings", ALL.values(), ids=ALL.keys())
def test_encoder_and_decoder_are_those_of_the_published_network(files: Files, settings: Settings) -> None:
    published = Published(settings, files.write(settings))
    model = import_dvae(files.checkpoint, files.config)[0].double()
    x = torch.randn(7, 9, dtype=torch.complex128)
    z = torch.randn(7, 3, dtype=torch.float64)
    law = model.encoder(x)
    law = law.given(z) if isinstance(model.encoder, RecurrentEncoder) else law
    mean, stddev = published.encode(GAIN * x.abs().square(), z)
    torch.testing.assert_close(law.mean, mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(law.stddev, stddev, rtol=1e-5, atol=1e-5)
    with torch.no_grad(), poutine.condition(data={"speech.z": z}):
        heard = Mixture(speech=model)(torch.ones_like(x))["speech"]
    torch.testing.assert_close(heard.var, published.decode(z) / GAIN + POWER_FLOOR, rtol=1e-5, atol=0.0)


def test_the_published_sizes_give_the_published_number_of_weights(files: Files) -> None:
    files.write(PUBLISHED_RVAE)
    model, card = import_dvae(files.checkpoint, files.config)
    assert sum(p.numel() for p in model.parameters()) == 1_026_849
    assert card["notes"] == [] and card["published"]["tag"] == "RVAE-NonCausal"
