"""Imports point one way: distributions, stft, memo <- mixture <- models <- guides; infer knows no audio; the rest on top."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ppse
import ppse.guides
import ppse.infer
import ppse.models

# What each part may import from the package at module level; everything else lies on top and is free.
ALLOWED: dict[str, set[str]] = {
    "distributions": set(),
    "stft": set(),
    "files": set(),
    "weights": {"files"},
    "memo": set(),
    "audio": {"files"},
    "mixture": {"distributions"},
    "infer": {"infer"},
    "lips": set(),
    "models": {"models", "distributions", "lips", "memo", "mixture", "stft", "weights"},
    "guides": {"guides", "distributions", "lips", "mixture", "stft", "models"},
    "corpus": {"audio", "stft"},
    "simulate": {"corpus", "stft"},
}
AUDIO = {"soundfile", "soxr", "pesq", "pystoi", "torchaudio"}


def _files(part: str) -> list[tuple[Path, str]]:
    """Source files of a part of the package, each with the name of its package."""
    for package in (ppse.infer, ppse.models, ppse.guides):
        if package.__name__ == f"ppse.{part}":
            return [(path, package.__name__) for folder in package.__path__ for path in sorted(Path(folder).glob("*.py"))]
    return [(Path(folder) / f"{part}.py", "ppse") for folder in ppse.__path__]


def _imports(path: Path, package: str) -> set[str]:
    """Absolute names of all that a file imports, inside of functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            names |= {f"{stem}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("part", list(ALLOWED))
def test_imports_point_one_way(part: str) -> None:
    files = _files(part)
    assert files and all(path.is_file() for path, _ in files)
    for path, package in files:
        inside = {name.split(".")[1] for name in _imports(path, package) if name.startswith("ppse.")}
        assert inside <= ALLOWED[part] | ({part} if package != "ppse" else set()), f"{path.name} imports {sorted(inside - ALLOWED[part])}"


@pytest.mark.parametrize("part", ["infer", "mixture", "distributions", "models", "guides"])
def test_the_core_knows_no_audio_files(part: str) -> None:
    for path, package in _files(part):
        used = {name.split(".")[0] for name in _imports(path, package)}
        assert not used & AUDIO, f"{path.name} imports {sorted(used & AUDIO)}"


def test_importing_the_package_sets_local_parameters_and_draws_nothing() -> None:
    code = (
        "import torch, pyro; a = torch.random.get_rng_state(); import ppse, ppse.infer; "
        "assert torch.equal(a, torch.random.get_rng_state()); assert pyro.settings.get('module_local_params'); "
        "import sys; assert not {'av', 'cv2'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
