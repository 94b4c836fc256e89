"""Damaged variants of files, and readers that must not mind them.

``python tests/mutated_images.py COUNT [KIND ...]`` feeds COUNT variants of every kind of file to its readers.
``tests/test_mutated_images.py`` does so with few.
"""

import io
import os
import re
import struct
import sys
import tempfile
import time
import zlib
from pathlib import Path

import cv2
import h5py
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mutations import mutations

from src import util
from src.common.errors import DataError


def png_with_right_checksums(png: bytes) -> bytes:
    """Repairs the checksums of a damaged PNG file, so that a decoder comes to see the damage."""
    repaired, at = bytearray(png), 8
    while at + 12 <= len(png):
        length = struct.unpack_from(">I", png, at)[0]
        end = at + 8 + length
        if end + 4 > len(png):
            break
        repaired[end : end + 4] = struct.pack(">I", zlib.crc32(png[at + 4 : end]))
        at = end + 4
    return bytes(repaired)


def _picture() -> np.ndarray:
    """A smooth RGBA picture with some noise, 40 x 32."""
    rng = np.random.default_rng(0)
    smooth = cv2.resize(rng.integers(0, 256, (3, 4, 4), np.uint8), (40, 32), interpolation=cv2.INTER_LINEAR)
    return np.clip(smooth.astype(int) + rng.integers(-9, 10, smooth.shape), 0, 255).astype(np.uint8)


def _pillow(mode: str, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"exif": exif, **options} if kind in ("JPEG", "PNG", "WEBP", "AVIF") else options
    Image.fromarray(_picture()).convert(mode).save(file, kind, **options)
    return file.getvalue()


