"""Pairs the colour and depth pictures of a TUM RGB-D sequence by time stamp and writes associate.txt.

    python preprocess/associate.py data/TUM/rgbd_dataset_freiburg2_desk_with_person

A line of associate.txt is ``rgb/TIME.png depth/TIME.png``. No picture occurs twice.
"""

import argparse
import math
import re
import sys
from bisect import bisect_left, bisect_right
from pathlib import Path
from typing import Optional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src.common.atomic import write_text
from src.common.errors import DataError, UsageError, run_script
from src.util import is_number, read_fields, split_fields

MAX_DIFFERENCE_S = 0.02
_TIME = re.compile(r"\d{1,20}\.?\d*(?:[eE]\+?\d\d?)?")


def read_listing(path: Path) -> list[tuple[float, str]]:
    """Reads rgb.txt or depth.txt: lines ``TIME FILE``, see ``read_fields``; in any order, with any further columns.

    The time is the number before the file, or else the first one behind it.

    Args:
        path: The list.

    Returns:
        Time stamps in seconds, and files as written, in the order of the list, each pair of them once.

    Raises:
        DataError: The list is missing or empty, or has a line of another form.
    """
    entries = []
    for number, fields in read_fields(path):
        at = next((i for i, field in enumerate(fields) if not is_number(field)), None)
        near = [] if at is None else [*reversed(fields[:at]), *fields[at + 1 :]]
        time = next(filter(_TIME.fullmatch, near), None)
        if time is None:
            raise DataError(f"{path}: line {number}: expected 'TIME FILE', found {' '.join(fields)!r}")
        entries.append((float(time), fields[at]))
    return list(dict.fromkeys(entries))


def _quoted(file: str) -> str:
    return f'"{file}"' if split_fields(file) != [file] else file


def associate(first: list[float], second: list[float], max_difference: float) -> list[tuple[int, int]]:
    """Pairs two lists of time stamps, the closest two first (ties: the earlier ones). Each stamp is used at most once.

    Args:
        first: Seconds, in any order.
        second: Seconds, in any order.
        max_difference: Largest difference within a pair, seconds.

    Returns:
        Positions (in ``first``, in ``second``) of the pairs, in order of the first one's time.
    """
    by_time = sorted((time, j) for j, time in enumerate(second))
    reach = 2 * max_difference  # wider than needed: the sums are rounded, the differences below decide
    candidates = []
    for i, time in enumerate(first):
        window = slice(bisect_left(by_time, (time - reach,)), bisect_right(by_time, (time + reach, math.inf)))
        candidates += [(abs(time - other), time, other, i, j) for other, j in by_time[window]]
    pairs: dict[int, int] = {}
    taken = set()
    for difference, *_, i, j in sorted(candidates):
        if difference <= max_difference and i not in pairs and j not in taken:
            pairs[i] = j
            taken.add(j)
    return sorted(pairs.items(), key=lambda pair: first[pair[0]])


def associate_files(
    rgb_list: Path, depth_list: Path, output: Path, max_difference: float = MAX_DIFFERENCE_S, offset: float = 0.0
) -> str:
    """Writes associate.txt: lines ``rgb/TIME.png depth/TIME.png`` in order of time.

    Args:
        rgb_list: rgb.txt of the sequence.
        depth_list: depth.txt of the sequence.
        output: The file to write.
        max_difference: Largest difference within a pair, seconds.
        offset: Added to the time stamps of the depth pictures, seconds.

    Returns:
        One line that says how many pictures were paired.

    Raises:
        DataError: A list cannot be read, or there is no pair.
    """
    rgb, depth = read_listing(rgb_list), read_listing(depth_list)
    rgb_times, depth_times = [time for time, _ in rgb], [time + offset for time, _ in depth]
    pairs = associate(rgb_times, depth_times, max_difference)
    if not pairs:
        found, against = (f"{min(times):.6f}..{max(times):.6f}" for times in (depth_times, rgb_times))
        expected = f"time stamps within {max_difference:g} s of {rgb_list}"
        raise DataError(f"{depth_list}: expected {expected}, found {found} with the offset, against {against}")
    write_text(output, "".join(f"{_quoted(rgb[i][1])} {_quoted(depth[j][1])}\n" for i, j in pairs))
    return f"{output}: {len(pairs)} pairs of {len(rgb)} colour and {len(depth)} depth pictures"


def main(arguments: Optional[list[str]] = None) -> None:
    """Reads the command line and writes associate.txt."""
    parser = argparse.ArgumentParser(description="Pairs colour and depth pictures of a TUM RGB-D sequence.")
    parser.add_argument(
        "paths", type=Path, nargs="+", metavar="PATH", help="folder with rgb.txt and depth.txt, or these two files"
    )
    parser.add_argument(
        "--max_difference", type=float, default=MAX_DIFFERENCE_S, help="seconds within a pair (default: 0.02)"
    )
    parser.add_argument("--offset", type=float, default=0.0, help="seconds added to depth time stamps (default: 0)")
    parser.add_argument("--output", type=Path, help="file to write (default: associate.txt beside rgb.txt)")
    options = parser.parse_args(arguments)
    if len(options.paths) > 2:
        raise UsageError(f"expected a folder, or rgb.txt and depth.txt, found {len(options.paths)} paths")
    if not (options.max_difference >= 0 and math.isfinite(options.offset)):
        raise UsageError("--max_difference, --offset: expected seconds, the difference not negative")
    folder = options.paths[0]
    lists = options.paths if len(options.paths) == 2 else [folder / "rgb.txt", folder / "depth.txt"]
    output = options.output or lists[0].with_name("associate.txt")
    print(associate_files(*lists, output, options.max_difference, options.offset))


if __name__ == "__main__":
    run_script(main)
