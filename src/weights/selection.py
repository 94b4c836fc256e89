"""Which tensors of a checkpoint are the network: wrappers and prefixes of training code, averaged twins, other things.

Nested dictionaries have become dotted names before (``formats.py``), so that a wrapper ``{"model": ...}`` and a prefix
``model.`` are the same here: words in front of the name that the network itself gives to a tensor.
"""

import itertools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from src.common.errors import CheckpointError
from src.weights import families

# What the network itself calls its tensors, in any family: the first part of the name and a dot.
_OF_THIS_NETWORK = (
    r"(?:backbone_(?:conv|bn|layer[1-4])|layer[1-4]_rn_scratch|refinenet[1-4]_scratch|output_conv_scratch"
    r"|pretrained|scratch)\."
)
_OF_RESNETS = r"(?:conv1|bn1|layer[1-4]|fc)\."
_NAME = re.compile(rf"((?:[^.]+\.)*?)((?:{_OF_THIS_NETWORK}|{_OF_RESNETS}).+)", re.DOTALL)
_IS_OURS_ALONE = re.compile(_OF_THIS_NETWORK)
_STATE_OF_OPTIMIZER = re.compile(r"\w+_backbone_.+|\w+_(layer[1-4]_rn|refinenet[1-4]|output_conv)_scratch\..+")

