"""The files of an evaluation, and its table.

* ``val.json`` (``ann_file``): ``{"Kitti": 24.222, ...}``, name of the data set -> mean, rewritten after each set;
* ``val_details.csv`` beside it: a comment line with the settings that the figures depend on, as JSON, a header, and a
  row per image (the fields of ``src.evaluator.Record``), appended as images finish.

A new evaluation replaces both; a resumed one goes on with them.
"""

import csv
import hashlib
import io
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any, TextIO, Union

from src.errors import UsageError
from src.eval_datasets import DATASETS, EvalDataset
from src.evaluator import Record, SetResult
from src.files import write_text

_COLUMNS = [field.name for field in fields(Record)]
_METRICS = {"delta1": "delta>1.25, %", "absrel": "AbsRel", "whdr": "WHDR, share"}

# Figures of others, in the units of val.json. The 2021 suite was trained on ReDWeb alone and scored by the protocol
# `modelzoo`; the paper's are those of its Table on MIX 5 (its WHDR is 12.46 %).
REPORTED = {
    "2021 suite, Ascend 910": {"Kitti": 24.222, "Sintel": 0.323, "TUM": 15.08},
    "2021 suite, V100": {"Kitti": 23.870, "Sintel": 0.3226, "TUM": 16.198},
    "paper, MIX 5": {"Kitti": 23.90, "Sintel": 0.327, "TUM": 14.29, "NYU": 9.55, "ETH3D": 0.129, "DIW": 0.1246},
}


def content_hash(path: Union[str, Path]) -> str:
    """Returns the SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def details_path(ann_file: Union[str, Path]) -> Path:
    """Returns the path of the details that belong to ``ann_file``: ``val_details.csv`` for ``val.json``."""
    ann_file = Path(ann_file)
    return ann_file.with_name(f"{ann_file.stem}_details.csv")


class ResultFiles:
    """``val.json`` and ``val_details.csv`` of an evaluation under way; a context manager.

    Args:
        ann_file: Path of ``val.json``.
        settings: What the figures depend on, key -> JSON value: a resumed evaluation must have the same.
        datasets: Those to evaluate.
        resume: Go on with what the files hold. Where there are none, and otherwise, they are started afresh.

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
        self._values: dict[str, float] = {}
        self._records: list[Record] = []
        settings_text = json.dumps(settings)
        text = f"# {settings_text}\n{','.join(_COLUMNS)}\n"
        if resume and (self.details.exists() or self.ann_file.exists()):
            text = self._load(json.loads(settings_text))
            for dataset in datasets:
                self._check_images(dataset)
        try:
            if not self._values:
                self.ann_file.unlink(missing_ok=True)
            write_text(self.details, text)
            self._file: TextIO = open(self.details, "a", newline="", encoding="utf-8")  # noqa: SIM115 closed by __exit__
        except OSError as error:
            raise UsageError(f"ann_file: cannot write beside {self.ann_file}: {error.strerror}") from error
        self._writer = csv.writer(self._file, lineterminator="\n")

    def __enter__(self) -> "ResultFiles":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._file.close()

    def records_of(self, dataset: EvalDataset) -> list[Record]:
        """Returns the records of a data set that an interrupted evaluation has left."""
        return [record for record in self._records if record.dataset == dataset.name]

    def append(self, record: Record) -> None:
        """Adds a row; it survives the end of this process from here on."""
        self._writer.writerow(astuple(record))
        self._file.flush()

    def finish(self, result: SetResult) -> None:
        """Rewrites ``val.json`` with the value of a finished data set, or without any if it has none."""
        self._values.pop(result.dataset, None)
        if not math.isnan(result.value):
            self._values[result.dataset] = result.value
        ordered = {name: self._values[name] for name in DATASETS if name in self._values}
        write_text(self.ann_file, json.dumps(ordered) + "\n")

    def _load(self, settings: Mapping[str, Any]) -> str:
        """Reads both files and returns the sound text of the details."""
        if not self.details.exists():
            raise UsageError(f"resume: expected {self.details} beside {self.ann_file}, found none")
        try:
            text = self.details.read_text(encoding="utf-8", errors="replace")
            if self.ann_file.exists():
                self._values = _parse_values(self.ann_file.read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"resume: {error.filename}: cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise UsageError(f"resume: {self.ann_file}: expected names of data sets and numbers, {error}") from error
        text = text[: text.rfind("\n") + 1]  # a killed run may leave half a row
        first, _, table = text.partition("\n")
        try:
            if not first.startswith("# "):
                raise ValueError
            found = dict(json.loads(first[2:]))
        except (ValueError, TypeError):
            raise UsageError(f"resume: {self.details}: expected a comment with settings as its first line") from None
        differences = [
            f"{key} {found.get(key)} (now {settings.get(key)})"
            for key in {**settings, **found}
            if found.get(key) != settings.get(key)
        ]
        if differences:
            raise UsageError(
                f"resume: {self.details}: expected rows of the same evaluation, found {', '.join(differences)}"
            )
        self._records = list(self._parse_rows(table))
        return text

    def _parse_rows(self, table: str) -> Iterable[Record]:
        rows = csv.reader(io.StringIO(table))
        if next(rows, None) != _COLUMNS:
            raise UsageError(f"resume: {self.details}: line 2: expected the header {','.join(_COLUMNS)}")
        for row in rows:
            try:
                dataset, number, image, metric, value, scale, shift, compared, ms = row
                yield Record(
                    DATASETS[dataset].name,
                    int(number),
                    image,
                    metric,
                    float(value),
                    float(scale) if scale else None,
                    float(shift) if shift else None,
                    int(compared),
                    float(ms),
                )
            except (ValueError, KeyError):
                raise UsageError(
                    f"resume: {self.details}: line {rows.line_num + 1}: expected {','.join(_COLUMNS)}, "
                    f"found {','.join(row)!r}"
                ) from None

    def _check_images(self, dataset: EvalDataset) -> None:
        for record in self.records_of(dataset):
            if not 1 <= record.number <= len(dataset) or dataset.sample_name(record.number - 1) != record.image:
                raise UsageError(
                    f"resume: {self.details}: expected the data of the interrupted evaluation, in which image "
                    f"{record.number} of {dataset.name} was {record.image}, found others"
                )


def _parse_values(text: str) -> dict[str, float]:
    values = json.loads(text)
    if not isinstance(values, dict):
        raise ValueError(f"found {text.strip()!r}")
    for name, value in values.items():
        if name not in DATASETS or not isinstance(value, (int, float)):
            raise ValueError(f"found {name!r}: {value!r}")
    return values


def format_table(results: Iterable[SetResult], protocol: str) -> str:
    """Formats the results beside the figures that others have reported.

    Args:
        results: One per data set.
        protocol: ``"paper"`` or ``"modelzoo"``.
    """
    rows = [["set", "images", "metric", "this run", *REPORTED]]
    for result in results:
        others = (figures.get(result.dataset) for figures in REPORTED.values())
        value = "-" if math.isnan(result.value) else f"{result.value:.4g}"
        rows.append(
            [result.dataset, str(result.scored), _METRICS[result.metric], value]
            + ["-" if other is None else f"{other:g}" for other in others]
        )
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if index in (0, 2) else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths))
        ]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "-" * max(map(len, lines)))
    lines.append("The last three columns are as their authors reported them, not reproduced here; less is better.")
    if protocol == "modelzoo":
        lines.append(
            "eval_protocol modelzoo repeats the reading faults of the 2021 suite: compare with its columns alone."
        )
    return "\n".join(lines)
