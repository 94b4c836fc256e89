"""Starts the processes of a data-parallel training on this machine, watches over them, and ends with them.

    python scripts/launch.py RANK_SIZE CKPT_PATH [--background] [--key value ...]

scripts/run_distribute_train.sh says what the arguments and the environment variables mean. The processes form a dynamic
cluster of MindSpore ("Dynamic Cluster Startup" in its tutorials): a scheduler introduces the workers to each other.
msrun starts the same. But when a process fails, it kills the others while they still save or report, waits 30 s for the
scheduler, and keeps the exit status to itself; and it starts a scheduler on every machine that has the address.
"""

import ctypes
import errno
import fcntl
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, NoReturn, Optional, TextIO

sys.path.insert(0, str(Path(__file__).absolute().parents[1]))

import midas_train
from src.common.errors import MidasError, UsageError, fault_line, run_script
from src.common.stop import SAME_REQUEST_S, StopRequest
from src.config import Config, load_training_config, whole_number
from src.training.modelarts import RunMirror
from src.training.run_folder import RunFolder
from src.weights.locate import GET_ENCODER, GET_NETWORK, find_checkpoint

REPOSITORY = Path(__file__).absolute().parents[1]
ASKED = "asked to stop: the processes end in order; a second request ends them at once"
_POLL_S = 0.1
_GRACE_S = 5.0  # when a process has failed, the others may end by themselves: they report, or finish a checkpoint
_SCHEDULER_S = 60.0  # it ends when all processes, of all machines, have left it
_LAST_LINES = 12
_NOISE = ("[WARNING]", "[INFO]", "[DEBUG]")
_GOODBYE = "Event base dispatch success!"  # MindSpore's, of every process that leaves a group, whatever the log level
# By these a cloud tells a process its place in the way that came before the dynamic cluster.
_OF_RANK_TABLES = ("RANK_TABLE_FILE", "MINDSPORE_HCCL_CONFIG_PATH", "ASCEND_DEVICE_ID")
_PR_SET_PDEATHSIG = 1  # of prctl(2)


@dataclass(frozen=True)
class Plan:
    """What is to be started, and where.

    Attributes:
        size: Processes on all machines together.
        machines: Number of machines.
        machine: Number of this one, from 0; the scheduler runs on the first.
        address: Of the first machine, IPv4.
        port: Of the scheduler.
        log_dir: Folder of the logs.
    """

    size: int
    machines: int
    machine: int
    address: str
    port: int
    log_dir: Path

    @property
    def ranks(self) -> range:
        """The numbers of the processes of this machine."""
        share = self.size // self.machines
        return range(self.machine * share, (self.machine + 1) * share)

    def environment(self, role: str, rank: int) -> dict[str, str]:
        """Returns the variables by which MindSpore, and src/common/device.py, know a process."""
        share = len(self.ranks)
        return {
            "MS_TOPO_TIMEOUT": "600",  # seconds that the processes wait for each other at the start
            **{key: value for key, value in os.environ.items() if key not in _OF_RANK_TABLES},
            "MS_ROLE": role,
            "MS_WORKER_NUM": str(self.size),
            "MS_SCHED_HOST": self.address,
            "MS_SCHED_PORT": str(self.port),
            "MS_NODE_ID": str(rank),
            "RANK_ID": str(rank),
            "RANK_SIZE": str(self.size),
            "DEVICE_ID": str(rank % share),
            "LOCAL_WORLD_SIZE": str(share),
            "PYTHONUNBUFFERED": "1",
        }


def read_plan(rank_size: str, variables: Mapping[str, str]) -> Plan:
    """Reads what is to be started.

    Args:
        rank_size: The first argument.
        variables: The environment.

    Raises:
        UsageError: A number is none or does not fit the others, or the address or the port cannot be used.
    """
    size = whole_number("RANK_SIZE", rank_size, 1)
    machines = whole_number("NODE_NUM", variables.get("NODE_NUM", "1"), 1)
    machine = whole_number("NODE_RANK", variables.get("NODE_RANK", "0"), 0)
    if machines > 1 and not {"NODE_RANK", "MASTER_ADDR"} <= variables.keys():
        raise UsageError(f"NODE_NUM {machines}: expected NODE_RANK and MASTER_ADDR to be set, too")
    if machine >= machines:
        raise UsageError(f"NODE_RANK: expected a number below NODE_NUM, {machines}, found {machine}")
    if size % machines:
        raise UsageError(
            f"RANK_SIZE: expected a multiple of NODE_NUM, {machines}, found {size}; it counts the processes of all "
            "machines"
        )
    name = variables.get("MASTER_ADDR", "127.0.0.1")
    port = whole_number("MASTER_PORT", variables.get("MASTER_PORT", "8118"), 1)
    try:
        address = socket.gethostbyname(name)
    except OSError as error:
        raise UsageError(f"MASTER_ADDR: expected a known host or an IPv4 address, found {name} ({error})") from None
    if machine == 0:
        _check_port(name, address, port)
    log_dir = Path(variables.get("LOG_DIR") or REPOSITORY / "output" / "distribute_log").absolute()
    return Plan(size, machines, machine, address, port, log_dir)