def _opencv(suffix: str, array: np.ndarray, *flags: int) -> bytes:
    return cv2.imencode(suffix, array, list(flags))[1].tobytes()


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _hdf5(array: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    with h5py.File(file, "w") as writer:
        writer.create_dataset("depth", data=array, **options)
    return file.getvalue()


def exr(channels: str, array: np.ndarray, number: int = 2, flags: int = 0) -> bytes:
    """An OpenEXR file without compression, whose channels, of one letter each, hold the same.

    Args:
        channels: Their names.
        array: (H, W).
        number: Type of the numbers: 0 for integers, 1 for float16, 2 for float32.
        flags: In the version field.
    """
    height, width = array.shape
    names = sorted(channels)
    entries = b"".join(name.encode() + b"\0" + struct.pack("<iB3xii", number, 0, 1, 1) for name in names) + b"\0"
    box = struct.pack("<4i", 0, 0, width - 1, height - 1)
    header = b"\x76\x2f\x31\x01" + struct.pack("<i", 2 | flags)
    for name, kind, value in (
        (b"channels", b"chlist", entries),
        (b"compression", b"compression", b"\0"),
        (b"dataWindow", b"box2i", box),
        (b"displayWindow", b"box2i", box),
        (b"lineOrder", b"lineOrder", b"\0"),
        (b"pixelAspectRatio", b"float", struct.pack("<f", 1)),
        (b"screenWindowCenter", b"v2f", bytes(8)),
        (b"screenWindowWidth", b"float", struct.pack("<f", 1)),
    ):
        header += name + b"\0" + kind + b"\0" + struct.pack("<i", len(value)) + value
    stored = array.astype(("<u4", "<f2", "<f4")[number])
    length = 8 + len(names) * stored[0].nbytes
    start = len(header) + 1 + 8 * height
    offsets = struct.pack(f"<{height}Q", *range(start, start + height * length, length))
    rows = (struct.pack("<ii", y, length - 8) + row.tobytes() * len(names) for y, row in enumerate(stored))
    return header + b"\0" + offsets + b"".join(rows)


def _opencv_exr(array: np.ndarray) -> bytes:
    os.environ.setdefault("OPENCV_IO_ENABLE_OPENEXR", "1")
    return _opencv(".exr", array)


def _animation(kind: str) -> bytes:
    file = io.BytesIO()
    frames = [Image.fromarray(np.roll(_picture(), 5 * shift, axis=1)) for shift in range(3)]
    frames[0].save(file, kind, save_all=True, append_images=frames[1:])
    return file.getvalue()


def sound_files() -> dict[str, list[bytes]]:
    """Files of every kind that is read, in several variants each."""
    rgba = _picture()
    grey = rgba[..., 0].copy()
    wide = rgba.astype(np.uint16) * 257
    real = rgba[..., 0].astype(np.float32) / 7
    return {
        "JPEG": [
            _pillow("RGB", "JPEG"),
            _pillow("L", "JPEG"),
            _pillow("CMYK", "JPEG"),
            _pillow("RGB", "JPEG", progressive=True),
            _pillow("RGB", "JPEG", restart_marker_rows=1),
        ],
        "PNG": [*(_pillow(mode, "PNG") for mode in ("RGB", "RGBA", "P", "LA", "1")), _opencv(".png", wide)],
        "BMP": [_pillow("RGB", "BMP"), _pillow("P", "BMP"), _pillow("1", "BMP"), _opencv(".bmp", rgba)],
        "TIFF": [
            *(_pillow("RGBA", "TIFF", compression=name) for name in (None, "tiff_lzw", "tiff_adobe_deflate")),
            _pillow("RGB", "TIFF", compression="jpeg"),
            _pillow("1", "TIFF", compression="group4"),
            _opencv(".tiff", wide),
            _opencv(".tiff", real),
        ],
        "WebP": [_pillow("RGB", "WEBP"), _pillow("RGBA", "WEBP", lossless=True), _animation("WEBP")],
        "JPEG 2000": [_pillow("RGB", "JPEG2000"), _pillow("RGBA", "JPEG2000", no_jp2=True)],
        "GIF": [_pillow("P", "GIF"), _animation("GIF")],
        "AVIF": [_pillow("RGB", "AVIF", speed=10), _pillow("RGBA", "AVIF", speed=10)],
        "PNM": [
            *(_opencv(".pnm", array) for array in (rgba[..., :3], grey, wide[..., 0].copy())),
            _pillow("1", "PPM"),
            b"P2\n4 3\n1000\n" + b" ".join(b"%d" % value for value in range(12)) + b"\n",
        ],
        "PAM": [_opencv(".pam", rgba[..., :3])],
        "Radiance HDR": [_opencv(".hdr", rgba[..., :3].astype(np.float32) / 255)],
        "Sun raster": [_opencv(".ras", rgba[..., :3])],
        "NumPy": [_npy(real), _npy(grey), _npy(np.asfortranarray(wide[..., 0]))],
        "PFM": [b"Pf\n40 32\n-1.0\n" + real.tobytes(), b"PF\n8 5\n1.0\n" + real.tobytes()[:480]],
        "HDF5": [_hdf5(real), _hdf5(grey), _hdf5(real, chunks=(8, 8), compression="gzip", fletcher32=True)],
        "OpenEXR": [exr("Y", real), exr("RGB", real, 1), exr("Z", real), _opencv_exr(real)],
        "dpt": [b"PIEH" + struct.pack("<II", 40, 32) + real.tobytes()],
    }


READERS = {
    "NumPy": (util.read_truth,),
    "HDF5": (util.read_truth,),
    "OpenEXR": (util.read_truth, util.read_image),
    "PFM": (util.read_truth, util.read_pfm),
    "dpt": (util.read_dpt,),
}


def feed(kind: str, count: int, path: Path) -> tuple[int, int, float]:
    """Feeds ``count`` damaged variants of one kind of file to its readers; the file at hand is at ``path``.

    Returns:
        How many were read, how many refused, and the most seconds that one took.
    """
    read = refused = 0
    slowest = 0.0
    sound = sound_files()[kind]
    for number, data in enumerate(sound):
        variants = mutations(data, count // len(sound) + (number < count % len(sound)), seed=number)
        for index, variant in enumerate(variants):
            is_repaired = kind == "PNG" and index % 2
            path.write_bytes(png_with_right_checksums(variant) if is_repaired else variant)
            start = time.perf_counter()
            for reader in READERS.get(kind, (util.read_image, util.read_truth, util.read_orientation)):
                try:
                    reader(path)
                    read += 1
                except DataError as error:
                    refused += 1
                    if not str(error).startswith(f"{path}: ") or len(str(error).splitlines()) != 1:
                        raise AssertionError(f"a message that is not one line with the file: {error!r}") from error
            slowest = max(slowest, time.perf_counter() - start)
    return read, refused, slowest


def _peak_mb() -> int:
    """The most memory that this process has used so far, in MB."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) // 1024


def main(count: int, kinds: list[str]) -> None:
    """Prints a line for each kind. If the process dies, the last file is the one that it died of."""
    folder = Path(tempfile.mkdtemp(prefix="mutated."))
    for kind in kinds or sound_files():
        path = folder / kind.replace(" ", "_")
        print(f"{kind}: {path}", flush=True)
        read, refused, slowest = feed(kind, count, path)
        print(f"{kind}: {read} read, {refused} refused, at most {slowest:.2f} s, {_peak_mb()} MB", flush=True)
        path.unlink()
    folder.rmdir()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
