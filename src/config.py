"""Settings: config.yaml and the command line become one checked, typed, frozen object.

Default values and descriptions live in ``config.yaml`` alone, types and limits here alone.
"""

import argparse
import difflib
import functools
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple, NoReturn, Optional, Protocol, Union, get_args, get_origin

import yaml

from src.common import names
from src.common.errors import UsageError

REPOSITORY = Path(__file__).resolve().parents[1]
DEFAULTS_FILE = REPOSITORY / "config.yaml"
# Settings for training on two folders, where the user has given no others.
FINE_TUNING_FILE = REPOSITORY / "config_finetune.yaml"

COMMAND_LINE = "command line"
_BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}  # those of YAML 1.1
# Settings that a script reads through a property of ``Config``.
NETWORK_KEYS = ("layers", "groups", "width_per_group", "in_channels", "features", "network_ops")
NORMALISATION_KEYS = ("nm_img_mean", "nm_img_std")
BACKEND_KEYS = ("device_target", "device_id", "seed", "backend", "precision", "enable_compile_cache")
PREDICTION_KEYS = (
    "eval_shapes", "img_width", "img_height", "ensure_multiple_of", "resize_method", "invert_output",
    *NORMALISATION_KEYS,
)  # fmt: skip

_SETS_BY_WORD = {**{name.lower(): (name,) for name in names.DATA_SETS}, "all": names.DATA_SETS}

# Words that other projects use -> the settings meant. A word that is part of a key, such as "mean", needs no entry.
_SYNONYMS = {
    "config cfg config_file": "--config_path",
    "gpu": "device_target or device_id",
    "gpus": "run_distribute",
    "width": "img_width",
    "size image_size img_size resolution": "img_width or img_height",
    "lr learning_rate base_lr": "backbone_params_lr or no_backbone_params_lr",
    "encoder_lr": "backbone_params_lr",
    "decoder_lr": "no_backbone_params_lr",
    "epochs num_epochs max_epochs": "epoch_size",
    "bs": "batch_size",
    "data data_dir data_path": "train_data_dir",
    "dataset": "dataset_path or train_data_dir",
    "datasets": "data_name or dataset_name",
    "image images": "input_path",
    "output out save_dir": "output_path or train_output_path",
    "predictions results": "result_path",
    "weights checkpoint ckpt pretrained model": "model_weights or ckpt_path",
}


class _Words(str):
    """Marks the type of a setting that is text with commas between words, or a list, which becomes such text."""


class _Rule(NamedTuple):
    """What a value must be.

    Attributes:
        expected: Completes the sentence "expected ...".
        accepts: Whether a value of the right type is in range.
        is_path: A path, or several.
    """

    expected: str
    accepts: Callable[[Any], bool] = lambda value: True
    is_path: bool = False


def _one_of(*choices: str) -> _Rule:
    return _Rule("one of " + ", ".join(choices), lambda value: value in choices)


def _each(count: int, kind: str, accepts: Callable[[Any], bool] = lambda item: True) -> _Rule:
    """A list of ``count`` items, each of which passes ``accepts``."""
    return _Rule(f"a list of {count} {kind}", lambda items: len(items) == count and all(map(accepts, items)))


def _words(value: str) -> list[str]:
    return [word.strip().lower() for word in value.split(",")]


def _is_number(text: str) -> bool:
    with suppress(ValueError):
        return math.isfinite(float(text))
    return False


def named_sets(data_name: str) -> dict[str, bool]:
    """Reads ``data_name`` or ``dataset_name``.

    Returns:
        The evaluation sets that it asks for, each once, in the order given -> whether by its own name and not by
        ``all`` alone: such a set must be there.
    """
    words = _words(data_name)
    return {name: name.lower() in words for word in words for name in _SETS_BY_WORD[word]}


