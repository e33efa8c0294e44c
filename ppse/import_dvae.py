"""Speech priors from published checkpoints of dynamical VAEs (the DVAE, DVAE_SE, ps-rvae-se and av-dkf repositories)."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .dvae_files import Network, read_tensors
from .models import DKFSpeech, RVAESpeech, SRNNSpeech, VAESpeech
from .models.recurrent import Layers
from .stft import STFT
from .weights import WeightsError

GAIN = 20.0
"""Mean power that the published training saw where a recording of unit level (:func:`ppse.stft.level`) has 1.

It took powers of an unscaled STFT with a sine window, of stretches of 50 frames with a peak of 1. This is the median over
2159 such stretches of read speech; the 10th and 90th percentiles are 7 and 48.
"""


class Layout(NamedTuple):
    """How a published network becomes one of ours.

    Attributes:
        model: ours, of the right sizes.
        names: name of every tensor of ours → names of the published ones that it is made of, one below the other.
        readers: published matrices that read powers → first column that does.
        output: the published bias of the log-variances.
        turned: published matrices that read both directions of an LSTM that goes through the *reversed* recording → size of one direction.
    """

    model: nn.Module
    names: dict[str, tuple[str, ...]]
    readers: dict[str, int]
    output: str
    turned: dict[str, int]


def import_dvae(checkpoint: str | os.PathLike[str], config: str | os.PathLike[str]) -> tuple[nn.Module, dict[str, Any]]:
    """The speech prior in a published checkpoint, frozen, and its model card; :func:`ppse.weights.write` makes a weights file of them.

    The published networks saw recordings on another scale. It is put into their first and last layers (:data:`GAIN`), so that the result
    is for recordings of unit level, as every prior here.

    Args:
        checkpoint: a .pt file of tensors. Nothing in it is executed.
        config: the config.ini that describes the network: VAE, RVAE, DKF or SRNN.

    Raises:
        WeightsError: unreadable or unsafe files; an architecture that is not known; settings or tensors that are missing, spare, of another
            shape or type, or not finite.

    References:
        Girin et al. (2021), Dynamical variational autoencoders: a comprehensive review; Bie et al. (2022), Unsupervised speech
        enhancement using dynamical variational autoencoders.
    """
    network = Network(config)
    with torch.device("meta"):  # no memory is taken before the sizes have been compared
        layout = _layout(network)
    tensors = read_tensors(checkpoint)
    ours = layout.model.state_dict()
    _check(checkpoint, tensors, layout, ours)
    tensors = _in_our_terms({key: value.float() for key, value in tensors.items()}, layout)
    layout.model.load_state_dict({name: torch.cat([tensors[part] for part in parts]) for name, parts in layout.names.items()}, assign=True)
    card = {
        "data": network.text("dataset_name", "unknown", "DataFrame"),
        "published": {"checkpoint": Path(checkpoint).name, "architecture": network.text("name"), "tag": network.text("tag", "")},
        "gain": GAIN,
        "notes": _notes(network),
    }
    return layout.model.eval().requires_grad_(False), card


def _layout(network: Network) -> Layout:
    architecture = network.text("name").strip()
    if architecture not in LAYOUTS:
        raise WeightsError(f"{network.path}: architecture '{architecture}'; can be imported: {', '.join(LAYOUTS)}")
    mode = network.text("vae_mode", "A-").strip()
    if not mode.startswith("A-"):
        raise WeightsError(f"{network.path}: vae_mode = {mode}; expected an audio-only network (A-…), as there is no video here")
    return LAYOUTS[architecture](network)


def _vae(network: Network) -> Layout:
    hidden = network.sizes("dense_x_z")
    model = VAESpeech(network.size("x_dim"), network.size("z_dim"), hidden[::-1], log_input=False, relu=_relu(network))
    names = (
        _perceptron("encoder.network", "mlp_x_z", len(hidden), "inf_mean", "inf_logvar")
        | _perceptron("decoder", "mlp_z_x", len(hidden), "gen_logvar")
    )
    readers = ["mlp_x_z.linear0.weight"] if hidden else ["inf_mean.weight", "inf_logvar.weight"]
    return Layout(model, names, dict.fromkeys(readers, 0), "gen_logvar.bias", {})


def _rvae(network: Network) -> Layout:
    both_ways = network.flag("bidir_g_x")
    reader = Layers(network.size("dim_RNN_g_x"), network.sizes("dense_x_gx"), network.sizes("dense_g_z"), network.size("num_RNN_g_x"))
    past = Layers(network.size("dim_RNN_g_z"), network.sizes("dense_z_gz"), (), network.size("num_RNN_g_z"))
    decoder = Layers(network.size("dim_RNN_h"), network.sizes("dense_z_h"), network.sizes("dense_h_x"), network.size("num_RNN_h"))
    model = RVAESpeech(
        network.size("x_dim"), network.size("z_dim"), causal=not network.flag("bidir_h"), decoder=decoder, reader=reader, past=past,
        backward=not both_ways, log_input=False, relu=_relu(network),
    )
    names = (
        _dense("encoder.reader.before", "mlp_x_gx", len(reader.before))
        | _lstm(model.encoder.reader.memory, "encoder.reader.memory", "rnn_g_x", reverse=True)
        | _dense("encoder.past.before", "mlp_z_gz", len(past.before))
        | _lstm(model.encoder.past.memory, "encoder.past.memory", "rnn_g_z")
        | _perceptron("encoder.head", "mlp_g_z", len(reader.after), "inf_mean", "inf_logvar")
        | _dense("memory.before", "mlp_z_h", len(decoder.before))
        | _lstm(model.memory.memory, "memory.memory", "rnn_h")
        | _perceptron("decoder", "mlp_h_x", len(decoder.after), "gen_logvar")
    )
    after = ["mlp_g_z.linear0.weight"] if reader.after else ["inf_mean.weight", "inf_logvar.weight"]
    turned = after + _weights(names, "rnn_g_x.weight_ih_l")[2:] if both_ways else []  # those of layer 0 read the recording
    readers = ["mlp_x_gx.linear0.weight"] if reader.before else _weights(names, "rnn_g_x.weight_ih_l0")
    return Layout(model, names, dict.fromkeys(readers, 0), "gen_logvar.bias", dict.fromkeys(turned, reader.size))


def _dkf(network: Network) -> Layout:
    reader = Layers(network.size("dim_RNN_gx"), network.sizes("dense_x_gx"), network.sizes("dense_g_z"), network.size("num_RNN_gx"))
    past, hidden = network.sizes("dense_ztm1_g"), network.sizes("dense_z_x")
    for key, expected in (("rnn", "LSTM"), ("inference", "gated")):
        if network.text(key, expected) != expected:
            raise WeightsError(f"{network.path}: {key} = {network.text(key)}; of these networks only those with {expected} can be imported")
    model = DKFSpeech(
        network.size("x_dim"), network.size("z_dim"), hidden, reader=reader, past=past, backward=not network.flag("bidir_gx"), log_input=False,
        relu=_relu(network), bounded=network.text("vae_mode", "") == "A-DKF",  # a sigmoid, of which the config says nothing
    )
    names = (
        _dense("encoder.reader.before", "mlp_x_gx", len(reader.before))
        | _lstm(model.encoder.reader.memory, "encoder.reader.memory", "rnn_gx")
        | _perceptron("encoder.past", "mlp_ztm1_g", len(past), "mlp_ztm1_g.linear_last")
        | _perceptron("encoder.head", "mlp_g_z", len(reader.after), "inf_mean", "inf_logvar")
        | _linear("transition.gate.0", "mlp_gate.linear1") | _linear("transition.gate.2", "mlp_gate.linear2")
        | _linear("transition.proposed.0", "mlp_z_prop.linear1") | _linear("transition.proposed.2", "mlp_z_prop.linear2")
        | _linear("transition.linear", "prior_mean") | _linear("transition.variance", "prior_logvar.1")
        | _perceptron("decoder", "mlp_z_x", len(hidden), "gen_logvar")
    )
    readers = ["mlp_x_gx.linear0.weight"] if reader.before else _weights(names, "rnn_gx.weight_ih_l0")
    return Layout(model, names, dict.fromkeys(readers, 0), "gen_logvar.bias", {})


def _srnn(network: Network) -> Layout:
    memory = Layers(network.size("dim_RNN_h"), network.sizes("dense_x_h"), network.sizes("dense_hz_x"), network.size("num_RNN_h"))
    reader = Layers(network.size("dim_RNN_g"), network.sizes("dense_hx_g"), network.sizes("dense_gz_z"), network.size("num_RNN_g"))
    transition = network.sizes("dense_hz_z")
    model = SRNNSpeech(
        network.size("x_dim"), network.size("z_dim"), memory=memory, transition=transition, reader=reader, log_input=False, relu=_relu(network),
    )
    names = (
        _dense("feedback.listen", "mlp_x_h", len(memory.before))
        | _lstm(model.feedback.memory, "feedback.memory", "rnn_h")
        | _perceptron("feedback.decoder", "mlp_hz_x", len(memory.after), "gen_logvar")
        | _perceptron("feedback.transition", "mlp_hz_z", len(transition), "prior_mean", "prior_logvar")
        | _dense("encoder.memory.before", "mlp_x_h", len(memory.before))
        | _lstm(model.encoder.memory.memory, "encoder.memory.memory", "rnn_h")
        | _dense("encoder.reader.before", "mlp_hx_g", len(reader.before))
        | _lstm(model.encoder.reader.memory, "encoder.reader.memory", "rnn_g")
        | _perceptron("encoder.head", "mlp_gz_z", len(reader.after), "inf_mean", "inf_logvar")
    )
    past = "mlp_x_h.linear0.weight" if memory.before else "rnn_h.weight_ih_l0"
    present = "mlp_hx_g.linear0.weight" if reader.before else "rnn_g.weight_ih_l0"
    return Layout(model, names, {past: 0, present: memory.size}, "gen_logvar.bias", {})


LAYOUTS = {"VAE": _vae, "RVAE": _rvae, "DKF": _dkf, "SRNN": _srnn}
"""By the name in the config."""


def _relu(network: Network) -> bool:
    activation = network.text("activation").strip()
    if activation not in ("tanh", "relu"):
        raise WeightsError(f"{network.path}: activation = {activation}; expected tanh or relu")
    return activation == "relu"


def _linear(ours: str, *published: str) -> dict[str, tuple[str, ...]]:
    """One linear layer, of several published ones that read the same."""
    return {f"{ours}.{kind}": tuple(f"{part}.{kind}" for part in published) for kind in ("weight", "bias")}


def _dense(ours: str, published: str, count: int) -> dict[str, tuple[str, ...]]:
    """Linear layers, each with an activation behind it."""
    return {key: value for i in range(count) for key, value in _linear(f"{ours}.{2 * i}", f"{published}.linear{i}").items()}


def _perceptron(ours: str, published: str, count: int, *last: str) -> dict[str, tuple[str, ...]]:
    """Linear layers, each with an activation behind it, and linear ones side by side at the end."""
    return _dense(ours, published, count) | _linear(f"{ours}.{2 * count}", *last)


def _lstm(memory: nn.Module, ours: str, published: str, reverse: bool = False) -> dict[str, tuple[str, ...]]:
    """An LSTM. The published ones for the recording see it in ``reverse``, so that their way back is our way forth."""
    keys = [name for name, _ in memory.named_parameters()]
    both_ways = any(key.endswith("_reverse") for key in keys)
    other = {key: key.removesuffix("_reverse") if key.endswith("_reverse") else f"{key}_reverse" for key in keys}
    return {f"{ours}.{key}": (f"{published}.{other[key] if reverse and both_ways else key}",) for key in keys}


def _weights(names: Mapping[str, tuple[str, ...]], start: str) -> list[str]:
    """The published names that start so, by layer."""
    return sorted(part for parts in names.values() for part in parts if part.startswith(start))


def _check(checkpoint: str | os.PathLike[str], tensors: Mapping[str, Tensor], layout: Layout, ours: Mapping[str, Tensor]) -> None:
    shapes = {part: (ours[name].shape[0] // len(parts), *ours[name].shape[1:]) for name, parts in layout.names.items() for part in parts}
    for problem, keys in (("missing", shapes.keys() - tensors.keys()), ("not in this network", tensors.keys() - shapes.keys())):
        if keys:
            raise WeightsError(
                f"{checkpoint}: {len(keys)} tensors are {problem}, the first '{min(keys)}'; is the config.ini the one of this checkpoint?"
            )
    for key, shape in shapes.items():
        found = tensors[key]
        if tuple(found.shape) != shape:
            raise WeightsError(
                f"{checkpoint}: '{key}' has shape {tuple(found.shape)}, expected {shape}; is the config.ini the one of this checkpoint?"
            )
        if not found.is_floating_point() or found.layout != torch.strided or found.is_meta:
            kind = f"{found.dtype}, {found.layout} on device {found.device}"
            raise WeightsError(f"{checkpoint}: '{key}' is of type {kind}; expected dense floating-point numbers")
        if not torch.isfinite(found.float()).all():
            raise WeightsError(f"{checkpoint}: '{key}' has values that are not finite; the training failed, or the file was altered")


def _in_our_terms(tensors: dict[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Directions in our order, and scales such that powers of unit level go in and come out."""
    for key, size in layout.turned.items():
        back, forth, rest = tensors[key].split([size, size, tensors[key].shape[1] - 2 * size], 1)
        tensors[key] = torch.cat([forth, back, rest], 1)
    for key, first in layout.readers.items():
        tensors[key] = torch.cat([tensors[key][:, :first], tensors[key][:, first:] * GAIN], 1)
    tensors[layout.output] = tensors[layout.output] - math.log(GAIN)
    return tensors


def _notes(network: Network) -> list[str]:
    """What in the STFT of the training differs from the one in which recordings will be enhanced."""
    stft = STFT.of_freqs(network.size("x_dim"))
    rate, seconds, hop, padding = (network.number(key, "STFT") for key in ("fs", "wlen_sec", "hop_percent", "zp_percent"))
    if not min(rate, seconds, hop) > 0:
        found = f"fs = {rate:g}, wlen_sec = {seconds:g}, hop_percent = {hop:g}"
        raise WeightsError(f"{network.path}: {found} in section [STFT]; expected numbers above 0")
    window = 2 ** math.ceil(math.log2(max(1.0, seconds * rate)))  # the next power of two, as published
    trained = {"sample rate": rate, "samples of a window": window, "of the FFT": window * (1 + padding), "between frames": window * hop}
    here = dict(zip(trained, (stft.sample_rate, stft.n_fft, stft.n_fft, stft.hop), strict=True))
    return [f"{what}: {value:g} in the training, {here[what]} here" for what, value in trained.items() if value != here[what]]
