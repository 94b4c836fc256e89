"""The C++ runner, built against MindSpore Lite for the CPU and run on a tiny network.

Skipped where the tools to build it, OpenCV for C++ or MindSpore Lite cannot be had. It is built twice: without
sanitizers against the unpacked wheel, as the tests of run_infer_310.sh also use it, and with them against the same
library in the layout of the vendor's package.
"""

import os
import random
import resource
import shutil
import struct
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import runner_is_missing
from PIL import Image
from test_eval_datasets import ODD_FORMS, TWO_COLUMNS, picture, write_kitti, write_picture, write_sintel, write_tum

from src.common.errors import DataError
from src.evaluation.datasets import open_dataset
from src.evaluation.datasets.tum import SEQUENCE
from src.inference.onnxruntime import OnnxRuntimePredictor
from src.util import read_image

HEIGHT, WIDTH = 64, 96
MODEL, ONNX = "midas_tiny_64x96.mindir", "midas_tiny.onnx"
FOLDERS = {"Kitti": "Kitti_raw_data", "TUM": "TUM", "Sintel": "Sintel"}
VENDOR_LAYOUT = {  # where the vendor's package has what the wheel has in one folder
    "runtime/lib": "libmindspore-extendrt_python.so libmindspore_core.so libmsplugin-ge-litert_python.so"
    " liblite-unified-executor.so",
    "tools/converter/lib": "libmindspore_converter.so libmslite_converter_plugin.so libopencv_core.so.4.5"
    " libopencv_imgcodecs.so.4.5 libopencv_imgproc.so.4.5",
    "runtime/third_party/dnnl": "libdnnl.so.2",
    "runtime/third_party/glog": "libmindspore_glog.so.0",
}
# MindSpore Lite keeps memory until the process ends; telling it from leaks of the runner takes ten times as long.
NO_LEAKS = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
NOT_HERE = ("expected cmake", "expected make", "expected a C++17 compiler", "OpenCV: expected")


def run(*command, **options):
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, **options)


def build(root, lite, *flags):
    script = root / "ascend310_infer" / "build.sh"
    done = run("bash", script, *flags, env={**os.environ, "MINDSPORE_LITE_HOME": str(lite)})
    if any(text in done.stderr for text in NOT_HERE):
        runner_is_missing(done.stderr.splitlines()[-1])
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.splitlines()[-1])


@pytest.fixture(scope="session")
def plain(infer_home, lite):
    """The runner, built against the wheel."""
    main = build(infer_home, lite)
    assert main == infer_home / "ascend310_infer" / "build" / "main"
    return main


@pytest.fixture(scope="session")
def sanitized(repo, lite, tmp_path_factory):
    """The runner with AddressSanitizer and UndefinedBehaviorSanitizer, built against the layout of the vendor."""
    home = tmp_path_factory.mktemp("vendor")
    for folder, files in VENDOR_LAYOUT.items():
        (home / folder).mkdir(parents=True)
        for file in files.split():
            (home / folder / file).symlink_to(lite / "lib" / file)
    (home / "runtime" / "lib" / "libmindspore-lite.so").symlink_to(lite / "lib" / "libmindspore-extendrt_python.so")
    ascend = "libascend_kernel_plugin"
    (home / "runtime" / "lib" / f"{ascend}.so").symlink_to(lite / "lib" / f"{ascend}_python.so")
    (home / "runtime" / "include").symlink_to(lite / "include")
    return build(repo, home, "--sanitize", "--build_dir", tmp_path_factory.mktemp("build_sanitize"))


@pytest.fixture(scope="session")
def fixtures(repo):
    return repo / "tests" / "fixtures"


@pytest.fixture(scope="session")
def infer(fixtures):
    """The network as Python runs it: from 8-bit RGB to inverse depth."""
    predictor = OnnxRuntimePredictor(fixtures / ONNX, shapes="fixed", width=WIDTH, height=HEIGHT)
    return lambda image: predictor.infer(predictor.prepare(image))


