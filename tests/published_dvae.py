"""Networks of the published layout with random weights: checkpoints with their configs, and what the networks compute, from the formulas."""

from __future__ import annotations

import configparser
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ppse.import_dvae import GAIN
from ppse.stft import POWER_FLOOR

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
DKF = {
    "name": "DKF", "x_dim": "9", "z_dim": "3", "activation": "tanh", "dense_x_gx": "8", "dim_RNN_gx": "5", "num_RNN_gx": "1", "bidir_gx": "False",
    "dense_ztm1_g": "4", "dense_g_z": "4", "dense_z_x": "4,6,8", "dropout_p": "0",
}
SRNN = {
    "name": "SRNN", "x_dim": "9", "z_dim": "3", "activation": "tanh", "dense_x_h": "8", "dim_RNN_h": "5", "num_RNN_h": "1", "dense_hx_g": "8",
    "dim_RNN_g": "6", "num_RNN_g": "1", "dense_gz_z": "6,4", "dense_hz_x": "8", "dense_hz_z": "6,4", "dropout_p": "0",
}
ALL = {
    "vae": VAE, "vae relu": VAE | {"activation": "relu", "dense_x_z": "6"}, "vae linear": VAE | {"dense_x_z": ""},
    "rvae": RVAE, "rvae dense": RVAE | DENSE, "rvae causal": RVAE | CAUSAL, "rvae causal dense": RVAE | CAUSAL | DENSE | {"activation": "relu"},
    "rvae deep": RVAE | DEEP, "rvae deep dense causal": RVAE | DEEP | DENSE | CAUSAL,
    "rvae reads both ways": RVAE | {"bidir_h": "False"}, "rvae writes both ways": RVAE | DEEP | {"bidir_g_x": "False"},
    "dkf": DKF, "dkf both ways": DKF | {"bidir_gx": "True", "num_RNN_gx": "2", "dense_ztm1_g": "4,7", "activation": "relu"},
    "dkf of av-dkf": DKF | {"vae_mode": "A-DKF", "rnn": "LSTM", "inference": "gated"},
    "dkf without dense": DKF | {key: "" for key in DKF if key.startswith("dense")},
    "srnn": SRNN, "srnn deep": SRNN | {"num_RNN_h": "2", "num_RNN_g": "2", "activation": "relu"},
    "srnn without dense": SRNN | {key: "" for key in SRNN if key.startswith("dense")},
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


def dkf_weights(s: Settings) -> Weights:
    n_freqs, n_latent, size, both_ways = int(s["x_dim"]), int(s["z_dim"]), int(s["dim_RNN_gx"]), s["bidir_gx"] == "True"
    before, n_read = dense("mlp_x_gx", n_freqs, s["dense_x_gx"])
    past, n_past = dense("mlp_ztm1_g", n_latent, s["dense_ztm1_g"])
    after, n_inferred = dense("mlp_g_z", size, s["dense_g_z"])
    decoder, n_decoded = dense("mlp_z_x", n_latent, s["dense_z_x"])
    found = before | past | after | decoder | recurrent("rnn_gx", n_read, size, int(s["num_RNN_gx"]), both_ways)
    for name in ("mlp_gate.linear1", "mlp_gate.linear2", "mlp_z_prop.linear1", "mlp_z_prop.linear2", "prior_mean", "prior_logvar.1"):
        found |= linear(name, n_latent, n_latent)
    found |= linear("mlp_ztm1_g.linear_last", n_past, size) | linear("gen_logvar", n_decoded, n_freqs)
    return found | linear("inf_mean", n_inferred, n_latent) | linear("inf_logvar", n_inferred, n_latent)


def srnn_weights(s: Settings) -> Weights:
    n_freqs, n_latent, n_hidden, n_read = int(s["x_dim"]), int(s["z_dim"]), int(s["dim_RNN_h"]), int(s["dim_RNN_g"])
    before, n_before = dense("mlp_x_h", n_freqs, s["dense_x_h"])
    found = before | recurrent("rnn_h", n_before, n_hidden, int(s["num_RNN_h"]), False)
    before, n_before = dense("mlp_hx_g", n_hidden + n_freqs, s["dense_hx_g"])
    found |= before | recurrent("rnn_g", n_before, n_read, int(s["num_RNN_g"]), False)
    for mlp, n_in, heads in (
        ("gz_z", n_read + n_latent, {"inf_mean": n_latent, "inf_logvar": n_latent}),
        ("hz_z", n_hidden + n_latent, {"prior_mean": n_latent, "prior_logvar": n_latent}), ("hz_x", n_hidden + n_latent, {"gen_logvar": n_freqs}),
    ):
        after, n_after = dense(f"mlp_{mlp}", n_in, s[f"dense_{mlp}"])
        found |= after
        for head, n_out in heads.items():
            found |= linear(head, n_after, n_out)
    return found


MAKERS: dict[str, Callable[[Settings], Weights]] = {"VAE": vae_weights, "RVAE": rvae_weights, "DKF": dkf_weights, "SRNN": srnn_weights}


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


# ---- what they compute, from the formulas; powers (T, F) and latents (T, L) in float64 ----


Law = tuple[Tensor, Tensor]
"""Mean and standard deviation."""


class Published:
    """A published network of one recording, frame by frame; that of a feed-forward VAE."""

    def __init__(self, settings: Settings, w: Weights) -> None:
        self.w = {key: value.double() for key, value in w.items()}
        self.activation = torch.relu if settings["activation"] == "relu" else torch.tanh
        self.bounded = settings.get("vae_mode") == "A-DKF"

    def encode(self, power: Tensor, z: Tensor) -> Law:
        """Of every z_t given the frames and the z before it."""
        return self.law("inf", self.mlp("mlp_x_z", power))

    def prior(self, z: Tensor) -> Law:
        """Of every z_t given the z before it."""
        return torch.zeros_like(z), torch.ones_like(z)

    def decode(self, z: Tensor) -> Tensor:
        """Powers."""
        return self.linear("gen_logvar", self.mlp("mlp_z_x", z)).exp()

    def law(self, name: str, value: Tensor) -> Law:
        return self.linear(f"{name}_mean", value), (0.5 * self.linear(f"{name}_logvar", value)).exp()

    def linear(self, name: str, value: Tensor) -> Tensor:
        return value @ self.w[f"{name}.weight"].mT + self.w[f"{name}.bias"]

    def mlp(self, name: str, value: Tensor) -> Tensor:
        i = 0
        while f"{name}.linear{i}.weight" in self.w:
            value = self.activation(self.linear(f"{name}.linear{i}", value))
            i += 1
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


class PublishedRVAE(Published):
    def encode(self, power: Tensor, z: Tensor) -> Law:
        heard = self.lstm("rnn_g_x", self.mlp("mlp_x_gx", power).flip(0)).flip(0)
        return self.law("inf", self.mlp("mlp_g_z", torch.cat([heard, self.lstm("rnn_g_z", self.mlp("mlp_z_gz", past(z)))], -1)))

    def decode(self, z: Tensor) -> Tensor:
        return self.linear("gen_logvar", self.mlp("mlp_h_x", self.lstm("rnn_h", self.mlp("mlp_z_h", z)))).exp()


class PublishedDKF(Published):
    def encode(self, power: Tensor, z: Tensor) -> Law:
        read = self.mlp("mlp_x_gx", power)
        remembered = self.activation(self.linear("mlp_ztm1_g.linear_last", self.mlp("mlp_ztm1_g", past(z))))
        if "rnn_gx.weight_hh_l0_reverse" in self.w:
            forth, back = self.lstm("rnn_gx", read).chunk(2, -1)
            return self.law("inf", self.mlp("mlp_g_z", (remembered + forth + back) / 3))
        return self.law("inf", self.mlp("mlp_g_z", (remembered + self.lstm("rnn_gx", read.flip(0)).flip(0)) / 2))

    def prior(self, z: Tensor) -> Law:
        def two_layers(name: str) -> Tensor:
            return self.linear(f"{name}.linear2", self.linear(f"{name}.linear1", past(z)).relu())

        gate, proposed = two_layers("mlp_gate").sigmoid(), two_layers("mlp_z_prop")
        proposed = proposed.sigmoid() if self.bounded else proposed
        variance = torch.log1p(self.linear("prior_logvar.1", proposed.relu()).exp())
        return (1 - gate) * self.linear("prior_mean", past(z)) + gate * proposed, variance.sqrt()


class PublishedSRNN(Published):
    def encode(self, power: Tensor, z: Tensor) -> Law:
        hidden = self.lstm("rnn_h", self.mlp("mlp_x_h", past(power)))
        read = self.lstm("rnn_g", self.mlp("mlp_hx_g", torch.cat([hidden, power], -1)).flip(0)).flip(0)
        return self.law("inf", self.mlp("mlp_gz_z", torch.cat([read, past(z)], -1)))

    def prior(self, z: Tensor) -> Law:
        hidden = self.lstm("rnn_h", self.mlp("mlp_x_h", past(self.decode(z) + GAIN * POWER_FLOOR)))
        return self.law("prior", self.mlp("mlp_hz_z", torch.cat([hidden, past(z)], -1)))

    def decode(self, z: Tensor) -> Tensor:
        """Every frame is made of the powers made before, as in its mode of generation. Speech has the floor of the package in every bin."""
        powers = torch.zeros(0, self.w["gen_logvar.bias"].shape[0], dtype=z.dtype)
        for t in range(len(z)):
            hidden = self.lstm("rnn_h", self.mlp("mlp_x_h", torch.cat([powers.new_zeros(1, powers.shape[1]), powers])))[-1]
            made = self.linear("gen_logvar", self.mlp("mlp_hz_x", torch.cat([hidden, z[t]]))).exp()
            powers = torch.cat([powers, made[None] + GAIN * POWER_FLOOR])
        return powers - GAIN * POWER_FLOOR


def past(frames: Tensor) -> Tensor:
    """The frames one earlier; zeros before the first."""
    return torch.cat([torch.zeros_like(frames[:1]), frames[:-1]])


PUBLISHED = {"VAE": Published, "RVAE": PublishedRVAE, "DKF": PublishedDKF, "SRNN": PublishedSRNN}
