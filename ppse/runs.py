"""Files of runs: what inference gave, as NetCDF that ArviZ reads. Both are imported when they are used."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import audio

if TYPE_CHECKING:
    from arviz import InferenceData


def save_run(idata: InferenceData, path: str | os.PathLike[str]) -> None:
    """Write a run, as :func:`ppse.to_arviz` makes it, to a NetCDF file, atomically. Makes the folder.

    Raises:
        AudioError: when the folder cannot be written to, or the disk is full; the file is then as it was.
    """
    packed = {
        f"/{group}": {name: {"zlib": True} for name, values in idata[group].data_vars.items() if values.dtype == bool} for group in idata.groups()
    }
    # Through memory, as HDF5 brings down the process when a disk is full; only flags are worth the time of packing.
    content = idata.to_datatree().to_netcdf(engine="h5netcdf", encoding=packed)
    audio.atomically(path, lambda file: file.write(content))


def load_run(path: str | os.PathLike[str]) -> InferenceData:
    """Read a run back, whole: the file is not held open, and what is damaged shows now.

    Raises:
        ValueError: when the file is missing, no NetCDF, truncated, or has no draws; the message says which.
    """
    import arviz as az
    import h5py

    made_by = "expected a run that 'ppse enhance --save-run' or ppse.runs.save_run wrote"
    if not Path(path).is_file():
        raise ValueError(f"{path}: {'a folder' if Path(path).is_dir() else 'no such file'}; {made_by}")
    if not os.access(path, os.R_OK):
        raise ValueError(f"{path}: may not be read; check its permissions")
    try:
        with h5py.File(path) as file:  # h5netcdf leaves a half-made object behind, and a traceback on the terminal, where this fails
            file.visititems(_touch)
        # Not kept open, and lazily read values would fail later, without the name of the file.
        idata = az.from_netcdf(str(path), engine="h5netcdf")
        idata.load()
        idata.close()
    except Exception as error:  # HDF5 gives damage as OSError, RuntimeError, KeyError, …: whichever layer met it
        what = "empty" if Path(path).stat().st_size == 0 else "no NetCDF file, or a damaged one"
        raise ValueError(f"{path}: {what} ({_first_line(error)}); {made_by}") from error
    if "posterior" not in idata.groups():
        raise ValueError(f"{path}: has no posterior group, but {', '.join(idata.groups()) or 'nothing'}; {made_by}")
    if not {"chain", "draw"} <= set(idata["posterior"].sizes) or not idata["posterior"].data_vars:
        raise ValueError(f"{path}: its posterior group has no draws (variables with dims chain and draw); {made_by}")
    return idata


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _touch(_: str, item: Any) -> None:
    """Read the attributes of one thing in an HDF5 file, so that damage shows."""
    dict(item.attrs)
