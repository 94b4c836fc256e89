"""ModelArts: what is copied, when, and what happens when it fails; on local folders that stand for object storage."""

import errno
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from textwrap import dedent

import pytest
from test_train_script import SETTINGS, losses

from modelarts.start import Job, fetch, read_job, training_command
from src.common.errors import MidasError, UsageError
from src.config import load_config
from src.training import modelarts
from src.training.modelarts import MARKER, RunMirror, copy_data_in, copy_run_in, has_run

MOXING = Path(__file__).parent / "moxing_on_folders"
DATA, RUN = "obs://bucket/data", "obs://bucket/run 1"


class Storage:
    """The folder behind obs://."""

    def __init__(self, root, monkeypatch):
        self.root, self._monkeypatch = root, monkeypatch
        root.mkdir()
        monkeypatch.setenv("MOXING_ROOT", str(root))

    def path(self, url):
        return self.root / url.removeprefix("obs://")

    def names(self, url):
        folder = self.path(url)
        return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())

    def calls(self, function):
        log = self.root / "calls.log"
        lines = log.read_text().splitlines() if log.exists() else []
        return [line for line in lines if line.startswith(f"{function} ")]

    def forget_calls(self):
        (self.root / "calls.log").unlink(missing_ok=True)

    def fail(self, *faults):
        self.forget_calls()
        self._monkeypatch.setenv("MOXING_FAULTS", " ".join(faults))

    def delay(self, seconds):
        self._monkeypatch.setenv("MOXING_DELAY_S", str(seconds))


@pytest.fixture
def obs(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(MOXING))
    monkeypatch.setattr(modelarts, "_PAUSES_S", (0.0, 0.0))
    yield Storage(tmp_path / "obs", monkeypatch)
    for name in ("moxing", "moxing.file"):
        sys.modules.pop(name, None)


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)


@pytest.fixture
def data(obs):
    """Eight files in object storage, in two folders, and a folder without any."""
    folder = obs.path(DATA)
    for number in range(7):
        path = folder / "RW" / "Imgs" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(100 + number))
    (folder / "mixdata.json").write_text("{}")
    (folder / "empty").mkdir()
    return folder


def python(code, *arguments):
    """Starts a process with moxing that runs code; further arguments are in ``sys.argv[1:]``."""
    code = "import sys\nfrom src.training.modelarts import *\n" + dedent(code)
    environment = {**os.environ, "PYTHONPATH": f"{MOXING}:{Path(__file__).parents[1]}"}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


# ---- data


def test_data_are_copied_once(obs, data, tmp_path, capsys):
    folder = tmp_path / "machine" / "data"
    copy_data_in(DATA, folder)
    assert [path.read_bytes() for path in sorted((folder / "RW" / "Imgs").iterdir())] == [
        bytes(100 + n) for n in range(7)
    ]
    assert (folder / "mixdata.json").exists()
    assert "copied 8 files in" in capsys.readouterr().out
    copy_data_in(f"{DATA}/", folder)
    assert len(obs.calls("copy_parallel")) == 1
    assert not capsys.readouterr().out


COPY = """
    copy_data_in(sys.argv[1], sys.argv[2])
    print(sum(path.is_file() for path in Path(sys.argv[2], "RW", "Imgs").iterdir()))
"""


def test_of_two_processes_one_copies_and_the_other_waits(obs, data, tmp_path):
    obs.delay(0.1)
    processes = [python(COPY, DATA, tmp_path / "data") for _ in range(2)]
    said = [process.communicate(timeout=120)[0].split("\n") for process in processes]
    assert [lines[-2] for lines in said] == ["7", "7"]  # both find the data complete
    assert len(obs.calls("copy_parallel")) == 1
    assert sum(f"copying the data from {DATA} to {tmp_path / 'data'}" in lines for lines in said) == 1


