"""The table of an evaluation, beside the figures that others published."""

import math
from collections.abc import Iterable

from src.evaluation.evaluator import SetResult

_METRICS = {"delta1": "delta>1.25, %", "absrel": "AbsRel", "whdr": "WHDR, share"}

# Figures that others published, in the units of val.json. The 2021 suite was trained on ReDWeb alone and scored by the
# protocol `modelzoo`; the paper's are those of its table on MIX 5 (its WHDR is 12.46 %).
PUBLISHED = {
    "2021 suite, Ascend 910": {"Kitti": 24.222, "Sintel": 0.323, "TUM": 15.08},
    "2021 suite, V100": {"Kitti": 23.870, "Sintel": 0.3226, "TUM": 16.198},
    "paper, MIX 5": {"Kitti": 23.90, "Sintel": 0.327, "TUM": 14.29, "NYU": 9.55, "ETH3D": 0.129, "DIW": 0.1246},
}
_NOT_REPRODUCED = "The last three columns are as published, not reproduced here."
_OTHER_PROTOCOL = {
    "paper": "The 2021 suite scored by its own protocol (eval_protocol modelzoo): its columns do not compare.",
    "modelzoo": "eval_protocol modelzoo repeats the reading faults of the 2021 suite: compare with its columns alone.",
}
_NOT_REPEATED = (
    "That suite counted images without a valid pixel as 0 and scored ETH3D at network size: not repeated here."
)


def format_table(results: Iterable[SetResult], protocol: str, show_published: bool = True) -> str:
    """Formats the results; less is better in every row.

    Args:
        results: One per data set.
        protocol: ``"paper"`` or ``"modelzoo"``.
        show_published: Whether to add the figures that others published for the benchmarks, and what to know of them.
    """
    published = PUBLISHED if show_published else {}
    rows = [["set", "images", "metric", "this run", *published]]
    for result in results:
        others = (source.get(result.dataset, math.nan) for source in published.values())
        figures = [_figure(result.value, ".4g"), *(_figure(other, "g") for other in others)]
        rows.append([result.dataset, str(result.scored), _METRICS[result.metric], *figures])
    lines = _aligned(rows)
    lines.insert(1, "-" * max(map(len, lines)))
    lines.append("Less is better.")
    if published:
        lines += [_NOT_REPRODUCED, _OTHER_PROTOCOL[protocol], _NOT_REPEATED]
    return "\n".join(lines)


def _figure(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)


def _aligned(rows: list[list[str]]) -> list[str]:
    """Joins cells to lines: set and metric to the left of their columns, figures to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return [
        "  ".join(f"{cell:{'<' if i in (0, 2) else '>'}{width}}" for i, (cell, width) in enumerate(zip(row, widths)))
        for row in rows
    ]
