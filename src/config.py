"""Settings: config.yaml and the command line become one checked, typed, frozen object.

Default values and descriptions live in ``config.yaml`` alone, types and limits here alone.
"""

import difflib
import math
import os
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Optional, Union, get_args, get_origin, get_type_hints

import yaml

from src.common import names
from src.common.errors import UsageError

REPOSITORY = Path(__file__).resolve().parents[1]
DEFAULTS_FILE = REPOSITORY / "config.yaml"

_COMMAND_LINE = "command line"
_TRUE_WORDS, _FALSE_WORDS = ("true", "yes", "on"), ("false", "no", "off")  # the booleans of YAML 1.1
_NULL_TAG = "tag:yaml.org,2002:null"
_DATA_SETS_BY_WORD = {**{name.lower(): (name,) for name in names.DATA_SETS}, "all": names.DATA_SETS}


@dataclass(frozen=True)
class _Rule:
    """What a value must be. ``expected`` completes the sentence "expected ..."."""

    expected: str
    accepts: Callable[[Any], bool] = lambda value: True
    is_path: bool = False
    is_data_path: bool = False


def _at_least(least: int) -> _Rule:
    return _Rule(f"an integer >= {least}", lambda value: value >= least)


def _one_of(*choices: str) -> _Rule:
    return _Rule("one of " + ", ".join(choices), lambda value: value in choices)


def _each(count: int, kind: str, accepts: Callable[[Any], bool] = lambda item: True, **kwargs: bool) -> _Rule:
    """A list of ``count`` items, each of which passes ``accepts``."""
    return _Rule(f"a list of {count} {kind}", lambda items: len(items) == count and all(map(accepts, items)), **kwargs)


def _words(data_name: str) -> list[str]:
    return [word.strip().lower() for word in data_name.split(",")]


_Flag = Annotated[bool, _Rule("True or False")]
_Count = Annotated[int, _at_least(0)]
_PositiveInt = Annotated[int, _at_least(1)]
_Side = Annotated[int, _Rule("a positive multiple of 32", lambda value: value > 0 and value % 32 == 0)]
_Positive = Annotated[float, _Rule("a number > 0", lambda value: value > 0)]
_NotNegative = Annotated[float, _Rule("a number >= 0", lambda value: value >= 0)]
_Path = Annotated[str, _Rule("a path", bool, is_path=True)]
_Weights = Annotated[str, _Rule("a path or ''", is_path=True)]
_DataPath = Annotated[str, _Rule("a path", bool, is_data_path=True)]