def test_killed_copy_is_done_again_by_the_process_that_waits(obs, data, tmp_path):
    obs.delay(0.2)
    folder = tmp_path / "data"
    first = python(COPY, DATA, folder)
    wait_for((folder / "RW" / "Imgs" / "1.jpg").exists)
    second = python(COPY, DATA, folder)
    first.kill()
    assert first.wait() == -signal.SIGKILL
    assert not (folder / MARKER).exists()
    assert second.communicate(timeout=120)[0].split("\n")[-2] == "7"
    assert len(obs.calls("copy_parallel")) == 2


def test_a_process_that_waits_can_be_asked_to_stop(obs, data, tmp_path):
    obs.delay(1)
    first = python(COPY, DATA, tmp_path / "data")
    wait_for(lambda: obs.calls("copy_parallel"))
    second = python("""
        from src.common.errors import run_script
        def main():
            print("here", flush=True)
            copy_data_in(*sys.argv[1:])
        run_script(main)
    """, DATA, tmp_path / "data")  # fmt: skip
    assert second.stdout.readline() == "here\n"
    time.sleep(0.2)  # it gets from there to the lock
    second.terminate()
    assert second.wait(timeout=5) == 143
    first.kill()
    for process in (first, second):
        process.communicate()


def test_failing_storage_is_asked_again(obs, data, tmp_path):
    obs.fail("copy_parallel::raise:2")
    copy_data_in(DATA, tmp_path / "data")
    assert len(obs.calls("copy_parallel")) == 3


def test_data_that_cannot_be_copied(obs, data, tmp_path):
    folder = tmp_path / "data"
    obs.fail("copy_parallel::raise:9")
    with pytest.raises(MidasError, match=r"data_url .* could not be copied to .*the service says no \(request id 17\)"):
        copy_data_in(DATA, folder)
    obs.fail("copy_parallel::halve:9")
    with pytest.raises(MidasError, match=r"4 files have not come, RW/Imgs/4.jpg among them"):
        copy_data_in(DATA, folder)
    assert not (folder / MARKER).exists()
    obs.fail()
    copy_data_in(DATA, folder)
    with pytest.raises(
        UsageError, match=r"expected the data of obs://bucket/other .*, found those of obs://bucket/data"
    ):
        copy_data_in("obs://bucket/other", folder)
    with pytest.raises(UsageError, match=r"data_url: expected a folder .* found none at obs://bucket/other"):
        copy_data_in("obs://bucket/other", tmp_path / "another")


def test_without_moxing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "moxing", None)
    for call in (lambda: copy_data_in(DATA, tmp_path), lambda: RunMirror(tmp_path, RUN), lambda: has_run(RUN)):
        with pytest.raises(UsageError, match="is_modelarts: expected the package moxing"):
            call()


# ---- the run folder


def train(folder, epoch, keep=2):
    """Leaves in a run folder what an epoch leaves there."""
    write(folder, **{f"Midas_0-{epoch}_5.ckpt": f"weights {epoch}" * 99})
    if not (folder / "config.yaml").exists():
        write(folder, **{"config.yaml": "seed: 1\n"})
    with open(folder / "loss.csv", "a") as file:
        file.write(f"{epoch}\n")
    numbers = sorted(folder.glob("Midas_0-*_5.ckpt"))
    for path in numbers[:-keep]:
        path.unlink()


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "run"
    train(folder, 1)
    write(folder, **{"run.lock": "process 1", ".Midas_0-2_5.7.tmp.ckpt": "half", "Midas_0-best.ckpt": "best"})
    write(folder / "logs", **{"worker_0.log": "first step"})
    return folder


ALL = ["Midas_0-1_5.ckpt", "Midas_0-best.ckpt", "config.yaml", "logs/worker_0.log", "loss.csv"]


def test_run_folder_is_copied_out(obs, folder):
    assert not has_run(RUN)
    with RunMirror(folder, RUN) as mirror:
        mirror.copy_out()
    assert obs.names(RUN) == ALL
    assert all((obs.path(RUN) / name).read_bytes() == (folder / name).read_bytes() for name in ALL)
    assert has_run(RUN)


