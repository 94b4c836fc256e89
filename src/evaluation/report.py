"""What is to be known about an evaluation beside its table."""

from collections.abc import Mapping, Sequence

from src.common.errors import DataError
from src.evaluation.datasets.base import DatasetMissing
from src.evaluation.evaluator import SetResult
from src.evaluation.metric import WHDR

_NAMED = 5  # images that a line names


def damaged(left_out: Mapping[str, DataError]) -> list[str]:
    """Names the sets that were left out though they are there."""
    return [name for name, error in left_out.items() if not isinstance(error, DatasetMissing)]


def remarks(results: Sequence[SetResult]) -> list[str]:
    """Names the images that are left out of the means, a line for each set that has some."""
    lines = []
    for result in results:
        if result.empty:
            names = ", ".join(result.empty[:_NAMED]) + (", ..." if len(result.empty) > _NAMED else "")
            lines.append(
                f"{result.dataset}: left out of the mean, no valid pixel: {len(result.empty)} images ({names})"
            )
    return lines


def network_is_inverted(invert_output: bool) -> str:
    """Says what to do about a network that predicts far as large.

    Args:
        invert_output: Whether its output has been turned round, see ``Predictor``.
    """
    what = "the output, turned round," if invert_output else "this network"
    return (
        f"{what} seems to predict far as large; --invert_output {not invert_output} turns it round, which changes "
        "depth maps and the score of DIW, not those of a fit"
    )


def predictions_are_inverted(kind: str) -> str:
    """Says what to do about predictions that are not what ``kind``, the setting ``prediction``, says."""
    if kind == "depth":
        return (
            "these predictions, taken for depth, seem to be larger where it is nearer; if they are inverse depth, "
            "--prediction inverse_depth scores them as such"
        )
    return (
        "these predictions seem to be larger where it is farther; if they are depth, --prediction depth scores them as "
        "such"
    )


def warnings_of(results: Sequence[SetResult], protocol: str, advice: str) -> list[str]:
    """Returns a line for each set with inverted predictions, and for each where most of them seem to be upside down.

    Args:
        results: One per data set.
        protocol: ``"paper"`` or ``"modelzoo"``.
        advice: What to do if they are.
    """
    lines = []
    for result in results:
        if result.inverted:
            lines.append(
                f"{result.dataset}: {result.inverted} of {result.scored} predictions are inverted: their fit has a "
                "negative scale, with which they are scored"
            )
        if _mostly_inverted(result, protocol):
            lines.append(f"{result.dataset}: {advice}")
    return lines


def _mostly_inverted(result: SetResult, protocol: str) -> bool:
    if result.metric == WHDR:
        # More pairs are wrong than by guessing, beyond two standard deviations. The other protocol itself inverts them.
        return protocol == "paper" and result.scored > 0 and result.value > 0.5 + result.scored**-0.5
    return result.inverted > result.scored / 2


def faults(results: Sequence[SetResult], left_out: Mapping[str, DataError]) -> list[str]:
    """Lists what makes the evaluation incomplete; sets of ``all`` that are simply not there do not.

    Args:
        results: Of the sets that were evaluated.
        left_out: Name of a set that was not -> reason.
    """
    found = [
        f"{result.dataset}: {result.faulty} samples could not be evaluated, see above"
        for result in results
        if result.faulty
    ]
    found += [f"{result.dataset}: no image could be scored" for result in results if not result.scored]
    found += [f"{name}: damaged and left out, see above" for name in damaged(left_out)]
    return found
