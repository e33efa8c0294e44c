"""The command line: thin wrappers around the library, with progress, clear messages and exit codes.

Exit codes: 0 all done; 1 some file failed, or an error that the message explains; 2 wrong usage; 130 interrupted.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from . import __version__, audio, batch, corpus, evaluation, methods, metrics, mixing, plots, sampling, training, weights
from .enhance import enhance as enhance_recording
from .mixture import Mixture
from .models import NMFNoise, StationaryNoise, VAESpeech
from .stft import STFT

app = typer.Typer(
    help="Speech enhancement by inverting generative models. No paired data, no training on your noise: a prior of clean speech, "
    "a model of noise, and posterior inference.",
    no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]}, pretty_exceptions_enable=False,
)
console, errors = Console(), Console(stderr=True)


def main() -> None:
    """Run the command line; a user's mistake ends in a message, not in a traceback."""
    try:
        app()
    except (audio.AudioError, weights.WeightsError, ValueError) as error:
        errors.print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        errors.print("interrupted: what is finished stays; run the same command again to go on", soft_wrap=True)
        sys.exit(130)


def _version(show: bool) -> None:
    if show:
        console.print(f"ppse {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _root(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False) -> None:
    pass


@app.command()
def enhance(
    inputs: Annotated[list[str], typer.Argument(help="Files, folders or patterns (wav, flac, ogg, mp3).", metavar="IN…")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Output folder; or a file, for one input file.")],
    method: Annotated[str, typer.Option(help="default, fast, mcem, ld_em, mala_em, vem, peem, hmc_em.")] = "default",
    prior: Annotated[str, typer.Option(help="Speech prior: a shipped name, or a weights file of 'ppse train'.")] = "vae",
    noise: Annotated[str, typer.Option(help="Noise model: nmf, or stationary.")] = "nmf",
    rank: Annotated[int, typer.Option(min=1, help="Patterns of the NMF noise.")] = 8,
    chains: Annotated[int | None, typer.Option(min=1, help="Chains side by side; the choice of the method unless given.")] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same result.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …")] = "cpu",
    keep_noise: Annotated[bool, typer.Option("--keep-noise", help="Also write NAME.noise.wav.")] = False,
    std: Annotated[bool, typer.Option("--std", help="Also write the posterior standard deviation, NAME.std.npz.")] = False,
    plot: Annotated[bool, typer.Option("--plot", help="Also write a figure, NAME.png.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Redo what exists already.")] = False,
) -> None:
    """Clean noisy recordings: ppse enhance noisy/ -o clean/

    Rate, length, level and file type stay. Files that are there already are skipped, so an interrupted run goes on
    where it was. Each channel is enhanced on its own.
    """
    tasks, failed = batch.plan(inputs, out)
    model = _model(prior, noise, rank)
    chosen = _method(method, chains)
    with _progress() as progress:
        bar = progress.add_task("enhance", total=len(tasks))
        names = {file: i for i, file in enumerate(tasks)}
        summary = batch.enhance_files(
            tasks, model, chosen, seed=seed, device=device, overwrite=overwrite, extras=batch.Extras(keep_noise, std, plot), failed=failed,
            report=lambda file, done: progress.update(bar, completed=names[file] + done, description=file.name),
        )
        progress.update(bar, completed=len(tasks), description="enhance")
    for reason in summary.failed.values():
        errors.print(f"[red]failed:[/red] {reason}", highlight=False, soft_wrap=True)
    speed = f", RTF {summary.seconds / summary.audio_seconds:.2f}" if summary.audio_seconds else ""
    console.print(f"{len(summary.done)} enhanced, {len(summary.skipped)} there already, {len(summary.failed)} failed{speed}", highlight=False)
    if summary.failed:
        raise typer.Exit(1)


@app.command()
def train(
    inputs: Annotated[list[str], typer.Argument(help="Folders of clean speech, one or more speakers each.", metavar="SPEECH…")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Weights file (.safetensors); the run resumes from what is beside it.")],
    epochs: Annotated[int, typer.Option(min=1, help="At most; stops early.")] = 24,
    noisy_epochs: Annotated[int, typer.Option(min=0, help="Of the encoder for noisy speech; 0 for none.")] = 14,
    latent: Annotated[int, typer.Option(min=1, help="Size of the latent vector of a frame.")] = 32,
    hidden: Annotated[int, typer.Option(min=1, help="Size of the hidden layer.")] = 512,
    context: Annotated[int, typer.Option(min=1, help="Size of the recurrent layers of the noisy encoder.")] = 192,
    patience: Annotated[int, typer.Option(min=1, help="Epochs without a better validation before stopping.")] = 99,
    validation: Annotated[float, typer.Option(min=0.001, max=0.5, help="Fraction of the data held out, by speaker.")] = 0.05,
    seed: Annotated[int, typer.Option()] = 0,
    data_note: Annotated[str, typer.Option(help="What the data are and their licence, for the model card.")] = "",
) -> None:
    """Train a speech prior on clean speech: ppse train speech/ -o prior.safetensors

    First the VAE, then its encoder for noisy speech on simulated noise. An interrupted run resumes.
    """
    files, held = corpus.split(audio.find(inputs), validation, seed)
    with _progress() as progress:
        bar = progress.add_task("read", total=len(files) + len(held))
        speech = corpus.Speech(files, STFT(), lambda done, _: progress.update(bar, completed=done))
        others = corpus.Speech(held, STFT(), lambda done, _: progress.update(bar, completed=len(files) + done))
    hours = [round(part.hours, 3) for part in (speech, others)]
    console.print(f"{hours[0]} h for training, {hours[1]} h of other speakers for validation", highlight=False)
    card: dict[str, object] = {
        "data": [Path(i).name for i in inputs], "data_note": data_note, "hours": hours, "noise": "simulated (ppse.simulate), none recorded",
        "versions": {"ppse": __version__, "torch": torch.__version__},
    }
    torch.manual_seed(seed)
    vae = VAESpeech(n_latent=latent, hidden=(hidden,), context=context if noisy_epochs else 0)

    def show(stage: str) -> Callable[[training.Epoch, list[training.Epoch]], None]:
        def report(epoch: training.Epoch, log: list[training.Epoch]) -> None:
            console.print(f"{stage} {epoch.epoch + 1}: training {epoch.training:.1f}, validation {epoch.validation:.1f} nats/frame "
                          f"({epoch.seconds:.0f} s)", highlight=False)
            plots.plot_training([tuple(row) for row in log], out.with_suffix(f".{stage}.png"))
        return report

    first = out.with_suffix(".vae.safetensors") if noisy_epochs else out
    schedule = training.Schedule(epochs, final_learning_rate=2e-5, patience=patience, seed=seed)
    if first.exists() and not first.with_suffix(".resume").exists():
        vae.load_state_dict(weights.read(first)[0])
    else:
        training.train(vae, speech, others, first, schedule, card=card, report=show("vae"))
    if noisy_epochs:
        training.train_noisy_encoder(vae, speech, others, out, schedule._replace(epochs=noisy_epochs), card=card, report=show("noisy"))
    console.print(f"wrote {out}; use it with: ppse enhance --prior {out} …", highlight=False)


@app.command()
def mix(
    clean: Annotated[list[str], typer.Option("--clean", help="Clean speech: files or folders. May be repeated.")],
    noise: Annotated[list[str], typer.Option("--noise", help="Noise: files or folders. May be repeated.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the corpus.")],
    snr: Annotated[list[float], typer.Option("--snr", help="In dB; may be repeated.")] = [-5.0, 0.0, 5.0, 10.0],  # noqa: B006  (typer copies it)
    count: Annotated[int | None, typer.Option(min=1, help="Mixtures; as many as utterances unless given.")] = None,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Make a noisy corpus with a manifest: ppse mix --clean speech/ --noise noise/ -o corpus/"""
    with _progress() as progress:
        bar = progress.add_task("mix", total=None)
        manifest = mixing.mix(clean, noise, out, snr, count, seed, report=lambda done, total: progress.update(bar, completed=done, total=total))
    console.print(f"wrote {manifest}", highlight=False)


@app.command()
def evaluate(
    enhanced: Annotated[Path, typer.Argument(help="Folder of enhanced files.")],
    manifest: Annotated[Path | None, typer.Option(help="Manifest of 'ppse mix'.")] = None,
    clean: Annotated[Path | None, typer.Option(help="Folder of clean files of the same names, without a manifest.")] = None,
    noisy: Annotated[Path | None, typer.Option(help="Folder of noisy files of the same names, without a manifest.")] = None,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write all results, with versions.")] = None,
    csv_out: Annotated[Path | None, typer.Option("--csv", help="Write the scores per file.")] = None,
    seed: Annotated[int, typer.Option(help="Of the confidence intervals.")] = 0,
) -> None:
    """Score enhanced files: ppse evaluate enhanced/ --manifest corpus/manifest.json

    Prints the mean of the noisy input and the mean gain with its 95 % interval, over all, per SNR and kind of noise.
    """
    if manifest:
        items = evaluation.items_from_manifest(manifest, enhanced)
    elif clean and noisy:
        items = evaluation.items_from_folders(clean, noisy, enhanced)
    else:
        raise typer.BadParameter("give --manifest, or both --clean and --noisy")
    with _progress() as progress:
        bar = progress.add_task("score", total=len(items))
        scores = evaluation.evaluate(items, lambda done, _: progress.update(bar, completed=done))
    rows = evaluation.summarise(scores, seed)
    print(evaluation.markdown(rows))
    if json_out:
        audio.write_text(json_out, evaluation.to_json(scores, rows, seed))
    if csv_out:
        audio.write_text(csv_out, evaluation.to_csv(scores))


@app.command()
def sample(
    out: Annotated[Path, typer.Option("--out", "-o", help="Audio file.")],
    prior: Annotated[str, typer.Option(help="A shipped name, or a weights file.")] = "vae",
    seconds: Annotated[float, typer.Option(min=0.1, max=600)] = 4.0,
    smoothness: Annotated[float, typer.Option(min=0.0, max=0.999, help="0 is the prior: independent frames.")] = 0.9,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Draw speech from the prior and listen: ppse sample -o sample.wav"""
    audio.write(out, sampling.sample_speech(VAESpeech.pretrained(prior), seconds, seed, smoothness).numpy(), 16_000)
    console.print(f"wrote {out}", highlight=False)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the results.")] = Path("demo_output"),
    recording: Annotated[Path | None, typer.Option("--input", help="Your own noisy recording instead of the bundled one.")] = None,
    method: Annotated[str, typer.Option(help="As for 'ppse enhance'.")] = "default",
) -> None:
    """Enhance the bundled noisy recording (or yours); print scores, write waveforms and a figure."""
    bundled = Path(__file__).parent / "data"
    source = recording or bundled / "demo_noisy.flac"
    with _progress() as progress:
        bar = progress.add_task(source.name, total=1.0)
        result = enhance_recording(source, method=_method(method, None), report=lambda done: progress.update(bar, completed=done))
    audio.write(out / "noisy.wav", result.noisy, result.sample_rate)
    result.save(out / "enhanced.wav")
    result.save(out / "noise.wav", "noise")
    result.plot(out / "enhanced.png")
    scores: dict[str, dict[str, float]] = {}
    if recording is None:
        reference = audio.read_mono(bundled / "demo_clean.flac")
        for name, wave in (("noisy", result.noisy[0]), ("enhanced", result.estimates["speech"][0])):
            scores[name] = metrics.score(reference, wave)
            console.print(f"{name:>9}:  " + "  ".join(f"{metric} {value:.2f}" for metric, value in scores[name].items()), highlight=False)
        audio.write_text(out / "scores.json", json.dumps(scores, indent=1))
    console.print(f"real-time factor {result.real_time_factor:.2f}; wrote noisy.wav, enhanced.wav, noise.wav, enhanced.png to {out}", highlight=False)


def _model(prior: str, noise: str, rank: int) -> Mixture:
    if noise not in ("nmf", "stationary"):
        raise typer.BadParameter(f"noise model '{noise}': there are nmf and stationary", param_hint="--noise")
    return Mixture(speech=VAESpeech.pretrained(prior), noise=NMFNoise(rank) if noise == "nmf" else StationaryNoise())


def _method(name: str, chains: int | None) -> methods.Method:
    makers = {m.__name__: m for m in methods.ALL}
    if name not in makers:
        raise typer.BadParameter(f"method '{name}': there are {', '.join(makers)}", param_hint="--method")
    try:
        return makers[name](**({} if chains is None else {"chains": chains}))
    except TypeError:
        raise typer.BadParameter(f"method '{name}' has no chains", param_hint="--chains") from None


@contextmanager
def _progress() -> Iterator[Progress]:
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    with Progress(*columns, console=errors, transient=True) as progress:
        yield progress
