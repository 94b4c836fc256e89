"""Image and depth file formats.

Readers raise ``DataError`` with one line that names the file when it is missing, truncated, damaged or of another
format. ``src/decode.py`` decodes image files.
"""

import codecs
import io
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Optional, Union

import cv2
import numpy as np

from src.common.atomic import atomic_path
from src.common.errors import DataError
from src.decode import TooLargeError, check_size, decode, orientation_of

if TYPE_CHECKING:
    import h5py

PathLike = Union[str, Path]

_PFM_HEADER = re.compile(rb"(P[Ff])\s+(\d{1,9})\s+(\d{1,9})\s+([-+]?\d{1,20}\.?\d{0,20}(?:[eE][-+]?\d{1,3})?)\s")
_FIELD = re.compile(r"""(?<![^\s,;])"([^"]*)"(?![^\s,;])|(?<![^\s,;])'([^']*)'(?![^\s,;])|[^\s,;]+""")
_QUOTED = re.compile(r'^"([^"]*)"$')
_DPT_HEADER = struct.Struct("<4sII")  # tag, width, height
_DPT_TAG = b"PIEH"  # written by the Sintel software

_HDF5_TAG = b"\x89HDF\r\n\x1a\n"
_HDF5_KEY = "depth"
_NPY_TAG = b"\x93NUMPY"
_PFM_TAGS = (b"Pf", b"PF")


