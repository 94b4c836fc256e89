"""The table of an evaluation, beside the figures that others published."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from src.evaluation.datasets.tum import FRAMES, SEQUENCE
from src.evaluation.evaluator import SetResult
from src.evaluation.metric import METRIC_UNITS, WHDR


@dataclass(frozen=True)
class Published:
    """Figures that others published.

    Attributes:
        protocol: Under which they were scored.
        figures: Name of the data set -> value in the units of val.json.
        tum: Which version of TUM they are of.
        others: Name of a data set -> what else than the whole benchmark its figure is of.
    """

    protocol: str
    figures: Mapping[str, float]
    tum: str
    others: Mapping[str, str] = field(default_factory=dict)


# The paper's network of ReDWeb alone is in its Table 7. The 2021 suite was trained on ReDWeb alone, too. MiDaS v2.1
# large is the network of the published weights; its figures are in the README of isl-org/MiDaS.
PUBLISHED = {
    "MiDaS v2.1 large": Published(
        "paper",
        {"Kitti": 16.08, "Sintel": 0.3285, "TUM": 12.51, "NYU": 8.71, "ETH3D": 0.1155, "DIW": 0.1295},
        FRAMES,
    ),
    "paper, MIX 5": Published(
        "paper",
        {"Kitti": 23.90, "Sintel": 0.327, "TUM": 14.29, "NYU": 9.55, "ETH3D": 0.129, "DIW": 0.1246},
        FRAMES,
    ),
    "paper, ReDWeb alone": Published(
        "paper",
        {"Kitti": 27.95, "Sintel": 0.349, "TUM": 21.69, "NYU": 18.74, "ETH3D": 0.151, "DIW": 0.1459},
        FRAMES,
        {"DIW": "a validation subset of it"},
    ),
    "2021 suite, Ascend 910": Published("modelzoo", {"Kitti": 24.222, "Sintel": 0.323, "TUM": 15.08}, SEQUENCE),
    "2021 suite, V100": Published("modelzoo", {"Kitti": 23.870, "Sintel": 0.3226, "TUM": 16.198}, SEQUENCE),
}
_BRACKETS = "Figures in brackets do not compare with this run:"
_NOT_REPRODUCED = "Published figures are as published, not reproduced here."
_OTHER_PROTOCOL = {
    "paper": "the 2021 suite scored by its own protocol (eval_protocol modelzoo)",
    "modelzoo": "eval_protocol modelzoo repeats the reading faults of the 2021 suite, the paper has none of them",
}
_UNKNOWN_COUNT = (
    "TUM: images are counted against associate.txt; how many of the sequence the 2021 suite scored is not published"
)
_NOT_REPEATED = (
    "The 2021 suite counted images without a valid pixel as 0 and scored ETH3D at network size: not repeated here."
)


def format_table(
    results: Iterable[SetResult], protocol: str, show_published: bool = True, fixed_size: bool = False
) -> str:
    """Formats the results, a column per data set; less is better in all of them.

    Published figures are in brackets where they do not compare with this run: this run has scored a part of the
    benchmark, or another version of it, or by another protocol.

    Args:
        results: One per data set.
        protocol: ``"paper"`` or ``"modelzoo"``.
        show_published: Whether to add the figures that others published for the benchmarks, how many images these
            have, and what to know of them.
        fixed_size: Whether the network saw all images at one size, whatever their aspect ratio.
    """
    results = list(results)
    rows = [
        ["", *(result.dataset for result in results)],
        ["metric", *(METRIC_UNITS[result.metric] for result in results)],
        ["images", *(_images(result, show_published) for result in results)],
        ["this run", *(_figure(result.value) for result in results)],
        ["a constant prediction", *(_figure(result.constant) for result in results)],
    ]
    notes = ["Less is better."]
    notes += [f"{result.dataset}: scored on {result.version}" for result in results if result.version]
    if any(result.metric == WHDR and result.scored for result in results):
        notes.append("A constant prediction makes ties of all pairs, which count as wrong; guessing gets 0.5.")
    if show_published:
        reasons: list[str] = []
        for source, published in PUBLISHED.items():
            row = [source]
            for result in results:
                figure = published.figures.get(result.dataset)
                found = _differences(result, published, protocol, fixed_size)
                row.append("-" if figure is None else f"({figure:g})" if found else f"{figure:g}")
                reasons += found if figure is not None else []
            rows.append(row)
        if reasons:
            notes.append(_BRACKETS)
            notes += [f"- {reason}" for reason in dict.fromkeys(reasons)]
        notes += [_NOT_REPRODUCED, _NOT_REPEATED]
    lines = _aligned(rows)
    rule = "-" * max(map(len, lines))
    return "\n".join([*lines[:3], rule, *lines[3:], *notes])


def _images(result: SetResult, show_published: bool) -> str:
    return f"{result.scored} of {result.benchmark_images}" if show_published else str(result.scored)


def _differences(result: SetResult, published: Published, protocol: str, fixed_size: bool) -> list[str]:
    """Says why a published figure of a data set does not compare with this run."""
    found = []
    name = result.dataset
    if name == "TUM" and result.version != published.tum:
        found.append(f"TUM: this run scored {result.version}, {_SCORED_BY[published.tum]} {published.tum}")
    elif result.version == SEQUENCE:
        found.append(_UNKNOWN_COUNT)
    elif not result.is_whole:
        images = result.scored + len(result.empty)
        found.append(f"{name}: this run has {images} images, the benchmark {result.benchmark_images}")
    if name in published.others:
        found.append(f"{name}: the paper scored its network of ReDWeb alone on {published.others[name]}")
    if protocol != published.protocol:
        found.append(_OTHER_PROTOCOL[protocol])
    if fixed_size:
        found.append("this run resized all images to one size, the others kept their aspect ratio")
    return found


_SCORED_BY = {FRAMES: "the paper", SEQUENCE: "the 2021 suite"}


def _figure(value: float) -> str:
    return "-" if math.isnan(value) else format(value, ".4g")


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Joins cells to lines: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return [
        "  ".join(f"{cell:{'>' if i else '<'}{width}}" for i, (cell, width) in enumerate(zip(row, widths)))
        for row in rows
    ]