@dataclass(frozen=True)
class Config:
    """All settings, as :func:`load_config` makes them; ``config.yaml`` says what each one means.

    Paths are absolute; ``model_weights`` and ``ckpt_path`` may be empty.
    """

    device_target: Annotated[str, _one_of("auto", *names.DEVICE_TARGETS)]
    device_id: _Count
    run_distribute: _Flag
    is_modelarts: Annotated[
        bool,
        _Rule(
            "False (on ModelArts copy the data to a local path and set train_data_dir)",
            lambda value: not value,
        ),
    ]
    seed: Annotated[int, _Rule("an integer from 0 to 4294967295", lambda value: 0 <= value < 2**32)]
    enable_compile_cache: _Flag
    num_parallel_workers: _PositiveInt

    network_ops: Annotated[str, _one_of(*names.NETWORK_OPS)]
    width_per_group: _PositiveInt
    groups: _PositiveInt
    in_channels: _PositiveInt
    features: Annotated[int, _Rule("a positive multiple of 8", lambda value: value > 0 and value % 8 == 0)]
    layers: Annotated[tuple[int, ...], _each(4, "integers >= 1", lambda item: item >= 1)]

    img_width: _Side
    img_height: _Side
    nm_img_mean: Annotated[tuple[float, ...], _each(3, "numbers")]
    nm_img_std: Annotated[tuple[float, ...], _each(3, "numbers > 0", lambda item: item > 0)]
    resize_target: _Flag
    keep_aspect_ratio: _Flag
    ensure_multiple_of: _Side
    resize_method: Annotated[str, _one_of(*names.RESIZE_METHODS)]

    backbone_params_lr: _Positive
    backbone_params_end_lr: _NotNegative
    no_backbone_params_lr: _Positive
    no_backbone_params_end_lr: _NotNegative
    power: _Positive
    epoch_size: _PositiveInt
    batch_size: _PositiveInt
    lr_decay: _Flag
    loss: Annotated[str, _one_of(*names.LOSSES)]
    grad_clip_norm: _NotNegative
    train_data_dir: _Path
    mixdata: _DataPath
    skip_bad_samples: _Flag
    train_output_path: _Path
    resume: Annotated[
        Union[bool, str],
        _Rule("True, False or the path of a checkpoint", lambda value: value != "", is_path=True),
    ]
    save_checkpoint_epochs: _PositiveInt
    save_checkpoint_steps: _Count
    keep_checkpoint_max: _PositiveInt
    log_interval: _PositiveInt

    eval_protocol: Annotated[str, _one_of(*names.PROTOCOLS)]
    eval_shapes: Annotated[str, _one_of("dynamic", "static")]
    datapath_TUM: _DataPath
    datapath_Sintel: _DataPath
    datapath_ETH3D: _DataPath
    datapath_Kitti: _DataPath
    datapath_DIW: _DataPath
    datapath_NYU: Annotated[tuple[str, ...], _each(2, "paths", bool, is_data_path=True)]
    ann_file: _Path
    ckpt_path: _Weights
    data_name: Annotated[
        str,
        _Rule(
            "all or a comma-separated list of " + ", ".join(names.DATA_SETS),
            lambda value: all(word in _DATA_SETS_BY_WORD for word in _words(value)),
        ),
    ]

    input_path: _Path
    output_path: _Path
    model_weights: _Weights
    colormap: Annotated[str, _one_of("none", *names.COLORMAPS)]
    file_format: Annotated[str, _one_of(*names.EXPORT_FORMATS)]

    @property
    def network(self) -> dict[str, Any]:
        """The arguments of ``MidasNet``."""
        return {
            "layers": self.layers,
            "groups": self.groups,
            "width_per_group": self.width_per_group,
            "in_channels": self.in_channels,
            "features": self.features,
            "network_ops": self.network_ops,
        }

    @property
    def normalisation(self) -> dict[str, tuple[float, ...]]:
        """The arguments ``mean`` and ``std`` of predictors and ``NormalizeImage``: RGB in 0..1."""
        return {"mean": self.nm_img_mean, "std": self.nm_img_std}

    @property
    def data_names(self) -> tuple[str, ...]:
        """The evaluation sets that ``data_name`` asks for, each once, in the order given."""
        return tuple(dict.fromkeys(name for word in _words(self.data_name) for name in _DATA_SETS_BY_WORD[word]))

    @property
    def required_data_names(self) -> tuple[str, ...]:
        """Those of ``data_names`` that are asked for by their own name, not by ``all`` alone: they must be there."""
        words = _words(self.data_name)
        return tuple(name for name in self.data_names if name.lower() in words)


# key -> (type, rule)
_SCHEMA: dict[str, tuple[Any, _Rule]] = {
    key: get_args(hint) for key, hint in get_type_hints(Config, include_extras=True).items()
}
_TEXT_KINDS = (str, Union[bool, str])


@dataclass(frozen=True)
class _Setting:
    """A value as somebody wrote it."""

    node: yaml.Node
    text: str  # as written, on one line
    source: str  # "command line" or "FILE:LINE"


def load_config(description: str, argv: Optional[Sequence[str]] = None) -> Config:
    """Reads ``config.yaml``, the file of ``--config_path`` and the command line; the later ones win.

    ``--help`` prints all keys and ends the process with status 0.

    Args:
        description: What the script does, for ``--help``.
        argv: Command line without the program name; ``sys.argv[1:]`` when None.

    Raises:
        UsageError: A key is unknown, repeated in a file or missing from ``config.yaml``, a value is of the
            wrong type or out of range, or a file cannot be read as a YAML mapping.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    settings = _read_file(DEFAULTS_FILE)
    if "--help" in arguments or "-h" in arguments:
        print(_help_text(description))
        sys.exit(0)
    options = _read_command_line(arguments)
    config_path = options.pop("config_path", None)
    if config_path is not None:
        settings.update(_read_file(Path(os.path.expanduser(config_path))))
    for key, text in options.items():
        settings[key] = _Setting(_option_node(key, text), " ".join(text.split()), _COMMAND_LINE)
    missing = [key for key in _SCHEMA if key not in settings]
    if missing:
        raise UsageError(f"{DEFAULTS_FILE}: expected every key, found no {', '.join(missing)}")

    values = {key: _checked_value(key, settings[key]) for key in _SCHEMA}
    _check_together(values, settings)
    _resolve_paths(values, settings)
    return Config(**values)


def dump_config(config: Config) -> str:
    """Formats all settings as YAML that loads again, from any folder, to an equal object."""
    values = asdict(config)
    for key, (_, rule) in _SCHEMA.items():
        if rule.is_data_path:
            values[key] = _map_paths(lambda path: _relative_path(path, config.train_data_dir), values[key])
    body = yaml.safe_dump(values, sort_keys=False, default_flow_style=None, allow_unicode=True, width=math.inf)
    return "# Settings of one run. Load them again with --config_path.\n" + body


def require_folder(config: Config, key: str) -> None:
    """Raises UsageError unless the path (or every path) of ``key`` is an existing folder."""
    _require(config, key, "folder", os.path.isdir)


def require_file(config: Config, key: str) -> None:
    """Raises UsageError unless the path (or every path) of ``key`` is an existing file."""
    _require(config, key, "file", os.path.isfile)


def _require(config: Config, key: str, kind: str, exists: Callable[[str], bool]) -> None:
    value = getattr(config, key)
    for path in value if isinstance(value, tuple) else (value,):
        if exists(path):
            continue
        if not path:
            found = "an empty path"
        elif os.path.exists(path):
            found = f"something else at {path}"
        else:
            found = f"nothing at {path}"
        if _SCHEMA[key][1].is_data_path:
            found += " (taken to be under train_data_dir unless it is an absolute path that exists)"
        raise UsageError(f"{key}: expected a {kind}, found {found}")


# ---- reading


def _compose_file(path: Path) -> tuple[str, list[tuple[yaml.Node, yaml.Node]]]:
    """Parses a YAML mapping into (text of the file, [(key node, value node)]); constructs no object."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: expected a YAML file with settings, found: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: expected UTF-8 text, found byte {error.object[error.start]:#04x}") from error
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1
        problem = ", ".join(filter(None, (error.context, error.problem)))
        raise UsageError(f"{path}:{line}: expected valid YAML: {problem}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: expected valid YAML: {' '.join(str(error).split())}") from error
    if root is None:
        raise UsageError(f"{path}: expected 'key: value' lines, found an empty file")
    if not isinstance(root, yaml.MappingNode):
        raise UsageError(f"{path}: expected 'key: value' lines, found a {root.id}")
    return text, root.value


