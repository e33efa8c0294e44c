import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ppse import weights
from ppse.models import VAESpeech
from ppse.weights import WeightsError

Change = Callable[[dict[str, Tensor], dict[str, str]], None]


def _vae() -> VAESpeech:
    return VAESpeech(9, 3, (6, 5), context=4)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    weights.write(_vae(), tmp_path / "vae.safetensors", {"licence": "MIT", "score": 0.5})
    return tmp_path / "vae.safetensors"


def test_round_trip_is_exact_and_frozen(tmp_path: Path) -> None:
    vae, path = _vae(), tmp_path / "new" / "vae.safetensors"
    weights.write(vae, path, {"data": "made up"})
    loaded = VAESpeech.pretrained(str(path))
    assert loaded.settings == vae.settings and not loaded.training
    assert all(not p.requires_grad for p in loaded.parameters())
    assert vae.state_dict().keys() == loaded.state_dict().keys()
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in vae.state_dict().items())
    assert weights.card(path) == {"data": "made up"}
    assert [p.name for p in path.parent.iterdir()] == ["vae.safetensors"]  # no temporary file is left


def test_a_failed_write_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(WeightsError, match=r"vae\.safetensors: cannot be written \(disk full\); check the folder"):
        weights.write(_vae(), path, {})
    assert path.read_bytes() == before and len(list(path.parent.iterdir())) == 1


def test_a_card_is_annotated_and_the_weights_stay(path: Path) -> None:
    tensors, metadata = weights.read(path)
    weights.annotate(path, scores={"si_sdr": 7.25}, score=0.75)
    after, changed = weights.read(path)
    assert weights.card(path) == {"licence": "MIT", "score": 0.75, "scores": {"si_sdr": 7.25}}
    assert after.keys() == tensors.keys() and all(torch.equal(after[key], value) for key, value in tensors.items())
    assert {**changed, "card": ""} == {**metadata, "card": ""}
    VAESpeech.pretrained(str(path))
    weights.write_tensors(tensors, path, {"format": "other"})
    with pytest.raises(WeightsError, match="has no model card"):
        weights.annotate(path, scores={})
    weights.write_tensors(tensors, path, {**metadata, "card": "{no card"})
    with pytest.raises(WeightsError, match=f"{path.name}: its model card is damaged"):
        weights.card(path)


def _shape(tensors: dict[str, Tensor], _: dict[str, str]) -> None:
    tensors["decoder.0.bias"] = torch.zeros(7)


def _missing(tensors: dict[str, Tensor], _: dict[str, str]) -> None:
    del tensors["decoder.0.bias"]


def _spare(tensors: dict[str, Tensor], _: dict[str, str]) -> None:
    tensors["more"] = torch.zeros(1)


def _nan(tensors: dict[str, Tensor], _: dict[str, str]) -> None:
    tensors["decoder.0.bias"][2] = torch.nan


def _infinite(tensors: dict[str, Tensor], _: dict[str, str]) -> None:
    tensors["encoder.network.0.weight"][0, 0] = torch.inf


def _class(_: dict[str, Tensor], metadata: dict[str, str]) -> None:
    metadata["class"] = "Linear"


def _format(_: dict[str, Tensor], metadata: dict[str, str]) -> None:
    metadata["format"] = "ppse-99"


def _no_metadata(_: dict[str, Tensor], metadata: dict[str, str]) -> None:
    metadata.clear()


def _size(_: dict[str, Tensor], metadata: dict[str, str]) -> None:
    metadata["settings"] = json.dumps({"n_freqs": 9, "n_latent": 4, "hidden": [6, 5], "context": 4})


def _negative(_: dict[str, Tensor], metadata: dict[str, str]) -> None:
    metadata["settings"] = json.dumps({"n_freqs": -1})


def _unknown(_: dict[str, Tensor], metadata: dict[str, str]) -> None:
    metadata["settings"] = json.dumps({"depth": 2})


def _no_json(_: dict[str, Tensor], metadata: dict[str, str]) -> None:
    metadata["settings"] = "__import__('os')"


def _a_list(_: dict[str, Tensor], metadata: dict[str, str]) -> None:
    metadata["settings"] = "[9, 3]"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_shape, "of another shape, the first 'decoder.0.bias'"), (_missing, "missing.*'decoder.0.bias'"), (_spare, "spare.*'more'"),
        (_nan, "'decoder.0.bias' has values that are not finite"), (_infinite, "not finite"),
        (_class, "holds Linear, expected VAESpeech"), (_format, "expected VAESpeech"), (_no_metadata, "holds no model of this package"),
        (_size, "of another shape"), (_negative, "settings do not build"), (_unknown, "settings do not build.*depth"),
        (_no_json, "settings do not build"), (_a_list, "settings do not build"),
    ],
)
def test_tampered_weights_are_refused(path: Path, change: Change, message: str) -> None:
    tensors, metadata = weights.read(path)
    change(tensors, metadata)
    save_file(tensors, path, metadata)
    with pytest.raises(WeightsError, match=message) as caught:
        VAESpeech.pretrained(str(path))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("keep", [0, 1, 7, 100, 1000, -1])
def test_truncated_weights_are_refused(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WeightsError, match="damaged, cut short, or of another format"):
        VAESpeech.pretrained(str(path))


class _Trap:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return (exec, ("raise SystemExit('a pickle was executed')",))


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    plain, torched = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    plain.write_bytes(pickle.dumps(_Trap()))
    torch.save(_Trap(), torched)
    for path in (plain, torched):
        with pytest.raises(WeightsError, match="of another format"):
            VAESpeech.pretrained(str(path))


def test_a_missing_file_names_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no weights '.*nothing': not a file, and not one of the shipped"):
        VAESpeech.pretrained(str(tmp_path / "nothing"))


def test_weights_of_another_class_are_refused(path: Path) -> None:
    with pytest.raises(WeightsError, match="holds VAESpeech, expected Sequential"):
        weights.load(nn.Sequential, path)


def test_halved_weights_take_half_the_room_and_load_in_float32(path: Path) -> None:
    before, size = VAESpeech.pretrained(path).state_dict(), path.stat().st_size
    weights.halve(path)
    after = VAESpeech.pretrained(path).state_dict()
    assert path.stat().st_size < 0.75 * size and weights.card(path)["score"] == 0.5
    for key, value in before.items():
        assert after[key].dtype == torch.float32
        torch.testing.assert_close(after[key], value, rtol=1e-3, atol=1e-7)


def test_weights_beyond_half_precision_are_not_halved(path: Path) -> None:
    vae = _vae()
    with torch.no_grad():
        vae.decoder[0].bias[0] = 1e5
    weights.write(vae, path, {})
    before = path.read_bytes()
    with pytest.raises(WeightsError, match=r"'decoder\.0\.bias' has values beyond 65504"):
        weights.halve(path)
    assert path.read_bytes() == before
