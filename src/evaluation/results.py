"""The files of an evaluation.

* ``val.json`` (``ann_file``): ``{"Kitti": 24.222, ...}``, name of the data set -> mean, rewritten after each set;
* ``val_settings.json``: what the figures are. Under ``sets`` a ``SetResult`` for each of them: metric, images of how
  many, inverted predictions ...; ``checkpoint``; what the figures depend on; under ``data`` the fingerprint of each
  data set. Rewritten after each set, too;
* ``val_details.csv``: a row per image, appended as images finish.

A new evaluation keeps those of earlier ones under numbers (``val.1.json``, ``val_details.1.csv`` ...; the newest has
the largest). A resumed one adds to them.

Columns of ``val_details.csv``, see ``Record``: ``set``, ``image``, ``metric``, ``value``, ``constant`` (the value of a
constant prediction), ``scale`` (1/m per unit of the prediction), ``shift`` (1/m), ``valid_pixels`` (of DIW the
pairs of points), ``AbsRel``, ``delta<1.25`` (share of the pixels, 0..1), ``RMSE_m``, ``ms``, and ``number``, that of
the image in its set from 1, by which an evaluation resumes.
"""

import csv
import hashlib
import io
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Optional, TextIO, Union

from src.common.atomic import write_text
from src.common.errors import MidasError, UsageError
from src.evaluation.datasets import DATASETS
from src.evaluation.datasets.base import EvalDataset
from src.evaluation.evaluator import Record, SetResult
from src.evaluation.metric import METRIC_UNITS


def _optional(cell: str) -> Optional[float]:
    return float(cell) if cell else None


# Column of val_details.csv -> field of Record, and how to read it.
_COLUMNS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "set": ("dataset", str),
    "image": ("image", str),
    "metric": ("metric", str),
    "value": ("value", float),
    "constant": ("constant", float),
    "scale": ("scale", _optional),
    "shift": ("shift", _optional),
    "valid_pixels": ("compared", int),
    "AbsRel": ("abs_rel", _optional),
    "delta<1.25": ("delta1", _optional),
    "RMSE_m": ("rmse_m", _optional),
    "ms": ("ms", float),
    "number": ("number", int),
}
_HEADER = ",".join(_COLUMNS)
_NOT_COMPARED = ("data", "sets", "checkpoint")  # of the settings: a resumed evaluation may have others
_ODD_BYTES = "surrogateescape"  # names of images are names of files, which need not be UTF-8: as os.fsdecode does