def _read_file(path: Path) -> dict[str, _Setting]:
    text, pairs = _compose_file(path)
    settings: dict[str, _Setting] = {}
    for key_node, node in pairs:
        source = f"{path}:{key_node.start_mark.line + 1}"
        key = _source_text(key_node, text)
        if isinstance(key_node, yaml.ScalarNode):
            key = key_node.value
        _check_key(key, source)
        if key in settings:
            raise UsageError(f"{source}: {key}: expected once, found again after {settings[key].source}")
        settings[key] = _Setting(node, _source_text(node, text), source)
    return settings


def _source_text(node: yaml.Node, text: str) -> str:
    """The node as written, on one line."""
    return " ".join(text[node.start_mark.index : node.end_mark.index].split())


def _read_command_line(arguments: Sequence[str]) -> dict[str, str]:
    """Splits ``--key value`` and ``--key=value``.

    Not argparse: it takes prefixes of names, negative numbers for flags, and ends the process by itself.
    """
    options: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        flag = rest.pop(0)
        if not flag.startswith("--"):
            raise UsageError(
                f"{_COMMAND_LINE}: expected --key value (a list in quotes: --layers \"[3, 4, 23, 3]\"), found '{flag}'"
            )
        key, equals, value = flag[2:].partition("=")
        if key != "config_path":
            _check_key(key, _COMMAND_LINE)
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise UsageError(f"{_COMMAND_LINE}: {key}: expected a value after --{key}, found none")
            value = rest.pop(0)
        options[key] = value
    return options


def _check_key(key: str, source: str) -> None:
    if key not in _SCHEMA:
        nearest = difflib.get_close_matches(key, _SCHEMA, n=1, cutoff=0.5)
        hint = f"did you mean {nearest[0]}?" if nearest else "--help lists all keys"
        raise UsageError(f"{source}: unknown key '{key}'; {hint}")


def _option_node(key: str, text: str) -> yaml.Node:
    """A value of the command line: the text itself where text will do, else YAML."""
    plain = yaml.ScalarNode("", text)
    if _SCHEMA[key][0] in _TEXT_KINDS:
        return plain
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader) or plain
    except yaml.YAMLError:
        return plain


# ---- checking


def _checked_value(key: str, setting: _Setting) -> Any:
    kind, rule = _SCHEMA[key]
    try:
        value = _convert(kind, setting.node)
        if rule.accepts(value):
            return value
    except ValueError:
        pass
    raise UsageError(f"{setting.source}: {key}: expected {rule.expected}, found {setting.text or 'nothing'}")