def _read_bytes(path: PathLike) -> bytes:
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        raise DataError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def size_and_time(path: PathLike) -> Optional[tuple[int, int]]:
    """Tells one content of a file from another without reading it.

    Returns:
        Bytes, and nanoseconds of the last change; None where there is no such file.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: a NUL byte in the name
        return None
    return status.st_size, status.st_mtime_ns


def read_lines(path: PathLike) -> list[tuple[int, str]]:
    """Reads a list with one entry per line.

    Args:
        path: A text file in UTF-8 or, with its byte order mark, in UTF-16. Byte order marks, which programs leave
            anywhere when they join files, do not count; other bytes become U+FFFD.

    Returns:
        Number (from 1) and stripped text of every line that is not empty and does not start with #.

    Raises:
        DataError: The file cannot be read or has no such line.
    """
    data = _read_bytes(path)
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8"
    text = data.decode(encoding, errors="replace").replace("\N{ZERO WIDTH NO-BREAK SPACE}", "")
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1)]
    lines = [(number, line) for number, line in lines if line and not line.startswith("#")]
    if not lines:
        raise DataError(f"{path}: expected a list with at least one line, found none")
    return lines


def read_fields(path: PathLike) -> list[tuple[int, list[str]]]:
    """Reads a list with several fields per line, whatever program has written it.

    Args:
        path: A text file, see ``read_lines``. Fields are separated by blanks, tabs, commas or semicolons. A field that
            holds one of these is quoted. A backslash is the separator of folders.

    Returns:
        Number (from 1) and fields of every line.

    Raises:
        DataError: As ``read_lines``.
    """
    return [(number, split_fields(line)) for number, line in read_lines(path)]


def split_fields(line: str) -> list[str]:
    """Splits a line as ``read_fields`` says; one that is quoted as a whole is a line all the same."""
    line = _QUOTED.sub(r"\1", line.replace("\\", "/"))
    fields = (match[1] or match[2] or match[0].strip("\"'") for match in _FIELD.finditer(line))
    return list(filter(None, fields))


def is_number(field: str) -> bool:
    """Whether a field of a list is a number, such as a time stamp, and so no file."""
    try:
        float(field)
    except ValueError:
        return False
    return True


def read_image(path: PathLike, exif_rotation: bool = True) -> np.ndarray:
    """Reads a picture; of an animation, its first frame.

    Grey is repeated on three channels, 16 bits per channel are cut to the upper 8, CMYK is converted. What is
    transparent is laid over white.

    Args:
        path: An image file (JPEG, PNG, BMP, TIFF, WebP, JPEG 2000, GIF, AVIF, PGM, PPM ...) of at most 2^30 pixels. Its
            content counts, not its name.
        exif_rotation: Whether to turn the picture upright as its EXIF data, or TIFF tag, says. False gives the pixels
            as stored, to which the ground truth of a data set belongs.

    Returns:
        uint8 array (H, W, 3), RGB.

    Raises:
        DataError: The file is missing, truncated, damaged, too large or no picture.
    """
    pixels = decode(path, _read_bytes(path), picture=True, upright=exif_rotation)
    if pixels.colour.dtype not in (np.uint8, np.uint16):
        raise DataError(
            f"{path}: expected 8 or 16 bits per channel, found {pixels.colour.dtype}; convert it to an 8-bit picture"
        )
    image = pixels.over_white()
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB) if image.ndim == 2 else np.ascontiguousarray(image)


def _parse_npy(path: PathLike, data: bytes) -> np.ndarray:
    file = io.BytesIO(data)
    try:
        array = np.lib.format.read_array(file, allow_pickle=False)
    except Exception as error:  # the header is a Python expression: damaged ones make NumPy raise nearly anything
        raise DataError(
            f"{path}: expected a NumPy array of numbers, found {len(data)} bytes: truncated, damaged or pickled objects"
        ) from error
    if file.tell() != len(data):
        raise DataError(f"{path}: expected one NumPy array, found {len(data) - file.tell()} bytes after it")
    shape = array.shape
    while array.ndim > 2 and 1 in array.shape:
        array = array.squeeze(array.shape.index(1))
    if array.ndim != 2 or not array.size or array.dtype.kind not in "buif":
        raise DataError(f"{path}: expected numbers (H, W), found {array.dtype} {shape}")
    return array


def _chunk_sizes(dataset: "h5py.Dataset") -> Iterator[int]:
    return (dataset.id.get_chunk_info(number).size for number in range(dataset.id.get_num_chunks()))


def _parse_hdf5(path: PathLike, data: bytes) -> np.ndarray:
    import h5py  # few data sets need it

    try:
        with np.errstate(all="ignore"), h5py.File(io.BytesIO(data), "r") as file:
            found = file.get(_HDF5_KEY)
            if not isinstance(found, h5py.Dataset):
                names = ", ".join(f"/{name}" for name in file) or "nothing"
                raise DataError(f"{path}: expected an HDF5 file with the array /{_HDF5_KEY}, found {names}")
            if found.dtype.kind not in "buif" or found.ndim != 2 or not found.size:
                raise DataError(
                    f"{path}: expected numbers (H, W) in /{_HDF5_KEY}, found {found.dtype} {tuple(found.shape or ())}"
                )
            check_size(found.shape[1], found.shape[0], data)
            if found.fletcher32 and min(_chunk_sizes(found), default=4) < 4:  # HDF5 would read beyond the checksum
                raise ValueError
            return found[()]
    except DataError:
        raise
    except TooLargeError as error:
        raise DataError(f"{path}: {error}") from error
    except Exception as error:  # h5py raises a dozen kinds for damaged files
        raise DataError(
            f"{path}: expected an HDF5 file with the array /{_HDF5_KEY}, found {len(data)} bytes: truncated or damaged"
        ) from error


def is_hdf5(path: PathLike) -> bool:
    """Tells by its content whether a file, which must be readable, is of HDF5."""
    with Path(path).open("rb") as file:
        return file.read(len(_HDF5_TAG)) == _HDF5_TAG


def read_truth(path: PathLike) -> np.ndarray:
    """Reads a map with one value per pixel: ground truth of any unit, or a mask.

    Values and pixels come as stored; an orientation and alpha are ignored.

    Args:
        path: An image file (PNG, TIFF ...), grey or of three equal channels; a NumPy file (``.npy``) of shape (H, W) or
            or with more axes of length 1; a portable float map (``.pfm``); an OpenEXR file with one channel, or three
            equal ones, of floats; or an HDF5 file with the array ``/depth``, as MegaDepth has them. Its content counts,
            not its name.

    Returns:
        (H, W). 8 or 16 bits without a sign remain uint8 or uint16, True and False become 1 and 0 of uint8; all other
        numbers become float32.

    Raises:
        DataError: The file is missing, truncated, of no such format, or coloured.
    """
    data = _read_bytes(path)
    if data.startswith(_NPY_TAG):
        array = _parse_npy(path, data)
    elif data.startswith(_PFM_TAGS):
        array, _ = _parse_pfm(path, data)
    elif data.startswith(_HDF5_TAG):
        array = _parse_hdf5(path, data)
    else:
        array = decode(path, data, picture=False, upright=False).colour
    if array.ndim == 3:
        grey = array[..., :1]
        if ((array != grey) & ((array == array) | (grey == grey))).any():  # NaN differs from itself
            raise DataError(f"{path}: expected one grey channel, found {array.shape[2]} different channels")
        array = array[..., 0]
    if array.dtype == bool:
        array = array.astype(np.uint8)
    kept = array.dtype.newbyteorder("=") in (np.uint8, np.uint16)
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite
        return np.ascontiguousarray(array, array.dtype.newbyteorder("=") if kept else np.float32)


def read_gray(path: PathLike) -> np.ndarray:
    """Reads a map of integers: see ``read_truth``.

    Returns:
        uint8 or uint16 array (H, W).

    Raises:
        DataError: As ``read_truth`` does, and where values are of another type.
    """
    image = read_truth(path)
    if image.dtype not in (np.uint8, np.uint16):
        raise DataError(f"{path}: expected 8 or 16 bits per pixel, found {image.dtype}")
    return image


def read_orientation(path: PathLike) -> int:
    """Reads how a picture is to be turned: its EXIF orientation, 1..8, by which ``read_image`` goes.

    Returns:
        1, which is upright, where there is none or none can be read.

    Raises:
        DataError: The file cannot be read.
    """
    return orientation_of(_read_bytes(path))


def _write_bytes(path: PathLike, data: bytes) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def _pixels(path: PathLike, data: bytes, offset: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Takes the rest of ``data`` as float32 pixels, checking its length against the declared ``shape``."""
    expected, found = 4 * int(np.prod(shape, dtype=object)), len(data) - offset
    if found != expected or not expected:
        size = " x ".join(map(str, shape))
        raise DataError(f"{path}: expected {expected or 'some'} bytes of float32 pixels for {size}, found {found}")
    return np.frombuffer(data, dtype, offset=offset).reshape(shape).astype(np.float32)


