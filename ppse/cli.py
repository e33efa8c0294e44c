"""The command line: thin wrappers around the library, with progress, clear messages and exit codes.

Exit codes: 0 all done; 1 some file failed, or an error that the message explains; 2 wrong usage; 3 a run that cannot be relied
on ('ppse diagnose'); 130 interrupted.
"""

from __future__ import annotations

import json
import sys
from io import BufferedReader
from pathlib import Path
from typing import Annotated, cast

import typer

from . import __version__, audio, batch, choices, evaluation, mixing, pairing, pcm, plots, provenance, recipe, sampling, training, weights
from . import demo as demonstration
from . import import_dvae as importer
from .console import INTERRUPTED, Commands, bar, complain, complain_left_out, progress_bars, say
from .convergence import convergence
from .diagnostic_plots import write_figures
from .diagnostics import verdict
from .enhance import RANK, SPACING
from .models import VAESpeech
from .runs import load_run
from .streaming import Stream
from .workers import workers

app = typer.Typer(
    cls=Commands, no_args_is_help=True, rich_markup_mode="markdown", pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Speech enhancement by inverting generative models: a prior of clean speech, a model of noise, and posterior inference. "
    "No recorded noise is needed to train it.",
)


def main() -> None:
    """Run the command line."""
    app(prog_name="ppse")  # completion and help go by this name, however the program was started


def _version(show: bool) -> None:
    if show:
        print(f"ppse {__version__}")
        raise typer.Exit


@app.callback()
def _root(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False) -> None:
    pass


