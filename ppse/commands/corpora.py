"""Commands for corpora: mixing one, scoring what was made of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import audio, evaluation, mixing, pairing, provenance, weights
from ..console import bar, check_keeps, complain, complain_left_out, progress_bars, say


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
    kept = [path for path in (manifest, timing, card) if path] + [path for item in items for path in (item.clean, item.noisy, item.enhanced)]
    check_keeps(json_out, [*kept, *([csv_out] if csv_out else [])], "--json")
    check_keeps(csv_out, kept, "--csv")
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
