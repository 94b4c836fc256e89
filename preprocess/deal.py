"""Picks the frames of a list from the KITTI raw drives and their annotated depth, in the documented layout.

    python preprocess/deal.py --raw KITTI_RAW --annotated data_depth_annotated --frames eigen_test_files.txt \
        [--output data/Kitti_raw_data]

Makes DRIVE/image/NAME.png (or .jpg, as the picture comes) and DRIVE/depth/NAME.png for every frame that has both. A
line of the list is ``DATE/DRIVE FRAME l``, ``DRIVE FRAME`` or a path such as ``DATE/DRIVE/image_02/data/NAME.png``, in
any order of columns, separated by blanks, tabs or commas. Further columns are ignored. Frames without annotated depth
are named and left out. The paper scores the frames of the Eigen test split that belong to the official validation set.
That is the default; ``--splits val train`` takes all that have depth.

Exit status: 1 if a picture is missing, nothing could be made, or the output folder holds other frames, for example
from an earlier run (they would be scored too); else 0.
"""

import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Callable, NamedTuple, Optional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from preprocess.place import create_parser, place_file
from src.common.errors import DataError, run_script
from src.common.progress import Progress
from src.evaluation.datasets.base import find_picture
from src.util import read_fields

SPLITS = ("val", "train")  # of data_depth_annotated
_LEFT_CAMERA = "image_02"
_DRIVE = re.compile(r"(\d{4}_\d\d_\d\d_drive_\d{4}_sync)(?:/.*?(image_\d\d)/(?:data/)?(\d{1,10})(?:\.\w+)?|/)?$")
_FRAME = re.compile(r"(\d{1,10})(?:\.(?:png|jpg|jpeg))?", re.IGNORECASE)
_CAMERA = re.compile(r"l|r|image_\d\d")


class Frame(NamedTuple):
    """A frame of the left colour camera: name of its drive (``DATE_drive_XXXX_sync``) and its 10-digit number."""

    drive: str
    number: str


def raw_folder(raw: Path, drive: str) -> Path:
    """Returns the folder of a drive's pictures in the extracted raw data."""
    return raw / drive[:10] / drive / _LEFT_CAMERA / "data"


def read_frames(path: Path) -> list[Frame]:
    """Reads a list of frames. The head of this file describes its lines.

    Args:
        path: The list, see ``read_lines``.

    Returns:
        The frames in the order of the list, each once.

    Raises:
        DataError: The list is missing or empty, or a line has another form or names another camera.
    """
    frames = []
    for number, fields in read_fields(path):
        found = [match for match in map(_DRIVE.search, fields) if match]
        paths = [match for match in found if match[2]]
        drive = next((match for match in paths if match[2] == _LEFT_CAMERA), (*paths, *found, None)[0])
        frame, camera = (drive[3], drive[2]) if drive else (None, None)
        if drive and not camera:
            at = fields.index(drive.string)
            others = fields[at + 1 :] + fields[:at]  # columns usually begin with the drive
            frame = next((match[1] for match in map(_FRAME.fullmatch, others) if match), None)
            camera = next(filter(_CAMERA.fullmatch, others), "l")
        if frame is None:
            raise DataError(
                f"{path}: line {number}: expected 'DATE/DRIVE FRAME l' or a picture's path, found {' '.join(fields)!r}"
            )
        if camera not in ("l", _LEFT_CAMERA):
            raise DataError(f"{path}: line {number}: expected the left camera (l, {_LEFT_CAMERA}), found {camera}")
        frames.append(Frame(drive[1], frame.zfill(10)))
    return list(dict.fromkeys(frames))


