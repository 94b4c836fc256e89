"""One network as checkpoint, MINDIR and ONNX: what runs it, that it computes the same, and what is refused."""

import json
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace

import mindspore as ms
import numpy as np
import onnx
import pytest
from conftest import TINY, TINY_FLAGS

from src.common import compile_cache, device
from src.common.errors import CheckpointError, UsageError
from src.config import load_config, settle
from src.export.mindir import write_mindir
from src.export.onnx_graph import write_onnx
from src.inference import backends
from src.inference.backends import Backend, choose_backend, load_predictor, open_model
from src.midas_net import MidasNet
from src.util import read_pfm
from src.weights.checkpoint import save_checkpoint
from src.weights.graphs import ABOUT, Graph, graph_format, read_graph

SIZES = ((64, 96), (96, 32))  # height, width
FIXED = SIZES[0]
ABOUT_TINY = {**TINY, "network_ops": "midas", "nm_img_mean": [0.5, 0.4, 0.3], "nm_img_std": [0.2, 0.3, 0.4]}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One network in every format: name -> path. Its batch normalisation has statistics that matter."""
    folder = tmp_path_factory.mktemp("formats")
    ms.set_seed(3)
    net = MidasNet(**TINY)
    generator = np.random.default_rng(0)
    for parameter in net.get_parameters():
        if parameter.name.endswith(("moving_mean", "beta")):
            parameter.set_data(ms.Tensor(generator.normal(0, 0.1, parameter.shape).astype(np.float32)))
        elif parameter.name.endswith(("moving_variance", "gamma")):
            parameter.set_data(ms.Tensor(generator.uniform(0.5, 3, parameter.shape).astype(np.float32)))
    paths = {name: folder / name for name in ("tiny.ckpt", "dynamic.mindir", "fixed.mindir", "tiny.onnx")}
    save_checkpoint(
        paths["tiny.ckpt"],
        {parameter.name: parameter for parameter in net.get_parameters()},
        {key: value for key, value in ABOUT_TINY.items() if key not in TINY},
    )
    write_mindir(net, paths["dynamic.mindir"], None, json.dumps(ABOUT_TINY))
    write_mindir(net, paths["fixed.mindir"], FIXED, json.dumps({**ABOUT_TINY, "height": 64, "width": 96}))
    write_onnx(paths["dynamic.mindir"], paths["tiny.onnx"])
    return paths


@pytest.fixture(scope="module")
def network(files):
    """Runs the network itself."""
    return load(files["tiny.ckpt"])


def load(path, name="auto", **settings):
    config = load_config("", [*TINY_FLAGS, "--backend", name])
    model = open_model(path, "model_weights")
    backend = choose_backend(model, **config.execution)
    settings = {**settle(config, model).predictor, **settings}
    return load_predictor(model, "model_weights", backend, config.network, **settings)


def image(size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


# ---- the same figures


@pytest.mark.parametrize(
    ("file", "backend", "kind"),
    [
        ("dynamic.mindir", "mindspore", "MindSporePredictor"),
        ("tiny.onnx", "openvino", "OpenVinoPredictor"),
        ("tiny.onnx", "onnxruntime", "OnnxRuntimePredictor"),
    ],
)
def test_every_backend_predicts_what_the_network_does(files, network, file, backend, kind):
    predictor = load(files[file], backend)
    assert type(predictor).__name__ == kind
    for size in SIZES:
        prepared = predictor.prepare(image(size))
        assert prepared == pytest.approx(network.prepare(image(size)), abs=0)  # normalised as the file says
        expected = network.infer(prepared)
        assert expected.shape == prepared.shape[2:]
        assert np.ptp(expected) > 0.1
        found = predictor.infer(prepared)
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= 1e-4 * np.ptp(expected)  # measured: at most 2e-6
    assert predictor.compilations == 1


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_a_prediction_outlives_the_next(files, backend):
    predictor = load(files["tiny.onnx"], backend)
    first, second = (predictor.prepare(image(FIXED, seed)) for seed in (0, 1))
    kept = predictor.infer(first)
    assert np.abs(predictor.infer(second) - kept).max() > 0
    assert (predictor.infer(first) == kept).all()


@pytest.mark.parametrize("shapes", ["static", "fixed"])
@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_shapes(files, network, shapes, backend):
    predictor = load(files["tiny.onnx"], backend, shapes=shapes, width=96, height=64)
    sizes = set()
    for size in ((200, 300), (300, 200), (200, 300)):
        prepared = predictor.prepare(image(size))
        sizes.add(prepared.shape[2:])
        assert predictor.infer(prepared) == pytest.approx(network.infer(prepared), rel=1e-4, abs=1e-5)
    assert sizes == ({(64, 96)} if shapes == "fixed" else {(64, 96), (64, 32)})
    assert predictor.compilations == 1  # OpenVINO would keep the weights once more for each size


def test_bf16(files, network):
    if choose_backend(open_model(files["tiny.onnx"], ""), "auto", 0, 1).precision != "bf16":
        pytest.skip("this processor has no bf16")
    exact, fast = (load(files["tiny.onnx"], "openvino"), load(files["tiny.onnx"], "openvino", precision="bf16"))
    prepared = exact.prepare(image(FIXED))
    difference = np.abs(fast.infer(prepared) - exact.infer(prepared)).max()
    assert 0 < difference <= 2e-2 * exact.infer(prepared).max()


# ---- what runs what


def test_a_file_says_what_it_is(files, tmp_path, capsys):
    dynamic, fixed = (read_graph(files[name]) for name in ("tiny.onnx", "fixed.mindir"))
    assert (dynamic.format, dynamic.height, dynamic.width) == ("ONNX", None, None)
    assert (fixed.format, fixed.height, fixed.width) == ("MINDIR", *FIXED)
    assert {**dynamic.about, "height": 64, "width": 96} == fixed.about
    config = settle(load_config("", []), fixed)
    assert config.network == {**TINY, "layers": tuple(TINY["layers"]), "network_ops": "midas"}
    assert (config.img_height, config.img_width, config.eval_shapes) == (64, 96, "fixed")
    assert config.nm_img_mean == (0.5, 0.4, 0.3)
    assert "img_height 64 (not 384)" in capsys.readouterr().out
    with pytest.raises(UsageError, match=r"img_width: expected 96, found 384 \(so it is in .*fixed\.mindir"):
        settle(load_config("", ["--img_width", "384"]), fixed)
    renamed = tmp_path / "weights"
    renamed.write_bytes(files["tiny.onnx"].read_bytes())
    assert open_model(renamed, "") == replace(dynamic, path=renamed)


def test_onnx_of_other_origin(tmp_path):
    """It has no entry of ours, names of its own, and a fixed size."""
    value = onnx.helper.make_tensor_value_info
    nodes = [
        onnx.helper.make_node("ReduceMean", ["x"], ["y"], axes=[1], keepdims=0),
    ]
    shape = [1, 3, 64, 96]
    graph = onnx.helper.make_graph(nodes, "mean", [value("x", 1, shape)], [value("y", 1, [1, 64, 96])])
    path = tmp_path / "mean.onnx"
    onnx.save(onnx.helper.make_model(graph, ir_version=6, opset_imports=[onnx.helper.make_opsetid("", 11)]), path)
    assert read_graph(path) == Graph(path, "ONNX", 64, 96)
    for backend in ("openvino", "onnxruntime"):
        predictor = load(path, backend)
        prepared = predictor.prepare(image((30, 40)))
        assert prepared.shape == (1, 3, 64, 96)
        assert predictor.infer(prepared) == pytest.approx(prepared[0].mean(axis=0), abs=1e-6)


@pytest.mark.parametrize(
    ("file", "words", "message"),
    [
        ("tiny.onnx", "--backend mindspore", "backend mindspore: expected a checkpoint or a .mindir file, found ONNX"),
        ("tiny.ckpt", "--backend openvino", "backend openvino: expected an .onnx file, found a checkpoint"),
        ("fixed.mindir", "--backend onnxruntime", "backend onnxruntime: expected an .onnx file, found MINDIR"),
        ("", "--backend onnxruntime", "backend onnxruntime: expected an .onnx file, found no file"),
        ("tiny.ckpt", "--precision bf16", "precision bf16: expected backend openvino, found mindspore"),
        ("tiny.onnx", "--precision bf16 --backend onnxruntime", "precision bf16: expected backend openvino, found"),
        (
            "tiny.onnx",
            "--device_target Ascend --backend openvino",
            "device_target Ascend: expected CPU for",
        ),
        ("tiny.onnx", "--device_target GPU", "device_target GPU: expected ONNX Runtime with CUDAExecutionProvider"),
        (
            "tiny.onnx",
            "--device_target Ascend",
            "device_target Ascend: expected ONNX Runtime with CANNExec",
        ),
    ],
)
def test_what_does_not_go_together(files, file, words, message):
    config = load_config("", words.split())
    with pytest.raises(UsageError) as caught:
        choose_backend(open_model(files[file], "") if file else None, **config.execution)
    assert str(caught.value).startswith(message)
    assert ("midas_export.py" in message + str(caught.value)) == ("expected an .onnx file" in message)


def test_bf16_where_the_processor_has_none(files, monkeypatch):
    model = open_model(files["tiny.onnx"], "")
    for has_it in (True, False):
        monkeypatch.setattr("src.inference.openvino.has_bf16", lambda has_it=has_it: has_it)
        chosen = choose_backend(model, "auto", 0, 1, precision="auto")
        assert chosen.precision == ("bf16" if has_it else "fp32")
        assert f", {chosen.precision} (this processor has {'' if has_it else 'no '}bf16)" in str(chosen)
        assert choose_backend(model, "CPU", 0, 1, precision="fp32").precision == "fp32"
    with pytest.raises(UsageError, match="precision bf16: expected a processor with instructions for it, found none"):
        choose_backend(model, "auto", 0, 1, precision="bf16")


def test_missing_packages_are_named(files, monkeypatch):
    model = open_model(files["tiny.onnx"], "")
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    for backend in ("openvino", "onnxruntime"):
        with pytest.raises(UsageError, match=f"the package {backend}, found none; pip install -r requirements-deploy"):
            choose_backend(model, "auto", 0, 1, backend)
    for use in (lambda: choose_backend(None, "auto", 0, 1), lambda: open_model(files["tiny.ckpt"], "")):
        with pytest.raises(UsageError, match=r"the package mindspore, found none; pip install -r requirements\.txt"):
            use()


def test_mindspore_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(device, "find_spec", lambda name: None)
    with pytest.raises(
        UsageError, match=r"expected the package mindspore, found none; pip install -r requirements\.txt"
    ):
        device.setup_device("auto", 0, 1)


def test_cache_of_openvino(files, tmp_path, monkeypatch):
    monkeypatch.setattr(backends, "OPENVINO_FOLDER", tmp_path / "cache")
    model = open_model(files["tiny.onnx"], "")
    backend = choose_backend(model, "auto", 0, 1, precision="fp32", enable_compile_cache=True)
    first = load_predictor(model, "", backend, {})
    assert list((tmp_path / "cache").iterdir())
    second = load_predictor(model, "", backend, {})
    prepared = first.prepare(image(FIXED))
    assert (first.infer(prepared) == second.infer(prepared)).all()


def test_compile_caches_tell_shapes_apart(files, tmp_path, monkeypatch):
    """MindSpore takes a kept graph for the present one whatever its size."""
    kept = []
    monkeypatch.setattr(compile_cache, "keep_compiled_graphs", kept.append)
    monkeypatch.setattr(compile_cache, "_FOLDER", tmp_path)
    sizes = {"dynamic": [(64, 96), (96, 64)], "fixed": [(64, 96), (96, 64)], "static": [(64, 96)]}
    for shapes, pairs in sizes.items():
        for height, width in pairs:
            model = open_model(files["tiny.ckpt"], "")
            backend = Backend("mindspore", "CPU", 0, "fp32", use_cache=True)
            network = {**TINY, "network_ops": "midas"}
            load_predictor(model, "", backend, network, shapes=shapes, height=height, width=width)
    assert kept[0] == kept[1]
    assert len({*kept}) == 3
    assert len(kept) == 4


@pytest.mark.parametrize(("file", "name"), [("fixed.mindir", "MindSpore"), ("tiny.onnx", "ONNX Runtime")])
def test_caches_that_there_are_not(files, file, name, capsys):
    backend = {"MindSpore": "mindspore", "ONNX Runtime": "onnxruntime"}[name]
    model = open_model(files[file], "")
    load_predictor(model, "", choose_backend(model, "CPU", 0, 1, backend, enable_compile_cache=True), {})
    assert f"enable_compile_cache: not used, {name} keeps no {model.format}" in capsys.readouterr().err


def test_openvino_sends_nothing(repo):
    """Its statistics of use come from a module, a thread and a process of their own."""
    code = "import sys, threading, src.inference.openvino; print(threading.active_count(), *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=repo, capture_output=True, text=True, timeout=60)
    threads, *modules = done.stdout.split()
    assert threads == "1", done.stderr
    assert "openvino" in modules
    assert not {name for name in modules if name.startswith(("openvino_telemetry", "openvino.tools.ovc"))}


# ---- scripts


RUN = """
import sys
sys.modules.update(dict.fromkeys({blocked}))
import {script}
from src.common import device
from src.common.errors import run_script
run_script({script}.main)
"""


def run(repo, script, blocked, *words):
    """Runs a script where some packages cannot be imported."""
    command = [sys.executable, "-c", RUN.format(script=script, blocked=blocked), *map(str, words)]
    return subprocess.run(command, cwd=repo, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("file", "blocked", "said"),
    [
        ("tiny.onnx", ["mindspore", "torch"], "OpenVINO"),
        ("tiny.onnx", ["mindspore", "torch", "openvino"], "ONNX Runtime"),
        ("fixed.mindir", ["torch", "src.midas_net", "src.resnext", "src.blocks_ms"], "MindSpore"),
    ],
)
def test_scripts_need_no_more_than_the_file_needs(repo, files, eval_data, tmp_path, network, file, blocked, said):
    photo = eval_data / "Kitti_raw_data"
    words = ["--input_path", photo, "--output_path", tmp_path / "maps", "--model_weights", files[file]]
    words += ["--colormap", "none"]
    done = run(repo, "midas_run", blocked, *words)
    assert done.returncode == 0, done.stderr
    assert f"device CPU, {said} " in done.stdout.splitlines()[0]
    maps = sorted((tmp_path / "maps").rglob("*image*/*.pfm"))
    assert len(maps) == 3
    assert all(np.ptp(read_pfm(path)[0]) > 0 for path in maps)


def test_evaluation_gives_the_same_figures(repo, files, eval_data, tmp_path):
    """Through OpenVINO and ONNX Runtime, without MindSpore, and through MindSpore, within 1e-3 of them."""
    without = ["mindspore", "torch"]
    values = {}
    for name, file, blocked in (
        ("OpenVINO", "tiny.onnx", without),
        ("ONNX Runtime", "tiny.onnx", without),
        ("MindSpore", "tiny.ckpt", []),
    ):
        ann_file = tmp_path / name / "val.json"
        ann_file.parent.mkdir()
        words = ["--ckpt_path", files[file], "--train_data_dir", eval_data, "--ann_file", ann_file, "--backend"]
        done = run(repo, "midas_eval", blocked, *words, name.lower().replace(" ", ""))
        assert done.returncode == 0, done.stderr
        values[name] = json.loads(ann_file.read_text())
        settings = json.loads((ann_file.parent / "val_settings.json").read_text())
        assert settings["backend"].startswith(f"{name} ")
    assert len(values["MindSpore"]) == 6
    assert values["OpenVINO"] == pytest.approx(values["MindSpore"], rel=1e-3)
    assert values["ONNX Runtime"] == pytest.approx(values["MindSpore"], rel=1e-3)


def test_shell_script(repo, files, eval_data, tmp_path):
    script = repo / "scripts" / "run_eval_onnx.sh"
    data = ["--train_data_dir", eval_data, "--ann_file", tmp_path / "val.json"]

    def bash(*words):
        return subprocess.run(
            ["bash", str(script), *map(str, words)],
            capture_output=True,
            text=True,
            timeout=120,
            cwd=tmp_path,
            env={**os.environ, "PYTHON": sys.executable},
        )

    done = bash(0, "TUM", files["tiny.onnx"], "CPU", *data)
    assert done.returncode == 0, done.stderr
    assert list(json.loads((tmp_path / "val.json").read_text())) == ["TUM"]
    for words in (["0", "TUM"], ["0"], ["0", "TUM", "--seed", "1"]):
        refused = bash(*words)
        assert refused.returncode == 2
        assert refused.stderr.startswith("error: usage: bash scripts/run_eval_onnx.sh DEVICE_ID DATA_NAME ONNX_PATH")
    refused = bash(0, "TUM", files["tiny.ckpt"], *data)
    assert refused.returncode == 2
    assert f"ONNX_PATH: expected a file NAME.onnx, found {files['tiny.ckpt']}" in refused.stderr
    assert "Traceback" not in refused.stderr


# ---- damaged files


@pytest.mark.parametrize("name", ["tiny.onnx", "fixed.mindir"])
def test_files_that_are_cut_short(files, tmp_path, name):
    whole = files[name].read_bytes()
    path = tmp_path / name
    for size in {1, 2, 10, 30, 64, 100, *np.linspace(100, len(whole) - 1, 200, dtype=int)}:
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError) as caught:
            open_model(path, "")
        assert str(caught.value).startswith(f"{path}: expected a ")


@pytest.mark.parametrize("name", ["tiny.onnx", "fixed.mindir"])
def test_changed_bytes_never_escape_as_other_errors(files, tmp_path, name):
    whole = files[name].read_bytes()
    path = tmp_path / name
    generator = np.random.default_rng(0)
    places = [*range(40), *(len(whole) - generator.integers(1, 900, 150)), *generator.integers(0, len(whole), 150)]
    for place in places:
        changed = bytearray(whole)
        changed[place] ^= 1 << generator.integers(8)
        path.write_bytes(changed)
        with suppress(CheckpointError):
            open_model(path, "")


def save_onnx(path, nodes, inputs, initializers=()):
    """Writes an ONNX model: inputs are name -> (type, shape), the last output of the nodes is its output."""
    value = onnx.helper.make_tensor_value_info
    inputs = [value(name, *kind) for name, kind in inputs.items()]
    outputs = [value(nodes[-1].output[0], onnx.TensorProto.FLOAT, None)]
    graph = onnx.helper.make_graph(nodes, "other", inputs, outputs, list(initializers))
    onnx.save(onnx.helper.make_model(graph, ir_version=6, opset_imports=[onnx.helper.make_opsetid("", 11)]), path)


FLOAT, WHOLE = onnx.TensorProto.FLOAT, [1, 3, 64, 96]
MEAN = onnx.helper.make_node("ReduceMean", ["x"], ["y"], axes=[1], keepdims=0)


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_openvino_and_onnxruntime_say_why(tmp_path, backend):
    path = tmp_path / "other.onnx"
    save_onnx(path, [onnx.helper.make_node("NoSuchOperator", ["x"], ["y"])], {"x": (FLOAT, WHOLE)})
    with pytest.raises(CheckpointError, match="NoSuchOperator") as caught:
        load(path, backend)
    assert str(caught.value).startswith(f"{path}: O")
    assert "\n" not in str(caught.value)

    # any size by its own account, but one alone inside
    half = onnx.helper.make_tensor("half", FLOAT, WHOLE, np.full(WHOLE, 0.5))
    nodes = [onnx.helper.make_node("Mul", ["x", "half"], ["m"]), onnx.helper.make_node("Relu", ["m"], ["y"])]
    save_onnx(path, nodes, {"x": (FLOAT, [1, 3, "height", "width"])}, [half])
    with pytest.raises(CheckpointError) as caught:
        load(path, backend).infer(np.zeros((1, 3, 32, 32), np.float32))
    assert str(caught.value).startswith(f"{path}: O")
    assert "\n" not in str(caught.value)

    save_onnx(path, [onnx.helper.make_node("Relu", ["x"], ["y"])], {"x": (FLOAT, WHOLE)})
    with pytest.raises(
        CheckpointError, match=r"other\.onnx: O.* the size of the image, 64 x 96, found 1 x 3 x 64 x 96"
    ):
        load(path, backend).infer(np.zeros(WHOLE, np.float32))


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_weights_that_are_listed_as_inputs(tmp_path, backend):
    path = tmp_path / "a.onnx"
    scale = onnx.helper.make_tensor("scale", FLOAT, [1, 3, 1, 1], [1, 2, 3])
    nodes = [onnx.helper.make_node("Mul", ["image", "scale"], ["x"]), MEAN]
    save_onnx(path, nodes, {"scale": (FLOAT, [1, 3, 1, 1]), "image": (FLOAT, WHOLE)}, [scale])
    predictor = load(path, backend)
    prepared = predictor.prepare(image(FIXED))
    expected = (prepared[0] * np.reshape([1, 2, 3], (3, 1, 1))).mean(axis=0)
    assert predictor.infer(prepared) == pytest.approx(expected, abs=1e-5)


def test_mindir_of_another_generation(repo):
    path = repo / "tests" / "fixtures" / "midas_tiny_64x96.mindir"  # as MindSpore Lite 2.0.0 wrote it
    predictor = load(path)
    with pytest.raises(CheckpointError) as caught:
        predictor.infer(np.zeros(WHOLE, np.float32))
    assert str(caught.value).startswith(f"{path}: MindSpore {ms.__version__} cannot run this model: ")
    assert "Conv2DFusion" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_names_that_promise_a_graph(files, tmp_path):
    path = tmp_path / "a.onnx"
    for content in (b"", b"no model", bytes(100)):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"a\.onnx: expected a MINDIR or ONNX model, found a damaged or"):
            open_model(path, "")
    path.write_bytes(files["tiny.ckpt"].read_bytes())  # the content counts
    assert open_model(path, "").whole
    path.write_bytes(b"\x08\x02\x12\0\0\0\0\0{")  # a safetensors header of 1.2 MB, cut short
    assert graph_format(path) is None
    with pytest.raises(UsageError, match=r"name the file: .*tiny\.ckpt or .*tiny\.onnx"):
        open_model(files["tiny.onnx"].parent, "")


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ("[1]", "found [1]"),
        ("{", "damaged or cut short"),
        ('{"nm_img_std": [1, 0, 1]}', "expected nm_img_std"),
        ('{"layers": 3}', "expected layers"),
        ('{"features": "a"}', "expected features"),
    ],
)
def test_metadata_that_make_no_sense(files, tmp_path, about, message):
    model = onnx.load(files["tiny.onnx"])
    onnx.helper.set_model_props(model, {ABOUT: about})
    path = tmp_path / "a.onnx"
    onnx.save(model, path)
    with pytest.raises(CheckpointError) as caught:
        read_graph(path)
    assert message in str(caught.value)


@pytest.mark.parametrize("shape", [[1, 4, 64, 96], [2, 3, 64, 96], [1, 3, 64], [1, 3, 64, "width"]])
def test_other_inputs_are_refused(tmp_path, shape):
    value = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "relu", [value("x", 1, shape)], [value("y", 1, shape)])
    path = tmp_path / "a.onnx"
    onnx.save(onnx.helper.make_model(graph), path)
    with pytest.raises(CheckpointError, match="expected a network"):
        read_graph(path)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"x": (onnx.TensorProto.UINT8, WHOLE)}, "that takes float32 (type 1 of ONNX), found one of type 2"),
        ({"x": (FLOAT, WHOLE), "z": (FLOAT, WHOLE)}, "of one input, an image, found one of 2"),
    ],
)
def test_inputs_that_are_no_image(tmp_path, inputs, message):
    path = tmp_path / "a.onnx"
    save_onnx(path, [MEAN], inputs)
    with pytest.raises(CheckpointError) as caught:
        read_graph(path)
    assert str(caught.value) == f"{path}: expected a network {message}"
