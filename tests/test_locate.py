"""Which file a setting means: a file, the newest checkpoint of a run folder, or none, and then what may be meant."""

import pytest

from src.common.errors import UsageError
from src.weights.locate import find_checkpoint


def find(path, key="ckpt_path"):
    return find_checkpoint(path, key, "ADVICE")


def fault(path):
    with pytest.raises(UsageError) as caught:
        find(path)
    text = str(caught.value)
    assert "\n" not in text
    return text


def touch(folder, *names):
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_text("")


def test_a_file_is_what_it_is(tmp_path):
    touch(tmp_path, "weights")
    assert find(tmp_path / "weights") == tmp_path / "weights"


def test_a_run_folder_is_its_newest_checkpoint(tmp_path):
    touch(tmp_path, "Midas_0-9_12.ckpt", "Midas_3-10_1.ckpt", "Midas_0-10_0.ckpt", "z.ckpt", ".Midas_0-11_1.1.tmp.ckpt")
    assert find(tmp_path) == tmp_path / "Midas_3-10_1.ckpt"
    assert find(f"{tmp_path}/") == tmp_path / "Midas_3-10_1.ckpt"


def test_a_folder_without_a_checkpoint(tmp_path):
    expected = f"ckpt_path: expected a checkpoint file or a run folder with Midas_*.ckpt, found none in {tmp_path}; "
    assert fault(tmp_path) == f"{expected}ADVICE"
    touch(tmp_path, "config.json", "pytorch_model.bin", "model.safetensors")  # as of Hugging Face
    assert fault(tmp_path) == (
        f"{expected}name the file: {tmp_path / 'model.safetensors'} or {tmp_path / 'pytorch_model.bin'}"
    )


def test_nothing_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "ckpt" / "midas_v21_384.ckpt"
    expected = f"ckpt_path: expected a checkpoint file or a run folder, found none at {path}; "
    assert fault(path) == f"{expected}ADVICE"
    touch(tmp_path, "other.ckpt", "midas_v21_384.pt")  # a download that has not been converted
    assert fault(path) == f"{expected}did you mean {tmp_path / 'midas_v21_384.pt'}? ADVICE"


@pytest.mark.parametrize(
    "meant", ["midas_v21_384.pt", "Midas_v21_384.ckpt", "midas_v21_384.ckpt.pt", "midas_v21_394.ckpt"]
)
def test_a_near_miss_is_named(tmp_path, monkeypatch, meant):
    monkeypatch.chdir("/")
    touch(tmp_path, meant, "midas_v21_384.txt", "elephant.ckpt")
    assert f"; did you mean {tmp_path / meant}? ADVICE" in fault(tmp_path / "midas_v21_384.ckpt")


def test_a_download_beside_the_current_folder(tmp_path, monkeypatch):
    touch(tmp_path / "here")
    touch(tmp_path / "here" / "ckpt", "w.pth")
    monkeypatch.chdir(tmp_path / "here")
    assert f"did you mean {tmp_path / 'here' / 'ckpt' / 'w.pth'}? " in fault(tmp_path / "w.ckpt")