def test_checkpoints_are_copied_last_and_the_newest_first(obs, folder):
    train(folder, 11)
    with RunMirror(folder, RUN):
        pass
    names = [call.rsplit("/", 1)[-1] for call in obs.calls("copy")]
    assert names[-3:] == ["Midas_0-11_5.ckpt", "Midas_0-1_5.ckpt", "Midas_0-best.ckpt"]


def test_only_what_has_changed_is_copied_again_and_old_checkpoints_go(obs, folder):
    with RunMirror(folder, RUN) as mirror:
        for epoch in (2, 3, 4):
            train(folder, epoch)
            mirror.copy_out()
            wait_for(lambda: mirror._next.done())
    assert [name for name in obs.names(RUN) if name.startswith("Midas")] == [
        "Midas_0-3_5.ckpt", "Midas_0-4_5.ckpt", "Midas_0-best.ckpt"
    ]  # fmt: skip
    copied = [call.rsplit("/", 1)[-1] for call in obs.calls("copy")]
    assert copied.count("Midas_0-best.ckpt") == copied.count("Midas_0-3_5.ckpt") == copied.count("config.yaml") == 1
    assert copied.count("loss.csv") == 3


def test_training_does_not_wait(obs, folder):
    obs.delay(0.3)
    with RunMirror(folder, RUN) as mirror:
        start = time.perf_counter()
        for _ in range(5):
            mirror.copy_out()
        assert time.perf_counter() - start < 0.3
    assert obs.names(RUN) == ALL


def test_failing_copy_is_made_up_for(obs, folder, capsys):
    with RunMirror(folder, RUN) as mirror:
        obs.fail("copy:Midas_0-1_5:raise:3")
        mirror.copy_out()
        wait_for(lambda: mirror._next.done())
        assert sum("Midas_0-1_5" in call for call in obs.calls("copy")) == 3
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert (
            "warning: train_url obs://bucket/run 1: the run folder could not be copied there (copy: the service" in said
        )
        assert "the next checkpoint is the next attempt" in said
        assert obs.names(RUN) == [name for name in ALL if name != "Midas_0-1_5.ckpt"]
        obs.fail()
        train(folder, 2)
        mirror.copy_out()
    assert {"Midas_0-1_5.ckpt", "Midas_0-2_5.ckpt"} < set(obs.names(RUN))
    assert not capsys.readouterr().err


def test_last_checkpoint_there_stays_until_a_newer_one_has_come(obs, folder):
    with RunMirror(folder, RUN):
        pass
    train(folder, 2, keep=1)
    obs.fail("copy:Midas_0-2_5:raise:99")
    mirror = RunMirror(folder, RUN)
    with pytest.raises(MidasError, match="could not be copied"):
        mirror.__exit__(None, None, None)
    assert "Midas_0-1_5.ckpt" in obs.names(RUN)
    obs.fail()
    with mirror:
        pass
    assert "Midas_0-1_5.ckpt" not in obs.names(RUN)
    assert "Midas_0-2_5.ckpt" in obs.names(RUN)


def test_file_that_comes_in_part_is_copied_again(obs, folder):
    obs.fail("copy:Midas_0-1_5:halve:1")
    with RunMirror(folder, RUN):
        pass
    assert (obs.path(RUN) / "Midas_0-1_5.ckpt").read_bytes() == (folder / "Midas_0-1_5.ckpt").read_bytes()


def test_failure_at_the_end(obs, folder, capsys):
    obs.fail("copy::raise:99")
    end = f"could not be copied there .*the run itself is complete in {folder}"
    with pytest.raises(MidasError, match=end), RunMirror(folder, RUN):
        pass
    assert len(obs.calls("copy")) == 3 * len(ALL)  # it has tried again
    with pytest.raises(KeyError), RunMirror(folder, RUN):
        raise KeyError  # what has ended the run comes through
    assert capsys.readouterr().err.startswith("error: train_url obs://bucket/run 1: the run folder could not be")