def _check_port(name: str, address: str, port: int) -> None:
    with socket.socket() as probe:
        # What a run that has just ended leaves is no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except (OSError, OverflowError) as error:
            if getattr(error, "errno", None) == errno.EADDRNOTAVAIL:
                raise UsageError(
                    f"MASTER_ADDR: expected an address of this machine (NODE_RANK 0), found {name} ({address})"
                ) from None
            reason = getattr(error, "strerror", None) or error
            raise UsageError(
                f"MASTER_PORT: expected a free port, found {port} ({reason}); set MASTER_PORT to another"
            ) from None


def check_settings() -> Config:
    """Refuses at once what would end every process, from ``sys.argv``.

    Returns:
        The settings of the run.

    Raises:
        UsageError: As midas_train.py raises it.
    """
    config = load_training_config(midas_train.__doc__, keys=midas_train.KEYS, is_complete=False)
    if config.is_modelarts and config.train_url and config.resume is True:  # the run to resume is not here yet
        return config
    config, resumed = midas_train.load_settings()
    if config.is_modelarts and config.data_url:  # nor are the data, and what comes with them
        return config
    midas_train.check_settings(config)
    if config.model_weights and resumed is None:
        advice = GET_NETWORK if config.train_images else GET_ENCODER
        find_checkpoint(config.model_weights, "model_weights", f"{advice}; '' selects random weights")
    return config


def claim_logs(plan: Plan) -> TextIO:
    """Makes the folder of the logs and claims it as long as the returned file is open: two runs would mix their lines.

    Raises:
        UsageError: A running training writes to it.
    """
    plan.log_dir.mkdir(parents=True, exist_ok=True)
    lock = open(plan.log_dir / f"launcher_{plan.machine}.pid", "a+", encoding="utf-8")  # noqa: SIM115
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            lock.seek(0)
            raise UsageError(
                f"LOG_DIR {plan.log_dir}: expected a folder of no other training, found the logs of one that runs "
                f"(process {lock.read().strip()}); set LOG_DIR to another"
            ) from None
    lock.truncate(0)
    lock.write(f"{os.getpid()}\n")
    lock.flush()
    return lock


class Process:
    """A process that has been started, in a session of its own: Ctrl-C in the terminal does not reach it.

    Args:
        name: For messages.
        command: What to run.
        environment: Its variables.
        log: The file that takes all it prints, after what is there.
        prepare: Called in the new process.
        descriptor: What it inherits.

    Attributes:
        log_start: Where its part of the log begins, in bytes.
        is_killed: Whether ``kill`` has ended it.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        prepare: Callable[[], object],
        descriptor: int,
    ):
        self.name, self.log = name, log
        self.is_killed = False
        with _opened_log(log) as file:
            self.log_start = file.tell()
            self._process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=prepare,
                pass_fds=(descriptor,),
            )

    @property
    def status(self) -> Optional[int]:
        """Its exit status as shells count, 128 + N for signal N; None while it runs."""
        code = self._process.poll()
        return 128 - code if code is not None and code < 0 else code

    @property
    def signal_name(self) -> str:
        """The signal that has ended it, "" if none has."""
        code = self._process.poll()
        if code is None or code >= 0:
            return ""
        try:
            return signal.Signals(-code).name
        except ValueError:  # most real-time signals have no name
            return f"signal {-code}"

    def ask(self) -> None:
        """Asks it to end."""
        self._process.terminate()

    def kill(self) -> None:
        """Ends it and its data loaders at once, if it still runs."""
        if self._process.poll() is None:
            self.is_killed = True
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def last_lines(self) -> list[str]:
        """Returns the end of its log, without MindSpore's warnings."""
        with open(self.log, encoding="utf-8", errors="replace") as file:
            file.seek(self.log_start)
            lines = (line.rstrip("\n") for line in file if not line.startswith(_NOISE) and _GOODBYE not in line)
            return list(deque(lines, _LAST_LINES))


