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

SLACK = 0.05
"""Seconds by which a label may reach beyond the end of the recording; editors round."""


class LabelError(ValueError):
    """Labels cannot be used; the message says which, why, and what to do."""


class Label(NamedTuple):
    """A stretch of a recording, in seconds, in which there is only noise (``"noise"``), or only speech (``"clean"``)."""

    start: float
    end: float
    kind: Kind = "noise"


def read_labels(path: str | os.PathLike[str]) -> list[Label]:
    r"""The labels of a file, in the order of time.

    Either as Audacity exports a label track (``start<TAB>end<TAB>text``), or CSV of start and end in seconds and, if there is a third
    column, the text; a first line of names is skipped. For the texts see :data:`TEXTS`.

    Raises:
        LabelError: when the file cannot be read, a line is no label, or :func:`check_labels` refuses them; the message has the line.

    >>> from tempfile import NamedTemporaryFile
    >>> with NamedTemporaryFile("w", suffix=".txt") as file:
    ...     _ = file.write("0.0\t0.41\tnoise only\n1.2\t1.3\tclean\n"); file.flush()
    ...     read_labels(file.name)
    [Label(start=0.0, end=0.41, kind='noise'), Label(start=1.2, end=1.3, kind='clean')]
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise LabelError(f"{path}: cannot be read ({error}); expected a text file of labels") from None
    lines = text.splitlines()
    found = []
    for number, cells in enumerate(csv.reader(io.StringIO(text), delimiter="\t" if "\t" in text else ","), 1):
        cells = [cell.strip() for cell in cells]
        if not any(cells) or (number == 1 and not _is_number(cells[0]) and cells[0] != "\\"):
            continue
        if cells[0] == "\\":  # Audacity: the frequencies of the label above, negative where there are none
            if any(_is_number(cell) and float(cell) > 0 for cell in cells[1:]):
                raise LabelError(f"{path}, line {number}: a label of some frequencies only; expected labels of all, so remove this line")
            continue
        if len(cells) < 2 or not _is_number(cells[0]) or not _is_number(cells[1]):
            raise LabelError(f"{path}, line {number}: '{lines[number - 1][:60]}'; expected start and end in seconds, and a text if any")
        said = cells[2].lower() if len(cells) > 2 else ""
        if said not in TEXTS:
            allowed = ", ".join(f"'{known}'" for known in TEXTS if known)
            raise LabelError(f"{path}, line {number}: the label says '{cells[2]}'; expected one of {allowed}, or nothing, which is 'noise'")
        found.append(Label(float(cells[0]), float(cells[1]), TEXTS[said]))
    if not found:
        raise LabelError(f"{path}: no labels in it; expected lines of start and end in seconds, and a text if any")
    try:
        return check_labels(found)
    except LabelError as error:
        raise LabelError(f"{path}: {error}") from None


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