@pytest.mark.parametrize("has_links", [True, False])
def test_checkpoints_that_come_faster_than_they_are_copied(obs, folder, monkeypatch, has_links):
    import moxing

    def no_link(*_paths):
        raise OSError(errno.EOPNOTSUPP, "no hard links")

    copy, epochs = moxing.file.copy, iter(range(2, 30))

    def train_and_copy(source, target):
        if (epoch := next(epochs, None)) and target.endswith(".ckpt"):
            train(folder, epoch, keep=1)  # which deletes the one that is copied, and the next one as well
            (folder / "Midas_0-best.ckpt").unlink()
            write(folder, **{"Midas_0-best.ckpt": "newer"})
        copy(source, target)

    monkeypatch.setattr(moxing.file, "copy", train_and_copy)
    if not has_links:
        monkeypatch.setattr(os, "link", no_link)
    mirror = RunMirror(folder, RUN)
    if has_links:
        mirror._copy_changes()
        assert [name for name in obs.names(RUN) if re.match(r"Midas_0-\d", name)] == ["Midas_0-1_5.ckpt"]
        assert (obs.path(RUN) / "Midas_0-1_5.ckpt").read_text() == "weights 1" * 99
        assert (obs.path(RUN) / "Midas_0-best.ckpt").read_text() == "best"
    else:
        with pytest.raises(FileNotFoundError):
            mirror._copy_changes()
    monkeypatch.setattr(moxing.file, "copy", copy)
    with mirror:
        pass
    newest = max(folder.glob("Midas_0-*_5.ckpt"), key=lambda path: path.stat().st_mtime_ns).name
    assert [name for name in obs.names(RUN) if re.match(r"Midas_0-\d", name)] == [newest]
    assert not list(folder.glob(".Midas*held*"))


@pytest.mark.parametrize("change", ["new run", "behind", "other settings"])
def test_another_run_is_not_overwritten(obs, folder, change):
    write(obs.path(RUN), **{"Midas_0-1_5.ckpt": "theirs", "config.yaml": "seed: 1\n"})
    if change == "new run":
        (folder / "Midas_0-1_5.ckpt").unlink()
    elif change == "behind":
        write(obs.path(RUN), **{"Midas_0-2_1.ckpt": "theirs"})
    else:
        write(obs.path(RUN), **{"config.yaml": "seed: 2\n"})
    with pytest.raises(UsageError, match=r"train_url obs://.*: expected no checkpoints of another run, found Midas_0-"):
        RunMirror(folder, RUN)
    assert (obs.path(RUN) / "Midas_0-1_5.ckpt").read_text() == "theirs"


def test_run_comes_back(obs, folder, tmp_path, capsys):
    with RunMirror(folder, RUN) as mirror:
        train(folder, 2)
        mirror.copy_out()
    back = tmp_path / "another machine" / "run"
    copy_run_in(RUN, back)
    names = ["Midas_0-2_5.ckpt", "Midas_0-best.ckpt", "config.yaml", "loss.csv"]
    assert sorted(path.name for path in back.iterdir() if not path.name.startswith(".")) == names
    assert all((back / name).read_bytes() == (folder / name).read_bytes() for name in names)
    assert "copying the run from" in capsys.readouterr().out
    train(back, 3)  # it goes on there, and what is too old leaves object storage as well
    with RunMirror(back, RUN):
        pass
    assert [name for name in obs.names(RUN) if re.match(r"Midas_0-\d", name)] == [
        "Midas_0-2_5.ckpt", "Midas_0-3_5.ckpt"
    ]  # fmt: skip
    obs.forget_calls()
    copy_run_in(RUN, back)
    assert not obs.calls("copy")  # it has all that


