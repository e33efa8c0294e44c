# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Tutorial: enhancement as inference
#
# You know Pyro. Then all of `ppse` is one idea: a **source** is a piece of Pyro that declares its latent variables and returns the law of
# its short-time Fourier transform (STFT), a complex normal law in every bin. Laws of independent sources add. The sum is observed once,
# and whatever you would like to know is a question to the posterior.
#
# This page goes once around: declare, enhance, be Bayesian, sample, doubt, compare, listen. It is made by `make docs` from
# [tutorial.py](tutorial.py); all numbers and figures are what the code printed and drew.

# %%
import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import torch
from matplotlib.figure import Figure

import ppse
from ppse import audio, demo, methods, metrics
from ppse.models import NMFNoise, StationaryNoise, VAESpeech

CHAINS, WARMUP, DRAWS, ITERATIONS = 4, 300, 1500, 60
pyro.set_rng_seed(0)

# %% [markdown]
# ## A mixture
#
# The bundled recording is six seconds of synthesised speech at 3 dB SNR. We have the clean speech too, to keep score. Spectrograms are
# (frames, frequencies); priors know recordings of unit level.

# %%
noisy, clean = (torch.from_numpy(audio.read_mono(file)) for file in (demo.NOISY, demo.CLEAN))
stft = ppse.STFT()
x = stft.analysis(noisy)
scale = ppse.stft.level(x).sqrt()
x = x / scale

speech = VAESpeech.pretrained()                               # z_t ~ N(0, I), s_t | z_t ~ CN(0, exp decoder(z_t)), learnt from clean speech
model = ppse.Mixture(speech=speech, noise=StationaryNoise())  # noise of one spectrum, a parameter of the recording
model.start(x)                                                # makes the parameters that have the size of a recording
print(poutine.trace(model).get_trace(x).format_shapes())

# %% [markdown]
# That is the graph: one latent vector `speech.z` in every frame, one parameter, one observed site, and one plate, `frames`. The complex
# clean speech is not a latent: given `z` it is normal, so it is integrated out, and its posterior given `x` and `z` is Wiener's filter.
#
# A noise model of your own is a function of that plate. Here, a hum that is switched on and off; `check_source` tells whether it keeps
# the contract.

# %%
from ppse.testing import check_source


def hum(frames):
    with frames:
        level = pyro.sample("level", dist.LogNormal(-2.0, 1.0)).unsqueeze(-1)  # (…, T, 1)
    return ppse.ComplexNormal(0j, level * (torch.arange(513) < 8) + 1e-4)      # (…, T, F)


check_source(hum, n_freqs=513)
with_hum = ppse.Mixture(speech=speech, hum=hum, rest=StationaryNoise())

# %% [markdown]
# ## Enhance
#
# `enhance` takes a file or samples, any mixture and any method. The default noise is NMF with slow activations; `methods.fast` is Monte
# Carlo EM: HMC on the codes, closed forms for the noise.

# %%
slow_noise = ppse.Mixture(speech=speech, noise=NMFNoise(rank=4, spacing=16))
for name, mixture in {"stationary noise": model, "with a hum": with_hum, "NMF noise": slow_noise}.items():
    result = ppse.enhance(demo.NOISY, mixture, methods.fast())
    print(f"{name}: SI-SDR {metrics.si_sdr(clean, noisy):.1f} dB -> {metrics.si_sdr(clean, result.estimates['speech'][0]):.1f} dB")

# %% [markdown]
# There is no hum in this recording, and a source that is not needed does no harm. The last result as a picture:

# %%
result.plot()

# %% [markdown]
# ## Be Bayesian
#
# EM found one value for each parameter of the noise. A prior makes it a latent variable instead, by its name in the graph; the model
# stays as it is. We take 0.4 s of the recording, so that this page is made in minutes.

# %%
short = x[125:150]
model.start(short)
bayesian = ppse.with_priors(model, {"noise.spectrum": dist.Gamma(1.0, 1.0)}, short)
print(poutine.trace(bayesian).get_trace(short).format_shapes())

