"""The matrix: every source model under every inference method; each works and keeps its contract, or is refused with a reason.

    python benchmarks/matrix.py [--out docs/matrix.md]

Tiny models on a tiny recording: what is told is whether a pair is possible, not how good it is. A test runs this and compares.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyro.poutine as poutine
import torch
from torch import Tensor, nn

from ppse import Mixture, audio, guides, methods, with_priors
from ppse.infer import (
    Draws,
    Group,
    Kernel,
    LogDensity,
    Position,
    elliptical_slice,
    fit,
    gibbs,
    guide_draws,
    hmc,
    kinetic_langevin,
    langevin,
    log_density,
    mala,
    metropolis,
    nuts,
    parallel_tempering,
    replicas,
    sample,
    warm_up,
    whitened,
)
from ppse.infer.density import is_latent
from ppse.inference import infer
from ppse.lips import Lips
from ppse.mixture import Source
from ppse.models import (
    AlphaStable,
    ARNoise,
    AutoregressiveVAESpeech,
    AVVAESpeech,
    CodeChain,
    CodePrior,
    DKFSpeech,
    DSAESpeech,
    FrameGain,
    HarmonicSpeech,
    HeardNoise,
    HeardSpeech,
    HeavyTailed,
    KnownSilence,
    MixtureSpeech,
    NMFNoise,
    NMFSpeech,
    PartiallyObserved,
    RVAESpeech,
    SmoothNMFNoise,
    SRNNSpeech,
    StationaryNoise,
    STORNSpeech,
    SwitchingSpeech,
    VAESpeech,
    VRNNSpeech,
)
from ppse.models.recurrent import Layers
from ppse.priors import Graph, parameters_of, weak_priors
from ppse.switching import collapsed

T, F, L = 6, 9, 2
CHAINS, DRAWS = 2, 3
SILENT = torch.arange(T) < 2
LIPS = Lips.at_rate(torch.arange(4.0)[:, None, None].expand(4, 88, 88) / 4, 25.0)

Run = Callable[[Mixture, Tensor], None]
"""Runs a method on a model that is not started on x yet; fails by an AssertionError where the contract is broken."""


def vae() -> VAESpeech:
    """A tiny VAE with both encoders."""
    return VAESpeech(F, L, (4,), context=4)


def with_noise(speech: Source) -> Mixture:
    """A speech model in the simplest noise."""
    return Mixture(speech=speech, noise=StationaryNoise()).double()


def with_speech(**noises: Source) -> Mixture:
    """Noise models under speech."""
    return Mixture(speech=vae(), **noises).double()


MODELS: dict[str, Callable[[], Mixture]] = {
    "VAESpeech": lambda: with_noise(vae()),
    "AutoregressiveVAESpeech": lambda: with_noise(AutoregressiveVAESpeech(F, L, (4,), context=4)),
    "CodePrior(VAESpeech)": lambda: with_noise(CodePrior(vae(), CodeChain(L))),
    "AVVAESpeech": lambda: with_noise(AVVAESpeech(F, L, (4,), n_seen=3, reach=1).watching(LIPS)),
    "RVAESpeech": lambda: with_noise(RVAESpeech(F, L, 3)),
    "RVAESpeech, causal": lambda: with_noise(RVAESpeech(F, L, 3, causal=True)),
    "DKFSpeech": lambda: with_noise(DKFSpeech(F, L, (4,), reader=Layers(3))),
    "STORNSpeech": lambda: with_noise(STORNSpeech(F, L, memory=Layers(3), codes=(), reader=Layers(3))),
    "VRNNSpeech": lambda: with_noise(VRNNSpeech(F, L, memory=Layers(3), codes=())),
    "SRNNSpeech": lambda: with_noise(SRNNSpeech(F, L, memory=Layers(3), reader=Layers(3))),
    "DSAESpeech": lambda: with_noise(DSAESpeech(F, L, 2, (4,), reader=Layers(3), past=Layers(3))),
    "FrameGain(VAESpeech)": lambda: with_noise(FrameGain(vae())),
    "HeardSpeech(VAESpeech)": lambda: with_noise(HeardSpeech(vae(), vae())),
    "KnownSilence(VAESpeech)": lambda: with_noise(KnownSilence(vae(), SILENT)),
    "PartiallyObserved(VAESpeech)": lambda: with_noise(PartiallyObserved(vae(), torch.zeros(T, F, dtype=torch.complex128), SILENT.unsqueeze(-1))),
    "SwitchingSpeech": lambda: with_noise(SwitchingSpeech([vae(), vae()], learn=True)),
    "SwitchingSpeech, one with memory": lambda: with_noise(SwitchingSpeech([vae(), RVAESpeech(F, L, 3)], learn=True)),
    "MixtureSpeech": lambda: with_noise(MixtureSpeech([vae(), vae()])),
    "NMFSpeech": lambda: with_noise(NMFSpeech(torch.rand(F, 2), torch.ones(2), torch.ones(2))),
    "HarmonicSpeech": lambda: with_noise(HarmonicSpeech(torch.zeros(3), torch.ones(3), F)),
    "StationaryNoise": lambda: with_speech(noise=StationaryNoise()),
    "NMFNoise": lambda: with_speech(noise=NMFNoise(2)),
    "NMFNoise, knots": lambda: with_speech(noise=NMFNoise(2, spacing=3)),
    "SmoothNMFNoise": lambda: with_speech(noise=SmoothNMFNoise(2)),
    "HeardNoise": lambda: with_speech(noise=HeardNoise(vae())),
    "ARNoise": lambda: with_speech(noise=ARNoise()),
    "HeavyTailed(StationaryNoise)": lambda: with_speech(noise=HeavyTailed(StationaryNoise())),
    "HeavyTailed(NMFNoise), per bin": lambda: with_speech(noise=HeavyTailed(NMFNoise(2), per_bin=True)),
    "AlphaStable(StationaryNoise)": lambda: with_speech(noise=AlphaStable(StationaryNoise())),
    "two noises": lambda: with_speech(hum=StationaryNoise(), rattle=NMFNoise(2)),
    "noise alone": lambda: Mixture(noise=NMFNoise(2)).double(),
}


def em(make: Callable[..., methods.Method], model: Mixture, x: Tensor) -> None:
    """A method of :mod:`ppse.methods`, for a few iterations."""
    method = make(iterations=3, warm_up=1) if make is methods.full_bayes else make(iterations=2)
    result = infer(model, x, method)
    assert result.objective and torch.tensor(result.objective).isfinite().all(), "the objective is not finite"
    assert set(result.sources) == set(model.sources), "sources are missing"
    for law in result.sources.values():
        assert law.loc.shape == (T, F) and law.loc.isfinite().all() and (law.var >= 0).all(), "the posterior of a source is not finite, or misshapen"
    total = torch.stack([law.loc for law in result.sources.values()]).sum(0)
    assert torch.allclose(total, x), "the estimates do not add up to the recording"
    model.start(x)
    latents = {name for name, site in poutine.trace(model).get_trace(x).nodes.items() if is_latent(site)}
    assert latents <= set(result.draws) and all(value.isfinite().all() for value in result.draws.values()), "latents are missing, or not finite"


def graph(model: Mixture, x: Tensor, bayesian: bool) -> Graph:
    """A model started on x; its parameters are fixed there, or latent. Regimes are summed out."""
    model.start(x)
    whole = with_priors(model, weak_priors(model, x), x) if bayesian else model
    return collapsed(whole) if any(isinstance(module, SwitchingSpeech) for module in model.modules()) else whole


def kernel(make: Callable[[LogDensity], Kernel], bayesian: bool, model: Mixture, x: Tensor) -> None:
    """A few steps of a kernel, chains side by side, from the prior of what is latent by itself and the parameters as they stand."""
    target = log_density(graph(model, x, bayesian), x, chains=CHAINS)
    start = target.init(parameters_of(model, x) if bayesian else None, jitter=0.01)
    keeps_contract(sample(target, make(target), start, DRAWS), target)


def no_u_turn(bayesian: bool, model: Mixture, x: Tensor) -> None:
    """Pyro's NUTS, adapting and drawing."""
    whole = graph(model, x, bayesian)
    keeps_contract(nuts(whole, x, num_samples=DRAWS, warmup=5, max_tree_depth=2), log_density(whole, x, block=(), verify=False))