def read_pfm(path: PathLike) -> tuple[np.ndarray, float]:
    """Reads a portable float map (http://www.pauldebevec.com/Research/HDR/PFM/).

    Args:
        path: A ``Pf`` (grey) or ``PF`` (colour) file of either byte order.

    Returns:
        float32 array (H, W) or (H, W, 3), top row first, and the scale (> 0) of the header.

    Raises:
        DataError: The file is missing, its header is malformed or its length is not what the header says.
    """
    return _parse_pfm(path, _read_bytes(path))


def _parse_pfm(path: PathLike, data: bytes) -> tuple[np.ndarray, float]:
    header = _PFM_HEADER.match(data)
    scale = float(header[4]) if header else 0.0
    if not 0 < abs(scale) < np.inf:
        raise DataError(f"{path}: expected a PFM header (Pf|PF, width, height, scale not 0), found {data[:40]!r}")
    shape = (int(header[3]), int(header[2])) + ((3,) if header[1] == b"PF" else ())
    pixels = _pixels(path, data, header.end(), shape, "<f4" if scale < 0 else ">f4")
    return np.ascontiguousarray(pixels[::-1]), abs(scale)  # stored bottom row first


def write_pfm(path: PathLike, array: np.ndarray) -> None:
    """Writes a grey portable float map of scale 1, atomically.

    Args:
        path: The file to write.
        array: (H, W), top row first; stored as float32.

    Raises:
        ValueError: ``array`` is of another shape.
    """
    height, width = array.shape
    header = f"Pf\n{width} {height}\n-1.0\n"  # below 0: little-endian
    _write_bytes(path, header.encode("ascii") + array[::-1].astype("<f4").tobytes())


def write_png16(path: PathLike, array: np.ndarray) -> None:
    """Writes a 16-bit grey PNG file, atomically.

    Args:
        path: The file to write.
        array: uint16 (H, W).

    Raises:
        ValueError: ``array`` is of another type or shape.
    """
    if array.dtype != np.uint16 or array.ndim != 2 or not array.size:
        raise ValueError(f"a 16-bit grey PNG file holds uint16 (H, W), not {array.dtype} {array.shape}")
    _write_bytes(path, cv2.imencode(".png", array)[1].tobytes())


def _scaled(inverse_depth: np.ndarray, top: int) -> np.ndarray:
    """Scales a finite (H, W) map to float64 0 (smallest value) .. ``top`` (largest); a constant map becomes 0."""
    if inverse_depth.ndim != 2 or not np.isfinite(inverse_depth).all():
        raise ValueError(f"expected a finite map (H, W), found NaN, infinity or the shape {inverse_depth.shape}")
    values = inverse_depth.astype(np.float64)
    low, high = values.min(), values.max()
    values -= low  # in place: there may be 2^30 of them
    if high > low:
        values *= top / (high - low)
    return np.rint(values, out=values).clip(0, top, out=values)


