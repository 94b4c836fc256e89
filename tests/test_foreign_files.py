"""Files that hold no weights of this network, written by the programs that make such: refused for what they are."""

import bz2
import gzip
import lzma
import os
import pickle
import tarfile
import zipfile
from pathlib import Path

import cv2
import h5py
import mindspore as ms
import numpy as np
import pytest
import torch
from conftest import TINY
from mindspore import nn
from test_checkpoint import refusal
from test_families import Touch
from torch_midas import TorchMidas

from src.weights.checkpoint import read_weights


class Linear(nn.Cell):
    def __init__(self):
        super().__init__()
        self.layer = nn.Dense(3, 4)

    def construct(self, x):
        return self.layer(x)


def save_tar(path):
    (path.parent / "a.txt").write_text("text")
    with tarfile.open(path, "w") as archive:
        archive.add(path.parent / "a.txt", "a.txt")


def save_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("midas.ckpt", b"\n" * 100)


def save_hdf5(path):
    with h5py.File(path, "w") as file:
        file["layer/kernel"] = np.zeros((3, 4))


def save_encrypted(mode):
    return lambda path: ms.save_checkpoint(Linear(), str(path), enc_key=b"0123456789ABCDEF", enc_mode=mode)


def save_image(suffix):
    def save(path):
        path.write_bytes(cv2.imencode(suffix, np.zeros((8, 8, 3), np.uint8))[1].tobytes())

    return save


def export_mindir(path):
    ms.export(Linear(), ms.Tensor(np.zeros((1, 3), np.float32)), file_name=str(path), file_format="MINDIR")
    Path(f"{path}.mindir").rename(path)


def export_onnx(path):
    ms.export(Linear(), ms.Tensor(np.zeros((1, 3), np.float32)), file_name=str(path), file_format="ONNX")
    Path(f"{path}.onnx").rename(path.with_suffix(".onnx"))
    return path.with_suffix(".onnx")


def content(data):
    return lambda path: path.write_bytes(data)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d7a2146" * 8 + b"\nsize 422509849\n"
ZSTD = bytes.fromhex("28b52ffd2004210000746578745c63a3d7")
FILES = {
    "HTML": (content(b"\n<!DOCTYPE html><html><body>404</body></html>"), "a web page (HTML or XML), so the download"),
    "XML": (content(b"<?xml version='1.0'?><Error>AccessDenied</Error>"), "a web page (HTML or XML)"),
    "Git LFS": (content(LFS), "a Git LFS pointer instead of the file itself; fetch it with git lfs pull"),
    "gzip": (content(gzip.compress(bytes(100))), "a gzip archive; unpack it and name the file inside"),
    "xz": (content(lzma.compress(bytes(100))), "an xz archive; unpack it"),
    "bzip2": (content(bz2.compress(bytes(100))), "a bzip2 archive; unpack it"),
    "zstd": (content(ZSTD), "a zstd archive; unpack it"),
    "tar": (save_tar, "a tar archive; unpack it"),
    "zip": (save_zip, "a zip archive; unpack it"),
    "AES-GCM": (save_encrypted("AES-GCM"), "an encrypted MindSpore checkpoint; decrypt it"),
    "AES-CBC": (save_encrypted("AES-CBC"), "an encrypted MindSpore checkpoint; decrypt it"),
    "SM4-CBC": (save_encrypted("SM4-CBC"), "an encrypted MindSpore checkpoint; decrypt it"),
    "TorchScript": (
        lambda path: torch.jit.save(torch.jit.script(torch.nn.Linear(3, 4)), path),
        "a TorchScript archive (torch.jit.save); its code is not run here: torch.save(torch.jit.load(",
    ),
    "torch.export": (
        lambda path: torch.export.save(torch.export.export(torch.nn.Linear(3, 4), (torch.zeros(1, 3),)), path),
        "an archive of torch.export; its program is not run here: torch.save(torch.export.load(",
    ),
    "module, zip": (
        lambda path: torch.save(TorchMidas(**TINY), path),
        "a pickled module (torch_midas.TorchMidas); it ",
    ),
    "module, legacy": (
        lambda path: torch.save(torch.nn.Linear(3, 4), path, _use_new_zipfile_serialization=False),
        "a pickled module (torch.nn.modules.linear.Linear); it was not run; in PyTorch, torch.save(net.state_dict(), ",
    ),
    "MINDIR": (export_mindir, "a MINDIR model; an exported graph does not hold"),
    "ONNX": (export_onnx, "an ONNX model; an exported graph does not hold"),
    "HDF5": (save_hdf5, "an HDF5 file, such as Keras and MATLAB write; weights of TensorFlow cannot be read here"),
    ".npz": (lambda path: np.savez(open(path, "wb"), a=np.zeros(3)), "a NumPy archive (.npz)"),  # noqa: SIM115
    ".npy": (lambda path: np.save(open(path, "wb"), np.zeros(3)), "a NumPy array"),  # noqa: SIM115
    "PDF": (content(b"%PDF-1.4\n%\xe2\xe3"), "a PDF document"),
    "PNG": (save_image(".png"), "a PNG image"),
    "JPEG": (save_image(".jpg"), "a JPEG image"),
    "JSON": (content(b'{"architectures": ["DPTForDepthEstimation"]}'), 'JSON, which begins with \'{"architectures": '),
    "text": (content("Gewichte für MiDaS\n".encode()), "text, which begins with 'Gewichte für MiDaS'"),
    "pickle in text form": (content(b"(dp0\nVa\np1\nI1\ns."), "a pickle in text form"),
    "zeros": (content(bytes(5000)), "one that begins with zeros alone"),
    "empty": (content(b""), "an empty one"),
    "other": (content(b"\x01\x02\xff\xfe\x00\x01\x02\x03\x04"), "a file that begins with b'\\x01\\x02\\xff"),
}


