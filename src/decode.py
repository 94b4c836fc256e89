"""From the bytes of an image file to its pixels.

Every kind of file has the decoder that tells damage best and says nothing on stderr: a fault is one ``DataError``.
(Only that of AVIF, dav1d, adds lines of its own about some damaged files; nothing here can turn them off.)
The content decides which kind a file is; its name does not count.

* JPEG: simplejpeg, whose strict mode makes an error of every warning of libjpeg-turbo. OpenCV and Pillow return grey or
  shifted blocks where data is missing in the middle. Pillow for the rare sampling that TurboJPEG does not know.
* PNG: the checksums here, then Pillow; OpenCV for 16-bit colours.
* JPEG 2000, GIF, AVIF, BMP: Pillow. (OpenCV ends the process at some damaged JPEG 2000 files and has no GIF and AVIF.)
* TIFF, WebP, Radiance HDR, Sun raster, PAM, OpenEXR: OpenCV. PBM, PGM, PPM: Pillow for pictures, OpenCV for values as
  stored.
"""

import functools
import io
import logging
import os
import re
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Optional

import cv2
import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from src.common.errors import DataError

_BIG_TIFF_TAGS = (b"II+\0", b"MM\0+")
_TIFF_TAGS = (b"II*\0", b"MM\0*", *_BIG_TIFF_TAGS)
_SIGNATURES = (
    ("JPEG", re.compile(rb"\xff\xd8\xff")),
    ("PNG", re.compile(rb"\x89PNG\r\n\x1a\n")),
    ("TIFF", re.compile(b"|".join(map(re.escape, _TIFF_TAGS)))),
    ("GIF", re.compile(rb"GIF8[79]a")),
    ("WebP", re.compile(rb"RIFF.{4}WEBP", re.DOTALL)),
    ("JPEG 2000", re.compile(rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51")),
    ("BMP", re.compile(rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", re.DOTALL)),
    ("PNM", re.compile(rb"P[1-6]\s+(?:#|\d)")),
    ("PAM", re.compile(rb"P7\n")),
    ("Radiance HDR", re.compile(rb"#\?(?:RADIANCE|RGBE)")),
    ("Sun raster", re.compile(rb"\x59\xa6\x6a\x95")),
    ("JPEG XL", re.compile(rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n")),
    ("PDF", re.compile(rb"%PDF")),
    ("Photoshop", re.compile(rb"8BPS")),
    ("OpenEXR", re.compile(rb"\x76\x2f\x31\x01")),
    ("video", re.compile(rb"\x1a\x45\xdf\xa3|RIFF.{4}AVI |\0\0\x01\xba", re.DOTALL)),
    ("camera raw", re.compile(rb"FUJIFILMCCD-RAW|IIU\0|IIRO|MMOR|\0MRM|FOVb")),
    ("SVG", re.compile(rb"\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*(?:<!DOCTYPE svg|<svg)", re.DOTALL)),
)
HEAD_BYTES = 256  # of a file, enough for ``kind_of``

_MOST_PIXELS = 1 << 30  # of a picture: OpenCV's limit
# The header of a file that claims more pixels than the first, and more than the second per byte, is damaged. (1-bit PNG
# has up to 8,256 pixels per byte.) Decoders would take memory for all of it.
_LARGE, _MOST_PIXELS_PER_BYTE = 1 << 24, 10_000

_ORIENTATION = 0x0112  # a tag of EXIF and TIFF
_XMP = 0x02BC  # a tag of TIFF, whose text may name the orientation, too
_WIDTH, _HEIGHT, _BITS, _SAMPLES, _EXTRA_SAMPLES = 0x0100, 0x0101, 0x0102, 0x0115, 0x0152  # tags of TIFF
_COMPRESSION, _PHOTOMETRIC, _PLANES = 0x0103, 0x0106, 0x011C  # tags of TIFF, too
# None, three of fax, LZW, old JPEG, JPEG, Deflate, fax with bytes, Thunderscan, PackBits, old Deflate, SGI's of LogLuv.
_TIFF_COMPRESSIONS = frozenset((1, 2, 3, 4, 5, 6, 7, 8, 32771, 32773, 32809, 32946, 34676, 34677))
_FORMAT = 0x0153
_NUMBERS = {  # and what widths of them OpenCV reads
    1: ("integers without a sign", range(1, 17)),
    2: ("integers", range(1, 33)),
    3: ("floats", (32, 64)),
}
_NO_RGB = {5: "CMYK", 6: "YCbCr", 8: "Lab", 9: "Lab", 10: "Lab"}
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')
# Orientation -> what turns the picture upright.
_TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda image: cv2.flip(image, 1),
    3: lambda image: cv2.rotate(image, cv2.ROTATE_180),
    4: lambda image: cv2.flip(image, 0),
    5: cv2.transpose,
    6: lambda image: cv2.rotate(image, cv2.ROTATE_90_CLOCKWISE),
    7: lambda image: cv2.rotate(cv2.transpose(image), cv2.ROTATE_180),
    8: lambda image: cv2.rotate(image, cv2.ROTATE_90_COUNTERCLOCKWISE),
}
_OPPOSITE = {6: 8, 8: 6}  # every other turn undoes itself


@dataclass(frozen=True)
class Pixels:
    """What an image file holds.

    Attributes:
        colour: (H, W), or RGB (H, W, 3), of the type of the file.
        alpha: (H, W) of the same type, largest value opaque; None where there is none.
        premultiplied: Whether colours have been multiplied by alpha.
    """

    colour: np.ndarray
    alpha: Optional[np.ndarray] = None
    premultiplied: bool = False

    def turned(self, orientation: int) -> "Pixels":
        """Turns pixels as stored upright, by an EXIF orientation."""
        turn = _TURNS.get(orientation)
        if turn is None:
            return self
        alpha = None if self.alpha is None else turn(self.alpha)
        return Pixels(turn(self.colour), alpha, self.premultiplied)

    def over_white(self) -> np.ndarray:
        """Returns the colours as they look on a white page: ``colour`` itself where all is opaque."""
        if self.alpha is None or self.colour.dtype not in (np.uint8, np.uint16):
            return self.colour
        top = np.iinfo(self.colour.dtype).max
        if self.alpha.min() == top:
            return self.colour
        bits = 8 * self.colour.itemsize
        wide = np.uint16 if bits == 8 else np.uint32  # holds the largest product
        result = np.empty_like(self.colour)
        for start in range(0, len(result), 16):  # rows that fit into the cache
            rows = slice(start, start + 16)
            colour, alpha = self.colour[rows], self.alpha[rows]
            alpha = (cv2.merge([alpha] * 3) if colour.ndim == 3 else alpha).astype(wide)
            if self.premultiplied:
                result[rows] = np.minimum(colour + (top - alpha), top)
            else:
                product = colour * alpha + (top * top + (1 << (bits - 1)) - top * alpha)
                result[rows] = (product + (product >> bits)) >> bits  # divided by ``top`` and rounded
        return result


def kind_of(head: bytes) -> str:
    """Names the kind of an image file, a video or a page by its first ``HEAD_BYTES``; "" where it is none of them."""
    if head[4:8] == b"ftyp":  # the container of MP4: brands say what is in it
        end = min(max(int.from_bytes(head[:4], "big"), 12), 64)
        brands = {head[at : at + 4] for at in (8, *range(16, end, 4))}
        if brands & {b"avif", b"avis"}:
            return "AVIF"
        if head[8:12] == b"crx ":
            return "camera raw"
        return "HEIC" if brands & {b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1"} else "video"
    return next((kind for kind, signature in _SIGNATURES if signature.match(head)), "")


def decode(path: object, data: bytes, picture: bool, upright: bool) -> Pixels:
    """Decodes an image file; of an animation, its first frame.

    Args:
        path: For messages.
        data: The file.
        picture: Whether it is to look at: values then use the whole range of their type. Otherwise they are as stored,
            which differs for PGM and PPM files whose largest value is not 255 or 65535.
        upright: Whether to turn it as its orientation says; otherwise pixels come as stored.

    Raises:
        DataError: The file is truncated, damaged, too large or of a kind that nothing here reads.
    """
    _quiet_pillow()
    kind = kind_of(data[:HEAD_BYTES])
    reader = _READERS.get(kind)
    if reader is None:
        if kind:
            unread = f"{_named(kind)}, which nothing here reads; {_advice(kind)}"
            raise DataError(f"{path}: expected an image, found {unread}")
        raise DataError(f"{path}: expected an image, found {len(data)} bytes: truncated, damaged or of no known format")
    try:
        if kind == "PNG":
            data = _sound_png(data)
        if kind == "PNM" and picture:
            reader = functools.partial(_read_with_pillow, name="PPM")
        pixels = reader(data)
        return pixels.turned(_orientation(data, kind)) if upright else pixels
    except TooLargeError as error:
        raise DataError(f"{path}: {error}") from error
    except _UnreadError as error:
        wanted = "an 8-bit JPEG or PNG" if picture else "a 16-bit PNG or a TIFF file of 32-bit floats"
        article = "an" if kind == "OpenEXR" else "a"
        unread = f"{article} {kind} file of {error}, which nothing here reads; convert it to {wanted}"
        raise DataError(f"{path}: expected an image, found {unread}") from error
    except MemoryError as error:
        found = f"too large a {kind} file; scale it down"
        raise DataError(f"{path}: expected an image that fits into memory, found {found}") from error
    except Exception as error:  # damaged bytes make Pillow raise nearly anything
        if isinstance(error, cv2.error) and "CV_IO_MAX_IMAGE" in str(error):
            error_text = f"expected an image of at most {_MOST_PIXELS} pixels, found more; scale it down"
            raise DataError(f"{path}: {error_text}") from error
        reason = f" ({error})" if isinstance(error, _DamageError) and str(error) else ""
        found = f"a truncated or damaged {kind} file of {len(data)} bytes{reason}"
        raise DataError(f"{path}: expected an image, found {found}") from error


def _named(kind: str) -> str:
    """A kind of file in a sentence."""
    return {"video": "a video", "camera raw": "a camera's raw file"}.get(kind, f"a file of the kind {kind}")


def _advice(kind: str) -> str:
    return "take frames from it" if kind == "video" else "convert it to JPEG or PNG"


def orientation_of(data: bytes) -> int:
    """Reads the orientation of an image file, 1 to 8; 1, which is upright, where there is none or none can be read."""
    _quiet_pillow()
    kind = kind_of(data[:HEAD_BYTES])
    try:
        return _orientation(_sound_png(data) if kind == "PNG" else data, kind)
    except _DamageError:
        return 1


def _orientation(data: bytes, kind: str) -> int:
    """``orientation_of`` a file whose kind is known; of PNG, of what ``_sound_png`` has returned."""
    try:
        if kind == "TIFF":
            tags = _tiff_tags(data)
            if _ORIENTATION not in tags and (match := _XMP_ORIENTATION.search(tags.get(_XMP, b""))):
                return int(match[1])
            return int(tags.get(_ORIENTATION, 1))
        with Image.open(io.BytesIO(data), formats=_WITH_EXIF) as picture:
            # Of a PNG file without EXIF Pillow would decode the pixels, to see what comes after them: here, nothing.
            exif = Image.Image.getexif(picture) if kind == "PNG" else picture.getexif()
        return int(exif.get(_ORIENTATION, 1))
    except Exception:  # damaged bytes make Pillow raise nearly anything
        return 1


_WITH_EXIF = ("JPEG", "PNG", "WEBP", "AVIF", "JPEG2000")


class _DamageError(Exception):
    """What is wrong with a file, in words; "" where nobody knows."""


class _UnreadError(Exception):
    """A rare variant of a format, in words: the file may well be sound."""


class TooLargeError(Exception):
    """A picture of more pixels than can be taken."""


def check_size(width: int, height: int, data: bytes) -> None:
    """Refuses a picture by the size in its header, before any decoder takes memory for it.

    Raises:
        TooLargeError: It has more pixels than any picture may have; its text is for the user.
        _DamageError: The file, ``data``, is too short for so many.
    """
    pixels = width * height
    if pixels > _MOST_PIXELS:
        raise TooLargeError(
            f"expected an image of at most {_MOST_PIXELS} pixels, found {width} x {height} = {pixels}; scale it down"
        )
    if pixels > max(_LARGE, _MOST_PIXELS_PER_BYTE * len(data)):
        raise _DamageError(f"it says {width} x {height} pixels")


@functools.lru_cache(maxsize=1)
def _quiet_pillow() -> None:
    """Keeps Pillow from warning of damage and of many pixels: here, a file is read or refused with one line."""
    Image.MAX_IMAGE_PIXELS = None  # check_size looks instead
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    cv2.setLogLevel(0)


# ---- Pillow


def _read_with_pillow(data: bytes, name: str) -> Pixels:
    with Image.open(io.BytesIO(data), formats=(name,)) as picture:
        check_size(*picture.size, data)
        return _from_pillow(picture)


def _from_pillow(picture: Image.Image) -> Pixels:
    key = picture.info.get("transparency")
    if picture.mode.startswith("I;16"):
        grey = np.asarray(picture).astype(np.uint16, copy=False)
        return Pixels(grey, np.where(grey == key, 0, 65535).astype(np.uint16) if isinstance(key, int) else None)
    if picture.mode == "I":  # PGM of more than 8 bits
        return Pixels(np.asarray(picture).clip(0, 65535).astype(np.uint16))
    if picture.mode == "LA" or picture.has_transparency_data:
        stored = np.asarray(picture if picture.mode in ("LA", "RGBA") else picture.convert("RGBA"))
        grey = picture.mode == "LA"
        colour = cv2.extractChannel(stored, 0) if grey else cv2.cvtColor(stored, cv2.COLOR_RGBA2RGB)
        return Pixels(colour, cv2.extractChannel(stored, stored.shape[2] - 1))
    if picture.mode == "1":
        picture = picture.convert("L")
    return Pixels(np.asarray(picture if picture.mode in ("L", "RGB", "F") else picture.convert("RGB")))


# ---- OpenCV


def _read_with_opencv(data: bytes) -> Pixels:
    # Unlike a file by name, a truncated one in memory is refused.
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise _DamageError
    if image.ndim == 2:
        return Pixels(image)
    if image.shape[2] == 4:
        return Pixels(cv2.cvtColor(image, cv2.COLOR_BGRA2RGB), cv2.extractChannel(image, 3))
    return Pixels(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))


def _read_pam(data: bytes) -> Pixels:
    pixels = _read_with_opencv(data)
    if pixels.colour.ndim == 2:
        return pixels
    return Pixels(np.ascontiguousarray(pixels.colour[..., ::-1]), pixels.alpha)  # OpenCV takes the file for BGR


def _read_webp(data: bytes) -> Pixels:
    with Image.open(io.BytesIO(data), formats=("WEBP",)) as picture:
        check_size(*picture.size, data)
    return _read_with_opencv(data)  # three times as fast


# ---- JPEG

_HARMLESS = "Invalid SOS parameters"  # a warning that says nothing of the pixels
_MOST_STRAY_BYTES = 16  # after the pixels, which some cameras write; what is lost of the pixels leaves more behind
_UNUSUAL = re.compile(r"Could not determine subsampling|Unsupported (?:color conversion|JPEG data precision)")
_PRECISION = re.compile(r"data precision (\d+)")
_STRAY_BYTES = re.compile(r"(\d+) extraneous bytes before marker 0x(\w\w)")
_JPEG_MARKER = re.compile(rb"\xff[^\0\xff]", re.DOTALL)


def _read_jpeg(data: bytes) -> Pixels:
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data, strict=False)
        check_size(width, height, data)
        grey = space == "Gray"
        image = _decode_jpeg(data, "GRAY" if grey else "RGB")
    except (ValueError, KeyError) as error:  # KeyError: 4:4:1
        if isinstance(error, KeyError) or _UNUSUAL.search(str(error)):
            return _read_unusual_jpeg(data, str(error))
        raise _DamageError(str(error)) from error
    return Pixels(image[..., 0] if grey else image)


def _read_unusual_jpeg(data: bytes, reason: str) -> Pixels:
    """Reads what TurboJPEG does not: sampling such as 4:1:0, lossless grey. Only missing ends are told."""
    try:
        return _read_with_pillow(data, "JPEG")
    except UnidentifiedImageError as error:
        precision = _PRECISION.search(reason)
        raise (_UnreadError(f"{precision[1]} bits per channel") if precision else _DamageError(reason)) from error


def _decode_jpeg(data: bytes, space: str) -> np.ndarray:
    try:
        return simplejpeg.decode_jpeg(data, space)
    except ValueError as error:  # the first warning ends it: until there all is well
        warning = str(error)
        stray = _STRAY_BYTES.search(warning)
        if _HARMLESS in warning or (stray and _is_padding(data, int(stray[1]), stray[2])):
            return simplejpeg.decode_jpeg(data, space, strict=False)
        plain = b"".join(_segments(data))
        if plain == data:
            raise
    return _decode_jpeg(plain, space)


def _segments(jpeg: bytes) -> Iterator[bytes]:
    """Yields the parts of a JPEG file without what is odd and harmless; last, all pixels.

    That is bytes between the parts, which some cameras write, a version of JFIF that there is not, and colour profiles,
    which need not be whole.
    """
    yield jpeg[:2]
    at = 2
    while marker := _JPEG_MARKER.search(jpeg, at):
        at = marker.start()
        end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        if end < at + 4 or jpeg[at + 1] == 0xDA:
            break
        part = jpeg[at:end]
        if part.startswith(b"\xff\xe0") and part[4:9] == b"JFIF\0":
            part = part[:9] + b"\1\1" + part[11:]
        if not (part.startswith(b"\xff\xe2") and part[4:16] == b"ICC_PROFILE\0"):
            yield part
        at = end
    yield jpeg[at:]


def _is_padding(jpeg: bytes, count: int, marker: str) -> bool:
    """Whether ``count`` bytes before a marker are no pixels: the picture ends there, and they are few or all zero."""
    *_, pixels = _segments(jpeg)
    end = pixels.find(b"\xff\xd9")
    return marker == "d9" and (count <= _MOST_STRAY_BYTES or not any(pixels[end - count : end]))


# ---- PNG

_PNG_CHUNK = struct.Struct(">I4s")  # bytes of its content, kind
_PNG_HEADER = struct.Struct(">IIBBBBB")  # width, height, bits, colour, compression, filter, interlace
_PNG_EXIF_TEXT = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")


def _sound_png(png: bytes) -> bytes:
    """Checks the checksums of a PNG file.

    Returns:
        The file without what does not matter here (colour profiles, of which libpng warns; animation; text), with the
        chunks of the pixels last.
    """
    header, others, pixels, at, kind = [], [], [], 8, b""
    while kind != b"IEND":
        length, kind = _PNG_CHUNK.unpack_from(png, at) if at + 8 <= len(png) else (len(png), b"")
        chunk = png[at : at + 12 + length]
        at += 12 + length
        if at > len(png):
            raise _DamageError("it ends too early")
        is_sound = zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")
        if kind[0] & 0x20 == 0:  # a critical chunk
            if not is_sound:
                raise _DamageError(f"the checksum of its part {kind.decode('latin-1')!r} is wrong")
            (pixels if kind == b"IDAT" else header).append(chunk)
        elif is_sound and (kind in (b"tRNS", b"eXIf") or chunk[8:].startswith(_PNG_EXIF_TEXT)):
            others.append(chunk)
    return b"".join((png[:8], *header[:-1], *others, *pixels, header[-1]))


def _read_png(data: bytes) -> Pixels:
    """Decodes what ``_sound_png`` has returned."""
    width, height, bits, colour, compression, filters, interlace = _PNG_HEADER.unpack_from(data, 16)
    check_size(width, height, data)
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour)
    if channels is None or bits not in (1, 2, 4, 8, 16) or compression or filters or interlace > 1:
        raise _DamageError
    with_pillow = bits < 16 or colour == 0
    if with_pillow:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
            picture.load()
            key = picture.info.get("transparency")
            if picture.mode == "L" and bits < 8 and isinstance(key, int):
                picture.info["transparency"] = key * 255 // ((1 << bits) - 1)  # as Pillow has scaled the pixels
            # Pillow leaves rows that are missing black; they are the last ones.
            is_whole = not interlace and np.asarray(picture.crop((0, height - 1, width, height))).any()
            pixels = _from_pillow(picture)
            if is_whole:
                return pixels
    if not _has_all_rows(data, width, height, bits * channels, interlace):
        raise _DamageError
    if with_pillow:
        return pixels
    # Of a file that is sound until here, libpng has nothing to say on stderr.
    if colour == 4:  # OpenCV would read grey with alpha as colours with alpha
        pixels = _read_with_opencv(data)
        return Pixels(np.ascontiguousarray(pixels.colour[..., 0]), pixels.alpha)
    return _read_with_opencv(data)


_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def _has_all_rows(png: bytes, width: int, height: int, pixel_bits: int, interlace: int) -> bool:
    """Whether the compressed data is whole and every row has a filter that exists."""
    stream, at = [], 8
    while at < len(png):
        length, kind = _PNG_CHUNK.unpack_from(png, at)
        if kind == b"IDAT":
            stream.append(png[at + 8 : at + 8 + length])
        at += 12 + length
    passes = _ADAM7 if interlace else ((0, 0, 1, 1),)
    sizes = [(-(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in passes]
    sizes = [((columns * pixel_bits + 7) // 8 + 1, rows) for columns, rows in sizes if columns > 0 and rows > 0]
    expected = sum(length * rows for length, rows in sizes)
    inflater = zlib.decompressobj()
    rows = np.frombuffer(inflater.decompress(b"".join(stream), expected + 1), np.uint8)
    if rows.size != expected or not inflater.eof:
        return False
    start = 0
    for length, count in sizes:
        if rows[start : start + length * count : length].max() > 4:
            return False
        start += length * count
    return True


# ---- TIFF


def _tiff_tags(data: bytes) -> ImageFileDirectory_v2:
    """Reads the tags of the first picture; Image.open would refuse float64."""
    # Pillow does not know the big-endian header of BigTIFF.
    header = b"II+\0" + data[4:16] if data.startswith(_BIG_TIFF_TAGS) else data[:8]
    tags = ImageFileDirectory_v2(header, data[:2])
    file = io.BytesIO(data)
    file.seek(tags.next)
    tags.load(file)
    return tags


def _unread_tiff(tags: ImageFileDirectory_v2) -> str:
    """Names what OpenCV refuses or makes noise of in a sound file; "" where there is nothing of the kind."""
    bits, samples = max(tags.get(_BITS, (1,))), int(tags.get(_SAMPLES, 1))
    compression, photometric = tags.get(_COMPRESSION, 1), tags.get(_PHOTOMETRIC, 1)
    if compression not in _TIFF_COMPRESSIONS:
        return f"compression {compression}"
    if samples > 4:
        return f"{samples} channels"
    if bits > 8 and samples > 1 and tags.get(_PLANES) == 2:
        return f"separate planes of {bits} bits"
    if bits > 8 and photometric in _NO_RGB:
        return f"{bits}-bit {_NO_RGB[photometric]} colours"
    number, widths = _NUMBERS.get(tags.get(_FORMAT, (1,))[0], ("", ()))
    if photometric in (0, 1, 2) and widths and bits not in widths:
        return f"{bits}-bit {number}"
    if samples == 2 and tags.get(_EXTRA_SAMPLES) == (1,):
        return "grey multiplied by alpha"
    return ""


def _read_tiff(data: bytes) -> Pixels:
    tags = _tiff_tags(data)
    check_size(int(tags.get(_WIDTH, 0)), int(tags.get(_HEIGHT, 0)), data)
    is_byte = max(tags.get(_BITS, (1,))) <= 8
    if unread := _unread_tiff(tags):
        raise _UnreadError(unread)
    pixels = _read_with_opencv(data)
    if not is_byte and tags.get(_PHOTOMETRIC) == 0 and pixels.colour.dtype == np.uint16:  # OpenCV does so to bytes only
        pixels = Pixels(~pixels.colour, pixels.alpha)
    if is_byte and tags.get(_SAMPLES) == 2 and tags.get(_EXTRA_SAMPLES) == (2,):  # OpenCV drops the alpha of grey
        with Image.open(io.BytesIO(data), formats=("TIFF",)) as picture:
            pixels, orientation = _from_pillow(picture), _orientation(data, "TIFF")
    else:
        orientation = int(tags.get(_ORIENTATION, 1))
        if pixels.alpha is not None:
            meaning = tags.get(_EXTRA_SAMPLES, (None,))[0]  # 0: no alpha, 1: premultiplied, 2: not
            is_multiplied = meaning == 1 or (meaning == 2 and is_byte)  # which libtiff multiplies
            pixels = Pixels(pixels.colour, None if meaning == 0 else pixels.alpha, is_multiplied)
    # Both have turned it, whatever they were told: OpenCV by the tag, Pillow by XMP data as well.
    return pixels.turned(_OPPOSITE.get(orientation, orientation))


# ---- OpenEXR

_EXR_SWITCH = "OPENCV_IO_ENABLE_OPENEXR"
_EXR_VERSION = 4  # where it is in a file; its flags are in the bytes after it
_EXR_DEEP, _EXR_MULTIPART = 0x0800, 0x1000
_EXR_NUMBER = struct.Struct("<i")
_EXR_CHANNEL = struct.Struct("<iB3xii")  # type of the numbers (0: integers), linear, sampling
_EXR_BOX = struct.Struct("<4i")  # first and last column and row


def _name_at(data: bytes, at: int) -> tuple[bytes, int]:
    """Reads text that ends with 0; returns it, and where it ends."""
    end = data.index(b"\0", at)
    return data[at:end], end + 1


def _exr_attributes(data: bytes) -> dict[bytes, tuple[int, int]]:
    """Returns where the contents of the attributes in the header start and end, by name."""
    found, at = {}, _EXR_VERSION + 4
    while True:
        name, at = _name_at(data, at)
        if not name:
            return found
        _, at = _name_at(data, at)
        (length,) = _EXR_NUMBER.unpack_from(data, at)
        at += 4
        if not 0 <= length <= len(data) - at:
            raise _DamageError
        found[name] = at, at + length
        at += length


def _read_exr(data: bytes) -> Pixels:
    """Reads a grey or RGB picture of floats, of 16 or 32 bits; of others OpenCV returns zeros without a word."""
    (version,) = _EXR_NUMBER.unpack_from(data, _EXR_VERSION)
    if version & (_EXR_DEEP | _EXR_MULTIPART):
        raise _UnreadError("several parts or depths")
    attributes = _exr_attributes(data)
    left, top, right, bottom = _EXR_BOX.unpack_from(data, attributes[b"dataWindow"][0])
    if right < left or bottom < top:
        raise _DamageError
    check_size(right - left + 1, bottom - top + 1, data)
    names, (at, end) = [], attributes[b"channels"]
    start = at
    while at < end - 1:
        name, at = _name_at(data, at)
        number, _, across, down = _EXR_CHANNEL.unpack_from(data, at)
        at += _EXR_CHANNEL.size
        names.append(name)
        if number == 0 or (across, down) != (1, 1):
            raise _UnreadError(f"integers or sub-sampled values (channel {name.decode('latin-1')})")
    if len(names) == 1 and len(names[0]) == 1:  # Z, V ...: OpenCV knows a single channel as Y only
        data = data[:start] + b"Y" + data[start + 1 :]
    elif set(names) - {b"A"} != {b"R", b"G", b"B"}:
        raise _UnreadError(f"the channels {b', '.join(names).decode('latin-1')}")
    os.environ.setdefault(_EXR_SWITCH, "1")  # OpenCV looks when it meets its first such file
    try:
        return _read_with_opencv(data)
    except (cv2.error, _DamageError):
        if os.environ[_EXR_SWITCH].lower() not in ("1", "true", "yes", "on"):
            raise _UnreadError(f"the kind that {_EXR_SWITCH}={os.environ[_EXR_SWITCH]} switches off") from None
        if re.search(r"OpenEXR:\s+NO\b", cv2.getBuildInformation()):
            raise _UnreadError("the kind that this build of OpenCV leaves out") from None
        raise


_READERS: dict[str, Callable[[bytes], Pixels]] = {
    "JPEG": _read_jpeg,
    "PNG": _read_png,
    "TIFF": _read_tiff,
    "GIF": functools.partial(_read_with_pillow, name="GIF"),
    "AVIF": functools.partial(_read_with_pillow, name="AVIF"),
    "BMP": functools.partial(_read_with_pillow, name="BMP"),
    "JPEG 2000": functools.partial(_read_with_pillow, name="JPEG2000"),
    "WebP": _read_webp,
    "PNM": _read_with_opencv,
    "PAM": _read_pam,
    "Radiance HDR": _read_with_opencv,
    "Sun raster": _read_with_opencv,
    "OpenEXR": _read_exr,
}
READABLE = frozenset(_READERS) - {"OpenEXR"}  # as pictures