def guide(family: Callable[..., nn.Module], bayesian: bool, model: Mixture, x: Tensor) -> None:
    """SVI: a few steps of a guide, then its draws."""
    whole = graph(model, x, bayesian)
    made = family(whole, x, model)
    guide_draws(whole, made, x, num_samples=1)  # says so when a latent is missing; fit would only warn
    before = copy.deepcopy(made.state_dict())
    losses = fit(whole, made, x, steps=3)
    assert torch.tensor(losses).isfinite().all(), "the ELBO is not finite"
    assert any(not torch.equal(value, before[name]) for name, value in made.state_dict().items()), "the guide has not learnt anything"
    keeps_contract(guide_draws(whole, made, x, num_samples=DRAWS, chains=CHAINS), log_density(whole, x, chains=CHAINS, block=(), verify=False))


def keeps_contract(draws: Draws, target: LogDensity) -> None:
    """All latents, of the shapes of the graph, finite, with their densities; and they move."""
    assert set(draws.values) == set(target.sites), "latents are missing"
    shapes = target.constrain(target.init())
    for name, value in draws.values.items():
        assert value.shape == (DRAWS, *shapes[name].shape), f"draws of '{name}' have shape {tuple(value.shape)}"
        assert value.isfinite().all(), f"draws of '{name}' are not finite"
        assert (value[1:] != value[:-1]).any(), f"'{name}' does not move"
    assert draws.stats is not None and draws.stats.log_density.isfinite().all(), "the log density is not finite"


