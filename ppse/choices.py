"""What the options of the commands stand for: names of methods, priors, noise models and devices."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import cast

import torch
import typer
from torch import nn

from . import methods
from .enhance import RANK, SPACING
from .mixture import Mixture, Source
from .models import (
    DKFSpeech,
    DSAESpeech,
    HeardNoise,
    HeardSpeech,
    NMFNoise,
    RVAESpeech,
    SRNNSpeech,
    StationaryNoise,
    STORNSpeech,
    VAESpeech,
    VRNNSpeech,
)
from .models.band_listener import BandListener
from .models.causal_listener import CausalListener
from .models.dynamical import DynamicalVAE
from .models.heard_speech import WithEncoder
from .models.recurrent import Layers
from .weights import load_any

METHODS = {maker.__name__: maker for maker in methods.ALL}
"""Makers of methods by name."""

PRIORS = (VAESpeech, RVAESpeech, DKFSpeech, STORNSpeech, VRNNSpeech, SRNNSpeech, DSAESpeech)
"""Classes of the speech priors that a weights file can hold."""

NOISES = ("nmf", "stationary", "heard", "bands")
"""Noise models by name."""

HEARD = {"heard", "bands"}
"""Those that are heard by trained ears, which then hear the speech, too."""

EARS = "vae_aware"
"""The shipped weights that hear speech for priors without ears of their own."""

NOISE_EARS = "vae"
"""The shipped weights that hear noise for them: bands hear speech better, but what they hear of the noise follows the speech (docs/amortised.md)."""

FINDER = "rvae"
"""The shipped prior that finds the noise in recordings to adapt another to."""

DYNAMICAL: dict[str, Callable[[int, int], DynamicalVAE]] = {
    "rvae": lambda latent, hidden: RVAESpeech(n_latent=latent, hidden=hidden, reader=Layers(hidden, (2 * hidden,))),
    "rvae_causal": lambda latent, hidden: RVAESpeech(n_latent=latent, hidden=hidden, reader=Layers(hidden, (2 * hidden,)), causal=True),
    "dkf": lambda latent, hidden: DKFSpeech(n_latent=latent, reader=Layers(hidden, (2 * hidden,), (2 * latent,))),
    "storn": lambda latent, hidden: STORNSpeech(
        n_latent=latent, memory=Layers(hidden, (2 * hidden,), (2 * hidden,)), reader=Layers(hidden, (2 * hidden,), (2 * latent,)),
    ),
    "vrnn": lambda latent, hidden: VRNNSpeech(n_latent=latent, memory=Layers(hidden, (2 * hidden,), (2 * hidden,))),
    "srnn": lambda latent, hidden: SRNNSpeech(
        n_latent=latent, memory=Layers(hidden, (2 * hidden,), (2 * hidden,)), reader=Layers(hidden, (2 * hidden,), (2 * latent,)),
    ),
    "dsae": lambda latent, hidden: DSAESpeech(n_latent=latent, reader=Layers(hidden, (2 * hidden,), (2 * latent,))),
}
"""Untrained dynamical VAEs by name, of so many latents, with recurrent layers of that size."""

AROUND: dict[str, Callable[[VAESpeech, int], DynamicalVAE]] = {
    "rvae": RVAESpeech.around,
    "rvae_causal": lambda vae, hidden: RVAESpeech.around(vae, hidden, causal=True),
    "dkf": DKFSpeech.around,
    "vrnn": VRNNSpeech.around,
    "srnn": SRNNSpeech.around,
    "dsae": DSAESpeech.around,
}
"""Those of them that start from a trained VAE of frames."""


def model(prior: str, noise: str, rank: int | None = None, spacing: int | None = None) -> Mixture:
    """The mixture of a speech prior (shipped name or weights file) and a noise model: "nmf" of this rank and spacing, "stationary",
    "heard" or "bands".

    With the last two, the prior is narrowed to what is heard, too (:class:`ppse.models.HeardSpeech`). The ears are those of the prior, or where it
    has none, the shipped :data:`EARS`. In "heard", ears in bins hear the noise, in "bands" ears in bands: those of the prior if they are such, else
    the shipped :data:`NOISE_EARS` or :data:`EARS`, if the STFT is theirs.

    Raises:
        BadParameter: when there is no such noise model, or it has no rank or spacing.
        WeightsError: when the prior cannot be used.
    """
    return _model(prior, noise, rank, spacing, narrowed=noise in HEARD)


def models(prior: str, noise: str, rank: int | None = None, spacing: int | None = None) -> list[Mixture]:
    """As :func:`model`, one for each of the noise models that "+" joins, as in "nmf+heard"; rank and spacing are those of "nmf".

    Where one of them is heard, the prior is narrowed in all.
    """
    names = noise.split("+")
    if len(set(names)) < len(names):
        raise typer.BadParameter(f"'{noise}' names a noise model twice; give each once", param_hint="--noise")
    own = "nmf" if "nmf" in names else names[0]  # which refuses a rank or a spacing that it has not
    return [_model(prior, name, *((rank, spacing) if name == own else (None, None)), narrowed=not HEARD.isdisjoint(names)) for name in names]


def _model(prior: str, noise: str, rank: int | None, spacing: int | None, narrowed: bool) -> Mixture:
    if noise not in NOISES:
        raise typer.BadParameter(f"no noise model '{noise}'; there are {', '.join(NOISES)}", param_hint="--noise")
    option = "--rank" if rank is not None else "--spacing" if spacing is not None else ""
    if noise != "nmf" and option:
        raise typer.BadParameter(f"noise model '{noise}' has none, that is of nmf; leave {option} out", param_hint=option)
    speech = load_any(PRIORS, prior)
    own = speech if isinstance(speech, VAESpeech) and speech.listener is not None else None
    makers: dict[str, Callable[[], Source]] = {
        "nmf": lambda: NMFNoise(rank or RANK, spacing=spacing or SPACING), "stationary": StationaryNoise,
        "heard": lambda: _heard_noise(own, in_bands=False), "bands": lambda: _heard_noise(own, in_bands=True),
    }
    source = HeardSpeech(cast(WithEncoder, speech), own or VAESpeech.pretrained(EARS)) if narrowed else speech
    return Mixture(speech=source, noise=makers[noise]())


def heard(vae: VAESpeech) -> Mixture:
    """As :func:`model` with noise "heard", of a VAE with ears."""
    return Mixture(speech=HeardSpeech(vae, vae), noise=_heard_noise(vae, in_bands=False))


def _heard_noise(own: VAESpeech | None, in_bands: bool) -> HeardNoise:
    if own and isinstance(own.listener, BandListener) == in_bands:
        return HeardNoise(own)
    shipped = VAESpeech.pretrained(EARS if in_bands else NOISE_EARS)
    return HeardNoise(own if own and own.n_freqs != shipped.n_freqs else shipped)


def ears(name: str) -> CausalListener | VAESpeech:
    """Ears for a stream: a listener that remembers, or a VAE with a listener; a shipped name or a weights file.

    Raises:
        WeightsError: when they cannot be used.
    """
    classes: tuple[type[nn.Module], ...] = (CausalListener, VAESpeech)
    return cast(CausalListener | VAESpeech, load_any(classes, name))


def method(name: str, chains: int | None = None, iterations: int | None = None) -> methods.Method:
    """A method by name, with so many chains and iterations, or as many as it sets itself.

    Raises:
        BadParameter: when there is no such method, or it takes no number of chains.
    """
    if name not in METHODS:
        raise typer.BadParameter(f"no method '{name}'; there are {', '.join(METHODS)}", param_hint="--method")
    if chains is not None and "chains" not in inspect.signature(METHODS[name]).parameters:
        raise typer.BadParameter(f"method '{name}' sets its chains itself; leave --chains out", param_hint="--chains")
    given = {"chains": chains, "iterations": iterations}
    return METHODS[name](**{key: value for key, value in given.items() if value is not None})


def check_device(name: str) -> None:
    """Refuse a device that is not there, or that gives no values back ("meta"). Raises BadParameter."""
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError) as error:
        raise typer.BadParameter(f"'{name}' cannot be used here: {str(error).splitlines()[0]}", param_hint="--device") from None
