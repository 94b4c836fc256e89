"""Pairs the colour and depth pictures of a TUM RGB-D sequence by time stamp and writes associate.txt.

    python preprocess/associate.py data/TUM/rgbd_dataset_freiburg2_desk_with_person

A line of associate.txt is ``rgb/TIME.png depth/TIME.png``; no picture occurs twice.
"""

import argparse
import heapq
import math
import sys
from pathlib import Path
from typing import Optional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src.common.atomic import write_text
from src.common.errors import DataError, UsageError, run_script

MAX_DIFFERENCE_S = 0.02


def read_listing(path: Path) -> list[tuple[float, str]]:
    """Reads rgb.txt or depth.txt: lines ``TIME FILE``; lines that start with # and empty lines say nothing.

    Args:
        path: The list.

    Returns:
        Time stamps in seconds, and files as written, in the order of the list.

    Raises:
        DataError: The list is missing, empty, or has a line of another form.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected text, found a byte that is none at position {error.start}") from error
    entries = []
    for number, line in enumerate(lines, start=1):
        fields = line.split()
        if not fields or fields[0].startswith("#"):
            continue
        try:
            stamp, name = fields
            seconds = float(stamp)
        except ValueError:
            seconds = math.nan
        if not math.isfinite(seconds):
            raise DataError(f"{path}: line {number}: expected 'TIME FILE', found {line!r}")
        entries.append((seconds, name))
    if not entries:
        raise DataError(f"{path}: expected lines 'TIME FILE', found none")
    return entries


def associate(first: list[float], second: list[float], max_difference: float) -> list[tuple[int, int]]:
    """Pairs two lists of time stamps: again and again the closest two that are both free (ties: the earlier ones).

    The closest two free stamps of different lists are always neighbours among all free stamps in order of time: one
    between them would be closer to one of the two. So a heap of neighbours is enough, new neighbours arise only
    where a pair is taken out, and the work is O(n log n) however large ``max_difference`` is.

    Args:
        first: Seconds, in any order.
        second: Seconds, in any order.
        max_difference: Largest difference within a pair, seconds.

    Returns:
        Positions (in ``first``, in ``second``) of the pairs, in order of the first one's time.
    """
    stamps = sorted(
        [(time, 0, position) for position, time in enumerate(first)]
        + [(time, 1, position) for position, time in enumerate(second)]
    )
    count = len(stamps)
    before, after = list(range(-1, count - 1)), list(range(1, count + 1))
    candidates: list[tuple[float, float, float, int, int]] = []

    def consider(left: int, right: int) -> None:
        if left < 0 or right >= count or stamps[left][1] == stamps[right][1]:
            return
        difference = stamps[right][0] - stamps[left][0]
        if difference <= max_difference:
            one, other = (left, right) if stamps[left][1] == 0 else (right, left)
            heapq.heappush(candidates, (difference, stamps[one][0], stamps[other][0], one, other))

    for left in range(count - 1):
        consider(left, left + 1)
    free = [True] * count
    pairs = []
    while candidates:
        *_, one, other = heapq.heappop(candidates)
        if not (free[one] and free[other]):
            continue
        free[one] = free[other] = False
        pairs.append((one, other))
        left, right = before[min(one, other)], after[max(one, other)]
        if left >= 0:
            after[left] = right
        if right < count:
            before[right] = left
        consider(left, right)
    return [(stamps[one][2], stamps[other][2]) for one, other in sorted(pairs)]


def associate_files(
    rgb_list: Path, depth_list: Path, output: Path, max_difference: float = MAX_DIFFERENCE_S, offset: float = 0.0
) -> str:
    """Writes associate.txt, lines ``rgb/TIME.png depth/TIME.png`` in order of time.

    Args:
        rgb_list: rgb.txt of the sequence.
        depth_list: depth.txt of the sequence.
        output: The file to write.
        max_difference: Largest difference within a pair, seconds.
        offset: Added to the time stamps of the depth pictures, seconds.

    Returns:
        How many pictures found a partner, in one line.

    Raises:
        DataError: A list cannot be read, or there is no pair.
    """
    rgb, depth = read_listing(rgb_list), read_listing(depth_list)
    rgb_times, depth_times = [time for time, _ in rgb], [time + offset for time, _ in depth]
    pairs = associate(rgb_times, depth_times, max_difference)
    if not pairs:
        spans = (f"{min(times):.6f}..{max(times):.6f}" for times in (rgb_times, depth_times))
        raise DataError(
            f"{depth_list}: expected time stamps within {max_difference:g} s of {rgb_list}, "
            "found {1} with the offset, against {0}".format(*spans)
        )
    write_text(output, "".join(f"{rgb[one][1]} {depth[other][1]}\n" for one, other in pairs))
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
