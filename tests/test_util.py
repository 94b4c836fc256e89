"""File formats: hand-made files, round trips, and every way in which a file can lie."""

import io
import os
import re
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
from mutated_images import exr
from PIL import Image, ImageOps

from src import util
from src.common.errors import DataError

ROOT = Path(__file__).resolve().parents[1]


def picture(height=24, width=32, seed=0):
    """A smooth RGB picture: survives JPEG well."""
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)


def encode(suffix, rgb, *flags):
    return cv2.imencode(suffix, cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), list(flags))[1].tobytes()


def png_chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def with_orientation(rgb, kind, orientation):
    """A file of Pillow's kind ``kind`` with an orientation in its EXIF data, of TIFF in its tag."""
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(rgb).save(file, kind, exif=exif, quality=95, lossless=True)
    return file.getvalue()


def with_exif_after_pixels(png):
    """Moves the chunk eXIf of a PNG file to its end, where other programs write it."""
    start = png.index(b"eXIf") - 4
    end = start + 12 + struct.unpack_from(">I", png, start)[0]
    return png[:start] + png[end:-12] + png[start:end] + png[-12:]


def fault(function, path, *args):
    """The message of the DataError that ``function`` raises: one line that names the file."""
    with pytest.raises(DataError) as caught:
        function(path, *args)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


# Lists


def test_read_lines(tmp_path):
    path = tmp_path / "list.txt"
    path.write_bytes("# comment\r\n\r\n  a b \n\t\n#c\n深度\n".encode() + b"\xff")
    assert util.read_lines(path) == [(3, "a b"), (6, "深度"), (7, "\N{REPLACEMENT CHARACTER}")]
    path.write_bytes("\ufeff# comment\r\na\r\n".encode())
    assert util.read_lines(path) == [(2, "a")]
    path.write_text("# only this\n")
    assert fault(util.read_lines, path).endswith("expected a list with at least one line, found none")
    assert "cannot be read: No such file" in fault(util.read_lines, tmp_path / "gone.txt")


# Pictures


def test_read_image_gives_rgb_of_every_format(tmp_path):
    rgb = picture()
    for suffix, tolerance in ((".png", 0), (".bmp", 0), (".tiff", 0), (".jpg", 4)):
        path = tmp_path / f"picture{suffix}"
        path.write_bytes(encode(suffix, rgb))
        image = util.read_image(path)
        assert image.dtype == np.uint8
        assert image.shape == rgb.shape
        assert np.abs(image.astype(int) - rgb).mean() <= tolerance, suffix


def test_read_image_repeats_gray(tmp_path):
    path = tmp_path / "a.png"
    gray = picture()[..., 0]
    path.write_bytes(cv2.imencode(".png", gray)[1].tobytes())
    np.testing.assert_array_equal(util.read_image(path), np.dstack([gray] * 3))