_Flag = Annotated[bool, _Rule("True or False")]
_Count = Annotated[int, _Rule("an integer >= 0", lambda value: value >= 0)]
_PositiveInt = Annotated[int, _Rule("an integer >= 1", lambda value: value >= 1)]
_Side = Annotated[int, _Rule("a positive multiple of 32", lambda value: value > 0 and value % 32 == 0)]
_Positive = Annotated[float, _Rule("a number > 0", lambda value: value > 0)]
_NotNegative = Annotated[float, _Rule("a number >= 0", lambda value: value >= 0)]
_Path = Annotated[str, _Rule("a path", bool, is_path=True)]
_PathOrNone = Annotated[str, _Rule("a path or ''", is_path=True)]
_Text = Annotated[str, _Rule("text")]
_FlagOrText = Union[bool, str]
_IntOrAuto = Union[int, str]
_WORKERS = _Rule("auto or an integer >= 1", lambda value: value == "auto" or (isinstance(value, int) and value >= 1))
_CHECKPOINT = _Rule("True, False or the path of a checkpoint", lambda value: value != "", is_path=True)
_FORMATS = _Rule(
    f"{', '.join(names.EXPORT_FORMATS)} or a list of them",
    lambda value: {word.upper() for word in _words(value)} <= {*names.EXPORT_FORMATS},
)
_EXPORT_SIZES = {name.lower(): size for name, size in names.EXPORT_SIZES.items()}
_EXPORT_FOR = _Rule(
    f"'' or one of {', '.join(names.EXPORT_SIZES)}", lambda value: value.lower() in {"", *_EXPORT_SIZES}
)
_FILE_NAME = _Rule(
    "a name without a folder, which export_path is for, and without a dot at its beginning, or ''",
    lambda value: value == Path(value).name and not value.startswith("."),
)
_SETS = ", ".join(names.DATA_SETS)
_DATA_NAMES = _Rule(f"all or a comma-separated list of {_SETS}", lambda value: {*_words(value)} <= {*_SETS_BY_WORD})

_NUMBER_OR_NONE = _Rule("a number or ''", lambda value: not value or _is_number(value))
_SHARE = _Rule("a number from 0 to 1", lambda value: 0 <= value <= 1)
_VAL_NAMES = _Rule(f"'', {_DATA_NAMES.expected}", lambda value: not value or _DATA_NAMES.accepts(value))


