"""Boot file of training jobs on ModelArts: fetches the data, and starts the training on all cards of the job.

The hyperparameters of the job are settings of config.yaml, and num_gpus or device_num: how many cards a machine has.
modelarts/readme.md says more.
"""
# This folder must not become a package (__init__.py): it would hide ModelArts' SDK, which has the same name.

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src.common.errors import UsageError, run_script
from src.config import REPOSITORY, Config, load_training_config, whole_number
from src.training.modelarts import copy_data_in, copy_run_in, has_run, is_remote
from src.weights.locate import list_checkpoints

# By these MindSpore takes a process for one of many.
_OF_ONE_AMONG_MANY = ("RANK_TABLE_FILE", "MINDSPORE_HCCL_CONFIG_PATH", "RANK_ID", "RANK_SIZE")
_CACHE = Path("/cache")  # ModelArts mounts the local disk there


@dataclass(frozen=True)
class Job:
    """What ModelArts has started.

    Attributes:
        cards: Devices of this machine.
        machines: Machines of the job.
        index: Number of this machine, from 0.
        master: Name or address of machine 0.
    """

    cards: int = 1
    machines: int = 1
    index: int = 0
    master: str = "127.0.0.1"


def read_job(cards: str, environment: Mapping[str, str]) -> Job:
    """Reads what ModelArts says of the job.

    Args:
        cards: Hyperparameter for the devices of a machine; "" leaves it to the environment.
        environment: That of this process.

    Raises:
        UsageError: A number is none, or the processes have been started for PyTorch.
    """
    method = environment.get("MA_RUN_METHOD", "msrun")
    if method != "msrun":
        raise UsageError(f"MA_RUN_METHOD: expected msrun, or that it is not set, found {method}")
    machines = whole_number("MA_NUM_HOSTS", environment.get("MA_NUM_HOSTS") or "1", 1)
    if cards:
        count = whole_number("num_gpus or device_num", cards, 1)
    elif "MA_NUM_GPUS" in environment:
        count = whole_number("MA_NUM_GPUS", environment["MA_NUM_GPUS"], 0) or 1  # 0 on a machine without any
    else:
        count = max(1, whole_number("RANK_SIZE", environment.get("RANK_SIZE") or "1", 1) // machines)
    if machines == 1:
        return Job(count)
    index = whole_number("VC_TASK_INDEX", environment.get("VC_TASK_INDEX", ""), 0)
    master = environment.get("VC_WORKER_HOSTS", "").partition(",")[0]
    if not master:
        raise UsageError("VC_WORKER_HOSTS: expected the names of the machines of the job, found none")
    return Job(count, machines, index, master)


def fetch(config: Config) -> dict[str, str]:
    """Copies to this machine what the training needs; returns the settings that say where it is.

    Local folders, of which ModelArts itself keeps copies in object storage, are used as they are. A job that is started
    again resumes its run, unless ``resume`` is given.
    """
    folder = _CACHE / "midas" if os.access(_CACHE, os.W_OK) else REPOSITORY / "output" / "modelarts"
    settings = {"is_modelarts": "True"}
    output = config.train_output_path
    if config.data_url:
        data = config.train_data_dir
        if "train_data_dir" not in config.given:
            data = str(folder / "data") if is_remote(config.data_url) else config.data_url
        if is_remote(config.data_url):
            copy_data_in(config.data_url, data)
        else:
            settings["data_url"] = ""
        settings["train_data_dir"] = data
    train_url = config.train_url if is_remote(config.train_url) else ""
    if config.train_url:
        if "train_output_path" not in config.given:
            output = str(folder / "run") if train_url else config.train_url
        settings.update(train_url=train_url, train_output_path=output)
    is_resumed = config.resume is True
    if "resume" not in config.given and (list_checkpoints(output) or (train_url and has_run(train_url))):
        is_resumed = True
        settings["resume"] = "True"
        print("the run that is there is resumed; for a new one, name another train_url")
    if train_url and is_resumed:
        copy_run_in(train_url, output)
    return settings


def training_command(
    job: Job, config: Config, words: Sequence[str], fetched: Mapping[str, str], environment: Mapping[str, str]
) -> tuple[list[str], dict[str, str]]:
    """Returns the command that trains on the cards of this machine, and its environment.

    Args:
        job: What ModelArts has started.
        config: The settings of the job.
        words: The same as they were typed.
        fetched: What ``fetch`` has returned; overrides them.
        environment: That of this process.
    """
    script = str(REPOSITORY / "midas_train.py")
    settings = [*words, *(f"--{key}={value}" for key, value in fetched.items())]
    environment = dict(environment)
    if "MS_ROLE" in environment:  # ModelArts has started this process with msrun: it is one of many
        return [sys.executable, script, "--run_distribute=True", *settings], environment
    if job.cards == job.machines == 1:
        for key in _OF_ONE_AMONG_MANY:
            environment.pop(key, None)
        return [sys.executable, script, *settings], environment
    environment["PYTHON"] = sys.executable
    if "train_output_path" in fetched:  # so that the logs of all cards are kept with the run
        environment.setdefault("LOG_DIR", str(Path(fetched["train_output_path"]) / "logs"))
    if job.machines > 1:
        environment.update(NODE_NUM=str(job.machines), NODE_RANK=str(job.index), MASTER_ADDR=job.master)
    weights = "" if fetched.get("resume", config.resume) else config.model_weights
    launcher = str(REPOSITORY / "scripts" / "run_distribute_train.sh")
    return ["bash", launcher, str(job.cards * job.machines), weights, *settings], environment


def main() -> None:
    """Runs the script: this process becomes the training."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--num_gpus", "--device_num", dest="cards", nargs="?", default="", const="nothing")
    options, words = parser.parse_known_args()
    config = load_training_config(__doc__, words, is_complete=False)
    job = read_job(options.cards, os.environ)
    device = os.environ.get("ASCEND_DEVICE_ID", "0")
    if device != "0" and "MS_ROLE" not in os.environ:
        print(f"card {device}: nothing to do here, the process of card 0 starts the training on all cards")
        return
    command, environment = training_command(job, config, words, fetch(config), os.environ)
    print("starting:", *command, flush=True)
    os.execvpe(command[0], command, environment)


if __name__ == "__main__":
    run_script(main)