def png(width, height, bits, colour, rows, *chunks):
    """A PNG file of given rows, each with its filter in front."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    pixels = png_chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + pixels + png_chunk(b"IEND", b"")


def pillow_bytes(array, kind, mode=None, **options):
    file = io.BytesIO()
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.convert(mode or image.mode).save(file, kind, **options)
    return file.getvalue()


def with_extra_samples(tiff, meaning):
    """Changes what a TIFF file of Pillow says its alpha is, from 2 (not multiplied)."""
    tag = struct.pack("<HHIHH", 338, 3, 1, 2, 0)
    assert tiff.count(tag) == 1
    return tiff.replace(tag, struct.pack("<HHIHH", 338, 3, 1, meaning, 0))


def test_read_image_lays_alpha_over_white(tmp_path):
    rgba = np.random.default_rng(1).integers(0, 256, (9, 7, 4), dtype=np.uint8)
    rgba[0, :, 3], rgba[1, :, 3] = 0, 255
    alpha = rgba[..., 3:] / 255.0
    white = rgba[..., :3] * alpha + 255 * (1 - alpha)
    grey = rgba[..., :1] * alpha + 255 * (1 - alpha)
    multiplied = np.dstack([np.rint(rgba[..., :3] * alpha), rgba[..., 3]]).astype(np.uint8)
    la = Image.fromarray(np.ascontiguousarray(rgba[..., [0, 3]]), "LA")
    deep = cv2.cvtColor(rgba, cv2.COLOR_RGBA2BGRA).astype(np.uint16) * 257
    la16 = (rgba[..., [0, 3]].astype(">u2") * 257).tobytes()
    la16 = b"".join(b"\0" + la16[start : start + 28] for start in range(0, len(la16), 28))
    files = {
        "png": (pillow_bytes(rgba, "PNG"), white),
        "grey png": (pillow_bytes(la, "PNG"), grey),
        "16-bit png": (cv2.imencode(".png", deep)[1].tobytes(), white),
        "16-bit grey png": (png(7, 9, 16, 4, la16), grey),
        "webp": (pillow_bytes(rgba, "WEBP", lossless=True, exact=True), white),
        "jp2": (pillow_bytes(rgba, "JPEG2000"), white),
        "tiff": (pillow_bytes(rgba, "TIFF"), white),
        "lzw tiff": (pillow_bytes(rgba, "TIFF", compression="tiff_lzw"), white),
        "grey tiff": (pillow_bytes(la, "TIFF"), grey),
        "16-bit tiff": (cv2.imencode(".tiff", deep)[1].tobytes(), white),
        "multiplied tiff": (with_extra_samples(pillow_bytes(multiplied, "TIFF"), 1), white),
        "tiff with something else": (with_extra_samples(pillow_bytes(rgba, "TIFF"), 0), rgba[..., :3]),
        "bmp with unused bytes": (cv2.imencode(".bmp", rgba)[1].tobytes(), rgba[..., 2::-1]),
    }
    for name, (data, expected) in files.items():
        path = tmp_path / name
        path.write_bytes(data)
        difference = np.abs(util.read_image(path) - expected)
        assert difference.max() <= 1.01, name
    opaque = rgba.copy()
    opaque[..., 3] = 255
    for kind in ("PNG", "TIFF", "WEBP", "JPEG2000"):
        path.write_bytes(pillow_bytes(opaque, kind, **({"lossless": True} if kind == "WEBP" else {})))
        np.testing.assert_array_equal(util.read_image(path), rgba[..., :3])
    grey3 = np.dstack([rgba[..., :1]] * 3 + [rgba[..., 3:]])
    path.write_bytes(pillow_bytes(grey3, "PNG"))
    np.testing.assert_array_equal(util.read_truth(path), rgba[..., 0])  # ground truth ignores it


def test_transparent_colours(tmp_path):
    """One colour may stand for all that is transparent."""
    path = tmp_path / "a"
    rgb = np.uint8([[[1, 2, 3], [4, 5, 6]]])
    palette = Image.fromarray(rgb).convert("P", palette=Image.Palette.ADAPTIVE)
    index = palette.getpixel((1, 0))
    files = [
        pillow_bytes(rgb, "PNG", transparency=(4, 5, 6)),
        pillow_bytes(palette, "PNG", transparency=index),
        pillow_bytes(palette, "GIF", transparency=index),
    ]
    for data in files:
        path.write_bytes(data)
        np.testing.assert_array_equal(util.read_image(path), [[[1, 2, 3], [255] * 3]])
    deep = struct.pack(">6H", 256, 512, 768, 4, 5, 6)
    path.write_bytes(png(2, 1, 16, 2, b"\0" + deep, png_chunk(b"tRNS", deep[6:])))
    np.testing.assert_array_equal(util.read_image(path), [[[1, 2, 3], [255] * 3]])
    path.write_bytes(png(2, 1, 16, 0, b"\0" + struct.pack(">2H", 256, 7), png_chunk(b"tRNS", struct.pack(">H", 7))))
    np.testing.assert_array_equal(util.read_image(path), [[[1] * 3, [255] * 3]])
    np.testing.assert_array_equal(util.read_truth(path), [[256, 7]])


def test_kinds_that_opencv_does_not_read(tmp_path):
    rgb = picture()
    frames = [Image.fromarray(np.full((4, 5), 60 * number, np.uint8)) for number in range(3)]
    path = tmp_path / "a"
    path.write_bytes(pillow_bytes(rgb, "AVIF", quality=100, subsampling="4:4:4"))
    assert np.abs(util.read_image(path).astype(int) - rgb).mean() < 2
    path.write_bytes(pillow_bytes(Image.fromarray(rgb).quantize(256), "GIF"))
    assert np.abs(util.read_image(path).astype(int) - rgb).mean() < 9
    for kind, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})):
        file = io.BytesIO()
        frames[1].save(file, kind, save_all=True, append_images=frames, **options)
        path.write_bytes(file.getvalue())
        np.testing.assert_array_equal(util.read_image(path), np.full((4, 5, 3), 60))  # the first


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"P5\n2 1\n15\n\x05\x0f", [85, 255]),
        (b"P5\n2 1\n1023\n\x02\x00\x03\xff", [128, 255]),
        (b"P2 2 1 1000 500 1000\n", [127, 255]),
        (b"P2 2 1 # comment\n255 9 255\n", [9, 255]),
        (b"P4\n2 1\n\x80", [0, 255]),
        (b"P1\n2 1\n1 0\n", [0, 255]),
    ],
)
def test_portable_pictures_use_the_whole_range(tmp_path, data, expected):
    path = tmp_path / "a.pgm"
    path.write_bytes(data)
    assert util.read_image(path)[0, :, 0] == pytest.approx(np.array(expected), abs=1)


def test_portable_truth_is_as_stored(tmp_path):
    path = tmp_path / "a.pgm"
    path.write_bytes(b"P5\n2 1\n1023\n\x02\x00\x03\xff")
    np.testing.assert_array_equal(util.read_truth(path), [[512, 1023]])


def test_bits_and_interlaced_rows(tmp_path):
    path = tmp_path / "a.png"
    for mode in ("1", "L", "P", "RGB"):
        image = Image.fromarray(picture()).convert(mode)
        path.write_bytes(pillow_bytes(image, "PNG"))
        np.testing.assert_array_equal(util.read_image(path), np.asarray(image.convert("RGB")))
    path.write_bytes(png(4, 1, 2, 0, b"\0\x1b"))
    np.testing.assert_array_equal(util.read_image(path)[0, :, 0], [0, 85, 170, 255])
    black = np.zeros((5, 6, 3), np.uint8)  # whose last rows Pillow would also make of missing ones
    path.write_bytes(encode(".png", black))
    np.testing.assert_array_equal(util.read_image(path), black)


def test_transparent_grey_of_few_bits(tmp_path):
    path = tmp_path / "a.png"
    for bits, row in ((2, b"\x1b"), (4, b"\x01\x23")):
        path.write_bytes(png(4, 1, bits, 0, b"\0" + row, png_chunk(b"tRNS", b"\0\2")))
        scale = 255 // ((1 << bits) - 1)
        np.testing.assert_array_equal(util.read_image(path)[0, :, 0], [0, scale, 255, 3 * scale])


@pytest.mark.parametrize(("depth", "kind"), [(3, b"RGB"), (4, b"RGB_ALPHA")])
@pytest.mark.parametrize("top", [255, 65535])
def test_pam_is_red_green_blue(tmp_path, depth, kind, top):
    rgba = np.dstack([picture(), np.full((24, 32), 255, np.uint8)])[..., :depth].astype(">u2") * (top // 255)
    header = b"P7\nWIDTH 32\nHEIGHT 24\nDEPTH %d\nMAXVAL %d\nTUPLTYPE %s\nENDHDR\n" % (depth, top, kind)
    path = tmp_path / "a.pam"
    path.write_bytes(header + rgba.astype(">u2" if top > 255 else np.uint8).tobytes())
    np.testing.assert_array_equal(util.read_image(path), picture())


# TIFF


def tiff(array, photometric, order="<", big=False, **tags):
    """An uncompressed TIFF file of (H, W), (H, W, C), or (C, H, W) with ``planes=2``."""
    channels_first = tags.get("planes") == 2
    height, width = array.shape[1:] if channels_first else array.shape[:2]
    samples = 1 if array.ndim == 2 else array.shape[0 if channels_first else 2]
    pixels = array.astype(array.dtype.newbyteorder(order)).tobytes()
    start = 16 if big else 8
    strips = [len(pixels) // samples] * samples if channels_first else [len(pixels)]
    entries = {
        256: [width], 257: [height], 258: [8 * array.itemsize] * samples, 259: [tags.get("compression", 1)],
        262: [photometric], 273: [start + sum(strips[:at]) for at in range(len(strips))], 277: [samples],
        278: [height], 279: strips, 284: [tags.get("planes", 1)], 338: tags.get("extra", []),
        339: [tags.get("numbers", 1)] * samples,
    }  # fmt: skip
    entries = {tag: values for tag, values in entries.items() if values}
    head = struct.pack(order + "HHHQ", 43, 8, 0, start + len(pixels)) if big else b""
    head = head or struct.pack(order + "HI", 42, start + len(pixels))
    word, size = ("Q", 20) if big else ("I", 12)
    lists = start + len(pixels) + (16 if big else 6) + size * len(entries)
    body, extra = b"", b""
    for tag, values in entries.items():
        packed = struct.pack(f"{order}{len(values)}I", *values)
        if len(packed) > struct.calcsize(word):
            packed, extra = struct.pack(order + word, lists + len(extra)), extra + packed
        body += struct.pack(f"{order}HH{word}", tag, 4, len(values)) + packed.ljust(struct.calcsize(word), b"\0")
    count = struct.pack(order + ("Q" if big else "H"), len(entries))
    end = struct.pack(order + word, 0)
    return (b"II" if order == "<" else b"MM") + head + pixels + count + body + end + extra


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("big", [False, True])
def test_tiff_of_every_byte_order(tmp_path, order, big):
    path, rgb = tmp_path / "a.tif", picture()
    grey = np.repeat(rgb[..., :1], 3, axis=2)
    for scale, dtype in ((1, np.uint8), (257, np.uint16)):
        wide = rgb.astype(dtype) * dtype(scale)
        path.write_bytes(tiff(wide, 2, order, big))
        np.testing.assert_array_equal(util.read_image(path), rgb)
        path.write_bytes(tiff(wide[..., 0], 1, order, big))
        np.testing.assert_array_equal(util.read_image(path), grey)
        np.testing.assert_array_equal(util.read_truth(path), wide[..., 0])
        path.write_bytes(tiff(wide[..., 0], 0, order, big))  # white is 0
        np.testing.assert_array_equal(util.read_image(path), 255 - grey)
        path.write_bytes(tiff(wide[..., :2], 1, order, big, extra=[0]))  # the second channel may be anything
        np.testing.assert_array_equal(util.read_image(path), grey)


def test_tiff_that_opencv_refuses_or_makes_noise_of(tmp_path):
    path, rgb = tmp_path / "a.tif", picture()
    planes = np.ascontiguousarray(rgb.transpose(2, 0, 1))
    for dtype, numbers, words in ((np.uint32, 1, "32-bit integers without a sign"), (np.float16, 3, "16-bit floats")):
        path.write_bytes(tiff(rgb[..., 0].astype(dtype), 1, numbers=numbers))
        expected = f"of {words}, which nothing here reads; convert it to a 16-bit PNG or a TIFF file of 32-bit floats"
        assert fault(util.read_truth, path).endswith(expected)
    for dtype, numbers in ((np.int8, 2), (np.int16, 2), (np.int32, 2), (np.float32, 3), (np.float64, 3)):
        path.write_bytes(tiff((rgb[..., 0] // 2).astype(dtype), 1, numbers=numbers))
        np.testing.assert_array_equal(util.read_truth(path), rgb[..., 0] // 2)
    path.write_bytes(tiff(planes, 2, planes=2))
    np.testing.assert_array_equal(util.read_image(path), rgb)
    wide = rgb.astype(np.uint16)
    for data, words in (
        (tiff(planes.astype(np.uint16), 2, planes=2), "separate planes of 16 bits"),
        (tiff(rgb, 2, compression=34712), "compression 34712"),  # JPEG 2000: all pixels came out black
        (tiff(np.dstack([rgb, rgb]), 2, extra=[0, 0, 0]), "6 channels"),
        (tiff(np.dstack([wide, wide[..., 0]]), 5), "16-bit CMYK colours"),
        (tiff(wide, 8), "16-bit Lab colours"),
        (tiff(rgb[..., :2], 1, extra=[1]), "grey multiplied by alpha"),
    ):
        path.write_bytes(data)
        expected = f"found a TIFF file of {words}, which nothing here reads; convert it to an 8-bit JPEG or PNG"
        assert fault(util.read_image, path).endswith(expected)


# Damaged JPEG files


def jpeg_files():
    rgb = np.random.default_rng(5).integers(0, 256, (64, 80, 3), np.uint8)
    return {
        "plain": pillow_bytes(rgb, "JPEG"),
        "grey": pillow_bytes(rgb, "JPEG", "L"),
        "progressive": pillow_bytes(rgb, "JPEG", progressive=True),
        "restart": pillow_bytes(rgb, "JPEG", restart_marker_rows=1),
        "4:4:4": pillow_bytes(rgb, "JPEG", subsampling=0, quality=95),
    }


@pytest.mark.parametrize("kind", jpeg_files())
def test_jpeg_without_some_of_its_pixels_is_damaged(tmp_path, kind):
    """OpenCV and Pillow return these with grey or shifted blocks."""
    path, sound = tmp_path / "a.jpg", jpeg_files()[kind]
    start = sound.index(b"\xff\xda") + 30
    middle = (start + len(sound)) // 2
    restart = sound.find(b"\xff\xd1", start)
    damaged = {
        "zeros": sound[:middle] + bytes(500) + sound[middle + 500 :],
        "removed": sound[:middle] + sound[middle + 500 :],
        "early end": sound[:middle] + b"\xff\xd9",
        "a marker": sound[:middle] + b"\xff\xd5" + sound[middle:],
    }
    if kind == "restart":
        damaged["wrong restart marker"] = sound[:restart] + b"\xff\xd4" + sound[restart + 2 :]
    for name, data in damaged.items():
        path.write_bytes(data)
        if kind == "progressive" and name in ("zeros", "removed"):  # in one pass of many: may decode legally
            continue
        assert "truncated or damaged JPEG file" in fault(util.read_image, path), name
        assert "(" in fault(util.read_truth, path), name


@pytest.mark.parametrize("kind", jpeg_files())
def test_jpeg_with_harmless_oddities_is_read(tmp_path, kind):
    path, sound = tmp_path / "a.jpg", jpeg_files()[kind]
    path.write_bytes(sound)
    expected = util.read_image(path)
    bgr = cv2.imdecode(np.frombuffer(sound, np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(expected, bgr[..., ::-1])
    quantization = sound.index(b"\xff\xdb")
    jfif = sound.index(b"JFIF\0") + 5
    odd = {
        "trailer": sound + b"Image_UTC_Data" + bytes(range(256)),
        "second picture, as in MPF": sound + sound,
        "bytes before a segment": sound[:quantization] + bytes(7) + sound[quantization:],
        "fill bytes before a segment": sound[:quantization] + b"\xff" * 5 + sound[quantization:],
        "fill bytes before the end": sound[:-2] + b"\xff" * 50 + sound[-2:],
        "zeros before the end": sound[:-2] + bytes(5000) + sound[-2:] + b"trailer",
        "some bytes before the end": sound[:-2] + b"\x12\x34\x56\x78\x9a" + sound[-2:],
        "both": sound[:quantization] + bytes(7) + sound[quantization:-2] + bytes(5000) + sound[-2:],
        "JFIF 3.0": sound[:jfif] + b"\x03" + sound[jfif + 1 :],
        "comment": sound[:2] + b"\xff\xfe\0\x07hello" + sound[2:],
        "part of a colour profile": sound[:quantization] + b"\xff\xe2\0\x12ICC_PROFILE\0\1\3ab" + sound[quantization:],
    }
    for name, data in odd.items():
        path.write_bytes(data)
        np.testing.assert_array_equal(util.read_image(path), expected, err_msg=name)
    path.write_bytes(sound[:-2] + b"\x12\x34" * 50 + sound[-2:])
    assert re.search(r"9\d extraneous bytes before marker 0xd9", fault(util.read_image, path))


@pytest.mark.parametrize(("subsampling", "factors"), [("4:2:0", (0x14, 0x11)), ("4:2:2", (0x11, 0x21))])
def test_jpeg_with_rare_sampling_is_read(tmp_path, subsampling, factors):
    """TurboJPEG has no name for these; here, they scramble the picture."""
    path, data = tmp_path / "a.jpg", bytearray(pillow_bytes(picture(64, 80), "JPEG", subsampling=subsampling))
    header = data.index(b"\xff\xc0")
    data[header + 11], data[header + 14] = factors
    path.write_bytes(data)
    bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(util.read_image(path), bgr[..., ::-1])
    path.write_bytes(data[: len(data) - 100])
    assert "truncated or damaged JPEG" in fault(util.read_image, path)


def test_jpeg_of_12_bits_is_named(tmp_path):
    path, data = tmp_path / "a.jpg", bytearray(jpeg_files()["plain"])
    data[data.index(b"\xff\xc0") + 4] = 12
    path.write_bytes(data)
    assert "found a JPEG file of 12 bits per channel, which nothing here reads; convert" in fault(util.read_image, path)


def test_jpeg_whose_end_is_missing_is_truncated(tmp_path):
    path = tmp_path / "a.jpg"
    for data in jpeg_files().values():
        path.write_bytes(data[:-2])
        assert "Premature end of JPEG file" in fault(util.read_image, path)


# Sizes


def claims(width, height):
    """Files of some hundred bytes whose headers say a size."""
    size = struct.pack(">II", width, height)
    tiny = picture(64, 80)
    jp2 = bytearray(encode(".jp2", tiny))
    at = jp2.index(b"ihdr") + 4
    jp2[at : at + 8] = struct.pack(">II", height, width)  # the other way round
    at = jp2.index(b"\xff\x4f\xff\x51") + 8
    jp2[at : at + 8] = size
    bmp = bytearray(encode(".bmp", tiny))
    bmp[18:26] = struct.pack("<ii", width, height)
    tiff = bytearray(pillow_bytes(tiny, "TIFF"))
    for tag, value in ((256, width), (257, height)):
        at = tiff.index(struct.pack("<HHI", tag, 4, 1))
        tiff[at + 8 : at + 12] = struct.pack("<I", value)
    files = {
        "a.png": png(width, height, 8, 0, b""),
        "a.jp2": bytes(jp2),
        "a.bmp": bytes(bmp),
        "a.tif": bytes(tiff),
        "a.pgm": b"P5\n%d %d\n255\n" % (width, height) + bytes(100),
    }
    if max(width, height) <= 65535:
        jpeg = bytearray(encode(".jpg", tiny))
        at = jpeg.index(b"\xff\xc0") + 5
        jpeg[at : at + 4] = struct.pack(">HH", height, width)
        gif = bytearray(pillow_bytes(tiny, "GIF"))
        gif[6:10] = struct.pack("<HH", width, height)
        files.update({"a.jpg": bytes(jpeg), "a.gif": bytes(gif)})
    return files


def test_pictures_that_are_too_large(tmp_path):
    for name, data in claims(40_000, 30_000).items():
        path = tmp_path / name
        path.write_bytes(data)
        assert fault(util.read_image, path) == (
            f"{path}: expected an image of at most 1073741824 pixels, found 40000 x 30000 = 1200000000; scale it down"
        )


def test_small_files_that_claim_to_be_large(tmp_path):
    """Nothing takes memory for 900 million pixels."""
    code = (
        "import pathlib, re, sys; from src import util; from src.common import errors\n"
        "for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):\n"
        "    try: util.read_image(path)\n"
        "    except errors.DataError as error: print(error)\n"
        "print(re.search(r'VmHWM:\\s+(\\d+)', pathlib.Path('/proc/self/status').read_text())[1])\n"
    )
    for name, data in claims(30_000, 30_000).items():
        (tmp_path / name).write_bytes(data)
    result = subprocess.run(
        [sys.executable, "-c", code, tmp_path], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    *lines, kilobytes = result.stdout.splitlines()
    assert len(lines) == 7
    assert all("truncated or damaged" in line and "30000 x 30000 pixels" in line for line in lines)
    assert int(kilobytes) < 200_000
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "found a file of the kind HEIC, which nothing here reads; convert it"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isommp42", "found a video, which nothing here reads; take frames from it"),
        (b"%PDF-1.7\n", "found a file of the kind PDF, which"),
        (b'<?xml version="1.0"?>\n<svg width="1">', "found a file of the kind SVG, which"),
        (b"<html>", "found 6 bytes: truncated, damaged or of no known format"),
    ],
)
def test_what_nothing_here_reads_is_named(tmp_path, data, words):
    (tmp_path / "a.jpg").write_bytes(data)
    assert words in fault(util.read_image, tmp_path / "a.jpg")


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_read_image_keeps_the_upper_byte_of_16_bits(tmp_path, suffix):
    bgr = np.array([[[0, 255, 256], [65535, 32768, 4660]]], np.uint16)
    path = tmp_path / f"deep{suffix}"
    path.write_bytes(cv2.imencode(suffix, bgr)[1].tobytes())
    np.testing.assert_array_equal(util.read_image(path), [[[1, 0, 0], [18, 128, 255]]])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "PNG, at the end", "WEBP", "TIFF", "AVIF"])
def test_orientation_is_applied_to_pictures_only(tmp_path, kind, orientation):
    rgb = picture()
    path = tmp_path / "turned"
    data = with_orientation(rgb, kind.split(",")[0], orientation)
    path.write_bytes(with_exif_after_pixels(data) if "," in kind else data)
    with Image.open(path) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened))
    np.testing.assert_array_equal(util.read_image(path), expected)
    stored = util.read_image(path, exif_rotation=False)
    assert np.abs(stored.astype(int) - rgb).mean() <= (4 if kind in ("JPEG", "AVIF") else 0)

    grey = np.repeat(rgb[..., :1], 3, axis=2)
    path.write_bytes(with_orientation(grey, kind.split(",")[0], orientation))
    np.testing.assert_array_equal(util.read_truth(path), util.read_image(path, exif_rotation=False)[..., 0])


def test_orientation_by_hand(tmp_path):
    """6: the top of the picture is at the right of the stored pixels; to turn by 90 degrees clockwise."""
    stored = np.uint8([[10, 20, 30], [40, 50, 60]])[..., None].repeat(3, axis=2)
    for kind in ("PNG", "WEBP", "TIFF"):
        path = tmp_path / kind
        path.write_bytes(with_orientation(stored, kind, 6))
        np.testing.assert_array_equal(util.read_image(path)[..., 0], [[40, 10], [50, 20], [60, 30]])
        np.testing.assert_array_equal(util.read_truth(path), stored[..., 0])


def test_orientation_of_large_and_of_double_precision_tiff(tmp_path):
    """BigTIFF has 8 bytes where TIFF has 4; Pillow itself reads no float64."""
    path = tmp_path / "a.tif"
    stored = np.arange(6, dtype=np.uint8).reshape(2, 3)
    tags = [(256, 3), (257, 2), (258, 8), (259, 1), (262, 1), (273, 16), (274, 6), (277, 1), (278, 2), (279, 6)]
    entries = b"".join(struct.pack("<HHQQ", tag, 3, 1, value) for tag, value in tags)
    directory = struct.pack("<Q", len(tags)) + entries + bytes(8)
    path.write_bytes(b"II+\0" + struct.pack("<HHQ", 8, 0, 16 + 6) + stored.tobytes() + directory)
    np.testing.assert_array_equal(util.read_image(path)[..., 0], [[3, 0], [4, 1], [5, 2]])
    np.testing.assert_array_equal(util.read_truth(path), stored)

    tags = [(256, 3), (257, 2), (258, 64), (259, 1), (262, 1), (273, 8), (274, 6), (277, 1), (278, 2), (279, 48)]
    entries = b"".join(struct.pack("<HHII", tag, 3, 1, value) for tag, value in [*tags, (339, 3)])
    directory = struct.pack("<H", len(tags) + 1) + entries + bytes(4)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + 48) + stored.astype(np.float64).tobytes() + directory)
    np.testing.assert_array_equal(util.read_truth(path), stored)


@pytest.mark.parametrize(("tag", "xmp"), [(None, 6), (None, 3), (8, 6)])
def test_orientation_in_the_xmp_data_of_tiff(tmp_path, tag, xmp):
    """It counts where there is no tag; OpenCV, which turns TIFF files by the tag, does not know it."""
    path, stored = tmp_path / "a.tif", picture()
    tags = {} if tag is None else {274: tag}
    Image.fromarray(stored).save(path, tiffinfo={**tags, 700: b'<rdf:Description tiff:Orientation="%d"/>' % xmp})
    with Image.open(path) as opened:
        np.testing.assert_array_equal(util.read_image(path), ImageOps.exif_transpose(opened))
    assert util.read_orientation(path) == (tag or xmp)
    np.testing.assert_array_equal(util.read_image(path, exif_rotation=False), stored)


def test_two_cameras_agree(cases):
    jpeg = util.read_image(cases / "webp_orientation" / "jpeg_exif6.jpg")
    webp = util.read_image(cases / "webp_orientation" / "webp_exif6.webp")
    assert jpeg.shape == webp.shape
    assert jpeg.shape[0] > jpeg.shape[1]
    assert np.corrcoef(jpeg.ravel(), webp.ravel())[0, 1] > 0.99


def test_damaged_exif_data_turns_nothing(tmp_path):
    path = tmp_path / "a.jpg"
    sound = with_orientation(picture(), "JPEG", 6)
    start = sound.index(b"Exif")
    path.write_bytes(sound[: start + 6] + b"\xff" * 8 + sound[start + 14 :])
    assert util.read_image(path).shape == picture().shape


def test_read_image_converts_cmyk(tmp_path):
    rgb = picture()
    path = tmp_path / "cmyk.jpg"
    Image.fromarray(rgb).convert("CMYK").save(path, "JPEG", quality=98)
    assert np.abs(util.read_image(path).astype(int) - rgb).mean() < 3


def test_read_image_refuses_every_truncation(tmp_path):
    rgb = picture()
    files = {
        "a.png": encode(".png", rgb),
        "a.jpg": encode(".jpg", rgb),
        "progressive.jpg": encode(".jpg", rgb, cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
        "restart.jpg": encode(".jpg", rgb, cv2.IMWRITE_JPEG_RST_INTERVAL, 1),
        "a.bmp": encode(".bmp", rgb),
        "a.webp": encode(".webp", rgb),
        "a.jp2": encode(".jp2", picture(64, 80)),
        "a.ppm": encode(".ppm", rgb),
        "a.tiff": encode(".tiff", rgb),
    }
    for name, data in files.items():
        path = tmp_path / name
        path.write_bytes(data)
        util.read_image(path)
        for length in [*range(0, len(data), max(1, len(data) // 60)), *range(len(data) - 13, len(data))]:
            path.write_bytes(data[:length])
            assert re.search("truncated(,| or) damaged", fault(util.read_image, path))


def test_read_image_refuses_a_png_file_with_any_byte_changed(tmp_path):
    path = tmp_path / "a.png"
    sound = encode(".png", picture())
    for position in [*range(60), *range(60, len(sound), 20), *range(len(sound) - 20, len(sound))]:
        data = bytearray(sound)
        data[position] ^= 1
        path.write_bytes(data)
        assert re.search("truncated(,| or) damaged", fault(util.read_image, path))


def test_read_image_refuses_other_faults(tmp_path):
    path = tmp_path / "x.png"
    assert "No such file" in fault(util.read_image, path)
    assert "directory" in fault(util.read_image, tmp_path).lower()
    path.write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "expected an image" in fault(util.read_image, path)
    path.write_bytes(cv2.imencode(".tiff", np.ones((4, 4, 3), np.float32))[1].tobytes())
    assert "found float32" in fault(util.read_image, path)


def test_decoders_leave_stderr_alone(tmp_path):
    """A fault is one line of ours. A cut BMP file and then a cut JPEG 2000 file ended the process, once."""
    suffixes = (".png", ".jpg", ".bmp", ".jp2", ".tiff", ".webp", ".ppm", ".ras")
    for suffix in suffixes:
        data = encode(suffix, picture(64, 80))
        (tmp_path / f"half{suffix}").write_bytes(data[: len(data) // 2])
    (tmp_path / "hole.jpg").write_bytes(jpeg_files()["plain"][:1200] + bytes(400) + jpeg_files()["plain"][1600:])
    deep = np.zeros((4, 5, 3), np.uint16)
    sound = cv2.imencode(".png", deep)[1].tobytes()
    rows = sound[sound.index(b"IDAT") - 4 : -12]
    for name, pixels in (
        ("filter", zlib.compress(b"\7" * 124)),
        ("short", zlib.compress(bytes(50))),
        ("junk", b"junk"),
    ):
        (tmp_path / f"deep_{name}.png").write_bytes(sound.replace(rows, png_chunk(b"IDAT", pixels)))
    code = (
        "import pathlib, sys; from src import util; from src.common import errors\n"
        "for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):\n"
        "    try: util.read_image(path)\n"
        "    except errors.DataError as error: print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, tmp_path], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    assert result.stderr == ""
    assert len(result.stdout.splitlines()) == len(suffixes) + 4


def test_a_profile_that_libpng_warns_of_is_left_out(tmp_path, capfd):
    profile = png_chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(bytes(200)))
    text = png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(80_000_000)))  # Pillow would refuse so long a one
    damaged = png_chunk(b"tEXt", b"Comment\0a")[:-1] + b"x"
    for dtype in (np.uint8, np.uint16):
        bgr = (picture()[..., ::-1].astype(dtype)) * (257 if dtype == np.uint16 else 1)
        sound = cv2.imencode(".png", bgr)[1].tobytes()
        path = tmp_path / "a.png"
        path.write_bytes(sound[:33] + profile + text + damaged + sound[33:])
        np.testing.assert_array_equal(util.read_image(path), picture())
    assert capfd.readouterr().err == ""


def test_cut_files_one_after_the_other(cases):
    """In this order they ended the process."""
    code = (
        "import pathlib, sys; from src import util; from src.common import errors\n"
        "for name in ('a.bmp', 'b.jp2', 'c.jpg'):\n"
        "    try: print(name, util.read_image(pathlib.Path(sys.argv[1], name)).ndim)\n"
        "    except errors.DataError as error: print(error)\n"
    )
    folder = cases / "truncated_images"
    result = subprocess.run(
        [sys.executable, "-c", code, folder], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    lines = result.stdout.splitlines()
    assert [line.split(": expected")[0] for line in lines] == [f"{folder}/a.bmp", f"{folder}/b.jp2", "c.jpg 3"]
    assert result.stderr == ""


def test_threads_may_read_at_once(tmp_path):
    paths = []
    for seed, (kind, suffix) in enumerate([("JPEG", ".jpg"), ("PNG", ".png"), ("WEBP", ".webp"), ("TIFF", ".tif")] * 8):
        paths.append(tmp_path / f"{seed}{suffix}")
        paths[-1].write_bytes(with_orientation(picture(seed=seed), kind, 1 + seed % 8))
    expected = [util.read_image(path) for path in paths]
    with ThreadPoolExecutor(8) as pool:
        for image, read in zip(expected * 4, pool.map(util.read_image, paths * 4)):
            np.testing.assert_array_equal(read, image)


def test_names_need_not_be_text(tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9.png")
    path.write_bytes(encode(".png", picture()))
    np.testing.assert_array_equal(util.read_image(path), picture())
    stem = tmp_path / os.fsdecode(b"out\xff")
    util.write_depth(stem, np.float32([[1, 2]]))
    np.testing.assert_array_equal(util.read_pfm(f"{stem}.pfm")[0], [[1, 2]])
    path.write_bytes(b"")
    fault(util.read_image, path)


def test_read_gray(tmp_path):
    path = tmp_path / "gray.png"
    for dtype in (np.uint8, np.uint16):
        gray = np.random.default_rng(2).integers(0, np.iinfo(dtype).max, (5, 7)).astype(dtype)
        path.write_bytes(cv2.imencode(".png", gray)[1].tobytes())
        read = util.read_gray(path)
        assert read.dtype == dtype
        np.testing.assert_array_equal(read, gray)
        path.write_bytes(cv2.imencode(".png", np.dstack([gray] * 3))[1].tobytes())
        np.testing.assert_array_equal(util.read_gray(path), gray)
    path.write_bytes(encode(".png", picture()))
    assert "one grey channel" in fault(util.read_gray, path)


def tiff_bytes(array):
    return cv2.imencode(".tiff", array)[1].tobytes()


def npy_bytes(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_read_gray_refuses_floats(tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(tiff_bytes(np.ones((2, 3), np.float32)))
    assert "expected 8 or 16 bits per pixel, found float32" in fault(util.read_gray, path)


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (np.uint8([[1, 2, 3], [4, 5, 255]]), np.uint8),
        (np.uint16([[1, 2, 3], [4, 5, 65535]]), np.uint16),
        (np.float32([[1.5, 2, -3], [4, np.inf, 1e30]]), np.float32),
        (np.float64([[1.5, 2, -3], [4, np.inf, 0.1]]), np.float32),
    ],
)
def test_read_truth_of_every_kind(tmp_path, stored, expected):
    path = tmp_path / "truth"
    files = [tiff_bytes(stored), npy_bytes(stored), npy_bytes(stored[..., None])]
    files += [
        npy_bytes(stored[None]),
        npy_bytes(np.asfortranarray(stored)),
        npy_bytes(stored.astype(stored.dtype.newbyteorder(">"))),
    ]
    if stored.dtype.kind == "u":
        grey3 = np.dstack([stored] * 3)
        files += [tiff_bytes(grey3), *(cv2.imencode(".png", array)[1].tobytes() for array in (stored, grey3))]
    for data in files:
        path.write_bytes(data)
        read = util.read_truth(path)
        assert read.dtype == expected
        np.testing.assert_array_equal(read, stored.astype(expected))


def test_read_truth_of_other_numbers(tmp_path):
    path = tmp_path / "a.npy"
    for dtype in (np.int8, np.int16, np.int32, np.uint32, np.int64, np.float16):
        path.write_bytes(npy_bytes(np.array([[1, 2, 3]], dtype)))
        read = util.read_truth(path)
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, [[1, 2, 3]])
    for data in (npy_bytes(np.array([[True, False]])), hdf5_bytes(depth=np.array([[True, False]]))):  # masks
        path.write_bytes(data)
        read = util.read_truth(path)
        assert (read.dtype, read.tolist()) == (np.uint8, [[1, 0]])
    path.write_bytes(npy_bytes(np.array([[1e300, -1.0]])))
    np.testing.assert_array_equal(util.read_truth(path), [[np.inf, -1]])
    util.write_pfm(tmp_path / "a.pfm", np.float32([[1, 2], [3, 4]]))
    np.testing.assert_array_equal(util.read_truth(tmp_path / "a.pfm"), [[1, 2], [3, 4]])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "expected an image, found 0 bytes"),
        (b"text", "expected an image, found 4 bytes"),
        (npy_bytes(np.ones((2, 3)))[:-1], "expected a NumPy array of numbers"),
        (npy_bytes(np.ones((2, 3)))[:20], "expected a NumPy array of numbers"),
        (npy_bytes(np.ones((2, 3))) + b"x", "expected one NumPy array, found 1 bytes after it"),
        (npy_bytes(np.array([[{}]], dtype=object)), "expected a NumPy array of numbers"),
        (npy_bytes(np.ones((2, 3))).replace(b"(2, 3)", b"(2, 3("), "expected a NumPy array of numbers"),
        (npy_bytes(np.ones(3)), "expected numbers (H, W), found float64 (3,)"),
        (npy_bytes(np.ones((2, 2, 2))), "expected numbers (H, W), found float64 (2, 2, 2)"),
        (npy_bytes(np.ones((0, 3))), "expected numbers (H, W), found float64 (0, 3)"),
        (npy_bytes(np.full((2, 3), "a")), "expected numbers (H, W), found <U1 (2, 3)"),
        (npy_bytes(np.ones((2, 3), complex)), "expected numbers (H, W), found complex128 (2, 3)"),
        (b"Pf\n3 2\n-1.0\n" + bytes(23), "expected 24 bytes of float32 pixels for 2 x 3, found 23"),
        (b"PF\n1 1\n-1.0\n" + struct.pack("<3f", 1, 2, 3), "expected one grey channel, found 3 different channels"),
        (encode(".png", picture()), "expected one grey channel, found 3 different channels"),
    ],
)
def test_read_truth_refuses(tmp_path, data, message):
    path = tmp_path / "a.npy"
    path.write_bytes(data)
    assert message in fault(util.read_truth, path)


# HDF5 and OpenEXR


def hdf5_bytes(**arrays):
    file = io.BytesIO()
    with h5py.File(file, "w") as writer:
        for name, array in arrays.items():
            writer[name] = array
    return file.getvalue()


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (np.float32([[0, 1.5, np.inf]]), [[0, 1.5, np.inf]]),
        (np.float64([[0, 1e300, np.nan]]), [[0, np.inf, np.nan]]),
        (np.float16([[0, 1.5, 2]]), [[0, 1.5, 2]]),
        (np.int32([[0, 70000, 2]]), [[0, 70000, 2]]),
        (np.uint16([[0, 65535, 2]]), [[0, 65535, 2]]),
        (np.float32([[-1, 2, 0]]), [[-1, 2, 0]]),
        (np.int16([[5, 2, -2]]), [[5, 2, -2]]),
    ],
)
def test_read_truth_of_hdf5(tmp_path, stored, expected):
    path = tmp_path / "a.h5"
    path.write_bytes(hdf5_bytes(depth=stored, other=np.zeros(3)))
    read = util.read_truth(path)
    assert read.dtype == (np.uint16 if stored.dtype == np.uint16 else np.float32)
    np.testing.assert_array_equal(read, np.array(expected, np.float32))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (hdf5_bytes(depths=np.ones((2, 3)), rgb=np.ones(3)), "the array /depth, found /depths, /rgb"),
        (hdf5_bytes(), "the array /depth, found nothing"),
        (hdf5_bytes(**{"depth/a": np.ones((2, 3))}), "the array /depth, found /depth"),
        (hdf5_bytes(depth=np.ones((2, 3, 1))), "expected numbers (H, W) in /depth, found float64 (2, 3, 1)"),
        (hdf5_bytes(depth=7.0), "expected numbers (H, W) in /depth, found float64 ()"),
        (hdf5_bytes(depth=np.ones((0, 3))), "expected numbers (H, W) in /depth, found float64 (0, 3)"),
        (hdf5_bytes(depth=np.ones((2, 3), complex)), "expected numbers (H, W) in /depth, found complex128 (2, 3)"),
        (hdf5_bytes(depth=np.ones((2, 3)))[:-9], "bytes: truncated or damaged"),
        (hdf5_bytes(depth=np.ones((2, 3)))[:20], "found 20 bytes: truncated or damaged"),
    ],
)
def test_read_truth_refuses_hdf5(tmp_path, data, message):
    path = tmp_path / "a.h5"
    path.write_bytes(data)
    assert message in fault(util.read_truth, path)


def test_read_truth_of_hdf5_looks_at_the_size_first(tmp_path):
    """Chunks that were never written take no bytes."""
    path = tmp_path / "a.h5"
    for height, width, filler, message in (
        (1 << 12, (1 << 12) + 1, 0, "bytes: truncated or damaged"),
        (1 << 15, (1 << 15) + 1, 1 << 18, "expected an image of at most 1073741824 pixels, found 32769 x 32768 ="),
    ):
        with h5py.File(path, "w") as writer:
            writer.create_dataset("depth", (height, width), np.uint8, chunks=(1024, 1024))
            writer["filler"] = np.zeros(filler, np.uint8)
        assert message in fault(util.read_truth, path)


def test_read_truth_of_hdf5_needs_room_for_a_checksum(tmp_path):
    path = tmp_path / "a.h5"
    for chunk in (b"a", b"abc"):
        with h5py.File(path, "w") as writer:
            writer.create_dataset("depth", (2, 3), np.uint8, chunks=(2, 3), fletcher32=True)
            writer["depth"].id.write_direct_chunk((0, 0), chunk)
        assert "bytes: truncated or damaged" in fault(util.read_truth, path)


@pytest.mark.parametrize("channels", ["Y", "Z", "V", "RGB", "RGBA"])
@pytest.mark.parametrize(("number", "dtype"), [(1, np.float16), (2, np.float32)])
def test_read_truth_of_openexr(tmp_path, channels, number, dtype):
    stored = np.array([[0.1, 2, np.inf], [np.nan, -4, 1e3]], dtype)
    path = tmp_path / "a.exr"
    path.write_bytes(exr(channels, stored, number))
    read = util.read_truth(path)
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, stored.astype(np.float32))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (exr("Y", np.ones((2, 3)), number=0), "an OpenEXR file of integers or sub-sampled values (channel Y), which"),
        (exr("RG", np.ones((2, 3))), "an OpenEXR file of the channels G, R, which nothing here reads; convert it to a"),
        (exr("YA", np.ones((2, 3))), "of the channels A, Y, which"),
        (exr("RGBZ", np.ones((2, 3))), "of the channels B, G, R, Z, which"),
        (exr("Y", np.ones((2, 3)), flags=0x1000), "of several parts or depths, which"),
        (
            exr("Y", np.ones((2, 3))).replace(struct.pack("<iB3xii", 2, 0, 1, 1), struct.pack("<iB3xii", 2, 0, 1, 2)),
            "of integers or sub-sampled values (channel Y), which",
        ),
        (
            exr("Y", np.ones((2, 3))).replace(struct.pack("<4i", 0, 0, 2, 1), struct.pack("<4i", 0, 0, 4095, 4096)),
            "bytes (it says 4096 x 4097 pixels)",
        ),
        (exr("Y", np.ones((2, 3)))[:-1], "a truncated or damaged OpenEXR file"),
        (exr("Y", np.ones((2, 3)))[:50], "a truncated or damaged OpenEXR file of 50 bytes"),
    ],
)
def test_read_truth_refuses_openexr(tmp_path, data, message):
    path = tmp_path / "a.exr"
    path.write_bytes(data)
    assert message in fault(util.read_truth, path)


def test_openexr_switched_off_and_channels_that_differ(tmp_path):
    """In a process of its own: OpenCV looks at the switch once."""
    path = tmp_path / "a.exr"
    path.write_bytes(exr("Y", np.ones((2, 3))))
    code = "import sys; from src.util import read_truth; print(read_truth(sys.argv[1]))"
    run = [sys.executable, "-c", code, path]
    for value, expected in (("0", "of the kind that OPENCV_IO_ENABLE_OPENEXR=0 switches off"), ("1", "[[1. 1. 1.]")):
        environment = {**os.environ, "OPENCV_IO_ENABLE_OPENEXR": value}
        result = subprocess.run(run, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert expected in result.stdout + result.stderr
    assert "expected 8 or 16 bits per channel, found float32" in fault(util.read_image, path)
    bgr = np.float32([[[1, 1, 2]]])
    path.write_bytes(cv2.imencode(".exr", bgr)[1].tobytes())
    assert "expected one grey channel, found 3 different channels" in fault(util.read_truth, path)


# Portable float maps


def test_read_pfm_by_hand(tmp_path):
    path = tmp_path / "a.pfm"
    for order, scale in (("<", b"-2.5"), (">", b"2.5")):
        path.write_bytes(b"Pf\n3 2\n" + scale + b"\n" + struct.pack(order + "6f", 4, 5, 6, 1, 2, 3))
        array, read_scale = util.read_pfm(path)
        assert read_scale == 2.5
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, [[1, 2, 3], [4, 5, 6]])  # the bottom row comes first in the file
    path.write_bytes(b"PF\n1 2\n1.0\n" + struct.pack(">6f", 4, 5, 6, 1, 2, 3))
    np.testing.assert_array_equal(util.read_pfm(path)[0], [[[1, 2, 3]], [[4, 5, 6]]])


def test_pfm_round_trip_and_opencv_agree(tmp_path):
    array = np.random.default_rng(3).normal(size=(4, 6)).astype(np.float32)
    path = tmp_path / "a.pfm"
    util.write_pfm(path, array)
    read, scale = util.read_pfm(path)
    assert scale == 1.0
    np.testing.assert_array_equal(read, array)
    np.testing.assert_array_equal(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), array)
    with pytest.raises(ValueError, match="unpack"):
        util.write_pfm(path, array[0])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"P5\n3 2\n255\n" + bytes(24),
        b"Pf\n3\n-1.0\n" + bytes(24),
        b"Pf\n3 2\nlittle\n" + bytes(24),
        b"Pf\n3 2\n0.0\n" + bytes(24),
        b"Pf\n3 2\n-.e\n" + bytes(24),
        b"Pf\n3 2\n-1e999\n" + bytes(24),
        b"Pf\n3 2\n-1.0\n" + bytes(23),
        b"Pf\n3 2\n-1.0\n" + bytes(25),
        b"Pf\n0 2\n-1.0\n",
        b"Pf\n999999999 999999999\n-1.0\n" + bytes(24),
    ],
)
def test_read_pfm_refuses(tmp_path, data):
    path = tmp_path / "bad.pfm"
    path.write_bytes(data)
    assert "expected" in fault(util.read_pfm, path)


# Depth maps


def test_write_depth(tmp_path):
    stem = tmp_path / "new" / "img.v1.2"  # dots in the name are not a suffix
    inverse_depth = np.array([[1.0, 2.0], [1.25, 5.0]], np.float32)
    util.write_depth(stem, inverse_depth)
    np.testing.assert_array_equal(util.read_pfm(f"{stem}.pfm")[0], inverse_depth)
    # (d - 1) / 4 * 65535: 0, 16383.75, 4095.9375, 65535
    np.testing.assert_array_equal(util.read_gray(f"{stem}.png"), [[0, 16384], [4096, 65535]])
    assert {path.name for path in stem.parent.iterdir()} == {"img.v1.2.pfm", "img.v1.2.png"}

    util.write_depth(stem, np.full((2, 3), 7.0, np.float32))
    np.testing.assert_array_equal(util.read_gray(f"{stem}.png"), np.zeros((2, 3)))
    for bad in (np.array([[np.nan, 1.0]]), np.ones(3)):
        with pytest.raises(ValueError, match="finite"):
            util.write_depth(stem, bad)


def test_write_png16_refuses_other_types(tmp_path):
    for array in (np.ones((2, 2), np.uint8), np.ones((2, 2, 3), np.uint16), np.ones((0, 2), np.uint16)):
        with pytest.raises(ValueError, match="uint16"):
            util.write_png16(tmp_path / "a.png", array)


def test_png_depth_units(tmp_path):
    path = tmp_path / "depth.png"
    util.write_png16(path, np.array([[0, 256, 65535], [5000, 384, 1]], np.uint16))
    kitti, tum = util.read_kitti_depth(path), util.read_tum_depth(path)
    assert kitti.dtype == tum.dtype == np.float64
    np.testing.assert_array_equal(kitti, np.float64([[0, 1, 65535 / 256], [5000 / 256, 1.5, 1 / 256]]))
    np.testing.assert_allclose(tum, [[0, 0.0512, 13.107], [1, 0.0768, 0.0002]], rtol=1e-6)
    path.write_bytes(cv2.imencode(".png", np.ones((2, 3), np.uint8))[1].tobytes())
    assert "8 bits" in fault(util.read_kitti_depth, path)
    assert "8 bits" in fault(util.read_tum_depth, path)


def test_dpt_by_hand_and_round_trip(tmp_path):
    path = tmp_path / "frame_0001.dpt"
    path.write_bytes(b"PIEH" + struct.pack("<ii6f", 3, 2, 1, 2, 3, 4, 5, 6))
    np.testing.assert_array_equal(util.read_dpt(path), [[1, 2, 3], [4, 5, 6]])
    depth = np.random.default_rng(4).uniform(1, 80, (5, 4)).astype(np.float32)
    util.write_dpt(path, depth)
    np.testing.assert_array_equal(util.read_dpt(path), depth)
    assert path.read_bytes()[:12] == b"PIEH" + struct.pack("<ii", 4, 5)
    with pytest.raises(ValueError, match="unpack"):
        util.write_dpt(path, depth[0])


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"PIEH\x01", r"tag PIEH, size), found b'PIEH\x01'"),
        (b"JUNK" + struct.pack("<ii6f", 3, 2, *range(6)), "tag"),
        (struct.pack(">fii6f", 202021.25, 3, 2, *range(6)), "tag"),
        (b"PIEH" + struct.pack("<ii6f", -3, -2, *range(6)), "found 24"),
        (b"PIEH" + struct.pack("<ii", 0, 2), "found 0"),
        (b"PIEH" + struct.pack("<ii6f", 2**31 - 1, 2**31 - 1, *range(6)), "found 24"),
        (b"PIEH" + struct.pack("<ii5f", 3, 2, *range(5)), "expected 24 bytes"),
        (b"PIEH" + struct.pack("<ii7f", 3, 2, *range(7)), "found 28"),
    ],
)
def test_read_dpt_refuses(tmp_path, data, word):
    path = tmp_path / "bad.dpt"
    path.write_bytes(data)
    assert word in fault(util.read_dpt, path)


def test_read_eth3d_depth(tmp_path):
    path = tmp_path / "DSC_0001.JPG"
    path.write_bytes(struct.pack("<6f", 1, 2, np.inf, 4, 5, 6))
    np.testing.assert_array_equal(util.read_eth3d_depth(path, 2, 3), [[1, 2, np.inf], [4, 5, 6]])
    assert "expected 48 bytes of float32 pixels for 3 x 4, found 24" in fault(util.read_eth3d_depth, path, 3, 4)
    assert "cannot be read" in fault(util.read_eth3d_depth, tmp_path / "gone.JPG", 2, 3)


def test_png_whose_pixels_are_short_is_refused(tmp_path):
    """Checksums and end marker are right, but the compressed rows cover half of the declared image."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 10, 10, 8, 0, 0, 0, 0))
    rows = png_chunk(b"IDAT", zlib.compress(bytes(11 * 5)))
    path = tmp_path / "short.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + rows + png_chunk(b"IEND", b""))
    assert "expected an image" in fault(util.read_gray, path)


def test_write_color_runs_from_far_to_near(tmp_path):
    ramp = np.linspace(3, 7, 256, dtype=np.float32).reshape(16, 16)
    util.write_color(tmp_path / "ramp.png", ramp, "viridis")
    expected = cv2.applyColorMap(np.arange(256, dtype=np.uint8).reshape(16, 16), cv2.COLORMAP_VIRIDIS)
    assert np.array_equal(cv2.imread(str(tmp_path / "ramp.png")), expected)
    util.write_color(tmp_path / "flat.png", np.ones((2, 2)), "viridis")
    assert np.array_equal(cv2.imread(str(tmp_path / "flat.png"))[0, 0], expected[0, 0])