def deal(
    raw: Path, annotated: Path, frames: list[Frame], output: Path, link: bool, splits: Sequence[str]
) -> tuple[list[Frame], list[Frame]]:
    """Brings pictures and annotated depth of frames into the documented layout.

    Args:
        raw: Folder with DATE/DRIVE/image_02/data/NAME.png.
        annotated: Folder with {train,val}/DRIVE/proj_depth/groundtruth/image_02/NAME.png.
        frames: The frames to bring there.
        output: Folder to fill.
        link: Whether to link to the files instead of copying them.
        splits: Parts of ``annotated`` to search.

    Returns:
        The frames left out: those without annotated depth, and those with depth but without a picture.

    Raises:
        DataError: A folder is missing, or the system refuses to copy or link.
    """
    for folder in (raw, annotated):
        if not folder.is_dir():
            raise DataError(f"{folder}: expected a folder, found none")
    if not any((annotated / split).is_dir() for split in splits):
        raise DataError(_without_splits(annotated, splits))
    without_depth, without_picture = [], []
    with Progress(len(frames), "Kitti", "frames") as progress:
        for frame in frames:
            name = f"{frame.number}.png"
            picture = find_picture(raw_folder(raw, frame.drive) / name)
            parts = (annotated / split / frame.drive / "proj_depth/groundtruth" / _LEFT_CAMERA for split in splits)
            depth = next((part / name for part in parts if (part / name).is_file()), None)
            if depth is None:
                without_depth.append(frame)
            elif not picture.is_file():
                without_picture.append(frame)
            else:
                place_file(picture, output / frame.drive / "image" / picture.name, link)
                place_file(depth, output / frame.drive / "depth" / name, link)
            progress.update()
    return without_depth, without_picture


def _without_splits(annotated: Path, splits: Sequence[str]) -> str:
    """Says that no split of the annotated depth is there, and what there is instead."""
    expected = f"{annotated}: expected {' or '.join(f'{split}/' for split in splits)} with the annotated depth"
    others = [split for split in SPLITS if (annotated / split).is_dir()]
    if others:
        return (
            f"{expected}, found {' and '.join(f'{split}/' for split in others)} (--splits {' '.join(others)} takes it)"
        )
    drives = next(annotated.glob("*_drive_*_sync"), None)
    if drives:
        return f"{expected}, found drives such as {drives.name}: --annotated wants the folder above val/ and train/"
    return f"{expected}, found none"


def print_frames(frames: Iterable[Frame], describe: Callable[[str], str]) -> None:
    """Prints a line for each drive: what ``describe`` makes of its name, and the numbers of its frames."""
    numbers = defaultdict(list)
    for frame in frames:
        numbers[frame.drive].append(frame.number)
    for drive, found in numbers.items():
        print(f"{describe(drive)}: {' '.join(found)}")


def main(arguments: Optional[list[str]] = None) -> int:
    """Reads the command line, brings the frames into the layout and says what was left out."""
    parser = create_parser(
        "Brings KITTI raw drives and annotated depth into one layout.",
        "Kitti_raw_data",
        raw="raw data: DATE/DRIVE/image_02/data/NAME.png",
        annotated="data_depth_annotated, with train/ and val/",
        frames="list of frames, e.g. the Eigen test split",
    )
    parser.add_argument(
        "--splits", nargs="+", choices=SPLITS, default=SPLITS[:1], help="parts of the annotated depth (default: val)"
    )
    options = parser.parse_args(arguments)
    frames = read_frames(options.frames)
    without_depth, without_picture = deal(
        options.raw, options.annotated, frames, options.output, options.link, options.splits
    )
    print_frames(without_depth, lambda drive: f"no annotated depth for {drive}")
    print_frames(without_picture, lambda drive: f"no picture in {raw_folder(options.raw, drive)}")
    made = set(frames).difference(without_depth, without_picture)
    found = {Frame(path.parents[1].name, path.stem) for path in options.output.glob("*/depth/[!.]*.png")}
    others = sorted(found - made)
    print_frames(others, lambda drive: f"not made by this run, but in {options.output / drive}")
    with_depth = len(frames) - len(without_depth)
    print(f"{len(frames)} frames listed, {with_depth} with annotated depth in {', '.join(options.splits)}")
    print(f"{options.output}: {len(made)} frames made, {len(without_picture)} have depth but no picture")
    if others:
        print(f"{options.output}: {len(others)} other frames, which would be scored too: remove them")
    return 0 if made and not without_picture and not others else 1


if __name__ == "__main__":
    run_script(main)