# %% [markdown]
# ## Sample
#
# `log_density` turns the graph into a function of the unconstrained latents, with a dim for chains that run side by side. It also finds
# out what may be accepted on its own. With the spectrum fixed, frames are independent; all frames share a random one, so now there is one
# block for all of them:

# %%
from ppse.infer import BlockError, Group, gibbs, hmc, log_density, sample, tuned, whitened

target = log_density(bayesian, short, chains=CHAINS)
print("blocks of the model:", log_density(model, short).block, "and with priors:", target.block)
try:
    log_density(bayesian, short, chains=CHAINS, block=("frames",))
except BlockError as error:
    print("refused:", error)

# %% [markdown]
# Gibbs gives the small blocks back: given the spectrum, codes move frame by frame, each with a step size and a covariance of its own,
# learnt in the warm-up; then the spectrum moves given the codes. The encoder of the speech prior says where to start and how wide the
# posteriors may be.

# %%
from ppse.guides import starting_guide

codes = starting_guide(model).laws(short)["speech.z"]  # mean and standard deviation, (T, 32)


def group(site, width=1.0):
    return Group((site,), tuned(
        lambda conditional, step, factor: whitened(conditional, factor, lambda white: hmc(white, step, 10)),
        WARMUP, step_size=0.3, target_acceptance=0.9, scale={site: torch.as_tensor(width)}, dense=True,
    ))