def predict(runner, model, path, name, result, *flags, **options):
    flags = ("--dataset_name", name, "--device=CPU", "--result_path", result, *flags)
    return run(runner, "--midas_file", model, "--image_path", path, *flags, **options)


def read_result(result, name, sample):
    path = result / name / f"{sample}_{HEIGHT}x{WIDTH}.bin"
    return np.frombuffer(path.read_bytes(), "<f4").reshape(HEIGHT, WIDTH)


def results_of(result):
    return sorted(path.relative_to(result).as_posix() for path in result.rglob("*") if path.is_file())


def check_equal(found, expected):
    assert expected.std() > 0.1  # the network tells pixels apart
    assert np.abs(found - expected).max() <= 1e-4 * np.ptp(expected)


def check_set(done, path, name, result, infer):
    assert (done.returncode, done.stderr) == (0, "")
    dataset = open_dataset(name, path)
    for sample in (dataset[index] for index in range(len(dataset))):
        check_equal(read_result(result, name, sample.name), infer(sample.image))
    assert len(results_of(result / name)) == len(dataset)


def error_of(done, status=1):
    """The line that a run ends with."""
    assert done.returncode == status, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: ")
    return done.stderr.strip()


# The same values as Python


@pytest.mark.parametrize("name", FOLDERS)
def test_results_equal_python(plain, fixtures, eval_data, infer, tmp_path, name):
    path, result = eval_data / FOLDERS[name], tmp_path / "result_Files"
    check_set(predict(plain, fixtures / MODEL, path, name.upper(), result), path, name, result, infer)
    times = (tmp_path / "time_Result" / "test_perform_static.txt").read_text()
    assert "images: 3\naverage inference time, without the warm-up run: " in times
    assert results_of(tmp_path) == sorted(
        [f"result_Files/{file}" for file in results_of(result)] + ["time_Result/test_perform_static.txt"]
    )


@pytest.mark.parametrize("name", ["Kitti", "TUM"])
def test_results_equal_python_on_real_images(plain, fixtures, realdata, infer, tmp_path, name):
    path = realdata / FOLDERS[name]
    check_set(predict(plain, fixtures / MODEL, path, name, tmp_path), path, name, tmp_path, infer)