def _convert(kind: Any, node: yaml.Node) -> Any:
    """Reads a YAML node as ``kind``; ValueError if it is anything else.

    The words decide, not YAML 1.1, which takes 1e-5 for text, 010 for 8 and 1:30 for 90.
    """
    if get_origin(kind) is tuple:
        if not isinstance(node, yaml.SequenceNode):
            raise ValueError("not a list")
        return tuple(_convert(get_args(kind)[0], item) for item in node.value)
    if not isinstance(node, yaml.ScalarNode) or node.tag == _NULL_TAG:
        raise ValueError("not a single value")
    is_quoted = node.style is not None
    word = node.value.lower()
    if kind in (bool, Union[bool, str]) and not is_quoted and word in _TRUE_WORDS + _FALSE_WORDS:
        return word in _TRUE_WORDS
    if kind in _TEXT_KINDS:
        return node.value
    if kind is bool or is_quoted:
        raise ValueError("text")
    number = kind(node.value)
    if kind is float and not math.isfinite(number):
        raise ValueError("not finite")
    return number


def _check_together(values: dict[str, Any], settings: dict[str, _Setting]) -> None:
    """Checks that involve several keys."""

    def fault(what: str, expected: str, *keys: str) -> UsageError:
        found = ", ".join(f"{key} {settings[key].text} ({settings[key].source})" for key in keys)
        return UsageError(f"{what}: expected {expected}, found {found}")

    if values["in_channels"] * values["width_per_group"] < 64:
        expected = "at least 64, or the bottlenecks of the first stage have no channels"
        raise fault("in_channels * width_per_group", expected, "in_channels", "width_per_group")
    for key in ("img_width", "img_height"):
        if values[key] % values["ensure_multiple_of"]:
            raise fault(key, "a multiple of ensure_multiple_of", key, "ensure_multiple_of")
    for part in ("backbone", "no_backbone"):
        start, end = f"{part}_params_lr", f"{part}_params_end_lr"
        if values["lr_decay"] and values[end] > values[start]:
            raise fault(end, f"at most {start} when lr_decay is on", end, start)


# ---- paths


def _resolve_paths(values: dict[str, Any], settings: dict[str, _Setting]) -> None:
    """Makes all paths absolute, in place."""
    for key, (_, rule) in _SCHEMA.items():
        if rule.is_path:
            base = os.getcwd() if settings[key].source == _COMMAND_LINE else str(REPOSITORY)
            values[key] = _map_paths(lambda path, base=base: _absolute_path(path, base), values[key])
    for key, (_, rule) in _SCHEMA.items():
        if rule.is_data_path:
            values[key] = _map_paths(lambda path: _data_path(path, values["train_data_dir"]), values[key])


def _map_paths(change: Callable[[str], str], value: Any) -> Any:
    """Applies ``change`` to a path or to each of several; leaves booleans and the empty string alone."""
    if isinstance(value, tuple):
        return tuple(change(path) for path in value)
    return change(value) if isinstance(value, str) and value else value


def _absolute_path(path: str, base: str) -> str:
    return os.path.abspath(os.path.join(base, os.path.expanduser(path)))


def _data_path(path: str, train_data_dir: str) -> str:
    path = os.path.expanduser(path)
    if not (os.path.isabs(path) and os.path.exists(path)):
        path = path.lstrip("/")
    return _absolute_path(path, train_data_dir)


def _relative_path(path: str, folder: str) -> str:
    """``path`` as seen from ``folder``: means the same whether it exists or not, unlike an absolute path."""
    if os.path.splitdrive(path)[0] != os.path.splitdrive(folder)[0]:
        return path  # Windows: there is no way from one drive to another
    return os.path.relpath(path, folder)


# ---- help


def _help_text(description: str) -> str:
    """Formats the groups, comments and values of ``config.yaml`` with what is allowed for each key."""
    text, pairs = _compose_file(DEFAULTS_FILE)
    lines = text.splitlines()
    key_lines = {key_node.start_mark.line: (key_node.value, node) for key_node, node in pairs}
    blocks = [
        f"usage: python {Path(sys.argv[0]).name} [--config_path FILE] [--key value ...]",
        f"\n{_filled(description)}\n",
    ]
    comment: list[str] = []
    for number, line in enumerate(lines):
        heading = re.fullmatch(r"# -{3,} (.+?) -{3,}", line)
        if heading:
            blocks.append(f"\n{heading[1]}:")
        elif line.startswith("#"):
            comment.append(line.lstrip("# "))
        elif number in key_lines:
            key, node = key_lines[number]
            if node.end_mark.line == number:
                comment.append(line[node.end_mark.column :].lstrip("# "))
            flag = f"--{key}  ({_SCHEMA[key][1].expected}; default {_source_text(node, text)})"
            blocks.append(_filled(flag, "  ", "      "))
            blocks.append(_filled(" ".join(comment), "      ", "      "))
            comment = []
        elif comment:  # a paragraph that belongs to no key
            blocks.append(_filled(" ".join(comment)))
            comment = []
    return "\n".join(blocks)


def _filled(text: str, first: str = "", others: str = "") -> str:
    return textwrap.fill(text, 100, initial_indent=first, subsequent_indent=others, break_on_hyphens=False)