kernel = gibbs(target, group("speech.z", codes[1].detach()), group("noise.spectrum"))
start = target.init({"speech.z": codes[0].detach(), "noise.spectrum": model.noise.spectrum.detach()}, jitter=0.1)
few = sample(target, kernel, start, DRAWS // 10, warmup=WARMUP)
print(ppse.verdict(ppse.to_arviz(few, bayesian, short, stft=stft)))

# %% [markdown]
# ## Doubt
#
# The verdict reads R-hat, effective sample sizes, acceptance, energies and divergences, and says what to do. We run longer, from where
# the chains stand:

# %%
draws = sample(target, kernel, few.state, DRAWS)
run = ppse.to_arviz(draws, bayesian, short, stft=stft, predictive=100)
print(ppse.verdict(run))

# %% [markdown]
# This is strict. A mean, such as the enhanced sound, needs far fewer effective draws than the ends of an interval; but a verdict that
# fails names the frames in which an interval would be a guess, and of a divergent step it says so, however rare.
#
# Which frames are hard, and could the model have made these data? (`ppse diagnose RUN.nc` writes all figures of a run;
# `ppse.runs.save_run` the file.)

# %%
from ppse.convergence import convergence
from ppse.frame_plots import plot_frames, plot_predictive

plot_frames(run, convergence(run))

# %%
plot_predictive(run)

# %% [markdown]
# And what was it all for: the spectrum of the noise with an interval, beside the power that the noise really had in these 25 frames.

# %%
spectrum = run.posterior["noise.spectrum"].values                                    # (chain, draw, F)
low, middle, high = np.quantile(spectrum, (0.05, 0.5, 0.95), axis=(0, 1))
truth = (stft.analysis(noisy - clean) / scale)[125:150].abs().square().numpy()       # (T, F)
figure = Figure(figsize=(9, 3), layout="constrained")
axes = figure.subplots()
axes.fill_between(stft.frequencies / 1000, *(10 * np.log10(v) for v in (low, high)), alpha=0.4, linewidth=0, label="90 % of the posterior")
axes.plot(stft.frequencies / 1000, 10 * np.log10(truth.mean(0)), "k", linewidth=0.6, label="power of the noise, mean of the frames")
axes.set(xlabel="frequency (kHz)", ylabel="power (dB)", xlim=(0, 8))
axes.legend(frameon=False)
figure

# %% [markdown]
# Where speech is weak the interval holds the truth. At the lowest frequencies it is too low: there the speech prior has explained noise.
#
# ## Compare noise models
#
# Before the first word there is half a second of noise. Leave-one-out cross-validation asks how well a model predicts each frame of it
# from the others, and so charges for every needless parameter. ([choose_noise_model.py](../examples/choose_noise_model.py) does it where
# the truth is known.)

# %%
from ppse.infer import warm_up
from ppse.priors import parameters_of, weak_priors

coarse = ppse.STFT(n_fft=128, hop=64)
silence = coarse.analysis(noisy[:8000])
silence = silence / ppse.stft.level(silence).sqrt()


def posterior_of(noise):
    alone = ppse.Mixture(noise=noise)
    alone.start(silence)
    for _ in range(100):
        alone.update(silence, alone(silence))  # closed-form steps towards maximum likelihood, where the chains start
    lifted = ppse.with_priors(alone, weak_priors(alone, silence), silence)
    density = log_density(lifted, silence, chains=CHAINS)
    found = warm_up(
        density, lambda step, width: hmc(density, step, 8, width), density.init(parameters_of(alone, silence), jitter=0.02), WARMUP,
        step_size=0.05, target_acceptance=0.8,
    )
    kept = sample(density, hmc(density, found.step_size, 8, found.scale), found.state, DRAWS // 5)
    return ppse.to_arviz(kept, lifted, silence, stft=coarse)


noises = {"stationary": StationaryNoise(), "NMF, rank 1": NMFNoise(1, spacing=32), "NMF, rank 2": NMFNoise(2, spacing=32)}
runs = {name: posterior_of(noise) for name, noise in noises.items()}
print(az.compare(runs, ic="loo")[["elpd_loo", "p_loo", "elpd_diff", "dse", "warning"]].round(1).to_string())

# %% [markdown]
# Noise whose level moves, and no second pattern: it is a fan in gusts. A `warning` is a Pareto k-hat that is too large for a frame or
# two, so that a difference of a few nats should not be trusted, while one of a hundred may.
#
# ## Listen
#
# A posterior of speech is something to listen to: each draw is speech that the recording allows. Where the draws disagree, the estimate
# is a guess.

# %%
heard = ppse.enhance(demo.NOISY, slow_noise, methods.hmc_em(ITERATIONS), draws=20)
for i, wave in enumerate(heard.draws["speech"][:3]):
    audio.write(f"draw{i}.wav", wave, heard.sample_rate)

estimate, deviation = heard.estimates["speech"][0], heard.deviation()[0]
inside = slice(32_000, 32_600)
time = np.arange(len(clean))[inside] / heard.sample_rate
figure = Figure(figsize=(9, 3), layout="constrained")
axes = figure.subplots()
axes.fill_between(time, *((estimate + k * deviation)[inside] for k in (-2, 2)), alpha=0.35, linewidth=0, label="two deviations of the posterior")
axes.plot(time, estimate[inside], linewidth=1, label="estimate")
axes.plot(time, clean[inside], "k", linewidth=0.7, label="clean")
axes.set(xlabel="time (s)", xlim=(time[0], time[-1]))
figure.legend(loc="outside upper center", frameon=False, ncols=3)
print(f"within two deviations: {np.mean(np.abs(clean.numpy() - estimate) < 2 * deviation):.0%} of the samples")
figure

# %% [markdown]
# ## Where it goes wrong
#
# * **A wrong block.** Accepting frame by frame where frames depend on one another gives plausible, wrong draws. It is refused, as above.
# * **Trading places.** The likelihood knows `W` and `H` of NMF only up to a factor between them, and patterns only up to their order.
#   Their R-hats fall slowly, if at all; judge their product, as [full_bayes.py](../examples/full_bayes.py) does.
# * **LOO of a latent of one frame.** Leave the frame out and its code is unknown: with speech in the model the Pareto k-hats say that LOO
#   is no estimate. Compare noise models on noise, or by held-out speech.
# * **A posterior that is too sure.** Chains that agree say that the posterior was found, not that the model is right: frames of real
#   speech are not independent given the model, and real noise is not NMF. Of a calibrated posterior, about 95 % of the samples would lie
#   within two deviations: the share above is the check to make.
# * **A prior that is too kind.** The speech prior has independent frames and will explain noise as speech if it may. `default` and `fast`
#   sample a posterior at temperature 2.5, since that measured better; `hmc_em`, used for the draws, samples the posterior itself.
#
# How to say more on the graph: [recipes](recipes.md). Scripts to start from: [examples](../examples/README.md).
