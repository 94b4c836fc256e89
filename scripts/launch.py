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
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Optional, TextIO

sys.path.insert(0, str(Path(__file__).absolute().parents[1]))

import midas_train
from src.common.errors import UsageError, run_script
from src.config import Config, load_config
from src.training.run_folder import RunFolder
from src.weights.locate import GET_ENCODER, find_checkpoint

REPOSITORY = Path(__file__).absolute().parents[1]
ASKED = "asked to stop: the run ends after this step, with a checkpoint"
_POLL_S = 0.1
_GRACE_S = 5.0  # when a process has failed, the others may end by themselves: they report, or finish a checkpoint
_SCHEDULER_S = 60.0  # it ends when all processes, of all machines, have left it
_LAST_LINES = 12
_NOISE = ("[WARNING]", "[INFO]", "[DEBUG]")
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
            **os.environ,
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
    size = _number("RANK_SIZE", rank_size, 1)
    machines = _number("NODE_NUM", variables.get("NODE_NUM", "1"), 1)
    machine = _number("NODE_RANK", variables.get("NODE_RANK", "0"), 0)
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
    port = _number("MASTER_PORT", variables.get("MASTER_PORT", "8118"), 1)
    try:
        address = socket.gethostbyname(name)
    except OSError as error:
        raise UsageError(f"MASTER_ADDR: expected a known host or an IPv4 address, found {name} ({error})") from None
    if machine == 0:
        _check_port(name, address, port)
    log_dir = Path(variables.get("LOG_DIR") or REPOSITORY / "output" / "distribute_log").absolute()
    return Plan(size, machines, machine, address, port, log_dir)


def _number(name: str, text: str, least: int) -> int:
    if not (text.isascii() and text.isdigit() and int(text) >= least):
        raise UsageError(f"{name}: expected a number from {least}, found {text or 'nothing'}")
    return int(text)


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
            raise UsageError(
                f"MASTER_PORT: expected a free port, found {port}, which is taken or no port; set MASTER_PORT to "
                "another"
            ) from None


def check_settings() -> Config:
    """Refuses at once what would end every process, from ``sys.argv``.

    Returns:
        The settings of the run.

    Raises:
        UsageError: As midas_train.py raises it.
    """
    config = load_config(midas_train.__doc__, keys=midas_train.KEYS, is_complete=False)
    if config.is_modelarts:  # the data, and the run to resume, are not here yet
        return config
    config, resumed = midas_train.load_settings()
    midas_train.check_settings(config)
    if config.model_weights and resumed is None:
        find_checkpoint(config.model_weights, "model_weights", f"{GET_ENCODER}; '' selects random weights")
    return config


def claim_logs(plan: Plan) -> TextIO:
    """Makes the folder of the logs and claims it as long as the returned file is open: a run empties those of another.

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
        log: The file that takes all it prints.
    """

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], log: Path):
        self.name, self.log = name, log
        self.is_killed = False
        with open(log, "wb") as file:
            self._process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_end_with_parent,
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
        return signal.Signals(-code).name if code is not None and code < 0 else ""

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
            return list(deque((line.rstrip("\n") for line in file if not line.startswith(_NOISE)), _LAST_LINES))