@pytest.mark.parametrize(("save", "expected"), FILES.values(), ids=FILES)
def test_what_is_no_checkpoint_is_named(tmp_path, save, expected):
    path = tmp_path / "midas.ckpt"
    path = save(path) if save is export_onnx else (save(path), path)[1]
    text = refusal(path, read_weights)
    assert f"found {expected}" in text


def vit(prefix, blocks=2):
    names = [f"blocks.{i}.{part}" for i in range(blocks) for part in ("attn.qkv.weight", "mlp.fc1.weight")]
    return {f"{prefix}{name}": torch.zeros(3, 3) for name in ("cls_token", "pos_embed", *names)}


SCRATCH = {name: tensor for name, tensor in TorchMidas(**TINY).state_dict().items() if name.startswith("scratch.")}
NETWORKS = {
    "DPT": ({**vit("pretrained.model."), **SCRATCH}, "another network, DPT (MiDaS v3 or later); this project has that"),
    "DPT hybrid": (
        {"pretrained.model.patch_embed.backbone.stem.conv.weight": torch.zeros(3, 3), **SCRATCH},
        "DPT (MiDaS v3 or later)",
    ),
    "small": (
        {
            "pretrained.layer1.0.weight": torch.zeros(8, 3, 3, 3),
            "pretrained.layer1.3.0.conv_dw.weight": torch.zeros(8, 1, 3, 3),
            "scratch.refinenet4.out_conv.weight": torch.zeros(8, 8, 1, 1),
            **SCRATCH,
        },
        "MiDaS v2.1 small (EfficientNet-Lite3)",
    ),
    "plain ResNet": (
        TorchMidas(**{**TINY, "groups": 1, "width_per_group": 64}).state_dict(),
        "found a plain ResNet with [1, 2, 1, 1] blocks",
    ),
    "Depth Anything": (
        {**vit("pretrained."), "depth_head.scratch.output_conv1.weight": torch.zeros(3)},
        "another network, Depth Anything (a vision transformer)",
    ),
    "timm": (vit(""), "another network, a transformer"),
    "Hugging Face": (
        {"dpt.encoder.layer.0.attention.query.weight": torch.zeros(3)},
        "DPT of Hugging Face transformers",
    ),
    "VGG": ({"features.0.weight": torch.zeros(3), "classifier.0.weight": torch.zeros(3)}, "a classification network"),
    "nameless": ({"a.weight": torch.zeros(3), "b.weight": torch.zeros(3)}, "a.weight, "),
}


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize(("state", "expected"), NETWORKS.values(), ids=NETWORKS)
def test_other_networks_are_named(tmp_path, state, expected, wrapped):
    path = tmp_path / "other.pt"
    torch.save(
        {"epoch": 1, "model": {f"module.{name}": value for name, value in state.items()}} if wrapped else state, path
    )
    assert expected in refusal(path, read_weights)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["beside", "deep", "in a list", "as a key", "instead of a tensor"])
def test_code_is_never_run(tmp_path, place, zipped):
    proof = tmp_path / "ran"
    evil = Touch(proof)
    state = TorchMidas(**TINY).state_dict()
    content = {
        "beside": {"model": state, "args": evil},
        "deep": {"model": {"net": {"state_dict": {**state, "x": {"y": evil}}}}},
        "in a list": {"model": state, "history": [1, [evil]]},
        "as a key": {"model": state, (1, evil): 2},
        "instead of a tensor": {**state, "pretrained.layer1.0.weight": evil},
    }[place]
    path = tmp_path / "evil.pt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert "a pickle that asks for posix.mkdir; it was not run; in PyTorch, torch.save(" in refusal(path, read_weights)
    assert not proof.exists()
    torch.load(path, weights_only=False)
    assert os.path.isdir(proof)  # the file would have run it


def test_pickles_that_torch_does_not_write(tmp_path):
    state = TorchMidas(**TINY).state_dict()
    path = tmp_path / "other.pt"
    expected = "found a pickle that torch.save does not write by default, or a damaged one; in PyTorch, torch.save("
    torch.save(state, path, pickle_protocol=4)
    assert expected in refusal(path, read_weights)
    path.write_bytes(pickle.dumps({name: value.numpy() for name, value in state.items()}, 2))
    assert expected in refusal(path, read_weights)
    torch.save({"epoch": 1, "model": {name: value.numpy() for name, value in state.items()}}, path)
    assert "expected a dictionary of named tensors, found none but" in refusal(path, read_weights)
    torch.save({"model": state, "read": eval}, path)
    assert "a pickle that asks for eval; it was not run" in refusal(path, read_weights)
