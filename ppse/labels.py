"""Labels of a recording, by hand or by a detector: where there is only noise, and where there is only speech."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

Kind = Literal["noise", "clean"]

TEXTS: dict[str, Kind] = {
    "": "noise", "noise": "noise", "noise only": "noise", "silence": "noise", "silent": "noise", "pause": "noise",
    "clean": "clean", "speech only": "clean",
}
"""What a label may say, in any case: that nobody speaks, which is also meant where it says nothing, or that there is no noise."""

SUFFIXES = (".txt", ".csv")
"""Of label files."""

SLACK = 0.05
"""Seconds by which a label may reach beyond the end of the recording; editors round."""


class LabelError(ValueError):
    """Labels cannot be used; the message says which, why, and what to do."""


class Label(NamedTuple):
    """A stretch of a recording, in seconds, in which there is only noise (``"noise"``), or only speech (``"clean"``)."""

    start: float
    end: float
    kind: Kind = "noise"


class Line(NamedTuple):
    """A line of a label track: where it is in the file, a stretch in seconds, and what is said of it, perhaps nothing."""

    number: int
    start: float
    end: float
    text: str


def read_labels(path: str | os.PathLike[str], seconds: float = math.inf) -> list[Label]:
    r"""The labels of a file (:func:`read_track`), in the order of time, for a recording of that many seconds. For their texts see :data:`TEXTS`.

    Raises:
        LabelError: as :func:`read_track`, when a text is none of these, or :func:`check_labels` refuses the labels; the message has the file.

    >>> from tempfile import NamedTemporaryFile
    >>> with NamedTemporaryFile("w", suffix=".txt") as file:
    ...     _ = file.write("0.0\t0.41\tnoise only\n1.2\t1.3\tclean\n"); file.flush()
    ...     read_labels(file.name)
    [Label(start=0.0, end=0.41, kind='noise'), Label(start=1.2, end=1.3, kind='clean')]
    """
    found = []
    for line in read_track(path):
        if line.text.lower() not in TEXTS:
            allowed = ", ".join(f"'{known}'" for known in TEXTS if known)
            raise LabelError(f"{path}, line {line.number}: the label says '{line.text}'; expected one of {allowed}, or nothing, which is 'noise'")
        found.append(Label(line.start, line.end, TEXTS[line.text.lower()]))
    try:
        return check_labels(found, seconds)
    except LabelError as error:
        raise LabelError(f"{path}: {error}") from None


def read_track(path: str | os.PathLike[str]) -> list[Line]:
    """The lines of a label file, in its order: one or more.

    Either as Audacity exports a label track (``start<TAB>end<TAB>text``), or CSV of start and end in seconds and, if there is a third
    column, the text; a first line of names, without a digit, is skipped.

    Raises:
        LabelError: when the file cannot be read or is empty, or a line is no label; the message has the line.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise LabelError(f"{path}: cannot be read ({error}); expected a text file of labels") from None
    track = "\t" in text  # Audacity quotes nothing
    reader = csv.reader(
        io.StringIO(text), delimiter="\t" if track else ",", quoting=csv.QUOTE_NONE if track else csv.QUOTE_MINIMAL, strict=True,
    )
    try:
        rows = [(reader.line_num, cells) for cells in reader]
    except csv.Error as error:
        raise LabelError(f"{path}: neither a label track nor CSV ({error}); is a quotation mark left open?") from None
    found = []
    lines = text.split("\n")
    for number, cells in rows:
        cells = [cell.strip() for cell in cells]
        if not any(cells) or (number == 1 and cells[0] != "\\" and not any(map(str.isdigit, "".join(cells)))):
            continue
        if cells[0] == "\\":  # Audacity: the frequencies of the label above, negative where there are none
            if any(_is_number(cell) and float(cell) > 0 for cell in cells[1:]):
                raise LabelError(f"{path}, line {number}: a label of some frequencies only; expected labels of all, so remove this line")
            continue
        if len(cells) < 2 or not _is_number(cells[0]) or not _is_number(cells[1]):
            raise LabelError(f"{path}, line {number}: '{lines[number - 1][:60]}'; expected start and end in seconds, such as 0.5, and a text if any")
        found.append(Line(number, float(cells[0]), float(cells[1]), cells[2] if len(cells) > 2 else ""))
    if not found:
        raise LabelError(f"{path}: no labels in it; expected lines of start and end in seconds, and a text if any")
    return found


def named(folder: Path) -> set[str]:
    """Names of the recordings that label files in a folder are of."""
    return {path.stem for path in folder.iterdir() if path.suffix in SUFFIXES}


def file_of_labels(recording: Path, folder: Path) -> Path | None:
    """The label file in a folder that has the name of the recording, NAME.txt or NAME.csv; None when there is none.

    Raises:
        LabelError: when there are both.
    """
    found = [path for suffix in SUFFIXES if (path := folder / f"{recording.stem}{suffix}").is_file()]
    if len(found) > 1:
        raise LabelError(f"{recording}: has labels in {found[0]} and in {found[1].name}; expected one file")
    return found[0] if found else None


def check_labels(labels: Sequence[Label], seconds: float = math.inf) -> list[Label]:
    """The labels in the order of time, cut off at the end of a recording of that many seconds.

    Raises:
        LabelError: when one has no extent, lies outside of the recording, or overlaps another.
    """
    ordered = sorted(labels)
    for label in ordered:
        if not (math.isfinite(label.start) and math.isfinite(label.end) and label.start < label.end):
            raise LabelError(f"a label from {label.start:g} s to {label.end:g} s; expected one that ends after it starts")
        if label.start < 0 or label.end > seconds + SLACK:
            raise LabelError(f"a label from {label.start:g} s to {label.end:g} s, and the recording lasts {seconds:g} s; are they of another one?")
    for before, after in zip(ordered, ordered[1:], strict=False):
        if after.start < before.end:
            raise LabelError(
                f"the labels {before.start:g} s to {before.end:g} s and {after.start:g} s to {after.end:g} s overlap; expected one at a time"
            )
    return [label._replace(end=min(label.end, seconds)) for label in ordered if label.start < seconds]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