def test_run_that_comes_back_in_part_leaves_no_checkpoint(obs, folder, tmp_path):
    with RunMirror(folder, RUN):
        pass
    back = tmp_path / "back"
    obs.fail("copy:Midas_0-1_5:halve:9")
    with pytest.raises(MidasError, match=r"Midas_0-1_5.ckpt: could not be copied to .*expected 891 bytes, found 445"):
        copy_run_in(RUN, back)
    assert not list(back.glob("Midas_0-1*"))
    obs.fail()
    copy_run_in(RUN, back)
    assert (back / "Midas_0-1_5.ckpt").stat().st_size == 891


def test_run_that_cannot_come_back(obs, folder, tmp_path):
    with pytest.raises(UsageError, match=r"resume: expected Midas_\*.ckpt in obs://bucket/run 1 .* found none"):
        copy_run_in(RUN, tmp_path / "back")
    copy_run_in(RUN, folder)  # which is here
    train(folder, 2)
    with RunMirror(folder, RUN):
        pass
    write(tmp_path / "other", **{"Midas_0-1_1.ckpt": "", "config.yaml": "seed: 2\n"})
    with pytest.raises(UsageError, match=r"train_output_path .*other: expected the run of obs://bucket/run 1"):
        copy_run_in(RUN, tmp_path / "other")
    obs.fail("list_directory::raise:9")
    with pytest.raises(MidasError, match="train_url obs://bucket/run 1: could not be listed"):
        copy_run_in(RUN, folder)


# ---- the boot file


def test_job_of_the_environment():
    assert read_job("", {}) == Job()
    assert read_job("", {"MA_NUM_GPUS": "0", "VC_TASK_INDEX": "0"}) == Job()
    assert read_job("", {"RANK_SIZE": "8", "MA_NUM_HOSTS": "1"}).cards == 8
    assert read_job("4", {"MA_NUM_GPUS": "8"}).cards == 4
    machines = {"MA_NUM_GPUS": "8", "MA_NUM_HOSTS": "2", "VC_TASK_INDEX": "1", "VC_WORKER_HOSTS": "job-0.job,job-1.job"}
    assert read_job("", machines) == Job(8, 2, 1, "job-0.job")


@pytest.mark.parametrize(
    ("cards", "environment", "key"),
    [
        ("eight", {}, "num_gpus or device_num: expected an integer >= 1, found eight"),
        ("0", {}, "num_gpus or device_num"),
        ("", {"MA_NUM_HOSTS": "2", "VC_WORKER_HOSTS": "a,b"}, "VC_TASK_INDEX: .*found nothing"),
        ("", {"MA_NUM_HOSTS": "2", "VC_TASK_INDEX": "0"}, "VC_WORKER_HOSTS"),
        ("", {"MA_RUN_METHOD": "torchrun"}, "MA_RUN_METHOD: expected msrun"),
    ],
)
def test_wrong_environment(cards, environment, key):
    with pytest.raises(UsageError, match=key):
        read_job(cards, environment)


def settings(*words):
    return load_config("", list(words), is_complete=False)


def test_commands(repo):
    words, fetched = ["--batch_size", "4"], {"train_output_path": "/cache/run"}
    config = settings(*words, "--model_weights=")
    environment = {"RANK_TABLE_FILE": "x", "RANK_ID": "0", "ASCEND_DEVICE_ID": "0", "RANK_SIZE": "8", "HOME": "/"}
    script, line = str(repo / "midas_train.py"), [*words, "--train_output_path=/cache/run"]

    command, variables = training_command(Job(), config, words, fetched, environment)
    assert command == [sys.executable, script, *line]
    assert variables == {"HOME": "/", "ASCEND_DEVICE_ID": "0"}

    command, variables = training_command(Job(8, 2, 1, "job-0"), config, words, fetched, environment)
    assert command == ["bash", str(repo / "scripts" / "run_distribute_train.sh"), "16", "", *line]
    assert variables == {  # the launcher numbers the processes itself
        **environment, "PYTHON": sys.executable, "LOG_DIR": "/cache/run/logs",
        "NODE_NUM": "2", "NODE_RANK": "1", "MASTER_ADDR": "job-0",
    }  # fmt: skip

    worker = {**environment, "MS_ROLE": "MS_WORKER"}
    command, variables = training_command(Job(8), config, words, fetched, worker)
    assert command == [sys.executable, script, "--run_distribute=True", *line]
    assert variables == worker