@dataclass(frozen=True)
class Config:
    """All settings, as :func:`load_config` makes them; ``config.yaml`` says what each one means.

    Paths are absolute; ``model_weights``, ``ckpt_path``, ``dataset_path`` and ``result_path`` may be empty. Image sides
    are in pixels, ``nm_img_mean`` and ``nm_img_std`` are red, green and blue on the scale 0..1.

    Attributes:
        given: No setting: of those that the user gave, where: ``command line`` or ``FILE:LINE``.
    """

    device_target: Annotated[str, _one_of("auto", *names.DEVICE_TARGETS)]
    device_id: _Count
    backend: Annotated[str, _one_of("auto", *names.BACKENDS)]
    precision: Annotated[str, _one_of("auto", *names.PRECISIONS)]
    run_distribute: _Flag
    is_modelarts: _Flag
    data_url: _Text
    train_url: _Text
    seed: Annotated[int, _Rule("an integer from 0 to 4294967295", lambda value: 0 <= value < 2**32)]
    enable_compile_cache: _Flag
    num_parallel_workers: Annotated[_IntOrAuto, _WORKERS]
    jit_level: Annotated[str, _one_of("auto", *names.JIT_LEVELS)]
    op_precision: Annotated[str, _one_of(*names.OP_PRECISIONS)]
    allow_hf32: _Flag

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
    max_steps: _Count
    batch_size: _PositiveInt
    lr_decay: _Flag
    loss: Annotated[str, _one_of(*names.LOSSES)]
    loss_alpha: _NotNegative
    loss_scales: _PositiveInt
    loss_trim: Annotated[float, _Rule("a number from 0 to below 1", lambda value: 0 <= value < 1)]
    revive_output: _Flag
    target_range: Annotated[int, _Rule("1 or 255", lambda value: value in (1, 255))]
    mixing: Annotated[str, _one_of(*names.MIXINGS)]
    upper_bound: _Flag
    epoch_images: _Count
    random_flip: Annotated[float, _SHARE]
    random_crop: Annotated[float, _SHARE]
    accumulate_steps: _PositiveInt
    amp_level: Annotated[str, _one_of("by_device", *names.AMP_LEVELS)]
    amp_dtype: Annotated[str, _one_of(*names.AMP_DTYPES)]
    loss_scaling: Annotated[str, _one_of(*names.LOSS_SCALINGS)]
    loss_scale: Annotated[float, _Rule("a number >= 1", lambda value: value >= 1)]
    loss_scale_window: _PositiveInt
    sync_bn: _Flag
    freeze_backbone_bn: _Flag
    freeze_backbone_epochs: _Count
    grad_clip_norm: _NotNegative
    train_data_dir: _Path
    mixdata: _Path
    train_images: _PathOrNone
    train_depth: _PathOrNone
    train_kind: Annotated[str, _one_of(*names.TRUTH_KINDS)]
    train_invalid: Annotated[str, _NUMBER_OR_NONE]
    skip_bad_samples: _Flag
    train_output_path: _Path
    resume: Annotated[_FlagOrText, _CHECKPOINT]
    save_checkpoint_epochs: _PositiveInt
    save_checkpoint_steps: _Count
    save_checkpoint_minutes: _NotNegative
    keep_checkpoint_max: _PositiveInt
    log_interval: _PositiveInt
    eval_interval: _Count
    val_share: Annotated[float, _Rule("a number from 0 to 0.5", lambda value: 0 <= value <= 0.5)]
    val_data_name: Annotated[str, _VAL_NAMES]
    patience: _Count

    eval_protocol: Annotated[str, _one_of(*names.PROTOCOLS)]
    eval_shapes: Annotated[str, _one_of(*names.EVAL_SHAPES)]
    datapath_TUM: _Path
    datapath_Sintel: _Path
    datapath_ETH3D: _Path
    datapath_Kitti: _Path
    datapath_DIW: _Path
    datapath_NYU: Annotated[tuple[str, ...], _each(2, "paths", bool)._replace(is_path=True)]
    ann_file: _Path
    ckpt_path: _PathOrNone
    data_name: Annotated[str, _DATA_NAMES]
    show_published: _Flag

    input_path: _Path
    output_path: _Path
    model_weights: _PathOrNone
    invert_output: _Flag
    colormap: Annotated[str, _one_of("none", *names.COLORMAPS)]
    file_format: Annotated[_Words, _FORMATS]
    export_shapes: Annotated[str, _one_of("static", "dynamic")]
    export_for: Annotated[str, _EXPORT_FOR]
    export_path: _Path
    file_name: Annotated[str, _FILE_NAME]
    export_overwrite: _Flag

    dataset_path: _PathOrNone
    result_path: _PathOrNone
    dataset_name: Annotated[str, _DATA_NAMES]
    prediction: Annotated[str, _one_of(*names.PREDICTIONS)]

    given: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    @property
    def network(self) -> dict[str, Any]:
        """The arguments of ``MidasNet``."""
        return {key: getattr(self, key) for key in NETWORK_KEYS}

    @property
    def normalisation(self) -> dict[str, tuple[float, ...]]:
        """The arguments ``mean`` and ``std`` of predictors and ``NormalizeImage``: RGB, on the scale 0..1."""
        return {"mean": self.nm_img_mean, "std": self.nm_img_std}

    @property
    def predictor(self) -> dict[str, Any]:
        """The arguments of a predictor beside its network."""
        return {
            "shapes": self.eval_shapes,
            "width": self.img_width,
            "height": self.img_height,
            "ensure_multiple_of": self.ensure_multiple_of,
            "resize_method": self.resize_method,
            "invert_output": self.invert_output,
            **self.normalisation,
        }

    @property
    def execution(self) -> dict[str, Any]:
        """The arguments of ``choose_backend``: what runs the network, and where."""
        return {key: getattr(self, key) for key in BACKEND_KEYS}

    @property
    def export_formats(self) -> tuple[str, ...]:
        """The formats that ``file_format`` asks for, each once, in the order given, in capitals."""
        return tuple(dict.fromkeys(map(str.upper, _words(self.file_format))))

    @property
    def export_size(self) -> tuple[int, int]:
        """Height and width of the network input: those of ``export_for``, or ``img_height`` and ``img_width``."""
        return _EXPORT_SIZES.get(self.export_for.lower(), (self.img_height, self.img_width))

    @property
    def data_names(self) -> tuple[str, ...]:
        """The evaluation sets that ``data_name`` asks for, each once, in the order given."""
        return tuple(named_sets(self.data_name))