@app.command()
def enhance(
    inputs: Annotated[list[str], typer.Argument(help="Files, folders or quoted patterns (wav, flac, ogg, mp3).", metavar="IN…")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Output folder; or a file, for one input file.")],
    method: Annotated[str, typer.Option(help=", ".join(choices.METHODS) + ".")] = "default",
    prior: Annotated[str, typer.Option(help="Speech prior: a shipped name, or a weights file of 'ppse train'.")] = "vae",
    noise: Annotated[str, typer.Option(help="Noise model: nmf, or stationary.")] = "nmf",
    rank: Annotated[int | None, typer.Option(min=1, help=f"Patterns of the NMF noise; {RANK} unless given.")] = None,
    spacing: Annotated[int | None, typer.Option(min=1, help=f"Frames between knots of its activations, 1 for none; {SPACING} unless given.")] = None,
    chains: Annotated[int | None, typer.Option(min=1, help="Chains side by side; the choice of the method unless given.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same result.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …")] = "cpu",
    batch_size: Annotated[int, typer.Option("--batch", min=1, help="Recordings of similar length to infer side by side.")] = 1,
    keep_noise: Annotated[bool, typer.Option("--keep-noise", help="Also write NAME.noise.wav (32-bit float).")] = False,
    std: Annotated[bool, typer.Option("--std", help="Also write the posterior standard deviation, NAME.std.npz.")] = False,
    plot: Annotated[bool, typer.Option("--plot", help="Also write a figure, NAME.png.")] = False,
    draws: Annotated[int, typer.Option(min=0, help="Also write so many draws from the posterior of the speech, NAME.draw1.wav, …")] = 0,
    save_run: Annotated[str, typer.Option(metavar="RUN.nc", help="Also write the draws of the latents, for 'ppse diagnose'; 'auto': NAME.nc.")] = "",
    results: Annotated[Path | None, typer.Option("--json", help="Write what became of every file.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Redo what exists already.")] = False,
) -> None:
    """Clean noisy recordings.

    Examples: `ppse enhance noisy.wav -o clean.wav`, `ppse enhance recordings/ "more/**/*.flac" -o clean/ --method fast`.

    Rate, length, level and file type stay; each channel is enhanced on its own. What is there already is skipped, so
    an interrupted run goes on where it was.

    `--batch 16` saves time on a graphics processor, or with a prior with memory. What a recording comes out as then depends on the
    others by its random numbers.
    """
    chosen = choices.method(method, chains)
    choices.check_device(device)
    if results:
        audio.check_writable(results)
    model = choices.model(prior, noise, rank, spacing)
    if save_run not in ("", "auto") and Path(save_run).suffix != ".nc":
        raise typer.BadParameter(f"'{save_run}' should end in .nc, or be 'auto' for a file beside every output", param_hint="--save-run")
    extras = batch.Extras(keep_noise, std, plot, draws, bool(save_run))
    tasks, outcomes = batch.plan(inputs, out, extras)
    if save_run not in ("", "auto"):
        extras = extras._replace(run_file=Path(save_run))
    if extras.run_file and len(tasks) > 1:
        raise typer.BadParameter(f"'{save_run}' is one file for {len(tasks)} recordings; use --save-run auto", param_hint="--save-run")
    for outcome in outcomes:
        complain(outcome.message)
    with progress_bars() as progress:
        files, now = progress.add_task("0 files done", total=len(tasks)), progress.add_task("", total=1.0)
        results_of_files = batch.enhance_files(
            tasks, model, chosen, seed=seed, device=device, overwrite=overwrite, extras=extras, size=batch_size,
            report=lambda file, done: progress.update(now, completed=done, description=file.name),
        )
        try:
            for outcome in results_of_files:
                outcomes.append(outcome)
                progress.update(files, advance=1, description=f"{len(outcomes)} files done")
                complain(outcome.message)
        except KeyboardInterrupt:
            complain(INTERRUPTED)
    outcomes += batch.left(tasks, outcomes)
    settings = {"method": method, "prior": prior, "noise": noise, "chains": chains, "seed": seed, "device": device, "batch": batch_size}
    settings |= {"rank": rank or RANK, "spacing": spacing or SPACING} if noise == "nmf" else {}
    summary = batch.summary(outcomes, settings | {"command": provenance.command(), "versions": provenance.versions(*evaluation.PACKAGES)})
    if results:
        audio.write_text(results, json.dumps(summary, indent=1))
    say(batch.sentence(summary))
    if summary["left"] or summary["failed"]:
        raise typer.Exit(130 if summary["left"] else 1)


@app.command()
def stream(
    prior: Annotated[str, typer.Option(help="Speech prior: a shipped name, or a weights file; frames independent, or a causal RVAE.")] = "vae",
    noise: Annotated[str, typer.Option(help="Noise model: nmf, or stationary.")] = "nmf",
    rank: Annotated[int | None, typer.Option(min=1, help=f"Patterns of the NMF noise; {RANK} unless given.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same result.")] = 0,
) -> None:
    """Clean a recording while it is being made: raw samples from standard input to standard output.

    Example: `arecord -t raw -f S16_LE -r 16000 -c 1 | ppse stream | aplay -t raw -f S16_LE -r 16000 -c 1`

    Samples are signed 16-bit, little-endian, one channel, 16 kHz. They come out 128 ms later: 64 ms of the STFT window and
    64 ms of look-ahead.
    """
    if sys.stdin.isatty():
        raise typer.BadParameter("nothing is piped in; write: … | ppse stream | …")
    enhancer = Stream(choices.model(prior, noise, rank, 1 if noise == "nmf" else None), seed=seed)
    count = pcm.pipe(enhancer, cast(BufferedReader, sys.stdin.buffer), sys.stdout.buffer)
    complain(f"{count / enhancer.sample_rate:.1f} s done, {1e3 * enhancer.latency:.0f} ms behind")


@app.command()
def train(
    inputs: Annotated[list[str], typer.Argument(help="Folders of clean speech, two speakers or more.", metavar="SPEECH…")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Weights file, NAME.safetensors.")],
    epochs: Annotated[int, typer.Option(min=1, help="Of the VAE, at most.")] = recipe.Recipe.epochs,
    noisy_epochs: Annotated[int, typer.Option(min=1, help="Of the encoder for noisy speech, at most.")] = recipe.Recipe.noisy_epochs,
    noisy_encoder: Annotated[bool, typer.Option(help="Whether to train an encoder for noisy speech.")] = True,
    latent: Annotated[int, typer.Option(min=1, help="Size of the latent vector of a frame.")] = recipe.Recipe.latent,
    hidden: Annotated[list[int], typer.Option(min=1, help="Size of a hidden layer; repeat for more.")] = list(recipe.Recipe.hidden),  # noqa: B006  (typer copies it)
    context: Annotated[int, typer.Option(min=1, help="Size of the recurrent layers of the noisy encoder.")] = recipe.Recipe.context,
    patience: Annotated[int, typer.Option(min=1, help="Stop after so many epochs that get no better; never with fewer.")] = recipe.Recipe.patience,
    validation: Annotated[float, typer.Option(min=0.001, max=0.5, help="Fraction of the data held out, by speaker.")] = recipe.Recipe.validation,
    seed: Annotated[int, typer.Option(min=0, help="Same seed and data, same weights.")] = 0,
    data_note: Annotated[str, typer.Option(help="What the data are, for the model card.")] = "",
    licence: Annotated[str, typer.Option(help="Licence of the data, for the model card.")] = "",
) -> None:
    """Train a speech prior on clean speech.

    Example: `ppse train LibriSpeech/train-clean-100 -o prior.safetensors --licence "CC BY 4.0"`

    First the VAE, then its encoder for noisy speech on simulated noise. Who speaks is read off the file names up to the first
    '-' or '_', and without one off the folder, which suits LibriSpeech, VCTK and TIMIT. What cannot be used is told and left out. Loss
    curves appear beside the weights. An interrupted run goes on where it was.
    """
    _check_weights_name(out)
    settings = recipe.Recipe(latent, tuple(hidden), context if noisy_encoder else 0, epochs, noisy_epochs, patience, validation, seed)
    limits = {"vae": epochs, "noisy": noisy_epochs}
    with progress_bars() as progress:
        bars = {stage: bar(progress, stage) for stage in limits}

        def report(stage: str, log: list[training.Epoch]) -> None:
            bars[stage](len(log), limits[stage])
            say(f"{stage} {len(log)}/{limits[stage]}: {log[-1].sentence}")
            plots.plot_training(log, out.with_suffix(f".{stage}.png"))

        recipe.train_prior(
            inputs, out, settings, note=data_note, licence=licence, report=report, reading=bar(progress, "read"),
            left_out=lambda reason: complain_left_out([reason]),
        )
    say(f"wrote {out} (validation {weights.card(out)['validation_loss']:.1f}); use it: ppse enhance --prior {out} …")


@app.command()
def import_dvae(
    checkpoint: Annotated[Path, typer.Argument(help="A .pt file of tensors. Nothing in it is executed.", metavar="CHECKPOINT.pt")],
    config: Annotated[Path, typer.Argument(help="The config.ini that was published beside it.", metavar="CONFIG.ini")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Weights file, NAME.safetensors.")],
    licence: Annotated[str, typer.Option(help="Licence of the checkpoint, for the model card.")] = "",
) -> None:
    """Make a speech prior of a published checkpoint of the DVAE family.

    Example: `ppse import-dvae RVAE_final_epoch294.pt config.ini -o rvae.safetensors && ppse enhance noisy.wav -o clean.wav --prior rvae.safetensors`

    Every tensor is checked. What in the STFT of the training differs from the one here is told.
    """
    if out.suffix != ".safetensors":
        raise typer.BadParameter(f"'{out}' should end in .safetensors", param_hint="--out")
    audio.check_writable(out)
    model, card = importer.import_dvae(checkpoint, config)
    weights.write(model, out, card | {"licence": licence})
    for note in card["notes"]:
        complain(f"note: {note}")
    say(f"wrote {out} ({type(model).__name__}); use it: ppse enhance --prior {out} …")


@app.command()
def train_dvae(
    model: Annotated[str, typer.Argument(help=", ".join(choices.DYNAMICAL) + ".")],
    inputs: Annotated[list[str], typer.Argument(help="Folders of clean speech, two speakers or more.", metavar="SPEECH…")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Weights file, NAME.safetensors.")],
    around: Annotated[str, typer.Option(help=f"Put the memory around this VAE, a shipped name or a file ({', '.join(choices.AROUND)}).")] = "",
    latent: Annotated[int, typer.Option(min=1, help="Size of the latent vector of a frame; that of the VAE, with --around.")] = 32,
    hidden: Annotated[int, typer.Option(min=1, help="Size of the recurrent layers.")] = 128,
    epochs: Annotated[int, typer.Option(min=1, help="At most.")] = recipe.SequenceRecipe.epochs,
    learning_rate: Annotated[float, typer.Option(min=1e-6, help="At first.")] = recipe.SequenceRecipe.learning_rate,
    beta: Annotated[float, typer.Option(min=0.0, help="Weight of the KL divergence; 1 for the ELBO.")] = recipe.SequenceRecipe.beta,
    warm_up: Annotated[int, typer.Option(min=0, help="Epochs during which that weight rises.")] = recipe.SequenceRecipe.warm_up,
    mixed: Annotated[bool, typer.Option(help="Matrix products in bfloat16.")] = recipe.SequenceRecipe.mixed,
    batch: Annotated[int, typer.Option(min=1, help="Stretches of speech per step.")] = recipe.SequenceRecipe.batch,
    frames: Annotated[int, typer.Option(min=2, help="Frames per stretch.")] = recipe.SequenceRecipe.frames,
    patience: Annotated[int, typer.Option(min=1, help="Stop after so many epochs that get no better.")] = recipe.SequenceRecipe.patience,
    validation: Annotated[float, typer.Option(min=0.001, max=0.5, help="Fraction of the data held out, by speaker.")] = 0.05,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, data and number of devices, same weights.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    devices: Annotated[int, typer.Option(min=1, help="So many GPUs, or processes, side by side; needs ppse\\[train].")] = 1,
    data_note: Annotated[str, typer.Option(help="What the data are, for the model card.")] = "",
    licence: Annotated[str, typer.Option(help="Licence of the data, for the model card.")] = "",
) -> None:
    """Train a speech prior with memory over frames, a dynamical VAE.

    Example: `ppse train-dvae rvae LibriSpeech/train-clean-100 -o rvae.safetensors --licence "CC BY 4.0"`

    As `ppse train`: speakers are read off the file names, and an interrupted run goes on where it was. With little data or time,
    start from a trained VAE: `ppse train-dvae rvae --around vae …`.
    """
    _check_weights_name(out)
    if model not in choices.DYNAMICAL:
        raise typer.BadParameter(f"no dynamical VAE '{model}'; there are {', '.join(choices.DYNAMICAL)}", param_hint="MODEL")
    if around and model not in choices.AROUND:
        raise typer.BadParameter(f"there is nothing to put around a VAE in '{model}'; leave --around out", param_hint="--around")
    vae = VAESpeech.pretrained(around) if around else None
    choices.check_device(device)
    team = workers(devices, device)
    settings = recipe.SequenceRecipe(epochs, learning_rate, beta, warm_up, mixed, batch, frames, patience, validation, seed)
    with progress_bars() as progress:
        advance = bar(progress, model)

        def report(_: str, log: list[training.Epoch]) -> None:
            advance(len(log), epochs)
            say(f"{model} {len(log)}/{epochs}: {log[-1].sentence}")
            plots.plot_training(log, out.with_suffix(".png"))

        recipe.train_sequence_prior(
            lambda: choices.AROUND[model](vae, hidden) if vae else choices.DYNAMICAL[model](latent, hidden), inputs, out, settings,
            note=data_note, licence=licence, report=report, reading=bar(progress, "read"), left_out=lambda reason: complain_left_out([reason]),
            team=team,
        )
    if team.rank == 0:
        say(f"wrote {out} (validation {weights.card(out)['validation_loss']:.1f}); use it: ppse enhance --prior {out} …")


def _check_weights_name(out: Path) -> None:
    if out.suffix != ".safetensors":
        raise typer.BadParameter(f"'{out}' should end in .safetensors", param_hint="--out")


@app.command()
def mix(
    clean: Annotated[list[str], typer.Option("--clean", help="Clean speech: files or folders. May be repeated.")],
    noise: Annotated[list[str], typer.Option("--noise", help="Noise: files or folders. May be repeated.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the corpus.")],
    snr: Annotated[list[float], typer.Option("--snr", help="In dB; may be repeated.")] = [-5.0, 0.0, 5.0, 10.0],  # noqa: B006  (typer copies it)
    count: Annotated[int | None, typer.Option(min=1, help="Mixtures; as many as utterances unless given.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Same seed and files, same corpus.")] = 0,
) -> None:
    """Make a noisy corpus with a manifest.

    Example: `ppse mix --clean speech/ --noise noise/ --snr 0 --snr 5 -o corpus/`

    Mixtures that cannot be made are told and left out, and the exit code is 1.
    """
    problems: list[str] = []
    with progress_bars() as progress:
        manifest = mixing.mix(clean, noise, out, snr, count, seed, bar(progress, "mix"), problems.append)
    complain_left_out(problems)
    say(f"wrote {manifest}")
    if problems:
        complain(f"{len(problems)} mixtures left out")
        raise typer.Exit(1)


@app.command()
def evaluate(
    enhanced: Annotated[Path, typer.Argument(help="Folder of enhanced files.")],
    manifest: Annotated[Path | None, typer.Option(help="Manifest of 'ppse mix'.")] = None,
    clean: Annotated[Path | None, typer.Option(help="Folder of clean files of the same names, without a manifest.")] = None,
    noisy: Annotated[Path | None, typer.Option(help="Folder of noisy files of the same names, without a manifest.")] = None,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write all results, with versions.")] = None,
    csv_out: Annotated[Path | None, typer.Option("--csv", help="Write the scores per file.")] = None,
    card: Annotated[Path | None, typer.Option(help="Weights file that enhanced them: note the mean gains in its model card.")] = None,
    timing: Annotated[Path | None, typer.Option(help="What 'ppse enhance --json' wrote: puts its real-time factor into the results.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the confidence intervals.")] = 0,
) -> None:
    """Score enhanced files against clean references.

    Example: `ppse enhance corpus/noisy -o enhanced && ppse evaluate enhanced --manifest corpus/manifest.json`

    Prints the mean of the noisy input and the mean gain with its 95 % interval: over all, per SNR, per kind of noise.
    What cannot be paired or scored is told and left out, and the exit code is 1.
    """
    for path in filter(None, (json_out, csv_out, card)):
        audio.check_writable(path)
    if manifest:
        items, problems = pairing.items_from_manifest(manifest, enhanced)
    elif clean and noisy:
        items, problems = pairing.items_from_folders(clean, noisy, enhanced)
    else:
        raise typer.BadParameter("give --manifest, or both --clean and --noisy")
    factor = evaluation.timing(timing) if timing else None
    with progress_bars() as progress:
        scores, unscored = evaluation.evaluate(items, bar(progress, "score"))
    problems += unscored
    complain_left_out(problems)
    rows = evaluation.summarise(scores, seed)
    if scores:
        made_by = f"Intervals of seed {seed}; {provenance.sentence(*evaluation.PACKAGES)}. Command: {provenance.command()}"
        say(f"{evaluation.markdown(rows)}\n\n{made_by}")
    if json_out:
        audio.write_text(json_out, evaluation.to_json(scores, rows, seed, factor, problems))
    if csv_out:
        audio.write_text(csv_out, evaluation.to_csv(scores))
    if card and scores:
        weights.annotate(card, scores=evaluation.headline(rows))
    if problems or not scores:
        complain(f"{len(scores)} files scored, {len(problems)} left out")
        raise typer.Exit(1)


@app.command()
def diagnose(
    run: Annotated[Path, typer.Argument(help="NetCDF file of 'ppse enhance --save-run', or of ppse.runs.save_run.", metavar="RUN.nc")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for figures; none are drawn unless given.")] = None,
) -> None:
    """Say in plain words whether the draws of a run can be relied on, and draw why.

    Example: `ppse diagnose run.nc -o figures/`

    The exit code is 0 when they can, 3 when they cannot, and 1 when the file cannot be judged. Figures: traces, ranks and
    autocorrelations of the worst coordinates and of typical ones, pairs, energy, what every frame did under the
    spectrogram, and the power spectrum of replicated data.
    """
    if out:
        audio.check_writable(out / "frames.png")
    with progress_bars() as progress:
        progress.add_task("read", total=None)
        idata = load_run(run)
        progress.add_task("R-hat and effective sample sizes", total=None)
        found = convergence(idata)
        judged = verdict(idata, found)
    say(str(judged))
    if out:
        written, left_out = write_figures(idata, out, found)
        say(f"wrote {', '.join(path.name for path in written)} to {out}")
        complain_left_out(f"{name}.png ({reason})" for name, reason in left_out.items())
    if not judged.passed:
        raise typer.Exit(3)


@app.command()
def sample(
    out: Annotated[Path, typer.Option("--out", "-o", help="Audio file.")],
    prior: Annotated[str, typer.Option(help="A shipped name, or a weights file.")] = "vae",
    seconds: Annotated[float, typer.Option(min=0.1, max=600)] = 4.0,
    smoothness: Annotated[float, typer.Option(min=0.0, max=0.999, help="Correlation of neighbouring frames; 0 is the prior itself.")] = 0.9,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same sound.")] = 0,
) -> None:
    """Draw from the speech prior, and listen to what it knows.

    Example: `ppse sample -o sample.wav`

    The frames of this prior are independent, so no words are to be expected.
    """
    audio.check_type(out)
    audio.check_writable(out)
    audio.write(out, sampling.sample_speech(VAESpeech.pretrained(prior), seconds, seed, smoothness).numpy(), 16_000)
    say(f"wrote {out}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the results.")] = Path("demo_output"),
    recording: Annotated[Path | None, typer.Option("--input", help="Your own noisy recording instead of the bundled one.")] = None,
    method: Annotated[str, typer.Option(help="As for 'ppse enhance'.")] = "default",
    prior: Annotated[str, typer.Option(help="As for 'ppse enhance'.")] = "vae",
) -> None:
    """Enhance the bundled noisy recording (or yours); print scores, write waveforms and a figure."""
    chosen, model = choices.method(method, None), choices.model(prior, "nmf")
    with progress_bars() as progress:
        result, scores = demonstration.run(out, recording, model, chosen, bar(progress, "demo"))
    for name, values in scores.items():
        say(f"{name:>9}:  " + "  ".join(f"{metric} {value:.2f}" for metric, value in values.items()))
    say(f"real-time factor {result.real_time_factor:.2f}; wrote noisy.wav, enhanced.wav, noise.wav and enhanced.png to {out}")
