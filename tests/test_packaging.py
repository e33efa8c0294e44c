"""What the package says it holds is what is on disk."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import ppse

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_packages_are_the_directories() -> None:
    places = PROJECT["tool"]["setuptools"]["package-dir"]
    found = {"ppse", "ppse.models", "ppse.guides"} | {f"ppse.{p.parent.name}" for p in (ROOT / "ppse").glob("*/__init__.py")}
    for name, folder in places.items():
        assert not list((ROOT / folder).glob("*/__init__.py")), f"{folder}/ must stay flat"
        assert (ROOT / name.replace(".", "/")).resolve() == (ROOT / folder).resolve(), f"{name} must be a symlink to {folder}"
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == found


def test_version_is_one() -> None:
    assert ppse.__version__ == PROJECT["project"]["version"]
    assert f"version: {ppse.__version__}" in (ROOT / "CITATION.cff").read_text()


def _build(kind: str, out: Path) -> Path:
    run = subprocess.run(  # -P: a folder build/ that may lie here is not the module
        [sys.executable, "-P", "-m", "build", "--no-isolation", f"--{kind}", "--outdir", str(out), str(ROOT)],
        capture_output=True, text=True, check=False,
    )
    assert run.returncode == 0, run.stderr + run.stdout
    return next(out.iterdir())


@pytest.mark.slow
def test_wheel_holds_everything_and_imports_outside_of_the_checkout(tmp_path: Path) -> None:
    wheel = _build("wheel", tmp_path / "dist")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    assert {"ppse/infer/em.py", "ppse/testing/sources.py"} <= names
    assert {"ppse/models/vae.py", "ppse/guides/encoder.py", "ppse/weights/vae.safetensors", "ppse/data/demo_noisy.flac", "ppse/py.typed"} <= names
    script = "import ppse, ppse.models, ppse.guides; print(ppse.__file__); ppse.models.VAESpeech.pretrained()"
    run = subprocess.run(
        [sys.executable, "-P", "-c", f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); {script}"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )
    assert run.returncode == 0, run.stderr
    assert str(tmp_path / "site") in run.stdout


@pytest.mark.slow
def test_sdist_builds_the_same_wheel(tmp_path: Path) -> None:
    import tarfile

    sdist = _build("sdist", tmp_path / "dist")
    with tarfile.open(sdist) as archive:
        if hasattr(tarfile, "data_filter"):  # Python 3.11.4 or later
            archive.extraction_filter = tarfile.data_filter
        archive.extractall(tmp_path / "source")
    source = next((tmp_path / "source").iterdir())
    kept = ["models/vae.py", "tests/conftest.py", "Makefile", "constraints.txt", "CITATION.cff", "CHANGELOG.md"]
    kept += [str(path.relative_to(ROOT)) for folder in ("benchmarks", "docs", "examples", "tests") for path in (ROOT / folder).glob("*.*")]
    missing = [name for name in kept if not (source / name).is_file() and not Path(name).name.startswith(".")]
    assert not missing and not list(source.rglob("__pycache__")) and not list(source.rglob(".mypy_cache"))
    run = subprocess.run(
        [sys.executable, "-P", "-m", "build", "--no-isolation", "--wheel", "--outdir", str(tmp_path / "wheel"), str(source)],
        capture_output=True, text=True, check=False,
    )
    assert run.returncode == 0, run.stderr + run.stdout
    with zipfile.ZipFile(next((tmp_path / "wheel").iterdir())) as archive:
        assert {"ppse/models/vae.py", "ppse/guides/encoder.py", "ppse/weights/vae.safetensors"} <= set(archive.namelist())


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["default", "strict", "compat"])
def test_editable_install(tmp_path: Path, mode: str) -> None:
    """Each editable mode, in a virtual environment of its own that sees the packages of this one."""
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--system-site-packages", "--without-pip", str(environment)], check=True)
    site = next((environment / "lib").glob("python*")) / "site-packages"
    parent = next(path for path in sys.path if path.endswith("site-packages"))
    options = [] if mode == "default" else ["--config-settings", f"editable_mode={mode}"]
    run = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--ignore-installed",
         "--prefix", str(environment), *options, "-e", str(ROOT)],
        capture_output=True, text=True, check=False,
    )
    assert run.returncode == 0, run.stderr
    (site / "zz_parent.pth").write_text(parent)
    run = subprocess.run(
        [str(environment / "bin" / "python"), "-P", "-c", "import ppse, ppse.models, ppse.guides; print(ppse.models.VAESpeech.__module__)"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "ppse.models.vae"