def _end_with_parent() -> None:
    """Has this process asked to stop should the launcher be killed: it would go on unseen, and hold its device."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _end_with_writers(reader: int) -> None:
    """Has this process ended when nobody is left who could write to a pipe: SIGIO comes then, and nobody handles it."""
    fcntl.fcntl(reader, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(reader, fcntl.F_SETFL, os.O_ASYNC)


class Shown:
    """Shows what a process prints, line by line, but for the goodbye of MindSpore.

    Args:
        file: Its log, open for reading.
    """

    def __init__(self, file: TextIO):
        self._file, self._begun = file, ""

    def show(self, is_all: bool = False) -> None:
        """Shows the lines that are new, and also one that has not come to its end if that is all."""
        *lines, self._begun = (self._begun + self._file.read()).split("\n")
        if is_all and self._begun:
            lines.append(self._begun)
        say("".join(f"{line}\n" for line in lines if _GOODBYE not in line), sys.stdout, end="")


@contextmanager
def _opened_log(path: Path) -> Iterator[BinaryIO]:
    """Opens a log to be added to, since what is there may tell why a run has failed, and says that another starts."""
    with open(path, "ab", buffering=0) as file:
        gap = "\n" if file.tell() else ""
        file.write(f"{gap}---- started on {time.strftime('%Y-%m-%d at %H:%M:%S')}\n".encode())
        yield file


def say(text: str, stream: TextIO, end: str = "\n") -> None:
    """Prints, also where the terminal may have been closed."""
    try:
        print(text, end=end, file=stream, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class Run:
    """The processes of one training on this machine.

    Args:
        plan: What to start.
        command: What each of them runs; MindSpore's scheduler is a process of the same script.
    """

    def __init__(self, plan: Plan, command: Sequence[str]):
        self.plan = plan
        self._asked_s: Optional[float] = None  # when the first signal came
        self.is_urgent = False  # whether a second one has come
        signal.set_wakeup_fd(-1)  # which does not end this process at once, but the others
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        heard = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]  # nohup
        self._handlers = {number: signal.signal(number, self._note) for number in heard}
        # MindSpore aborts workers half a minute after the scheduler has gone. So should this launcher be killed, the
        # scheduler must outlive them, who may yet finish a step and a checkpoint; and then it must not stay.
        reader, writer = os.pipe()
        self.scheduler = None
        if plan.machine == 0:
            environment, log = plan.environment("MS_SCHED", 0), plan.log_dir / "scheduler.log"
            prepare = partial(_end_with_writers, reader)
            self.scheduler = Process("the scheduler", command, environment, log, prepare, reader)
        self.workers = []
        for rank in plan.ranks:
            environment, log = plan.environment("MS_WORKER", rank), plan.log_dir / f"worker_{rank}.log"
            self.workers.append(Process(f"process {rank}", command, environment, log, _end_with_parent, writer))
        os.close(reader)
        self.failed: list[list[Process]] = []  # by themselves: those that were found at the same time, the first first

    def _note(self, _number: int, _frame: object) -> None:
        now = time.monotonic()
        if self._asked_s is None:
            self._asked_s = now
        elif now - self._asked_s > SAME_REQUEST_S:
            self.is_urgent = True

    @property
    def has_failed(self) -> bool:
        """Whether a process has not ended as it should, by itself or when it was killed here."""
        return bool(self.failed) or any(worker.is_killed for worker in self.workers)

    def watch(self) -> None:
        """Returns when all processes have ended, by themselves or since one has failed. Shows what the first prints.

        Signals have their earlier meaning again then.
        """
        is_passed_on, end_s = False, math.inf
        with open(self.workers[0].log, encoding="utf-8", errors="replace") as file:
            file.seek(self.workers[0].log_start)
            shown = Shown(file)
            while any(worker.status is None for worker in self.workers):
                if self._asked_s is not None and not is_passed_on:
                    is_passed_on = True
                    say(ASKED, sys.stderr)
                    for worker in self.workers:
                        worker.ask()
                self._note_failures()
                if self.failed:
                    end_s = min(end_s, time.monotonic() + _GRACE_S)
                if self.is_urgent or time.monotonic() > end_s:
                    for worker in self.workers:
                        worker.kill()
                time.sleep(_POLL_S)
                shown.show()
            self._note_failures()
            shown.show(is_all=True)
        if self.scheduler:
            end_s = time.monotonic() + (0 if self.has_failed else _SCHEDULER_S)
            while self.scheduler.status is None and time.monotonic() < end_s and not self.is_urgent:
                time.sleep(_POLL_S)
            self.scheduler.kill()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _note_failures(self) -> None:
        known = [process for together in self.failed for process in together]
        # The scheduler fails as well when another machine has lost a process.
        processes = (*self.workers, *([self.scheduler] if self.scheduler else []))
        together = [
            process for process in processes if process.status and not process.is_killed and process not in known
        ]
        if together:
            self.failed.append(together)

    def culprit(self) -> Optional[Process]:
        """Returns the process because of which the run has failed, None if none has failed by itself.

        Those that fail for want of another one may do so at the same moment. So of the first that were found, those
        that were killed come before others. Later, a signal says nothing any more: MindSpore aborts where it lacks the
        others. But nobody finds the usage wrong for want of another.
        """
        if not self.failed:
            return None
        first, *later = self.failed
        candidates = [*first, *(process for together in later for process in together if _is_usage(process))]
        return min(candidates, key=lambda process: (not process.signal_name, not _is_usage(process)))


def _is_usage(process: Process) -> bool:
    return process.status == UsageError.exit_status


def report(run: Run, config: Config) -> NoReturn:
    """Says why the run has ended and how to go on, and ends this process with the status of the culprit."""
    culprit = run.culprit()
    if culprit is None:
        status, how = 128 + signal.SIGTERM, f"the processes were ended at once, as asked, see {run.plan.log_dir}"
    else:
        status, how = culprit.status, f"{culprit.name} {_how(culprit)}, see {culprit.log}"
        lines = culprit.last_lines() if culprit is not run.workers[0] else []  # of which everything has been shown
        if lines:
            say("\n".join([f"the end of {culprit.log}:", *(f"  {line}" for line in lines)]), sys.stderr)
    if run.plan.machine == 0 and config.is_modelarts and config.train_url and not run.is_urgent:
        copy_out(config)
    latest = RunFolder(config.train_output_path).latest()
    if latest:
        advice = f"the last checkpoint is {latest.path}; --resume True resumes the run"
    elif run.plan.machine:
        advice = "checkpoints are on machine 0"
    else:
        advice = "there is no checkpoint yet"
    say(f"error: the training has ended early: {how}; {advice}", sys.stderr)
    sys.exit(status)


def _how(culprit: Process) -> str:
    if culprit.status in (128 + signal.SIGINT, 128 + signal.SIGTERM):
        return "was asked to stop"
    reasons = {"SIGKILL": ", as the system does when memory runs out", "SIGBUS": ", as when /dev/shm is full"}
    if culprit.signal_name:
        return f"was killed by {culprit.signal_name}{reasons.get(culprit.signal_name, '')}"
    return f"has failed with status {culprit.status}"


def copy_out(config: Config) -> None:
    """Copies the run folder to ``train_url``: the first process may have been ended before it could. Says what fails.

    A request to stop ends it.
    """
    folder = RunFolder(config.train_output_path)
    if not folder.path.is_dir():
        return
    try:
        folder.lock()  # or another run is there, which copies it itself
        say(f"copying what there is of the run to {config.train_url}", sys.stderr)
        with RunMirror(folder.path, config.train_url):
            pass
    except (MidasError, OSError, StopRequest) as error:
        say(fault_line(error), sys.stderr)


def go_to_background(plan: Plan) -> None:
    """Starts this script once more, apart from the terminal, and says so."""
    log = plan.log_dir / f"launcher_{plan.machine}.log"
    words = [word for word in sys.argv if word != "--background"]
    with _opened_log(log) as file:
        process = subprocess.Popen(
            [sys.executable, *words],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    print(f"started in the background as process {process.pid}; log: {log}")
    print(f"follow it: tail -f '{log}'")
    print(f"stop it:   kill {process.pid}    (after a step, with a checkpoint; a second time, at once)")


def main() -> None:
    """Runs the script."""
    arguments = [word for word in sys.argv[1:] if word != "--background"]
    plan = read_plan(arguments[0], os.environ)
    settings = ["--run_distribute", "True", "--model_weights", *arguments[1:]]
    given, sys.argv[1:] = sys.argv[1:], settings
    config = check_settings()
    sys.argv[1:] = given
    lock = claim_logs(plan)
    if "--background" in given:
        lock.close()
        go_to_background(plan)
        return
    run = Run(plan, [sys.executable, str(REPOSITORY / "midas_train.py"), *settings])
    where = f" on machine {plan.machine} of {plan.machines}" if plan.machines > 1 else ""
    first, last = plan.ranks[0], plan.ranks[-1]
    say(
        f"started processes {first} to {last} of {plan.size}{where}; logs: {plan.log_dir}; this is worker_{first}.log:",
        sys.stdout,
    )
    run.watch()
    if run.has_failed:
        report(run, config)


if __name__ == "__main__":
    run_script(main)