# Words in front that say nothing but "this is the network".
_NEUTRAL = re.compile(
    r"module|_orig_mod|_backbone|_fsdp_wrapped_module|_checkpoint_wrapped_module|weights|params|state|state_?dict"
    r"|(model|net|network)(_?(state|state_?dict|weights|params))?"
)
# What wrapping a part of the network puts into its names.
_WITHIN = re.compile(r"(?<=\.)(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# Parts of a word in front that say what else it is.
_AVERAGED = {"ema", "swa", "avg", "averaged", "shadow"}
_BESIDE = {
    "loss", "losses", "criterion", "criteria", "optimizer", "optimizers", "optim", "optimiser", "metric", "metrics",
    "scheduler", "schedulers", "scaler", "discriminator", "lpips", "perceptual", "callbacks", "loops", "teacher",
}  # fmt: skip


@dataclass(frozen=True)
class Selection:
    """The network among the names of a file.

    Attributes:
        names: Name without what stands in front -> name in the file.
        ignored: Names of the file that are not part of the network.
        remark: Which of several networks was taken and what was left; empty if there was no choice.
    """

    names: dict[str, str]
    ignored: list[str]
    remark: str


def select_network(shapes: Mapping[str, families.Shape], read: Callable[[str], np.ndarray]) -> Selection:
    """Finds the network among the tensors of a file.

    Averaged weights (EMA, SWA) are taken in preference to the plain ones, if they are as complete. What lies beside the
    network is left out. What lies within it and is unknown stays: whoever compares with the network will refuse it.

    Args:
        shapes: Name -> shape of all tensors of the file.
        read: Returns the tensor of a name; called where two have one name without prefixes.

    Raises:
        CheckpointError: There is none of a known family, or there are several.
    """
    renamed: dict[str, str] = {}
    for name in shapes:
        alone = _as_saved_alone(name)
        renamed[name if alone in shapes or alone in renamed else alone] = name
    selection = _select({name: shapes[full] for name, full in renamed.items()}, lambda name: read(renamed[name]))
    return Selection(
        {name: renamed[found] for name, found in selection.names.items()},
        [renamed[name] for name in selection.ignored],
        selection.remark,
    )


def _as_saved_alone(name: str) -> str:
    """Undoes what becomes of names in another cell of MindSpore, and where a part of the network is wrapped."""
    name = re.sub(r"(^|\.)encoder\.(conv|bn|layer[1-4])\.", r"\1backbone_\2.", name)
    name = re.sub(r"(^|\.)decoder\.(\w+_scratch\.)", r"\1\2", name)
    match = _NAME.fullmatch(name)
    return match[1] + _WITHIN.sub("", match[2]) if match else name


def _select(shapes: Mapping[str, families.Shape], read: Callable[[str], np.ndarray]) -> Selection:
    groups: dict[str, dict[str, str]] = {}  # prefix -> name without it -> name in the file
    for name in shapes:
        match = _NAME.fullmatch(name)
        if match:
            groups.setdefault(match[1], {})[match[2]] = name
    # AveragedModel of PyTorch has a counter beside its network.
    averages = [name[: -len("n_averaged")] for name in shapes if re.fullmatch(r"(.*\.)?n_averaged", name, re.DOTALL)]
    roles: dict[str, list[str]] = {"plain": [], "averaged": [], "named": []}
    for prefix, names in groups.items():
        role = _role(prefix, any(map(prefix.startswith, averages)))
        # The names of ResNets occur in any network: there the words in front must be known.
        if role in roles and (role != "named" or any(map(_IS_OURS_ALONE.match, names))):
            roles[role].append(prefix)
    strong = [prefix for prefix in itertools.chain(*roles.values()) if any(map(_IS_OURS_ALONE.match, groups[prefix]))]
    if strong:  # what has the names of a ResNet alone, under another prefix, is something beside the network
        roles = {role: [prefix for prefix in prefixes if prefix in strong] for role, prefixes in roles.items()}
    joined = {role: _join(prefixes, groups, shapes, read) for role, prefixes in roles.items() if role != "named"}
    role = "averaged" if _covers(joined["averaged"], joined["plain"], shapes) else "plain"
    taken, prefixes = joined[role], roles[role]
    remark = _remark(role, roles, joined, shapes)
    if not taken:
        prefixes = roles["named"]
        if len(prefixes) > 1:
            raise CheckpointError(f"expected one network, found several, {_listed(prefixes)}; keep one of them")
        if not prefixes:
            raise families.no_family(list(shapes))
        taken, remark = groups[prefixes[0]], f"found {_listed(prefixes)}"
    left = [prefix for prefix in roles["named"] if prefix not in prefixes and _covers(groups[prefix], taken, shapes)]
    if left:
        remark = "; ".join(filter(None, (remark, f"left other weights, {_listed(left)}")))
    names = {name: full for name, full in taken.items() if not families.is_ignored(name)}
    if not names:
        raise families.no_family(list(shapes))
    for full in shapes:
        rest = _unknown_part(full, prefixes, groups)
        if rest:
            names[rest] = full
    used = set(names.values())
    return Selection(names, [name for name in shapes if name not in used], remark)


def _role(prefix: str, is_averaged: bool) -> str:
    """Tells what is under a prefix: ``plain``, ``averaged``, ``named`` (an unknown word) or ``beside``."""
    words = prefix.split(".")[:-1]
    parts = {part for word in words for part in word.lower().split("_")}
    if parts & _BESIDE:
        return "beside"
    if is_averaged or parts & _AVERAGED:
        return "averaged"
    return "plain" if all(map(_NEUTRAL.fullmatch, words)) else "named"


def _join(
    prefixes: list[str],
    groups: Mapping[str, Mapping[str, str]],
    shapes: Mapping[str, families.Shape],
    read: Callable[[str], np.ndarray],
) -> dict[str, str]:
    """Merges what is under several prefixes; CheckpointError if that is more than one network."""
    joined: dict[str, str] = {}
    origin: dict[str, str] = {}
    for prefix in prefixes:
        for name, full in groups[prefix].items():
            other = joined.setdefault(name, full)
            origin.setdefault(name, prefix)
            if other != full and not families.is_ignored(name):
                is_same = shapes[other] == shapes[full] and read(other).tobytes() == read(full).tobytes()
                if not is_same:
                    raise CheckpointError(
                        f"expected one network, found two that differ, {_listed([origin[name], prefix])}; keep one of"
                        " them"
                    )
    return joined


def _covers(averaged: Mapping[str, str], plain: Mapping[str, str], shapes: Mapping[str, families.Shape]) -> bool:
    """Whether averaged weights are as complete as the plain ones."""
    needed = {name: shapes[full] for name, full in plain.items() if not families.is_ignored(name)}
    return bool(averaged) and all(name in averaged and shapes[averaged[name]] == needed[name] for name in needed)


def _remark(
    role: str,
    roles: Mapping[str, list[str]],
    joined: Mapping[str, Mapping[str, str]],
    shapes: Mapping[str, families.Shape],
) -> str:
    plain, averaged = joined["plain"], joined["averaged"]
    if role == "averaged":
        left = f", left the plain ones, {_listed(roles['plain'])}" if plain else ""
        return f"took the averaged weights, {_listed(roles['averaged'])}{left}"
    beside = [name for name in shapes if "." in name and _role(f"{name.split('.')[0]}.", False) == "averaged"]
    if averaged or (plain and beside):
        prefixes = roles["averaged"] or [f"{beside[0].split('.')[0]}."]
        return f"left averaged weights that are not complete, {_listed(prefixes)}"
    return ""


def _unknown_part(full: str, prefixes: list[str], groups: Mapping[str, Mapping[str, str]]) -> str:
    """Returns what an unknown name is called within the network; an empty text if it clearly lies beside it."""
    within = [prefix for prefix in prefixes if full.startswith(prefix)]
    if not within or _NAME.fullmatch(full):
        return ""
    prefix = max(within, key=len)
    rest = full[len(prefix) :]
    word = rest.partition(".")[0]
    is_beside = (
        "." not in rest  # a counter
        or _role(f"{word}.", False) in ("beside", "averaged")
        or any(other != prefix and other.startswith(f"{prefix}{word}.") for other in groups)
        or _STATE_OF_OPTIMIZER.fullmatch(rest)
    )
    return "" if is_beside else rest


def _listed(prefixes: list[str]) -> str:
    return " and ".join(f"under {prefix}" if prefix else "without a prefix" for prefix in prefixes)