# key -> (type, rule)
_SCHEMA: dict[str, tuple[Any, _Rule]] = {item.name: get_args(item.type) for item in fields(Config) if item.compare}
_DATA_PATHS = ("mixdata", *(f"datapath_{name}" for name in names.DATA_SETS))  # looked up under train_data_dir


class _Setting(NamedTuple):
    """A value as it was written."""

    node: yaml.Node
    text: str  # as written, on one line
    source: str  # "command line" or "FILE:LINE"


def load_config(
    description: str,
    argv: Optional[Sequence[str]] = None,
    keys: Optional[Iterable[str]] = None,
    base: Optional[Path] = None,
    fixed: Iterable[str] = (),
    is_complete: bool = True,
    earlier: Optional[Mapping[str, Any]] = None,
) -> Config:
    """Reads ``config.yaml``, the file of ``--config_path`` and the command line; each overrides those before it.

    Args:
        description: What the script does, for ``--help``.
        argv: Command line without the program name; ``sys.argv[1:]`` when None.
        keys: The settings that the script reads, for ``--help``; all when None. The command line may set the
            others as well, because one file serves all scripts.
        base: The settings of a run to resume, which override ``config.yaml``.
        fixed: Those of them that must stay as they are.
        is_complete: Whether to check what involves two keys: not if the settings of a run are still to come.
        earlier: Settings that ``base`` may be too old to have, with what was done then.

    Returns:
        All settings, whatever ``keys`` has.

    Raises:
        SystemExit: ``--help`` was given and has been printed; the status is 0.
        UsageError: A key is unknown, repeated in a file or missing from ``config.yaml``, a value is of the
            wrong type, out of range or not what is fixed, or a file cannot be read as a YAML mapping.
    """
    settings = _read_settings(DEFAULTS_FILE)
    missing = [key for key in _SCHEMA if key not in settings]
    if missing:
        raise UsageError(f"{DEFAULTS_FILE}: expected every key, found no {', '.join(missing)}")
    options = _parse_command_line(_create_parser(description, keys, settings), argv)
    if base is not None:
        of_run = _read_settings(base)
        for key, value in (earlier or {}).items():
            settings[key] = _Setting(yaml.ScalarNode("", str(value)), str(value), f"{base} (too old to have it)")
        settings.update(of_run)
    given = {}
    if "config_path" in options:
        given = _read_settings(Path(os.path.expanduser(options.pop("config_path"))))
    for key, value in options.items():
        given[key] = _Setting(yaml.ScalarNode("", value), _one_line(value), COMMAND_LINE)
    changed = [
        f"{given[key].source}: {key}: expected {settings[key].text}, found {given[key].text}"
        for key in fixed
        if key in given and _checked_value(key, given[key]) != _checked_value(key, settings[key])
    ]
    if changed:
        raise UsageError(f"{'; '.join(changed)} (a resumed run keeps the settings of {base})")
    settings.update(given)
    values = {key: _checked_value(key, settings[key]) for key in _SCHEMA}
    if is_complete:
        _check_together(values, settings)
    for key, (_, rule) in _SCHEMA.items():  # train_data_dir comes before the paths under it
        if rule.is_path:
            base = os.getcwd() if settings[key].source == COMMAND_LINE else str(REPOSITORY)
            absolute = functools.partial(_absolute_path, key, values["train_data_dir"], base)
            values[key] = _map_paths(absolute, values[key])
    return Config(**values, given={key: setting.source for key, setting in given.items()})


def load_training_config(
    description: str,
    argv: Optional[Sequence[str]] = None,
    keys: Optional[Iterable[str]] = None,
    is_complete: bool = True,
) -> Config:
    """Reads the settings of a training that is not resumed, see ``load_config``: of two folders, it is fine-tuning."""
    config = load_config(description, argv, keys, is_complete=False)
    base = FINE_TUNING_FILE if config.train_images else None
    return load_config(description, argv, keys, base, is_complete=is_complete)


