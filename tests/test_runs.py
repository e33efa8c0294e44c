"""Run files: written whole or not at all, read back whole or refused with a reason."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import arviz as az
import numpy as np
import pytest
import xarray as xr

from ppse.audio import AudioError
from ppse.runs import load_run, save_run


@pytest.fixture
def idata() -> az.InferenceData:
    generator = np.random.default_rng(0)
    return az.from_dict(
        {"speech.z": generator.standard_normal((2, 20, 5), dtype=np.float32)}, sample_stats={"diverging": generator.random((2, 20, 5)) < 0.1},
        dims={"speech.z": ["frame"], "diverging": ["frame"]}, attrs={"method": "mala"},
    )


def test_what_is_saved_is_read_back_and_the_file_is_not_held_open(idata: az.InferenceData, tmp_path: Path) -> None:
    path = tmp_path / "new" / "run.nc"
    save_run(idata, path)
    found = load_run(path)
    path.unlink()
    assert found.groups() == idata.groups() and found.attrs["method"] == "mala"
    for group in idata.groups():
        xr.testing.assert_identical(found[group], idata[group])
    assert [p.name for p in path.parent.iterdir()] == []


def test_arviz_reads_it_too(idata: az.InferenceData, tmp_path: Path) -> None:
    save_run(idata, tmp_path / "run.nc")
    back = az.from_netcdf(str(tmp_path / "run.nc"))
    np.testing.assert_array_equal(back.posterior["speech.z"], idata.posterior["speech.z"])
    back.close()


def test_a_full_disk_leaves_the_file_as_it_was(idata: az.InferenceData, tmp_path: Path) -> None:
    path = tmp_path / "run.nc"
    save_run(idata, path)
    before = path.read_bytes()
    code = (  # in a process of its own: the limit, as a full disk, is met while the file is written
        "import resource, signal, sys; from ppse.runs import load_run, save_run; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "run = load_run(sys.argv[1]); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); save_run(run, sys.argv[1])"
    )
    run = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert run.returncode == 1 and "AudioError" in run.stderr and "run.nc: cannot be written" in run.stderr
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["run.nc"]


def test_places_that_cannot_be_written_to_are_refused(idata: az.InferenceData, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AudioError, match="run.nc: cannot be written"):
        save_run(idata, tmp_path / "file" / "run.nc")
    (tmp_path / "run.nc").mkdir()
    with pytest.raises(AudioError, match="Is a directory"):
        save_run(idata, tmp_path / "run.nc")


def test_what_is_no_run_is_refused_with_a_reason(idata: az.InferenceData, tmp_path: Path) -> None:
    path = tmp_path / "run.nc"
    with pytest.raises(ValueError, match="run.nc: no such file; expected a run"):
        load_run(path)
    with pytest.raises(ValueError, match="a folder"):
        load_run(tmp_path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="run.nc: empty"):
        load_run(path)
    path.write_bytes(b"RIFF and so on" * 100)
    with pytest.raises(ValueError, match="no NetCDF file"):
        load_run(path)
    save_run(idata, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="run.nc: .*damaged.*truncated"):
        load_run(path)
    save_run(az.InferenceData(prior=idata.posterior), path)
    with pytest.raises(ValueError, match="no posterior group, but prior"):
        load_run(path)
    save_run(az.InferenceData(posterior=idata.posterior.mean("draw")), path)
    with pytest.raises(ValueError, match="no draws"):
        load_run(path)


def test_damage_anywhere_is_an_error_that_names_the_file(idata: az.InferenceData, tmp_path: Path) -> None:
    path = tmp_path / "run.nc"
    save_run(idata, path)
    whole, messages = path.read_bytes(), []
    for first in range(0, len(whole), len(whole) // 16):
        path.write_bytes(whole[:first] + bytes(min(2000, len(whole) - first)) + whole[first + 2000 :])
        try:
            load_run(path)  # the damage may lie in unused space, or among the values
        except ValueError as error:
            messages.append(str(error))
    assert len(messages) >= 3 and all(message.startswith(f"{path}: ") for message in messages)


def test_a_file_that_may_not_be_read(idata: az.InferenceData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.nc"
    save_run(idata, path)
    monkeypatch.setattr(os, "access", lambda *_: False)  # the tests may run as a user who may read everything
    with pytest.raises(ValueError, match="may not be read"):
        load_run(path)
