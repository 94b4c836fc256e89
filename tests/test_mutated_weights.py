"""Damaged files with weights: each is read or refused in words; no other error, crash, long wait or huge allocation.

By hand: python tests/test_mutated_weights.py KIND FOLDER COUNT SEED reads so many damaged copies of a file of that
kind, or of each kind with ``all``.
"""

import io
import os
import resource
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

from mutations import mutations, read_damaged  # noqa: E402

SIZES = {"layers": [1, 1, 1, 1], "groups": 2, "width_per_group": 32, "in_channels": 2, "features": 8}
MEGABYTES = 1000  # beyond what the libraries need


def limit_memory() -> None:
    """Limits the memory to what the process has, and a little more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEGABYTES * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def read_all(kind: str, source: Path, count: int, seed: int) -> bool:
    """Reads damaged copies of a file; prints how many were read and refused, and returns whether all was well."""
    from src.common.errors import CheckpointError
    from src.weights.checkpoint import check_complete, read_ckpt, read_weights

    path = source.with_name(f"damaged {os.getpid()}{source.suffix}")

    def read(number: int) -> None:
        if kind == "state":
            read_ckpt(path)
            return
        weights = read_weights(path)
        weights.settings(SIZES)
        if number % 50 == 0:  # this is slow
            check_complete(weights)

    print(f"{kind}:", flush=True)  # before it can kill the process
    variants = DAMAGE.get(kind, mutations)(source.read_bytes(), count, seed)
    outcomes = read_damaged(variants, path, read, CheckpointError, path)
    path.unlink()
    print(dict(outcomes), flush=True)
    return not (outcomes["fault"] or outcomes["bad text"]) and outcomes["refused"] > 0


def write(kind: str, path: Path) -> None:
    """Writes a small file of a kind."""
    import mindspore as ms
    import numpy as np
    import safetensors.torch
    import torch
    from torch_midas import TorchMidas

    from src.midas_net import MidasNet
    from src.weights.checkpoint import save_checkpoint

    state = {name: value for name, value in TorchMidas(**SIZES).state_dict().items() if name.startswith("pretrained.")}
    net = MidasNet(**SIZES).encoder
    if path.suffix == ".pt":
        content = {
            "epoch": 3,
            "model": {f"module.{name}": tensor for name, tensor in state.items()},
            "best": np.float64(1),
        }
        torch.save(content, path, _use_new_zipfile_serialization=kind != "legacy")
    elif kind == "safetensors":
        safetensors.torch.save_file(state, path)
    elif kind == "safetensors with CRC":
        ms.save_checkpoint(net, str(path), format="safetensors", crc_check=True)
    elif kind == "MindSpore":
        ms.save_checkpoint(net, str(path), append_dict={"step": 4, "text": "x"})
    else:
        save_checkpoint(
            path, {p.name: p for p in net.get_parameters()}, {"epoch": 3, "course": {"network_ops": "midas"}}
        )


def with_checksum(data, count, seed):
    """Damages a .ckpt and gives it the checksum that it then has."""
    for body in mutations(data[:-17], count, seed):
        yield body + b"crc_num" + zlib.crc32(body).to_bytes(10, "big")


def in_a_whole_zip(data, count, seed):
    """Damages the pickle within a file of PyTorch, and makes a whole archive of it."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    (pickle,) = (name for name in members if name.endswith("data.pkl"))
    for damaged in mutations(members[pickle], count, seed):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in {**members, pickle: damaged}.items():
                archive.writestr(name, content)
        yield file.getvalue()


DAMAGE = {"ours, checksum right": with_checksum, "zip, checksums right": in_a_whole_zip, "state": with_checksum}

# kind -> suffix, and how many damaged copies the tests read: a thousand or more of each format
KINDS = {
    "zip": (".pt", 500),
    "zip, checksums right": (".pt", 500),
    "legacy": (".pt", 1000),
    "safetensors": (".safetensors", 500),
    "safetensors with CRC": (".safetensors", 500),
    "MindSpore": (".ckpt", 400),
    "ours": (".ckpt", 300),
    "ours, checksum right": (".ckpt", 400),
    "state": (".ckpt", 400),
}


def run(kinds: dict[str, int], folder: Path, seed: int) -> bool:
    """Writes a file of each kind, unless it is there, and reads so many damaged copies of it."""
    import mindspore  # noqa: F401 before torch

    from src.weights.checkpoint import check_complete, read_weights

    files = {kind: folder / f"{kind}{KINDS[kind][0]}" for kind in kinds}
    for kind, path in files.items():
        if not path.exists():
            write(kind, path)
        check_complete(read_weights(path))  # whatever the libraries load, they have loaded it
    limit_memory()
    outcomes = [read_all(kind, path, kinds[kind], seed) for kind, path in files.items()]
    return all(outcomes)


def test_damaged_files(tmp_path):
    """In one process, for it takes long to load the libraries."""
    words = [sys.executable, __file__, "all", str(tmp_path)]
    result = subprocess.run(words, capture_output=True, text=True, timeout=280, check=False)
    assert result.returncode == 0, f"{result.stdout[-5000:]}\n{result.stderr[-5000:]}"
    assert result.stdout.count("'refused'") == len(KINDS)


if __name__ == "__main__":
    if sys.argv[1] == "all":
        chosen, seed = {kind: count for kind, (_, count) in KINDS.items()}, 1
    else:
        chosen, seed = {sys.argv[1]: int(sys.argv[3])}, int(sys.argv[4])
    sys.exit(not run(chosen, Path(sys.argv[2]), seed))
