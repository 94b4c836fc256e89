"""What several test files share: graph mode, the sizes of a tiny network, and where optional real images are."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import mindspore as ms  # before torch and matplotlib: see README, "Versions"
import pytest
from training_data import write_two_sets

from preprocess.make_sample import make_sample
from src.midas_net import MidasNet
from src.weights.checkpoint import save_checkpoint

TINY = {"layers": [1, 2, 1, 1], "groups": 4, "width_per_group": 32, "in_channels": 8, "features": 16}
TINY_FLAGS = [f"--{key}={value}" for key, value in TINY.items()]  # the same for a script


# For scripts in processes of their own: most start with a graph that another has compiled, ten seconds sooner.
CACHED = ["--enable_compile_cache", "True"]

_graphs = pytest.StashKey[tempfile.TemporaryDirectory]()


def pytest_configure(config):
    """Compiled graphs are kept in a folder of the session, which pytest-xdist's workers inherit."""
    if not hasattr(config, "workerinput"):
        config.stash[_graphs] = tempfile.TemporaryDirectory(prefix="midas-test-graphs-")
        os.environ["MS_COMPILER_CACHE_PATH"] = config.stash[_graphs].name


def pytest_unconfigure(config):
    """Removes them."""
    if _graphs in config.stash:
        config.stash[_graphs].cleanup()


@pytest.fixture(scope="session", autouse=True)
def graph_mode():
    """The scripts run in graph mode, and so do the tests."""
    ms.set_context(mode=ms.GRAPH_MODE)


@pytest.fixture(scope="session")
def repo():
    """The repository's root folder."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def realdata(repo):
    """A folder of real RGB-D images beside the repository; tests that want it are skipped where it is absent."""
    folder = repo.parent / "shared" / "realdata"
    if not (folder / "mixdata.json").is_file():
        pytest.skip("no real images beside the repository")
    return folder


@pytest.fixture(scope="session")
def cases(repo):
    """A folder of files that once failed, beside the repository; tests that want it are skipped where it is absent."""
    folder = repo.parent / "shared" / "cases"
    if not folder.is_dir():
        pytest.skip("no files that once failed beside the repository")
    return folder


def hand_signal(number):
    """Calls the handler of a signal, as Python does when one arrives.

    A real one would crash a process in which OpenVINO has compiled several networks: it sets an alternate signal stack
    (sigaltstack) and frees it with the first of them while it is still in place.
    """
    signal.getsignal(number)(number, None)


def runner_is_missing(reason):
    """Skips a test of the C++ runner; fails where ``.ci/run`` has installed what it needs."""
    (pytest.fail if os.environ.get("MIDAS_TEST_RUNNER") else pytest.skip)(reason)


@pytest.fixture(scope="session")
def lite(repo):
    """MindSpore Lite as unpacked from its wheel. It is fetched once into a folder that stays."""
    if home := os.environ.get("MINDSPORE_LITE_HOME"):
        return Path(home)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "midas-mindspore"
    command = ["bash", str(repo / "ascend310_infer" / "get_sdk.sh"), str(cache)]
    python = {"PYTHON": sys.executable} if find_spec("pip") else {}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, **python})
    if done.returncode:
        runner_is_missing(f"no MindSpore Lite: {done.stderr.splitlines()[-1]}")
    return Path(done.stdout.splitlines()[-1].partition("=")[2])


@pytest.fixture(scope="session")
def infer_home(repo, tmp_path_factory):
    """A copy of what run_infer_310.sh needs: the runner is built there, and not where the user's own may be."""
    folder = tmp_path_factory.mktemp("infer") / "the répository"
    (folder / "scripts").mkdir(parents=True)
    for name in ("common.sh", "run_infer_310.sh"):
        shutil.copy(repo / "scripts" / name, folder / "scripts")
    build = shutil.ignore_patterns("build", "build_sanitize", "sdk")
    shutil.copytree(repo / "ascend310_infer", folder / "ascend310_infer", ignore=build)
    for name in ("postprocess.py", "config.yaml", "src"):
        (folder / name).symlink_to(repo / name)
    return folder


@pytest.fixture(scope="session")
def train_data(tmp_path_factory):
    """A data folder with ten small training pairs."""
    folder = tmp_path_factory.mktemp("train_data")
    make_sample(folder, train=10, eval_count=0, size=(96, 72))
    return folder


@pytest.fixture
def two_sets(tmp_path):
    """Two training sets of three pairs: (data root, mixdata.json)."""
    return write_two_sets(tmp_path)


@pytest.fixture(scope="session")
def eval_data(tmp_path_factory):
    """A data folder with three small samples of each benchmark; not to be changed, ``copied_data`` is."""
    folder = tmp_path_factory.mktemp("eval_data")
    make_sample(folder, train=0, eval_count=3, size=(96, 72))
    return folder


@pytest.fixture
def copied_data(eval_data, tmp_path):
    """A copy of ``eval_data`` that a test may damage."""
    return shutil.copytree(eval_data, tmp_path / "data")


@pytest.fixture(scope="module")
def net():
    """A tiny network with random weights."""
    ms.set_seed(1)
    return MidasNet(**TINY)


@pytest.fixture(scope="module")
def weights(net, tmp_path_factory):
    """A checkpoint of ``net``."""
    path = tmp_path_factory.mktemp("weights") / "tiny.ckpt"
    save_checkpoint(path, {parameter.name: parameter for parameter in net.get_parameters()})
    return path


# Files that compile networks or run whole scripts, the longest first; the others take seconds and come before.
SLOW = (
    "scripts",
    "train_script",
    "trainer",
    "learning",
    "distributed",
    "multi_objective",
    "loss",
    "fine_tuning",
    "benchmarks",
    "precision",
    "runner",
    "eval_script",
    "modelarts",
    "export",
    "validation",
    "run_script",
    "infer_310",
    "postprocess",
    "mutated_weights",
    "midas_net",
    "evaluator",
)


def pytest_collection_modifyitems(items):
    """Runs quick tests first."""
    rank = {f"test_{name}": number for number, name in enumerate(SLOW, start=1)}
    items.sort(key=lambda item: rank.get(item.path.stem, 0))