def test_sanitizers_find_nothing(repo, sanitized, fixtures, eval_data, infer, tmp_path):
    """All sets, without a complaint; leaks are looked for where a sample is damaged, too."""
    for name in ("Kitti", "Sintel"):
        path = eval_data / FOLDERS[name]
        done = predict(sanitized, fixtures / MODEL, path, name, tmp_path, env=NO_LEAKS)
        check_set(done, path, name, tmp_path, infer)
    write_tum(tmp_path / "tum", "rgb/1.5.png depth/1.6.png\nrgb/1.5.png\nrgb/2.5.png depth/2.6.png\n")
    (tmp_path / "tum" / "rgb" / "2.5.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    suppressions = repo / "ascend310_infer" / "lsan_suppressions.txt"
    leaks = {
        "ASAN_OPTIONS": "fast_unwind_on_malloc=0",  # else plugins that are no longer loaded have no name
        "LSAN_OPTIONS": f"suppressions={suppressions}:print_suppressions=0",
    }
    done = predict(sanitized, fixtures / MODEL, tmp_path / "tum", "TUM", tmp_path, env={**os.environ, **leaks})
    lines = done.stderr.splitlines()
    assert (done.returncode, len(lines)) == (1, 3), done.stderr
    assert lines[0].startswith("warning: sample line 2 is left out: ")
    assert lines[1].startswith("warning: sample 2.5 is left out: ")
    check_equal(read_result(tmp_path, "TUM", "1.5"), infer(picture(1)))


def stored_pictures():
    """Every way in which PNG and JPEG files store pixels: name -> file."""
    rng = np.random.default_rng(1)
    colours = cv2.resize(rng.integers(0, 256, (9, 12, 3), np.uint8), (60, 44), interpolation=cv2.INTER_CUBIC)
    wide = (colours.astype(np.uint16) << 8) + rng.integers(0, 256, colours.shape, np.uint16)
    alpha = rng.integers(0, 256, colours.shape[:2], np.uint8)
    rgb, rgba = Image.fromarray(colours), Image.fromarray(np.dstack([colours, alpha]))
    grey, few = rgb.convert("L"), rgb.quantize(9)
    key = few.convert("RGB").getpixel((5, 5))
    images = {
        "rgb": (rgb, {}),
        "rgba": (rgba, {}),
        "grey": (grey, {}),
        "grey_alpha": (rgba.convert("LA"), {}),
        "grey_key": (grey, {"transparency": grey.getpixel((5, 5))}),
        "grey_1": (rgb.convert("1"), {}),
        "palette": (few, {}),
        "palette_key": (few, {"transparency": 3}),
        "rgb_key": (few.convert("RGB"), {"transparency": key}),
        "jpeg": (rgb, {"format": "JPEG", "quality": 90}),
        "jpeg_444": (rgb, {"format": "JPEG", "subsampling": 0}),
        "jpeg_progressive": (rgb, {"format": "JPEG", "progressive": True}),
        "jpeg_grey": (grey, {"format": "JPEG"}),
        "jpeg_cmyk": (rgb.convert("CMYK"), {"format": "JPEG"}),
        "jpeg_turned": (
            rgb,
            {"format": "JPEG", "exif": b"Exif\0\0MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 274, 3, 1, 6, 0, 0)},
        ),
    }
    return {
        **{name: (image, {"format": "PNG", **options}) for name, (image, options) in images.items()},
        "rgb_16": wide,
        "grey_16": np.ascontiguousarray(wide[..., 0]),
        "rgba_16": np.dstack([wide, rng.integers(0, 65536, alpha.shape, np.uint16)]),
    }


def write_stored_pictures(folder):
    """Writes them as samples of a drive."""
    (folder / "d" / "depth").mkdir(parents=True)
    (folder / "d" / "image").mkdir()
    for name, stored in stored_pictures().items():
        path = folder / "d" / "image" / f"{name}.png"
        if isinstance(stored, np.ndarray):
            cv2.imwrite(str(path), stored)
        else:
            image, options = stored
            image.save(path, **options)
        (folder / "d" / "depth" / path.name).touch()


def test_pixels_of_every_kind_of_file(plain, fixtures, infer, tmp_path):
    write_stored_pictures(tmp_path / "set")
    done = predict(plain, fixtures / MODEL, tmp_path / "set", "Kitti", tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    for path in sorted((tmp_path / "set" / "d" / "image").iterdir()):
        expected = infer(read_image(path, exif_rotation=False))
        check_equal(read_result(tmp_path / "out", "Kitti", f"d/{path.stem}"), expected)


def test_damaged_pictures(sanitized, fixtures, tmp_path):
    """What Python refuses, the runner refuses; each in one line, and the sanitizers find nothing."""
    root, rng = tmp_path / "set", random.Random(1)
    write_stored_pictures(root)
    for path in list((root / "d" / "image").iterdir()):
        data = path.read_bytes()
        for number in range(12):
            damaged = bytearray(data)
            at = rng.randrange(len(data))
            if number % 3 == 0:
                del damaged[at:]
            elif number % 3 == 1:
                damaged[at] ^= 1 << rng.randrange(8)
            else:
                del damaged[at : at + rng.randrange(1, 9)]
            path.with_name(f"{path.stem}-{number}.png").write_bytes(damaged)
            (root / "d" / "depth" / f"{path.stem}-{number}.png").touch()
    done = predict(sanitized, fixtures / MODEL, root, "Kitti", tmp_path / "out", env=NO_LEAKS)
    refused = 0
    for path in (root / "d" / "image").iterdir():
        try:
            read_image(path, exif_rotation=False)
        except DataError:
            refused += 1
            assert f"warning: sample d/{path.stem} is left out: {path}: " in done.stderr
    *warnings, last = done.stderr.splitlines()
    assert done.returncode == 1
    assert all(line.startswith("warning: sample d/") and " is left out: " in line for line in warnings)
    assert 0.5 * 12 * 18 < refused <= len(warnings) < 1.05 * refused
    assert last.startswith(f"error: {len(warnings)} of {13 * 18} samples could not be predicted")
    assert len(results_of(tmp_path / "out")) == 13 * 18 - len(warnings)


def test_other_mean_and_deviation(plain, fixtures, eval_data, infer, tmp_path):
    path = eval_data / "TUM"
    flags = ("--mean", "[0.5, 0.25, 0.125]", "--std=0.25,0.5,0.125")
    assert predict(plain, fixtures / MODEL, path, "TUM", tmp_path, *flags).returncode == 0
    sample = open_dataset("TUM", path)[0]
    # Images x with (x - mean) / std equal to what the network gets with its own mean and deviation.
    x = np.float32(sample.image) / 255
    own = (x - [0.5, 0.25, 0.125]) / [0.25, 0.5, 0.125] * [0.229, 0.224, 0.225] + [0.485, 0.456, 0.406]
    check_equal(read_result(tmp_path, "TUM", sample.name), infer(own.astype(np.float32)))


# The same samples as Python


def check_list(runner, name, path):
    """Compares ``--list`` with the entries of Python's reader; returns how many there are."""
    try:
        entries = open_dataset(name, path)._entries
    except DataError as error:
        expected = str(error).replace(", or as *.h5 frames", "")
        done = run(runner, "--list", "--image_path", path, "--dataset_name", name, env=NO_LEAKS)
        assert error_of(done) == f"error: {expected}"
        return 0
    done = run(runner, "--list", f"--image_path={path}", f"--dataset_name={name}", env=NO_LEAKS)
    sound = [f"{entry.name}\t{entry.files[0]}" for entry in entries if not entry.fault]
    faults = [f"warning: {entry.fault}" for entry in entries if entry.fault]
    assert done.stdout.splitlines() == sound
    # Both quote what was found, each in its way.
    places = [[line.partition(", found ")[0] for line in lines] for lines in (done.stderr.splitlines(), faults)]
    assert places[0] == places[1]
    assert done.returncode == bool(faults)
    return len(entries)


def test_lists_kitti_and_sintel(plain, tmp_path):
    assert check_list(plain, "Kitti", tmp_path / "gone") == check_list(plain, "Sintel", tmp_path) == 0
    write_kitti(tmp_path / "kitti")
    drive = tmp_path / "kitti" / "a_sync"
    (drive / "depth" / "._0001.png").touch()
    (drive / "depth" / "0009.txt").touch()
    (drive / "depth" / "0010.png").touch()  # its picture is gone
    (drive / "depth" / "a.b.png").touch()
    write_picture(drive / "image" / "a.b.JPG", picture(1))
    (drive / "image" / "0002.png").rename(drive / "image" / "0002.jpeg")
    (tmp_path / "kitti" / "file").touch()
    (tmp_path / "kitti" / ".c_sync" / "depth").mkdir(parents=True)
    (tmp_path / "kitti" / ".c_sync" / "depth" / "1.png").touch()
    assert check_list(plain, "Kitti", tmp_path / "kitti") == 7
    write_sintel(tmp_path / "sintel")
    (tmp_path / "sintel" / "depth" / "alley_1" / ".frame_0001.dpt").touch()
    (tmp_path / "sintel" / "final_left" / "bamboo_2" / "frame_0001.png").unlink()
    assert check_list(plain, "Sintel", tmp_path / "sintel") == 3
    assert check_list(plain, "TUM", tmp_path) == 0


@pytest.mark.parametrize("rgb_folder", ["rgb", "rgb/rgb"])
@pytest.mark.parametrize("nested", [SEQUENCE, ""])
def test_lists_tum(plain, tmp_path, rgb_folder, nested):
    forms = (TWO_COLUMNS, *ODD_FORMS)
    write_tum(tmp_path / nested, "".join(forms), rgb_folder)
    assert check_list(plain, "TUM", tmp_path) == 2 * len(forms)


def test_lists_damaged_tum(plain, tmp_path):
    write_tum(tmp_path, "rgb/1.5.png depth/1.6.png\nrgb/9.png depth/1.6.png\n1.5 rgb/1.5.png 1.6\n\nnan 1_0 inf\n")
    assert check_list(plain, "TUM", tmp_path) == 4
    listing = tmp_path / "associate.txt"
    for content in (b"", b"# nothing\n", b"\n\n", b"\xff\xfe"):
        listing.write_bytes(content)
        assert check_list(plain, "TUM", tmp_path) == 0
    for encoding in ("utf-16", "utf-8-sig"):
        listing.write_bytes(TWO_COLUMNS.encode(encoding))
        assert check_list(plain, "TUM", tmp_path) == 2


def test_lists_any_tum_listing(sanitized, tmp_path):
    """Lines of odd parts, in any order: what Python makes of them, the runner makes of them."""
    rng = random.Random(1)
    write_tum(tmp_path, "", "rgb/rgb")
    paths = ["rgb/1.5.png", "depth/1.6.png", "rgb/2.5.jpg", "./rgb//2.5.png", "Depth_2/x.png", "depth/../rgb/2.5.png"]
    paths += [
        "/abs/depth/1.png",
        "b\\c.png",
        "rgb/ä.png",
        "rgb/\U0001f600.png",
        "depth",
        "rgb.",
        ".hidden",
        "..",
        "a/..",
    ]
    numbers = [
        "1.5",
        "-1e5",
        "+.5",
        "5.",
        "1_0",
        "1__0",
        "_1",
        "1e",
        "1e+",
        "nan",
        "-Inf",
        "infinity",
        "infinit",
        "0x10",
    ]
    parts = [*paths, *numbers, ".", "/", "é", "rgb/1.5.", "'", '"', "''", "#", "\ufeff", ",", ";", ",,"]
    ends = ["\n", "\r\n", "\r", "\u2028", "\x0b", "\x1c", "\x85", "\n\n", "\n#", "\n \u00a0"]
    separators = [" ", "  ", "\t", ",", ";", " , ", "\u00a0", "\u3000", "\x1f", '"', "'", '" ', " '", '" "']
    count = 0
    for _ in range(6):
        seen = {}
        text = ""
        for _ in range(60):
            line = "".join(rng.choice(parts) + rng.choice(separators) for _ in range(rng.randrange(1, 6)))
            # Two pictures of the same name would be refused; Python has no need to.
            (tmp_path / "associate.txt").write_text(line, "utf-8", newline="")
            try:
                entries = open_dataset("TUM", tmp_path)._entries
            except DataError:
                entries = []
            if all(entry.fault or seen.setdefault(entry.name, entry.files[0]) == entry.files[0] for entry in entries):
                text += line + rng.choice(ends)
        (tmp_path / "associate.txt").write_text(text, "utf-8", newline="")
        count += check_list(sanitized, "TUM", tmp_path)
    assert count > 150


def test_two_tum_pictures_of_one_name(plain, fixtures, tmp_path):
    write_tum(tmp_path, "rgb/1.5.png depth/1.6.png\nrgb/1.5.png depth/2.6.png\nrgb2/1.5.png depth/2.6.png\n")
    write_picture(tmp_path / "rgb2" / "1.5.png", picture(3))
    done = predict(plain, fixtures / MODEL, tmp_path, "TUM", tmp_path / "out")
    assert done.returncode == 1
    assert (
        f"{tmp_path / 'rgb2' / '1.5.png'}: expected a picture of another name than {tmp_path / 'rgb' / '1.5.png'}"
        in (done.stderr)
    )
    assert results_of(tmp_path / "out") == [f"TUM/1.5_{HEIGHT}x{WIDTH}.bin"]


# Results


def test_path_with_spaces_and_letters(sanitized, fixtures, infer, tmp_path):
    root = tmp_path / "Tiefe für alle 深度"
    write_kitti(root / "set")
    model = shutil.copy(fixtures / MODEL, root / "ein Netz ö.mindir")
    done = predict(sanitized, model, root / "set", "Kitti", root / "Ergebnis ß", env=NO_LEAKS)
    check_set(done, root / "set", "Kitti", root / "Ergebnis ß", infer)
    assert (root / "time_Result" / "test_perform_static.txt").is_file()


def test_earlier_results_of_the_set_are_removed(plain, fixtures, eval_data, tmp_path):
    kept = ["Kitti/d/0_64x96.bin", "TUM/notes.txt", "TUM/a_b.bin", "TUM/1x2.bin", "TUM/a_64x.bin", "TUM/a_64x96.npy"]
    for file in ["TUM/a_32x32.bin", "TUM/deep/b_384x1280.bin", *kept]:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    before = results_of(tmp_path)
    error_of(predict(plain, fixtures / ONNX, eval_data / "TUM", "TUM", tmp_path))
    assert results_of(tmp_path) == before  # nothing is removed before all is known to be well
    assert predict(plain, fixtures / MODEL, eval_data / "TUM", "TUM", tmp_path).returncode == 0
    names = [f"TUM/{entry.name}_64x96.bin" for entry in open_dataset("TUM", eval_data / "TUM")._entries]
    assert results_of(tmp_path) == sorted([*kept, *names])


def test_results_that_cannot_be_written(sanitized, fixtures, eval_data, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "time_Result").touch()
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "TUM").touch()
    for result, blocked in (
        ("file", "file/TUM"),
        ("set", "set/TUM"),
        ("results/of", "results/time_Result"),
        (f"{'long' * 80}", f"{'long' * 80}/TUM"),
    ):
        done = predict(sanitized, fixtures / MODEL, eval_data / "TUM", "TUM", tmp_path / result, env=NO_LEAKS)
        assert error_of(done).startswith(f"error: {tmp_path / blocked}: expected a folder that can be written to")


def test_nothing_is_left_half_written(plain, fixtures, eval_data, tmp_path):
    """As on a full disk: no file may be longer than 1,000 bytes."""
    done = predict(
        plain,
        fixtures / MODEL,
        eval_data / "TUM",
        "TUM",
        tmp_path / "out",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)),
        restore_signals=False,  # SIGXFSZ stays ignored: writing fails
    )
    assert error_of(done).endswith("_64x96.bin: cannot be written: File too large")
    assert results_of(tmp_path) == []