def content_hash(path: Union[str, Path]) -> str:
    """Returns the SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _beside(ann_file: Union[str, Path], end: str) -> Path:
    ann_file = Path(ann_file)
    is_json = ann_file.suffix.lower() == ".json"  # other dots belong to the name: results.v1, results.v2
    return ann_file.with_name(f"{ann_file.stem if is_json else ann_file.name}{end}")


def details_path(ann_file: Union[str, Path]) -> Path:
    """Returns the path of the details that belong to ``ann_file``: ``val_details.csv`` for ``val.json``."""
    return _beside(ann_file, "_details.csv")


def settings_path(ann_file: Union[str, Path]) -> Path:
    """Returns the path of the settings that belong to ``ann_file``: ``val_settings.json`` for ``val.json``."""
    return _beside(ann_file, "_settings.json")


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MidasError(f"{path}: cannot be written: {error.strerror}") from error


class ResultFiles:
    """``val.json``, ``val_details.csv`` and ``val_settings.json`` of an evaluation under way; a context manager.

    Args:
        ann_file: Path of ``val.json``.
        settings: What the figures depend on beside the data, key -> JSON value: a resumed evaluation must have the
            same, but for ``checkpoint``, the path of the weights.
        datasets: Those to evaluate.
        resume: Add to what the files hold. Where there are none, and otherwise, they are started afresh, and earlier
            ones backed up.

    Attributes:
        ann_file: Path of ``val.json``.
        details: Path of ``val_details.csv``.
        backed_up: Where the files of the last evaluation are now.

    Raises:
        UsageError: The files cannot be written; or those to resume are damaged or of another evaluation. They are
            then unchanged.
    """

    def __init__(
        self,
        ann_file: Union[str, Path],
        settings: Mapping[str, Any],
        datasets: Iterable[EvalDataset],
        resume: bool = False,
    ):
        self.ann_file, self.details = Path(ann_file), details_path(ann_file)
        if self.ann_file.is_dir():
            raise UsageError(f"{ann_file}: expected a file for the results, found a folder")
        self.backed_up: list[Path] = []
        self._settings = settings_path(ann_file)
        self._values: dict[str, float] = {}
        self._records: list[Record] = []
        datasets = list(datasets)
        now = json.loads(json.dumps(settings))
        now["data"] = {dataset.name: dataset.fingerprint() for dataset in datasets}
        now["sets"] = {}
        resume = resume and (self.details.exists() or self.ann_file.exists())
        text = f"{_HEADER}\n"
        if resume:
            text = self._load(now)
        try:
            if not resume:
                self._back_up_earlier_files()
            self._now = now
            self._write_settings()
            write_text(self.details, text)
            self._file: TextIO = open(  # noqa: SIM115 closed by __exit__
                self.details, "a", newline="", encoding="utf-8", errors=_ODD_BYTES
            )
        except OSError as error:
            raise UsageError(f"{self.ann_file}: the results cannot be written there: {error.strerror}") from error
        self._writer = csv.writer(self._file, lineterminator="\n")

    def __enter__(self) -> "ResultFiles":
        return self

    def __exit__(self, *exc_info: object) -> None:
        with suppress(OSError):  # rows are flushed as they come: what is left has been reported as not written
            self._file.close()

    def records_of(self, dataset: EvalDataset) -> list[Record]:
        """Returns the records of a data set that an interrupted evaluation has left."""
        return [record for record in self._records if record.dataset == dataset.name]

    def append(self, record: Record) -> None:
        """Adds a row; it survives the end of this process from here on."""
        with _writing(self.details):
            self._writer.writerow([getattr(record, field) for field, _ in _COLUMNS.values()])
            self._file.flush()

    def finish(self, result: SetResult) -> None:
        """Rewrites ``val.json`` and the settings with a finished data set; without it if no image was scored."""
        sets = self._now["sets"]
        for finished in (self._values, sets):
            finished.pop(result.dataset, None)
        if not math.isnan(result.value):
            self._values[result.dataset] = result.value
            sets[result.dataset] = {**asdict(result), "metric": METRIC_UNITS[result.metric]}
        ordered = {name: self._values[name] for name in DATASETS if name in self._values}
        with _writing(self._settings):
            self._write_settings()
        with _writing(self.ann_file):
            write_text(self.ann_file, json.dumps(ordered) + "\n")

    def _write_settings(self) -> None:
        write_text(self._settings, json.dumps(self._now, indent=2) + "\n")

    def _back_up_earlier_files(self) -> None:
        files = [path for path in (self.ann_file, self.details, self._settings) if path.exists()]
        numbers = [0]
        for path in files:
            pattern = re.compile(rf"{re.escape(path.stem)}\.(\d+){re.escape(path.suffix)}")
            numbers += [int(match[1]) for match in map(pattern.fullmatch, os.listdir(path.parent)) if match]
        for path in files:
            self.backed_up.append(path.with_name(f"{path.stem}.{max(numbers) + 1}{path.suffix}"))
            os.replace(path, self.backed_up[-1])

    def _load(self, now: dict[str, Any]) -> str:
        """Reads the files and returns the sound text of the details; ``now`` takes over the data of other sets."""
        text = self._read(self.details, str, "text")
        text = text[: text.rfind("\n") + 1]  # a killed run may leave half a row
        self._records = self._parse_rows(text)
        if self.ann_file.exists():
            self._values = self._read(self.ann_file, _parse_values, "names of data sets and numbers")
        found = self._read(self._settings, _parse_settings, "settings and data")
        data = found.pop("data")
        differences = [
            f"{key} {found.get(key)} (now {now.get(key)})"
            for key in {**now, **found}
            if key not in _NOT_COMPARED and found.get(key) != now.get(key)
        ]
        if differences:
            raise UsageError(f"resume: {self._settings}: expected the same evaluation, found {', '.join(differences)}")
        evaluated = {*self._values, *(record.dataset for record in self._records)}
        for name, fingerprint in now["data"].items():
            if name in evaluated and data.get(name) != fingerprint:
                raise UsageError(
                    f"resume: {self.details}: expected the files of {name} as they were in the interrupted evaluation, "
                    "found others or changed ones; without --resume True they are evaluated anew, these results kept"
                )
        now["data"] = {**data, **now["data"]}
        now["sets"] = {name: found["sets"][name] for name in self._values if name in found["sets"]}
        return text

    def _read(self, path: Path, parse: Callable[[str], Any], expected: str) -> Any:
        try:
            return parse(path.read_bytes().decode("utf-8", _ODD_BYTES))
        except FileNotFoundError:
            raise UsageError(f"resume: expected {path} beside those of {self.ann_file}, found none") from None
        except OSError as error:
            raise UsageError(f"resume: {path}: cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise UsageError(f"resume: {path}: expected {expected}, found {error}") from error

    def _parse_rows(self, table: str) -> list[Record]:
        rows = csv.reader(io.StringIO(table))
        if next(rows, None) != list(_COLUMNS):
            raise UsageError(f"resume: {self.details}: line 1: expected the header {_HEADER}")
        records = []
        for row in rows:
            try:
                if len(row) != len(_COLUMNS):
                    raise ValueError
                cells = dict(zip(_COLUMNS, row))
                records.append(Record(**{field: read(cells[name]) for name, (field, read) in _COLUMNS.items()}))
            except (ValueError, KeyError):
                raise UsageError(
                    f"resume: {self.details}: line {rows.line_num}: expected {_HEADER}, found {','.join(row)!r}"
                ) from None
        return records


def _parse_values(text: str) -> dict[str, float]:
    values = json.loads(text)
    if not isinstance(values, dict):
        raise ValueError(repr(text.strip()))
    for name, value in values.items():
        if name not in DATASETS or not isinstance(value, (int, float)):
            raise ValueError(f"{name!r}: {value!r}")
    return values


def _parse_settings(text: str) -> dict[str, Any]:
    settings = json.loads(text)
    if not isinstance(settings, dict) or not all(isinstance(settings.get(key), dict) for key in ("data", "sets")):
        raise ValueError("others")
    return settings
