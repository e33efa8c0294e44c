"""Commands that enhance: files, a stream, the bundled recording."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import Annotated, cast

import typer

from .. import audio, batch, choices, evaluation, pcm, provenance, weights
from .. import demo as demonstration
from ..console import INTERRUPTED, bar, check_keeps, complain, progress_bars, say
from ..enhance import RANK, SPACING
from ..given import Given, labels_of
from ..labels import named
from ..models import AVVAESpeech
from ..models.dynamical import DynamicalVAE
from ..streaming import Stream
from ..watched import lips_of, watching


def enhance(
    inputs: Annotated[list[str], typer.Argument(help="Files, folders or quoted patterns (wav, flac, ogg, mp3; video mp4, mov, mpg).", metavar="IN…")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Output folder; or a file, for one input file.")],
    method: Annotated[str, typer.Option(help=", ".join(choices.METHODS) + ".")] = "default",
    prior: Annotated[str, typer.Option(help="Speech prior: a shipped name, or a weights file of 'ppse train'.")] = "vae",
    noise: Annotated[str, typer.Option(help="Noise model: " + ", ".join(choices.NOISES) + "; or several, averaged: nmf+heard+bands.")] = "nmf",
    rank: Annotated[int | None, typer.Option(min=1, help=f"Patterns of the NMF noise; {RANK} unless given.")] = None,
    spacing: Annotated[int | None, typer.Option(min=1, help=f"Frames between knots of its activations, 1 for none; {SPACING} unless given.")] = None,
    chains: Annotated[int | None, typer.Option(min=1, help="Chains side by side; the choice of the method unless given.")] = None,
    iterations: Annotated[
        int | None, typer.Option(min=1, help="Of the method; default: 60, fast: 16 unless given. A prior with memory runs 8/15 and 1/3 of them.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same result.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …")] = "cpu",
    batch_size: Annotated[int, typer.Option("--batch", min=1, help="Recordings of similar length to infer side by side.")] = 1,
    keep_noise: Annotated[bool, typer.Option("--keep-noise", help="Also write NAME.noise.wav (32-bit float).")] = False,
    std: Annotated[bool, typer.Option("--std", help="Also write the posterior standard deviation, NAME.std.npz.")] = False,
    plot: Annotated[bool, typer.Option("--plot", help="Also write a figure, NAME.png.")] = False,
    draws: Annotated[int, typer.Option(min=0, help="Also write so many draws from the posterior of the speech, NAME.draw1.wav, …")] = 0,
    save_run: Annotated[str, typer.Option(metavar="RUN.nc", help="Also write the draws of the latents, for 'ppse diagnose'; 'auto': NAME.nc.")] = "",
    labels: Annotated[Path | None, typer.Option(help="Where there is only noise, or only speech: a file, or a folder of NAME.txt or .csv.")] = None,
    lips: Annotated[str, typer.Option(help="Prior that watches the lips in a video: a shipped name, or a file of 'ppse train av-vae'.")] = "",
    lips_offset: Annotated[float, typer.Option(help="Seconds by which the picture is late.")] = 0.0,
    results: Annotated[Path | None, typer.Option("--json", help="Write what became of every file.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Redo what exists already.")] = False,
) -> None:
    """Clean noisy recordings.

    Examples: `ppse enhance noisy.wav -o clean.wav`, `ppse enhance recordings/ "more/**/*.flac" -o clean/ --method fast`.

    Rate, length, level and file type stay; each channel is enhanced on its own. What is there already is skipped, so
    an interrupted run goes on where it was.

    `--batch 16` saves time on a graphics processor, or with a prior with memory. What a recording comes out as then depends on the
    others by its random numbers.

    `--labels` takes a label track of Audacity, or CSV of start and end in seconds; a label says "noise" (or nothing), or "clean".

    Videos keep their pictures: `ppse enhance talk.mp4 -o better.mp4`; -o better.wav writes the sound alone. With `--lips` the speech
    switches between `--prior` and one that watches the lips of the video, or of crops in a video of the same name beside the sound.
    Where no mouth is seen, or without video, only the sound counts.
    """
    chosen = choices.method(method, chains, iterations)
    choices.check_device(device)
    if results:
        audio.check_writable(results)
    if not lips and weights.held(prior) == AVVAESpeech.__name__:
        lips, prior = prior, "vae"
        complain(f"note: {lips} watches lips; what is heard alone follows the prior '{prior}'. To choose both: --prior … --lips {lips}")
    models, noises = choices.models(prior, noise, rank, spacing), noise.split("+")
    if save_run not in ("", "auto") and Path(save_run).suffix != ".nc":
        raise typer.BadParameter(f"'{save_run}' should end in .nc, or be 'auto' for a file beside every output", param_hint="--save-run")
    if save_run and len(models) > 1:
        raise typer.BadParameter(f"'{noise}' is {len(models)} models, which have a run each; name one of them", param_hint="--save-run")
    extras = batch.Extras(keep_noise, std, plot, draws, bool(save_run))
    tasks, outcomes = batch.plan(inputs, out, extras)
    if save_run not in ("", "auto"):
        extras = extras._replace(run_file=Path(save_run))
    kept = [path for file, output in tasks.items() for path in (file, *extras.files(output))]
    check_keeps(results, [*kept, *(Path(each) for each in (prior, lips, labels) if each)], "--json")
    if extras.run_file and len(tasks) > 1:
        raise typer.BadParameter(f"'{save_run}' is one file for {len(tasks)} recordings; use --save-run auto", param_hint="--save-run")
    if labels and not labels.is_dir() and len(tasks) > 1:
        raise typer.BadParameter(f"'{labels}' is one file for {len(tasks)} recordings; give a folder of label files", param_hint="--labels")
    if labels and labels.is_dir() and tasks and not named(labels) & {file.stem for file in tasks}:
        raise typer.BadParameter(f"no label file in '{labels}' has the name of a recording; expected NAME.txt or NAME.csv", param_hint="--labels")
    if lips and labels:
        raise typer.BadParameter("labels and lips of one recording cannot be combined; leave one of them out", param_hint="--lips")
    if lips and not choices.HEARD.isdisjoint(noises):
        raise typer.BadParameter("lips go with a prior as it is, not with one that is narrowed to what is heard; use nmf", param_hint="--noise")
    if lips and any(isinstance(module, DynamicalVAE) for model in models for module in model.modules()):
        raise typer.BadParameter(f"'{prior}' has memory; beside lips there has to be a prior of single frames, such as vae", param_hint="--prior")
    given: Callable[[Path], list[Given]] | None = (lambda file: labels_of(file, labels)) if labels else None
    if lips:
        chosen = watching(chosen)
        given = partial(lips_of, seeing=AVVAESpeech.pretrained(lips), offset=lips_offset, note=lambda text: complain(f"note: {text}"))
    for outcome in outcomes:
        complain(outcome.message)
    with progress_bars() as progress:
        files, now = progress.add_task("0 files done", total=len(tasks)), progress.add_task("", total=1.0)
        results_of_files = batch.enhance_files(
            tasks, models, chosen, seed=seed, device=device, overwrite=overwrite, extras=extras, size=batch_size,
            given=given,
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
    settings |= {"labels": str(labels)} if labels else {}
    settings |= {"lips": lips, "lips_offset": str(lips_offset)} if lips else {}
    settings |= {"rank": rank or RANK, "spacing": spacing or SPACING} if "nmf" in noises else {}
    summary = batch.summary(outcomes, settings | {"command": provenance.command(), "versions": provenance.versions(*evaluation.PACKAGES)})
    if results:
        audio.write_text(results, json.dumps(summary, indent=1))
    say(batch.sentence(summary))
    if summary["left"] or summary["failed"]:
        raise typer.Exit(130 if summary["left"] else 1)


def stream(
    prior: Annotated[str, typer.Option(help="Speech prior: a shipped name, or a weights file; frames independent, or a causal RVAE.")] = "vae",
    noise: Annotated[str, typer.Option(help="Noise model: nmf or stationary.")] = "nmf",
    rank: Annotated[int | None, typer.Option(min=1, help=f"Patterns of the NMF noise; {RANK} unless given.")] = None,
    ears: Annotated[
        str | None, typer.Option(help="ears_causal (heard recorded noise), vae (simulated noise alone), or a weights file; ears_causal unless given.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same result.")] = 0,
) -> None:
    """Clean a recording while it is being made: raw samples from standard input to standard output.

    Example: `arecord -t raw -f S16_LE -r 16000 -c 1 | ppse stream | aplay -t raw -f S16_LE -r 16000 -c 1`

    The ears that are shipped for streams have heard recorded noise; with `--ears vae` they have not.

    Samples are signed 16-bit, little-endian, one channel, 16 kHz. They come out 128 ms later: 64 ms of the STFT window and
    64 ms of look-ahead. Ctrl-C ends the recording: what was heard still comes out.
    """
    if sys.stdin is None or sys.stdin.isatty() or sys.stdout is None:
        raise typer.BadParameter("nothing is piped in, or out; write: … | ppse stream | …")
    model = choices.model(prior, noise, rank, 1 if noise == "nmf" else None)
    enhancer = Stream(model, seed=seed, ears=None if ears is None else choices.ears(ears))
    source = pcm.UntilInterrupted(cast(BufferedReader, sys.stdin.buffer))
    count = pcm.pipe(enhancer, source, sys.stdout.buffer)
    complain(f"{count / enhancer.sample_rate:.1f} s done, {1e3 * enhancer.latency:.0f} ms behind")
    if source.interrupted:
        raise typer.Exit(130)


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the results.")] = Path("demo_output"),
    recording: Annotated[Path | None, typer.Option("--input", help="Your own noisy recording instead of the bundled one.")] = None,
    method: Annotated[str, typer.Option(help="As for 'ppse enhance'.")] = "default",
    prior: Annotated[str, typer.Option(help="As for 'ppse enhance'.")] = "vae",
) -> None:
    """Enhance the bundled noisy recording (or yours); print scores, write waveforms and a figure."""
    chosen, model = choices.method(method), choices.model(prior, "nmf")
    with progress_bars() as progress:
        result, scores = demonstration.run(out, recording, model, chosen, bar(progress, "demo"))
    for name, values in scores.items():
        say(f"{name:>9}:  " + "  ".join(f"{metric} {value:.2f}" for metric, value in values.items()))
    say(f"real-time factor {result.real_time_factor:.2f}; wrote noisy.wav, enhanced.wav, noise.wav and enhanced.png to {out}")