def test_output_that_cannot_be_written(plain, fixtures, eval_data):
    """Nothing that reads the list may take a part of it for the whole."""
    with open("/dev/full", "w") as full:
        command = [plain, "--list", "--image_path", eval_data / "TUM", "--dataset_name", "TUM"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert error_of(done) == "error: standard output cannot be written to"


# Models that cannot be taken


def varint(number):
    """A number as protobuf stores it."""
    digits = []
    while number:
        digits.append(number & 127 | (128 if number > 127 else 0))
        number >>= 7
    return bytes(digits)


@pytest.fixture(scope="session")
def model_fault(sanitized, eval_data, tmp_path_factory):
    """A function that gives the line with which a model is refused."""
    folder = tmp_path_factory.mktemp("model_faults")

    def fault(path, *flags, leaks=False):
        env = None if leaks else NO_LEAKS
        line = error_of(predict(sanitized, path, eval_data / "TUM", "TUM", folder, *flags, env=env))
        assert line.startswith(f"error: {path}: ")
        assert results_of(folder) == []
        return line

    return fault


def test_other_files(model_fault, fixtures, weights, tmp_path):
    assert "expected a MINDIR file, found an ONNX file; " in model_fault(fixtures / ONNX)
    assert "expected a MINDIR file, found a checkpoint of MindSpore; " in model_fault(weights)
    assert "cannot be read: No such file or directory" in model_fault(tmp_path / "gone.mindir")
    assert "cannot be read: Is a directory" in model_fault(tmp_path)
    for content, found in (
        (b"", "an empty file"),
        (b"PK\3\4...", "a zip archive"),
        (b"text", "4 bytes of something else"),
    ):
        path = tmp_path / "other.mindir"
        path.write_bytes(content)
        assert f"expected a MINDIR file, found {found}" in model_fault(path)


def test_truncated_and_damaged_models(model_fault, fixtures, tmp_path):
    data = (fixtures / MODEL).read_bytes()
    path = tmp_path / "cut.mindir"
    for size in (10, 20, 1000, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        expected = f"expected a whole MINDIR file, found a truncated or damaged one of {size} bytes"
        assert model_fault(path, leaks=size == 1000).endswith(expected)
    path.write_bytes(data[:30] + data[31:])
    assert "expected a whole MINDIR file" in model_fault(path)
    path.write_bytes(data.replace(b"Conv2DFusion", b"Conv2DFushun"))  # whole, and yet no network
    assert "which it refuses: " in model_fault(path)


def test_model_of_another_generation(model_fault, plain, net, eval_data, tmp_path):
    from src.export.mindir import write_mindir

    path = tmp_path / "new.mindir"
    write_mindir(net, path, (HEIGHT, WIDTH), "{}")
    line = model_fault(path)
    assert "found mind_ir_version 3 (MindSpore 2." in line
    assert "convert the network with the converter_lite of the same release, see docs/deploy.md" in line
    done = predict(plain, path, eval_data / "TUM", "TUM", tmp_path / "out", env={**os.environ, "GLOG_v": "2"})
    assert "[ERROR]" in done.stderr  # the log of MindSpore Lite, for those who want it


def test_too_little_memory(plain, fixtures, eval_data, tmp_path):
    """MindSpore Lite catches what is thrown then; yet the model is not to blame."""
    path, size = tmp_path / "large.mindir", 300 << 20
    text = (fixtures / MODEL).read_bytes() + b"\x32" + varint(size)  # doc_string, which needs memory and is not used
    path.write_bytes(text)
    os.truncate(path, len(text) + size)
    limit = 1000 << 20  # is enough for a copy of the file, and not for a second one beside the network
    done = predict(
        plain,
        path,
        eval_data / "TUM",
        "TUM",
        tmp_path / "out",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert error_of(done) == "error: there is not enough memory"
    assert results_of(tmp_path / "out") == []


def test_ascend_without_its_toolkit(model_fault, fixtures):
    if shutil.which("npu-smi"):
        pytest.skip("this machine may have an Ascend device")
    line = model_fault(fixtures / MODEL, "--device", "ascend")
    assert "expected a network that this MindSpore Lite can load on Ascend" in line
    assert "libgraph.so: cannot open shared object file" in line


def test_network_whose_output_is_not_finite(model_fault, fixtures, tmp_path):
    path = tmp_path / "infinite.mindir"
    one, infinity = struct.pack("<f", 1), struct.pack("<f", np.inf)  # the last bias is 1
    path.write_bytes((fixtures / MODEL).read_bytes().replace(one, infinity))
    assert "values that are not finite" in model_fault(path)


# Command line


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--midas_file"], "--midas_file: expected a value after it, found 'none'"),
        (["--midas_file="], "--midas_file: expected a value, found none"),
        (["--image_path="], "--image_path: expected a value, found none"),
        (["--dataset_name", "NYU"], "--dataset_name: expected Kitti, TUM or Sintel, found 'NYU'"),
        (["--device", "GPU"], "--device: expected Ascend or CPU, found 'GPU'"),
        (["--device_id=-1"], "--device_id: expected 0 or more, found '-1'"),
        (["--device_id", "1x"], "--device_id: expected 0 or more, found '1x'"),
        (["--mean", "0.5,0.5"], "--mean: expected three numbers from 0 to 1, such as 0.5,0.5,0.5, found '0.5,0.5'"),
        (["--mean=0,0,2"], "--mean: expected three numbers from 0 to 1"),
        (["--std", "1,1,0"], "--std: expected three numbers above 0, found '1,1,0'"),
        (["--std", "1,1,1,1"], "--std: expected three numbers from 0 to 1"),
        (["--help=x"], "--help: expected no value, found 'x'"),
        (["--image", "x"], "unknown argument '--image'; --help lists the flags"),
        (["x\ny"], "unknown argument 'x\\x0ay'"),
    ],
)
def test_usage(plain, flags, message):
    sound = ("--midas_file=x", "--image_path=y", "--dataset_name=tum")
    assert message in error_of(run(plain, *sound, *flags), status=2)


def test_help_and_the_default_device(plain, fixtures, eval_data, tmp_path):
    done = run(plain, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    for flag in (
        "midas_file",
        "image_path",
        "dataset_name",
        "device",
        "device_id",
        "result_path",
        "mean",
        "std",
        "list",
    ):
        assert f"--{flag} " in done.stdout
    flags = ("--midas_file", fixtures / ONNX, "--image_path", tmp_path, "--dataset_name", "kitti")
    assert "expected Kitti as DRIVE/image" in error_of(run(plain, *flags, cwd=tmp_path))
    assert results_of(tmp_path) == []  # looked at before anything is made


# Building


def small_project(repo, root, command):
    """build.sh with a project that takes no time to build."""
    folder = root / "ascend310_infer"
    folder.mkdir(parents=True)
    shutil.copy(repo / "ascend310_infer" / "build.sh", folder)
    (folder / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.16)\nproject(midas_infer LANGUAGES NONE)\n"
        f"add_custom_target(main ALL {command} COMMAND ${{CMAKE_COMMAND}} -E touch main)\n"
    )


def test_build_after_a_move(repo, tmp_path):
    """CMake refuses what it has made for another folder."""
    small_project(repo, tmp_path / "first", "")
    assert build(tmp_path / "first", tmp_path).is_file()
    shutil.copytree(tmp_path / "first", tmp_path / "copied")
    for root in ("copied", "first"):
        main = tmp_path / root / "ascend310_infer" / "build" / "main"
        main.unlink()
        assert build(tmp_path / root, tmp_path) == main
        assert main.is_file()


def test_builds_that_start_together(repo, tmp_path):
    """As when two sets are run at the same time."""
    small_project(repo, tmp_path, "COMMAND mkdir busy COMMAND sleep 0.5 COMMAND rmdir busy")
    with ThreadPoolExecutor() as pool:
        mains = list(pool.map(lambda _: build(tmp_path, tmp_path), range(3)))
    assert mains == [tmp_path / "ascend310_infer" / "build" / "main"] * 3


def test_build_and_sdk_scripts_say_what_is_wrong(repo, plain, tmp_path):
    scripts = repo / "ascend310_infer"

    def build_error(status, *flags, **variables):
        env = {key: value for key, value in os.environ.items() if key != "MINDSPORE_LITE_HOME"}
        return error_of(run("bash", scripts / "build.sh", *flags, env={**env, **variables}), status)

    nowhere = build_error(1, "--build_dir", tmp_path / "b", MINDSPORE_LITE_HOME="/nowhere")
    assert "runtime/lib/libmindspore-lite.so (the C++ package of the vendor)" in nowhere
    assert "found '/nowhere'" in nowhere
    assert "expected [--sanitize] [--build_dir FOLDER], found --san" in build_error(2, "--san")
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "dirname").symlink_to(shutil.which("dirname"))
    shell = shutil.which("bash")
    done = run(shell, scripts / "build.sh", env={"PATH": str(tools)})
    assert "expected cmake, found none (on Debian and Ubuntu: apt-get install cmake)" in error_of(done, 2)
    done = run("bash", scripts / "get_sdk.sh", tmp_path / "sdk", env={**os.environ, "PYTHON": "/bin/false"})
    assert "PYTHON: expected a Python 3 with pip, found /bin/false" in error_of(done, 2)
    assert list((tmp_path / "sdk").iterdir()) == []
