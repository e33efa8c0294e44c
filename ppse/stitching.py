"""One run out of many: the starts of a recording as chains, the windows of a long one in a row. ArviZ is imported when it is used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from arviz import InferenceData


def starts_as_chains(idata: InferenceData) -> InferenceData:
    """The utterances of a batch, when they are one recording several times, as more chains: R-hat then tells whether the starts agree."""
    import xarray as xr

    def merged(group: Any) -> Any:
        if "utterance" not in group.dims:
            return group
        members = [group.isel(utterance=i, drop=True) for i in range(group.sizes["utterance"])]
        if "chain" not in group.dims:
            return members[0]
        whole = xr.concat(members, "chain", data_vars="minimal", coords="minimal", compat="override", join="override")
        return whole.assign_coords(chain=np.arange(whole.sizes["chain"]))

    return _of_groups(idata.groups(), lambda name: merged(idata[name]))


def windows_in_a_row(parts: Sequence[tuple[float, InferenceData]]) -> InferenceData:
    """The windows of one recording as one run. Where two overlap, each has the frames of its half.

    What has no frames, such as a parameter with a prior, is a value of every window, with a dim "window". Where windows have different
    numbers of them, as a shorter last window has fewer knots of activations, those are kept that all have.

    Args:
        parts: the second at which each window starts, and its run, with the ``time`` of its frames from there.
    """
    import xarray as xr

    times = [start + idata["constant_data"]["time"].values for start, idata in parts]
    # The first frame that belongs to the next window: where the overlap, or the gap of a silence, is half over.
    borders = [-np.inf, *((before[-1] + after[0]) / 2 for before, after in zip(times, times[1:], strict=False)), np.inf]

    def joined(name: str) -> Any:
        cut = []
        for (_, idata), time, low, high in zip(parts, times, borders, borders[1:], strict=False):
            group = idata[name]
            if name == "constant_data":
                group = group.assign(time=("frame", time))
            if "frame" in group.dims:
                group = group.isel(frame=(time >= low) & (time < high))
            cut.append(group)
        whole: dict[Any, Any] = {}
        for v, first in cut[0].data_vars.items():
            if "frame" in first.dims:
                whole[v] = xr.concat([group[v].drop_vars("frame", errors="ignore") for group in cut], "frame")
            elif name == "constant_data":
                whole[v] = first
            else:
                whole[v] = xr.concat([group[v] for group in cut], "window", join="inner")
        made = xr.Dataset(whole, attrs=cut[0].attrs)
        made = made.assign_coords({d: np.arange(made.sizes[d]) for d in ("frame", "window") if d in made.dims})
        return made.transpose("chain", "draw", ..., missing_dims="ignore")

    return parts[0][1] if len(parts) == 1 else _of_groups(parts[0][1].groups(), joined)


def _of_groups(names: Sequence[str], make: Callable[[str], Any]) -> InferenceData:
    import arviz as az

    groups: dict[str, Any] = {name: make(name) for name in names}
    return az.InferenceData(**groups)
