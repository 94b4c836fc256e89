"""What a file is that holds no weights of this network, and what to do about it.

Told by the first bytes of the file, by what a zip archive contains, or by the names of the tensors.
"""

import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Optional

SAVE_STATE = "in PyTorch, torch.save(net.state_dict(), FILE) writes a file that can be read here"
_UNPACK = "unpack it and name the file inside"
_DOWNLOAD = "download it again"
_EXPORTED = "an exported graph does not hold the names of the weights; give the checkpoint that it was exported from"
_KERAS = "weights of TensorFlow cannot be read here"

# First bytes -> what such a file is, and what to do.
_MAGIC = (
    (b"version https://git-lfs", "a Git LFS pointer instead of the file itself", "fetch it with git lfs pull"),
    (b"\x1f\x8b", "a gzip archive", _UNPACK),
    (b"\xfd7zXZ\0", "an xz archive", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", _UNPACK),
    (b"BZh", "a bzip2 archive", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", _UNPACK),
    (b"Rar!", "a RAR archive", _UNPACK),
    (b"\x89HDF", "an HDF5 file, such as Keras and MATLAB write", _KERAS),
    (b"\x93NUMPY", "a NumPy array", "expected are the weights of a network under their names"),
    (b"\xd8^:\x7f", "", ""),
    (b"\xd9^:\x7f", "", ""),
    (b"\xda^:\x7f", "", ""),
    (b"GGUF", "a GGUF file of llama.cpp", "expected are weights of MiDaS"),
    (b"%PDF", "a PDF document", ""),
    (b"\x89PNG", "a PNG image", ""),
    (b"\xff\xd8\xff", "a JPEG image", ""),
    (b"GIF8", "a GIF image", ""),
    (b"RIFF", "a WebP image or another RIFF file", ""),
    (b"II*\0", "a TIFF image", ""),
    (b"MM\0*", "a TIFF image", ""),
    (b"\x7fELF", "a program or a library", ""),
)  # fmt: skip
_ENCRYPTED = (
    "an encrypted MindSpore checkpoint; decrypt it where the key is: mindspore.save_checkpoint("
    "mindspore.load_checkpoint(FILE, dec_key=KEY) as a list of names and tensors, NEW_FILE)"
)
_BY_SUFFIX = {
    ".onnx": f"an ONNX model; {_EXPORTED}",
    ".mindir": f"a MINDIR model; {_EXPORTED}",
    ".air": f"an AIR model; {_EXPORTED}",
    ".om": f"a model for Ascend; {_EXPORTED}",
    ".pb": f"a TensorFlow graph; {_KERAS}",
    ".index": f"a part of a TensorFlow checkpoint; {_KERAS}",
    ".meta": f"a part of a TensorFlow checkpoint; {_KERAS}",
    ".tflite": f"a TensorFlow Lite model; {_KERAS}",
}

# Names of tensors -> the network they are of. The first that occurs anywhere counts.
_NETWORKS = tuple(
    (re.compile(pattern), network)
    for pattern, network in (
        (r"depth_head\.", "Depth Anything (a vision transformer)"),
        (r"core\.core\.|(^|\.)conditional_log_binomial\.", "ZoeDepth (a vision transformer)"),
        (r"pretrained\.model\.(cls_token|pos_embed|patch_embed|blocks|layers|stem)", "DPT (MiDaS v3 or later)"),
        (r"pretrained\.(cls_token|pos_embed|blocks)", "Depth Anything (a vision transformer)"),
        (r"(^|\.)dpt\.|neck\.reassemble_stage", "DPT of Hugging Face transformers"),
        (r"pretrained\..*\.conv_(dw|pw)\.|scratch\.refinenet\d\.out_conv\.", "MiDaS v2.1 small (EfficientNet-Lite3)"),
        (r"model\.diffusion_model\.|(down|mid|up)_blocks?\.", "a diffusion model"),
        (r"(self_attn|attention)\.\w*(q|qkv|query)\w*\.|attn\.qkv\.|cls_token", "a transformer"),
        (r"(^|\.)conv_stem\.|conv_dw\.|conv_pw\.", "an EfficientNet or MobileNet"),
        (r"(^|\.)features\.\d+\.", "a classification network, such as VGG, DenseNet or MobileNet"),
    )
)  # fmt: skip


def describe_network(names: Iterable[str]) -> str:
    """Says what network tensors of these names are of; an empty text if they do not tell."""
    names = list(names)
    for pattern, network in _NETWORKS:
        if any(pattern.search(name) for name in names):
            return (
                f"another network, {network}; this project has that of MiDaS v2 and v2.1 large (midas_v21_384.pt) alone"
            )
    return ""


def describe_zip(path: Path) -> Optional[str]:
    """Returns what a zip archive is, and what to do, unless it is a PyTorch file of tensors.

    Raises:
        zipfile.BadZipFile: It is damaged or cut short.
    """
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    inside = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inside or any(name.startswith("code/") for name in inside):
        return (
            "a TorchScript archive (torch.jit.save); its code is not run here: "
            "torch.save(torch.jit.load(FILE).state_dict(), NEW_FILE) writes its weights"
        )
    if "data.pkl" in inside:
        return None
    if "archive_format" in inside:
        return (
            "an archive of torch.export; its program is not run here: "
            "torch.save(torch.export.load(FILE).state_dict, NEW_FILE) writes its weights"
        )
    if any(name.endswith(".npy") for name in names):
        return f"a NumPy archive (.npz); {SAVE_STATE}"
    if any(name.endswith(".h5") for name in names):
        return f"a Keras model; {_KERAS}"
    return f"a zip archive; {_UNPACK}"


def describe_file(path: Path, head: bytes) -> str:
    """Returns what a file is that is no checkpoint, and what to do.

    Args:
        path: The file; its suffix counts where the bytes tell nothing.
        head: Its first 512 bytes, or all of it.
    """
    for magic, kind, advice in _MAGIC:
        if head.startswith(magic):
            return "; ".join(filter(None, (kind, advice))) or _ENCRYPTED
    if head[257:262] == b"ustar":
        return f"a tar archive; {_UNPACK}"
    if head[4:8] == b"TFL3":
        return _BY_SUFFIX[".tflite"]
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<error")):
        return f"a web page (HTML or XML), so the download went wrong; {_DOWNLOAD}"
    if head.startswith(b"\x08") and re.search(rb"onnx|pytorch|mindspore|tf2|keras|paddle", head, re.IGNORECASE):
        return _BY_SUFFIX[".onnx"]
    if head.startswith(b"\n") and b"MindSpore" in head:
        return _BY_SUFFIX[".mindir"]
    if path.suffix.lower() in _BY_SUFFIX:
        return _BY_SUFFIX[path.suffix.lower()]
    if ".data-" in path.name:
        return _BY_SUFFIX[".index"]
    if not head.strip(b"\0"):
        return f"one that begins with zeros alone, so it was not written to its end; {_DOWNLOAD}"
    if re.match(rb"\(?[cdl](\w|\n)", head) and re.search(rb"\np\d+\n", head):
        return f"a pickle in text form; {SAVE_STATE}"
    text = _as_text(head)
    if text:
        kind = "JSON" if start.startswith((b"{", b"[")) else "text"
        return f"{kind}, which begins with {' '.join(text.split())[:40]!r}"
    return f"a file that begins with {head[:8]!r}"


def _as_text(head: bytes) -> str:
    """Returns the bytes as text; an empty one if they are none."""
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:  # not merely a character that is cut
            return ""
        text = head[: error.start].decode("utf-8")
    return text if all(character.isprintable() or character.isspace() for character in text) else ""