def test_fetch(obs, data, folder, tmp_path, capsys):
    data_dir, output = str(tmp_path / "machine"), str(tmp_path / "out")
    place = ["--train_data_dir", data_dir, "--train_output_path", output]
    new = fetch(settings(f"--data_url={DATA}", f"--train_url={RUN}", *place))
    assert new == {
        "is_modelarts": "True", "train_data_dir": data_dir, "train_url": RUN, "train_output_path": output
    }  # fmt: skip
    assert (tmp_path / "machine" / "mixdata.json").exists()
    with RunMirror(folder, RUN):
        pass
    again = fetch(settings(f"--data_url={DATA}", f"--train_url={RUN}", *place))
    assert again == {**new, "resume": "True"}
    assert (tmp_path / "out" / "Midas_0-1_5.ckpt").exists()
    assert "resume" not in fetch(settings(f"--train_url={RUN}", *place, "--resume=False"))


def test_folders_that_modelarts_copies_are_used_as_they_are(data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "moxing", None)
    output = tmp_path / "outputs" / "train_url_0"
    line = [f"--data_url={data}", f"--train_url={output}"]
    expected = {
        "is_modelarts": "True", "data_url": "", "train_data_dir": str(data),
        "train_url": "", "train_output_path": str(output),
    }  # fmt: skip
    assert fetch(settings(*line)) == expected
    train(output, 1)
    assert fetch(settings(*line)) == {**expected, "resume": "True"}


def boot(repo, *words, **variables):
    environment = {**os.environ, "PYTHONPATH": str(MOXING), **variables}
    command = [sys.executable, str(repo / "modelarts" / "start.py"), *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=290)


def test_of_the_processes_of_a_machine_one_starts_the_training(repo):
    done = boot(repo, "--data_url=obs://b/none", ASCEND_DEVICE_ID="3", RANK_ID="3", RANK_SIZE="8")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "card 3: nothing to do here, the process of card 0 starts the training on all cards\n"


def test_boot_file_reports_in_one_line(repo, obs):
    for words, expected in (
        (["--num_gpus"], "error: num_gpus or device_num: expected an integer >= 1, found nothing\n"),
        (["--data_ulr=obs://b"], "error: command line: unknown key 'data_ulr'; did you mean data_url?\n"),
        (["--data_url=obs://b/none", f"--train_data_dir={obs.root}"], "error: data_url: expected a folder"),
    ):
        done = boot(repo, *words)
        assert done.returncode == 2
        assert done.stderr.startswith(expected)
        assert done.stderr.count("\n") == 1


@pytest.mark.timeout(600)
def test_job_that_is_started_again_on_another_machine(repo, obs, train_data, tmp_path):
    (obs.root / "bucket").mkdir()
    obs.path(DATA).symlink_to(train_data)
    line = [*SETTINGS, "--device_target=CPU", f"--data_url={DATA}", f"--train_url={RUN}", "--lr_decay=False"]

    def place(name):
        return [f"--train_data_dir={tmp_path / name / 'data'}", f"--train_output_path={tmp_path / name / 'run'}"]

    first = boot(repo, *line, *place("machine 1"), "--epoch_size=2", "--num_gpus=1")
    assert first.returncode == 0, first.stderr
    assert {"Midas_0-2_5.ckpt", "config.yaml", "loss.csv", "loss.png"} <= set(obs.names(RUN))
    second = boot(repo, *line, *place("machine 2"), "--epoch_size=3", "--num_gpus=1")
    assert second.returncode == 0, second.stderr
    assert "after epoch 2 step 5" in second.stdout
    assert [row[0] for row in losses(obs.path(RUN))] == [epoch for epoch in (1, 2, 3) for _ in range(5)]
    assert "Midas_0-3_5.ckpt" in obs.names(RUN)
