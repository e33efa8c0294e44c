"""Label files as people have them, and what is wrong with those that cannot be used."""

from pathlib import Path

import pytest

from ppse.labels import Label, LabelError, check_labels, read_labels


def _file(tmp_path: Path, text: str, name: str = "labels.txt") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "text",
    [
        "1.5\t2\tclean\n0\t0.5\tNoise only\n",
        "\ufeff0.000000\t0.500000\t\n1.500000\t2.000000\tSpeech only\n",
        "0\t0.5\tsilence\n\\\t-1.0\t-1.0\n1.5\t2\tclean\n",
        "start,end,label\n0,0.5,noise\n\n1.5, 2.0, clean\n",
        "0,0.5\n1.5,2,clean\n",
    ],
)
def test_audacity_and_csv(tmp_path: Path, text: str) -> None:
    assert read_labels(_file(tmp_path, text)) == [Label(0.0, 0.5, "noise"), Label(1.5, 2.0, "clean")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no labels in it"),
        ("start,end\n", "no labels in it"),
        ("0,0\t0,4\tnoise\n0.7\t0.8\tnoise\n", "line 1: '0,0"),
        ("0.0s,0.4,noise\n", "line 1: '0.0s"),
        ("0\t1\tnoise\n2\tthree\tnoise\n", "line 2: '2\tthree\tnoise'; expected start and end in seconds"),
        ('0,1,"lost\n2,3,lost\n', "is a quotation mark left open?"),
        ("0,1," + 200_000 * "x" + "\n", "neither a label track nor CSV"),
        ("0,1\n2\n", "line 2: '2'; expected start and end"),
        ("0\t1\tdog\n", "line 1: the label says 'dog'; expected one of 'noise'"),
        ("0\t1\tnoise\n\\\t100.0\t4000.0\n", "line 2: a label of some frequencies only"),
        ("1,1\n", "a label from 1 s to 1 s; expected one that ends after it starts"),
        ("2,1\n", "from 2 s to 1 s"),
        ("0,inf\n", "expected one that ends after"),
        ("nan,1\n", "expected one that ends after"),
        ("-1,1\n", "a label from -1 s to 1 s, and the recording"),
        ("0,1\n0.9,2\n", "0 s to 1 s and 0.9 s to 2 s overlap"),
    ],
)
def test_what_is_wrong_is_told_with_the_file(tmp_path: Path, text: str, message: str) -> None:
    path = _file(tmp_path, text)
    with pytest.raises(LabelError, match="labels.txt") as error:
        read_labels(path)
    assert message in str(error.value)


def test_unreadable_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match="missing.txt: cannot be read"):
        read_labels(tmp_path / "missing.txt")
    (tmp_path / "sound.wav").write_bytes(b"RIFF\xff\xfe\x00\x80")
    with pytest.raises(LabelError, match="sound.wav: cannot be read"):
        read_labels(tmp_path / "sound.wav")


def test_labels_beyond_the_recording_are_told_with_the_file(tmp_path: Path) -> None:
    path = _file(tmp_path, "0,1\n")
    assert read_labels(path, 1.0) == [Label(0.0, 1.0)]
    with pytest.raises(LabelError, match=r"labels.txt: a label from 0 s to 1 s, and the recording lasts 0.5 s"):
        read_labels(path, 0.5)


def test_labels_beyond_the_recording() -> None:
    labels = [Label(0.0, 1.0), Label(1.5, 2.03)]
    assert check_labels(labels, 2.0) == [Label(0.0, 1.0), Label(1.5, 2.0)]  # editors round
    with pytest.raises(LabelError, match=r"from 1.5 s to 2.03 s, and the recording lasts 1.9 s; are they of another one"):
        check_labels(labels, 1.9)