def tempered(target: LogDensity) -> Kernel:
    """Parallel tempering of HMC."""
    hot = replicas(target, (1.0, 0.5, 0.2))
    return parallel_tempering(target, hot, hmc(hot, 0.01, 3))


def tuned(target: LogDensity) -> Kernel:
    """HMC that learns step sizes and covariances."""
    def make(step_size: Tensor, factor: Position) -> Kernel:
        return whitened(target, factor, lambda white: hmc(white, step_size, 3))

    found = warm_up(target, make, target.init(), 15, step_size=0.01, target_acceptance=0.8, dense=True)
    return make(found.step_size, found.scale)


def encoder(whole: Graph, x: Tensor, model: Mixture) -> guides.EncoderGuide:
    """The amortised guide."""
    found = guides.starting_guide(model)
    if found is None:
        raise ValueError("starting_guide: no source of the model has an encoder")
    return found


KERNELS: dict[str, Callable[[LogDensity], Kernel]] = {
    "metropolis": partial(metropolis, step_size=0.01),
    "langevin": partial(langevin, step_size=1e-4),
    "kinetic_langevin": partial(kinetic_langevin, step_size=1e-2),
    "mala": partial(mala, step_size=1e-4),
    "hmc": partial(hmc, step_size=0.01, steps=3),
    "hmc, tuned and whitened": tuned,
    "elliptical_slice": elliptical_slice,
    "gibbs": lambda target: gibbs(target, *(Group((site,), partial(mala, step_size=1e-4)) for site in target.sites)),
    "parallel_tempering": tempered,
}
FAMILIES: dict[str, Callable[[Graph, Tensor, Mixture], nn.Module]] = {
    "encoder": encoder,
    "semi_amortised": lambda whole, x, model: guides.semi_amortised(whole, encoder(whole, x, model), x),
    "mean_field": lambda whole, x, _: guides.mean_field(whole, x),
    "per_frame": lambda whole, x, _: guides.per_frame(whole, x),
    "low_rank": lambda whole, x, _: guides.low_rank(whole, x),
    "flow": lambda whole, x, _: guides.flow(whole, x),
}


def tables() -> dict[str, dict[str, Run]]:
    """The runs by name, under the title of their table."""
    made: dict[str, dict[str, Run]] = {"EM, where parameters are fitted, and full Bayes": {make.__name__: partial(em, make) for make in methods.ALL}}
    for bayesian, title in ((False, "parameters fixed"), (True, "parameters with priors (`weak_priors`)")):
        samplers: dict[str, Run] = {name: partial(kernel, make, bayesian) for name, make in KERNELS.items()}
        made[f"Kernels: {title}"] = samplers | {"nuts": partial(no_u_turn, bayesian)}
        made[f"SVI by the guides: {title}"] = {name: partial(guide, family, bayesian) for name, family in FAMILIES.items()}
    return made


def cell(model: Callable[[], Mixture], run: Run) -> str | None:
    """None when the method works on the model, or the reason for which it is refused. Not random.

    Raises:
        AssertionError: when the contract is broken.
    """
    with poutine.seed(rng_seed=0):
        x = torch.randn(T, F, dtype=torch.complex128)
        try:
            run(model(), x)
        except ValueError as reason:
            return str(reason)
    return None


INTRODUCTION = """# What runs on what

`python benchmarks/matrix.py --out docs/matrix.md`

Every source model under every inference method. Yes: it works and keeps its contract (all latents are drawn, finite, of the right
shapes; chains move; after EM, estimates of the sources add up to the recording). No: it is refused, for the reason of that number, below. A speech
model is in `StationaryNoise`, a noise model under `VAESpeech`. A test makes this page anew and compares."""


def page() -> str:
    """The matrix in Markdown.

    Raises:
        AssertionError: when a method neither works on a model nor is refused with a reason.
    """
    lines, reasons = [INTRODUCTION], dict[str, int]()
    for title, runs in tables().items():
        lines += [f"\n## {title}\n", f"| | {' | '.join(runs)} |", f"|{'---|' * (len(runs) + 1)}"]
        for source, model in MODELS.items():
            row = [source]
            for name, run in runs.items():
                try:
                    reason = cell(model, run)
                except Exception as error:
                    raise AssertionError(f"{source} under {name} ({title}): {type(error).__name__}: {error}") from error
                row.append("yes" if reason is None else f"no ({reasons.setdefault(reason, len(reasons) + 1)})")
            lines.append(f"| {' | '.join(row)} |")
    lines += ["\n## Reasons\n", "The errors as they are raised.\n", *(f"{number}. {reason}" for reason, number in reasons.items())]
    return "\n".join(lines)


def main() -> None:
    """Print the matrix, and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="also write it to this file")
    args = parser.parse_args()
    text = page()
    print(text)
    if args.out:
        audio.write_text(args.out, text + "\n")


if __name__ == "__main__":
    main()
