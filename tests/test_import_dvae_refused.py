"""Checkpoints and configs that cannot be imported: each is refused with a message that says why, and no code in it runs."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from published_dvae import DKF, RVAE, VAE, Files, Settings, Weights

from ppse.import_dvae import import_dvae
from ppse.weights import WeightsError


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.folder),)


def test_a_pickle_bomb_does_not_go_off(files: Files) -> None:
    found = files.write(RVAE)
    folder = files.out.with_name("boom")
    for content in (found | {"bomb": Bomb(folder)}, Bomb(folder)):
        torch.save(content, files.checkpoint)
        with pytest.raises(WeightsError, match="run any code.*it was not read"):
            import_dvae(files.checkpoint, files.config)
    files.checkpoint.write_bytes(pickle.dumps(Bomb(folder)))
    with pytest.raises(WeightsError, match="was not read|not a readable checkpoint"):
        import_dvae(files.checkpoint, files.config)
    assert not folder.exists()
    pickle.loads(files.checkpoint.read_bytes())
    assert folder.exists()  # it was a live one


@pytest.mark.parametrize(("content", "message"), [
    (torch.nn.Linear(2, 2), "run any code"),
    ({}, "found nothing"),
    ({"epoch": 3}, "a dict with int"),
    ([1.0, 2.0], "found a list"),
    (torch.ones(3), "found a Tensor"),
    ({"model_state_dict": 3}, "found a int"),
])
def test_checkpoints_that_are_no_state_dict(files: Files, content: object, message: str) -> None:
    files.write(VAE)
    torch.save(content, files.checkpoint)
    with pytest.raises(WeightsError, match=message):
        import_dvae(files.checkpoint, files.config)


@pytest.mark.parametrize("damage", ["cut", "noise", "empty", "text", "missing", "folder"])
def test_damaged_checkpoints(files: Files, damage: str) -> None:
    files.write(VAE)
    whole = files.checkpoint.read_bytes()
    files.checkpoint.unlink()
    if damage == "folder":
        files.checkpoint.mkdir()
    elif damage != "missing":
        content = {"cut": whole[: len(whole) // 2], "noise": np.random.default_rng(0).bytes(999), "empty": b"", "text": b"hello there"}
        files.checkpoint.write_bytes(content[damage])
    with pytest.raises(WeightsError, match="model.pt: (not a readable checkpoint|cannot be read|holds other things)"):
        import_dvae(files.checkpoint, files.config)


@pytest.mark.parametrize(("change", "message"), [
    (lambda w: w.pop("rnn_h.bias_hh_l0"), "1 tensors are missing, the first 'rnn_h.bias_hh_l0'; is the config.ini"),
    (lambda w: w.update(extra=torch.ones(2)), "1 tensors are not in this network, the first 'extra'"),
    (lambda w: w.update({"inf_mean.bias": torch.ones(4)}), r"'inf_mean.bias' has shape \(4,\), expected \(3,\)"),
    (lambda w: w.update({"inf_mean.bias": torch.ones(3, dtype=torch.int64)}), "of type torch.int64"),
    (lambda w: w.update({"inf_mean.bias": torch.ones(3).to_sparse()}), "torch.sparse"),
    (lambda w: w.update({"inf_mean.bias": torch.zeros(3, device="meta")}), "on device meta"),
    (lambda w: w.update({"inf_mean.bias": torch.tensor([0.0, torch.nan, 0.0])}), "values that are not finite"),
])
def test_every_tensor_is_checked(files: Files, change: Callable[[Weights], object], message: str) -> None:
    found = files.write(RVAE)
    change(found)
    torch.save(found, files.checkpoint)
    with pytest.raises(WeightsError, match=message):
        import_dvae(files.checkpoint, files.config)


@pytest.mark.parametrize(("change", "message"), [
    ({"name": "STORM"}, "architecture 'STORM'; can be imported: VAE, RVAE, DKF, SRNN"),
    ({"vae_mode": "AV-VAE"}, "no video here"),
    ({"activation": "gelu"}, "expected tanh or relu"),
    ({"x_dim": "many"}, "x_dim = 'many'; expected sizes"),
    ({"z_dim": "0"}, "z_dim = '0'; expected sizes"),
    ({"dim_RNN_h": "999999999"}, "from 1 to 65536"),
    ({"dim_RNN_h": "9" * 5000}, "from 1 to 65536"),
    ({"dense_h_x": "8,,8"}, "dense_h_x = ''; expected sizes"),
    ({"bidir_h": "perhaps"}, "expected True or False"),
    ({"dim_RNN_h": "65536"}, "is the config.ini the one of this checkpoint"),  # 69 GB, were they asked for
    ({"dim_RNN_h": "7"}, "is the config.ini the one of this checkpoint"),
    ({"bidir_h": "False"}, "tensors are not in this network"),
])
def test_configs_that_describe_no_network_of_this_checkpoint(files: Files, change: Settings, message: str) -> None:
    files.write(RVAE)
    checkpoint = files.checkpoint.read_bytes()
    text = files.config.read_text()
    for key, value in change.items():
        lines = [line for line in text.splitlines() if not line.startswith(f"{key} =")]
        text = "\n".join(lines).replace("[Network]", f"[Network]\n{key} = {value}")
    files.config.write_text(text)
    assert files.checkpoint.read_bytes() == checkpoint
    with pytest.raises(WeightsError, match=message):
        import_dvae(files.checkpoint, files.config)


@pytest.mark.parametrize("section", ["Network", "STFT"])
def test_config_without_a_section(files: Files, section: str) -> None:
    files.write(VAE, tuple({"STFT", "Network"} - {section}))
    with pytest.raises(WeightsError, match=rf"has no section \[{section}\]"):
        import_dvae(files.checkpoint, files.config)


def test_configs_with_a_setting_missing_or_that_are_no_config(files: Files) -> None:
    files.write({key: value for key, value in VAE.items() if key != "activation"})
    with pytest.raises(WeightsError, match=r"'activation' is missing in section \[Network\]"):
        import_dvae(files.checkpoint, files.config)
    for content in (b"\xff\xfe\x00", b"no section at all", b"[Network]\nname = VAE\nname = VAE\n"):
        files.config.write_bytes(content)
        with pytest.raises(WeightsError, match=r"config.ini: not a readable config"):
            import_dvae(files.checkpoint, files.config)
    files.config.unlink()
    with pytest.raises(WeightsError, match=r"config.ini: not a readable config"):
        import_dvae(files.checkpoint, files.config)


@pytest.mark.parametrize("key", ["fs", "wlen_sec", "hop_percent"])
def test_an_stft_of_nothing_is_refused(files: Files, key: str) -> None:
    files.write(VAE)
    lines = [f"{key} = 0" if line.startswith(f"{key} =") else line for line in files.config.read_text().splitlines()]
    files.config.write_text("\n".join(lines))
    with pytest.raises(WeightsError, match=f"{key} = 0.* expected numbers above 0"):
        import_dvae(files.checkpoint, files.config)


def test_a_config_with_a_byte_order_mark_is_read(files: Files) -> None:
    files.write(VAE)
    files.config.write_bytes(b"\xef\xbb\xbf" + files.config.read_bytes())
    import_dvae(files.checkpoint, files.config)


def test_weights_that_are_there_are_not_replaced(files: Files, terminal) -> None:
    files.write(VAE)
    files.out.write_bytes(b"of another training")
    code, told = terminal("import-dvae", files.checkpoint, files.config, "-o", files.out)
    assert code == 1 and "is there already" in told and files.out.read_bytes() == b"of another training"


def test_networks_of_other_cells_are_refused(files: Files) -> None:
    files.write(DKF | {"rnn": "GRU"})
    with pytest.raises(WeightsError, match="rnn = GRU; of these networks only those with LSTM"):
        import_dvae(files.checkpoint, files.config)


def test_a_refused_checkpoint_leaves_no_file(files: Files, terminal) -> None:
    files.write(VAE)
    files.checkpoint.write_bytes(b"")
    assert terminal("import-dvae", files.checkpoint, files.config, "-o", files.out)[0] == 1
    assert terminal("import-dvae", files.checkpoint, files.config, "-o", files.out.with_suffix(".pt"))[0] == 2
    assert not files.out.exists() and not files.out.with_suffix(".pt").exists()