class Decisive(Protocol):
    """A file of a network, which decides some of the settings."""

    path: Path

    def settings(self, network: Mapping[str, Any]) -> dict[str, Any]:
        """Returns key -> value, of the types of ``Config``, for the configured arguments of ``MidasNet``."""


def settle(config: Config, model: Optional[Decisive]) -> Config:
    """Returns the settings with those that the file of a network decides, which replace defaults; prints which.

    Args:
        config: The settings so far.
        model: The file; None for random weights, which decide nothing.

    Raises:
        UsageError: The user has given other values; all of them are named.
    """
    decided, source = (model.settings(config.network), model.path) if model else ({}, "")
    changed = {key: value for key, value in decided.items() if getattr(config, key) != value}
    contradictions = [
        f"{config.given[key]}: {key}: expected {_shown(value)}, found {_shown(getattr(config, key))}"
        for key, value in changed.items()
        if key in config.given
    ]
    if contradictions:
        raise UsageError(f"{'; '.join(contradictions)} (so it is in {source}; leave the key out)")
    if changed:  # the user may have edited the defaults
        replaced = (f"{key} {_shown(value)} (not {_shown(getattr(config, key))})" for key, value in changed.items())
        print(f"{source} replaces defaults of {DEFAULTS_FILE.name}: {', '.join(replaced)}")
    return replace(config, **changed)