def write_depth(stem_path: PathLike, inverse_depth: np.ndarray) -> None:
    """Writes an inverse depth map as ``stem_path`` + ``.pfm`` (exact) and ``.png`` (16 bit, to look at).

    The PNG is scaled so that the smallest value becomes 0 (farthest) and the largest 65535 (nearest). A
    constant map becomes all 0.

    Args:
        stem_path: Path of the files without suffix.
        inverse_depth: Finite float array (H, W).

    Raises:
        ValueError: ``inverse_depth`` is of another shape or not finite.
    """
    scaled = _scaled(inverse_depth, 65535)
    write_pfm(f"{stem_path}.pfm", inverse_depth)
    write_png16(f"{stem_path}.png", scaled.astype(np.uint16))


def write_color(path: PathLike, inverse_depth: np.ndarray, colormap: str) -> None:
    """Writes an inverse depth map as an 8-bit colour PNG file, atomically; scaled like the PNG of ``write_depth``.

    Args:
        path: The file to write.
        inverse_depth: Finite float array (H, W).
        colormap: Name of an OpenCV colour map in lower case, e.g. ``inferno``.

    Raises:
        ValueError: ``inverse_depth`` is of another shape or not finite.
    """
    palette = getattr(cv2, f"COLORMAP_{colormap.upper()}")
    colours = cv2.applyColorMap(_scaled(inverse_depth, 255).astype(np.uint8), palette)
    _write_bytes(path, cv2.imencode(".png", colours)[1].tobytes())


def _read_png16_depth(path: PathLike, units_per_metre: int) -> np.ndarray:
    image = read_gray(path)
    if image.dtype != np.uint16:
        raise DataError(f"{path}: expected a depth image of 16 bits, found 8 bits")
    return image / units_per_metre  # float32 would round most multiples of 1 / 5000


def read_kitti_depth(path: PathLike) -> np.ndarray:
    """Reads a KITTI depth image (16-bit PNG, 256 units per metre; http://www.cvlibs.net/datasets/kitti).

    Returns:
        float64 metres (H, W); 0 where there is no reading.

    Raises:
        DataError: The file is missing, damaged or not 16 bit.
    """
    return _read_png16_depth(path, units_per_metre=256)


def read_tum_depth(path: PathLike) -> np.ndarray:
    """Reads a TUM RGB-D depth image (16-bit PNG, 5000 units per metre).

    The format: https://cvg.cit.tum.de/data/datasets/rgbd-dataset/file_formats.

    Returns:
        float64 metres (H, W); 0 where there is no reading.

    Raises:
        DataError: The file is missing, damaged or not 16 bit.
    """
    return _read_png16_depth(path, units_per_metre=5000)


def read_dpt(path: PathLike) -> np.ndarray:
    """Reads a Sintel depth file (http://sintel.is.tue.mpg.de/depth).

    Returns:
        float32 metres (H, W).

    Raises:
        DataError: The file is missing, has another tag, or another length than its header says.
    """
    data = _read_bytes(path)
    if len(data) < _DPT_HEADER.size or not data.startswith(_DPT_TAG):
        raise DataError(f"{path}: expected a Sintel depth file (tag PIEH, size), found {data[: _DPT_HEADER.size]!r}")
    _, width, height = _DPT_HEADER.unpack_from(data)
    return _pixels(path, data, _DPT_HEADER.size, (height, width), "<f4")


def write_dpt(path: PathLike, depth: np.ndarray) -> None:
    """Writes a Sintel depth file, atomically.

    Args:
        path: The file to write.
        depth: Metres (H, W); stored as float32.

    Raises:
        ValueError: ``depth`` is of another shape.
    """
    height, width = depth.shape
    _write_bytes(path, _DPT_HEADER.pack(_DPT_TAG, width, height) + depth.astype("<f4").tobytes())


def read_float32(path: PathLike, height: int, width: int) -> np.ndarray:
    """Reads rows of float32 without a header, little-endian.

    Returns:
        float32 array (H, W).

    Raises:
        DataError: The file is missing or its length is not that of ``height`` x ``width`` pixels.
    """
    return _pixels(path, _read_bytes(path), 0, (height, width), "<f4")


def read_eth3d_depth(path: PathLike, height: int, width: int) -> np.ndarray:
    """Reads an ETH3D ground-truth depth file: float32 rows without a header (https://www.eth3d.net/documentation).

    Args:
        path: The file (its name ends in .JPG, but it is not a JPEG file).
        height: Height of the picture that it belongs to.
        width: Width of that picture.

    Returns:
        float32 metres (H, W); infinity where there is no reading.

    Raises:
        DataError: The file is missing or its length is not that of ``height`` x ``width`` pixels.
    """
    return read_float32(path, height, width)