def _end_with_parent() -> None:
    """Has a process asked to stop should this launcher be killed: it would go on unseen, and hold its device."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


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
        self._requests = 0  # signals that have come
        signal.set_wakeup_fd(-1)  # the second one does not end this process at once, but those that it is passed on to
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup
                signal.signal(number, self._note)
        self.scheduler = None
        if plan.machine == 0:
            self.scheduler = self._start("the scheduler", "scheduler.log", command, "MS_SCHED")
        self.workers = [
            self._start(f"process {rank}", f"worker_{rank}.log", command, "MS_WORKER", rank) for rank in plan.ranks
        ]
        self.failed: list[Process] = []  # by themselves, the first one first

    def _note(self, _number: int, _frame: object) -> None:
        self._requests += 1

    def _start(self, name: str, log: str, command: Sequence[str], role: str, rank: int = 0) -> Process:
        return Process(name, command, self.plan.environment(role, rank), self.plan.log_dir / log)

    def watch(self) -> None:
        """Returns when all processes have ended, by themselves or since one has failed. Shows what the first prints."""
        answered, end_s = 0, None
        with open(self.workers[0].log, encoding="utf-8", errors="replace") as shown:
            while any(worker.status is None for worker in self.workers):
                if self._requests > answered:
                    if not answered:
                        say(ASKED, sys.stderr)
                    answered = self._requests
                    for worker in self.workers:
                        worker.ask()
                self._note_failures()
                if self.failed and end_s is None:
                    end_s = time.monotonic() + _GRACE_S
                if end_s and time.monotonic() > end_s:
                    for worker in self.workers:
                        worker.kill()
                time.sleep(_POLL_S)
                say(shown.read(), sys.stdout, end="")
            self._note_failures()
            say(shown.read(), sys.stdout, end="")
        if self.scheduler:
            end_s = time.monotonic() + (0 if self.failed else _SCHEDULER_S)
            while self.scheduler.status is None and time.monotonic() < end_s:
                time.sleep(_POLL_S)
            self.scheduler.kill()

    def _note_failures(self) -> None:
        for process in (*self.workers, *([self.scheduler] if self.scheduler else [])):
            # The scheduler fails as well when another machine has lost a process.
            if process.status and not process.is_killed and process not in self.failed:
                self.failed.append(process)

    def culprit(self) -> Optional[Process]:
        """Returns the process because of which the run has failed, None if it has not.

        Those that fail for want of another one do so at the same moment: what was killed, or found the usage wrong,
        comes before them.
        """
        return min(self.failed, key=_rank_of_failure, default=None)


def _rank_of_failure(process: Process) -> int:
    if process.signal_name:
        return 0
    return 1 if process.status == UsageError.exit_status else 2


def report(run: Run, culprit: Process, config: Config) -> NoReturn:
    """Says why the run has ended and how to go on, and ends this process with the status of the culprit."""
    if culprit is not run.workers[0]:  # of which everything has been shown
        say(f"the end of {culprit.log}:", sys.stderr)
        say("\n".join(f"  {line}" for line in culprit.last_lines()), sys.stderr)
    how = f"has failed with status {culprit.status}"
    if culprit.status in (128 + signal.SIGINT, 128 + signal.SIGTERM):
        how = "was asked to stop"
    elif culprit.signal_name:
        how = f"was killed by {culprit.signal_name}"
        if culprit.signal_name == "SIGKILL":
            how += ", as the system does when memory runs out"
        elif culprit.signal_name == "SIGBUS":
            how += ", as when /dev/shm is full"
    latest = RunFolder(config.train_output_path).latest()
    if latest:
        advice = f"the last checkpoint is {latest.path}; --resume True resumes the run"
    elif run.plan.machine:
        advice = "checkpoints are on machine 0"
    else:
        advice = "there is no checkpoint yet"
    say(f"error: the training has ended early: {culprit.name} {how}, see {culprit.log}; {advice}", sys.stderr)
    sys.exit(culprit.status)


def go_to_background(plan: Plan) -> None:
    """Starts this script once more, apart from the terminal, and says so."""
    log = plan.log_dir / f"launcher_{plan.machine}.log"
    words = [word for word in sys.argv if word != "--background"]
    with open(log, "wb") as file:
        process = subprocess.Popen(
            [sys.executable, *words],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    print(f"started in the background as process {process.pid}; log: {log}")
    print(f"follow it: tail -f '{log}'")
    print(f"stop it:   kill {process.pid}    (after a step, with a checkpoint)")


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
    if culprit := run.culprit():
        report(run, culprit, config)


if __name__ == "__main__":
    run_script(main)