def _shown(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def dump_config(config: Config) -> str:
    """Formats all settings as YAML, one a line; it loads again, from any folder, to an equal object."""
    values = {key: value for key, value in asdict(config).items() if key in _SCHEMA}
    for key in _DATA_PATHS:  # relative, because an absolute path is used as it is only while it exists
        values[key] = _map_paths(lambda path: os.path.relpath(path, config.train_data_dir), values[key])
    body = yaml.safe_dump(values, sort_keys=False, default_flow_style=None, allow_unicode=True, width=math.inf)
    return "# Settings of one run. Load them again with --config_path.\n" + body


def not_instead(config: Config, other: str, key: str) -> None:
    """Raises UsageError if the command line gives a setting that the script does not read instead of its own one."""
    if config.given.get(other) == COMMAND_LINE and key not in config.given:
        raise UsageError(f"{COMMAND_LINE}: {other}: expected {key}, which is what this script reads")


def whole_number(name: str, text: str, least: int) -> int:
    """Returns the number of a variable or an argument; UsageError unless it is an integer that is large enough."""
    if not (text.isascii() and text.isdigit() and int(text) >= least):
        raise UsageError(f"{name}: expected an integer >= {least}, found {text or 'nothing'}")
    return int(text)


def require_folder(config: Config, key: str) -> None:
    """Raises UsageError unless the path of ``key`` is an existing folder."""
    _require(config, key, "folder", os.path.isdir)


def require_file(config: Config, key: str) -> None:
    """Raises UsageError unless the path of ``key`` is an existing file."""
    _require(config, key, "file", os.path.isfile)


def _require(config: Config, key: str, kind: str, exists: Callable[[str], bool]) -> None:
    path = getattr(config, key)
    if not exists(path):
        found = f"{'something else' if os.path.exists(path) else 'nothing'} at {path or repr(path)}"
        if key in _DATA_PATHS:
            found += " (looked up under train_data_dir unless it is an absolute path that exists)"
        raise UsageError(f"{key}: expected a {kind}, found {found}")


# ---- files


def _read_settings(path: Path) -> dict[str, _Setting]:
    """Reads a YAML mapping into its nodes; constructs no object."""
    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        problem = ", ".join(filter(None, (error.context, error.problem)))
        raise UsageError(f"{path}:{error.problem_mark.line + 1}: expected valid YAML: {problem}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or _one_line(str(error))
        raise UsageError(f"{path}: expected a YAML file with settings in UTF-8, found: {reason}") from error
    if not isinstance(root, yaml.MappingNode):
        found = f"a {root.id}" if root else "an empty file"
        raise UsageError(f"{path}: expected 'key: value' lines, found {found}")
    settings: dict[str, _Setting] = {}
    for key_node, node in root.value:
        source = f"{path}:{key_node.start_mark.line + 1}"
        key_text, value_text = (_one_line(text[n.start_mark.index : n.end_mark.index]) for n in (key_node, node))
        key = key_node.value if isinstance(key_node, yaml.ScalarNode) else key_text
        _check_key(key, source)
        if key in settings:
            raise UsageError(f"{source}: {key}: expected once, found again after {settings[key].source}")
        settings[key] = _Setting(node, value_text, source)
    return settings


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _check_key(key: str, source: str) -> None:
    if key in _SCHEMA:
        return
    word = key.lower().replace("-", "_")
    meant = [target for words, target in _SYNONYMS.items() if word in words.split()]
    meant = meant or [other for other in _SCHEMA if word in other.split("_")]
    meant = meant or difflib.get_close_matches(word, [*_SCHEMA, "--config_path"], n=1, cutoff=0.5)
    hint = f"did you mean {' or '.join(meant)}?" if meant else f"{DEFAULTS_FILE.name} lists all keys"
    raise UsageError(f"{source}: unknown key '{key}'; {hint}")


# ---- command line


_NO_BREAK = "\N{NO-BREAK SPACE}"  # where help text must not be wrapped: in a list


class _Parser(argparse.ArgumentParser):
    """Raises UsageError where argparse would print its usage and end the process."""

    def format_help(self) -> str:
        """Formats the help with spaces that can be copied."""
        return super().format_help().replace(_NO_BREAK, " ")

    def error(self, message: str) -> NoReturn:
        in_our_words = r"\1: expected a value after --\1, found none; --\1=VALUE takes one that begins with -"
        message = re.sub(r"argument --(\w+): expected one argument", in_our_words, message)
        raise UsageError(f"{COMMAND_LINE}: {message}")


def _create_parser(description: str, keys: Optional[Iterable[str]], defaults: dict[str, _Setting]) -> _Parser:
    """Makes a parser of all settings; the headings and comments in config.yaml are its help."""
    text = DEFAULTS_FILE.read_text(encoding="utf-8")
    shown = set(_SCHEMA if keys is None else keys)
    others = "The other settings of config.yaml are accepted, too; this script does not read them."
    parser = _Parser(
        usage="python %(prog)s [--config_path FILE] [--key value ...]",
        description=description.replace("``", ""),
        epilog=None if keys is None else others,
        formatter_class=functools.partial(argparse.HelpFormatter, max_help_position=6, width=100),
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        add_help=False,
    )
    about_group = _uncommented(re.match(r"(?:#.*\n)*", text)[0])
    group = parser.add_argument_group("Command line", about_group)
    group.add_argument("--config_path", metavar="FILE", help="YAML file with settings.")
    group.add_argument("-h", "--help", action="help", help="Print this text and exit.")
    heading_or_key = r"^# -+ (.+) -+\n((?:#.*\n)*(?=\n))?|((?:^#.*\n)*)^(\w+):"
    for heading, note, comment, key in re.findall(heading_or_key, text, flags=re.MULTILINE):
        if heading:
            group, about_group = parser.add_argument_group(heading), _uncommented(note) or None
        elif key not in shown:
            parser.add_argument(f"--{key}", help=argparse.SUPPRESS)
        else:
            group.description = about_group  # not before: argparse leaves out a group without text and arguments
            default = defaults[key].text.replace(" ", _NO_BREAK)
            about = f"{_uncommented(comment)} Allowed: {_SCHEMA[key][1].expected}. Default: {default}."
            group.add_argument(f"--{key}", metavar="VALUE", help=about.replace("%", "%%"))
    return parser


def _uncommented(lines: str) -> str:
    return re.sub(r"^# ?", "", lines, flags=re.MULTILINE)


def _parse_command_line(parser: _Parser, argv: Optional[Sequence[str]]) -> dict[str, str]:
    """Returns the settings as they were typed; prints the help and ends the process if asked to."""
    words = sys.argv[1:] if argv is None else argv
    # --help works whatever is wrong with the other words.
    help_first = sorted(words, key=lambda word: word not in ("-h", "--help"))
    options, rest = parser.parse_known_args(help_first)
    for word in map(_one_line, rest):
        if word.startswith("--"):
            _check_key(word[2:].partition("=")[0], COMMAND_LINE)
        expected = '--key value (a list in quotes: --layers "[3, 4, 23, 3]")'
        if os.path.exists(word):  # the shell has made many words of a pattern
            expected = """one word for each key (a pattern in quotes: --input_path 'photos/*.jpg')"""
        raise UsageError(f"{COMMAND_LINE}: expected {expected}, found '{word}'")
    return vars(options)


# ---- values


def _checked_value(key: str, setting: _Setting) -> Any:
    kind, rule = _SCHEMA[key]
    with suppress(ValueError, yaml.YAMLError):
        value = _convert(kind, setting.node)
        if rule.accepts(value):
            return value
    raise UsageError(f"{setting.source}: {key}: expected {rule.expected}, found {setting.text or 'nothing'}")


def _convert(kind: Any, node: yaml.Node) -> Any:
    """Reads a YAML node as ``kind``; ValueError or YAMLError if it is anything else.

    Ignores the types of YAML 1.1, in which 1e-5 is text, 010 is 8 and 1:30 is 90.
    """
    if kind is _Words:
        if not isinstance(node, yaml.ScalarNode) or node.value.lstrip().startswith("["):
            return ",".join(_convert(tuple[str, ...], node))
        kind = str
    if get_origin(kind) is tuple:
        if isinstance(node, yaml.ScalarNode):  # a list on the command line
            node = yaml.compose(node.value, Loader=yaml.SafeLoader)
        if isinstance(node, yaml.SequenceNode):
            return tuple(_convert(get_args(kind)[0], item) for item in node.value)
    elif isinstance(node, yaml.ScalarNode) and node.tag != "tag:yaml.org,2002:null":
        is_quoted = node.style is not None
        if kind in (bool, _FlagOrText) and not is_quoted and node.value.lower() in _BOOLEANS:
            return _BOOLEANS[node.value.lower()]
        if kind in (str, _FlagOrText) or (kind is _IntOrAuto and node.value == "auto"):
            return node.value
        if kind is _IntOrAuto:
            kind = int
        if kind in (int, float) and not is_quoted:
            number = kind(node.value)
            if kind is int or math.isfinite(number):
                return number
    raise ValueError("another type")


def _check_together(values: dict[str, Any], settings: dict[str, _Setting]) -> None:
    """Checks that involve two keys."""

    def check(holds: bool, key: str, expected: str, other: str) -> None:
        if not holds:
            found = ", ".join(f"{name} {settings[name].text} ({settings[name].source})" for name in (key, other))
            raise UsageError(f"{key}: expected {expected}, found {found}")

    is_exact = values["mixing"] == "multi_objective" or not values["upper_bound"]
    check(is_exact, "upper_bound", "False unless mixing is multi_objective", "mixing")
    channels = values["in_channels"] * values["width_per_group"]
    check(channels >= 64, "in_channels", "in_channels * width_per_group to be at least 64", "width_per_group")
    unit = "ensure_multiple_of"
    for side in ("img_width", "img_height"):
        check(values[side] % values[unit] == 0, side, f"a multiple of {unit}", unit)
    for start in ("backbone_params_lr", "no_backbone_params_lr"):
        end = start.replace("_lr", "_end_lr")
        falls = not values["lr_decay"] or values[end] <= values[start]
        check(falls, end, f"at most {start} when lr_decay is on", start)


# ---- paths


def _map_paths(change: Callable[[str], str], value: Any) -> Any:
    """Applies ``change`` to a path or to each of several; booleans and the empty string stay."""
    if isinstance(value, tuple):
        return tuple(change(path) for path in value)
    return change(value) if isinstance(value, str) and value else value


def _absolute_path(key: str, data_root: str, base: str, path: str) -> str:
    path = os.path.expanduser(path)
    if key in _DATA_PATHS and not os.path.exists(path):
        path = path.lstrip("/")  # the 2021 suite wrote paths under its data root this way
    return os.path.abspath(os.path.join(data_root if key in _DATA_PATHS else base, path))
