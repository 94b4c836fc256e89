"""Picks the frames of a list from the KITTI raw drives and their annotated depth, in the documented layout.

    python preprocess/deal.py --raw KITTI_RAW --annotated data_depth_annotated --frames eigen_test_files.txt \
        [--output data/Kitti_raw_data]

Makes DRIVE/image/NAME.png and DRIVE/depth/NAME.png for every frame that has both. A line of the list is
``DATE/DRIVE FRAME l``, ``DRIVE FRAME`` or a path such as ``DATE/DRIVE/image_02/data/NAME.png``. Further columns are
ignored. Frames without annotated depth are named and left out. The paper scores the frames of the Eigen test split
that belong to the official validation set. That is the default; ``--splits val train`` takes all that have depth.

Exit status: 1 if a picture is missing, nothing could be made, or the output folder holds other frames, for example
from an earlier run (they would be scored too); else 0.
"""

import argparse
import re
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Optional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from preprocess.place import place_file
from src.common.errors import DataError, run_script
from src.common.progress import Progress

SPLITS = ("val", "train")  # of data_depth_annotated
_LEFT_CAMERA = "image_02"
_CAMERAS = {None: _LEFT_CAMERA, "l": _LEFT_CAMERA, "r": "image_03"}  # by the third column of the list
_LINE = re.compile(
    r"(?:\S*/)?(\d{4}_\d\d_\d\d_drive_\d{4}_sync)"  # the drive, then the rest of a path or two columns
    r"(?:/(image_\d\d)/data/(\d{1,10})\.(?:png|jpg)(?:\s.*)?|\s+(\d{1,10})(?:\s+(\S+).*)?)"
)


class Frame(NamedTuple):
    """A frame of the left colour camera: name of its drive (``DATE_drive_XXXX_sync``) and its 10-digit number."""

    drive: str
    number: str

    @property
    def name(self) -> str:
        """Name of its files."""
        return f"{self.number}.png"

    def annotated_path(self, annotated: Path, splits: Sequence[str]) -> Optional[Path]:
        """Returns its depth file in these parts of data_depth_annotated, or None if there is none."""
        folders = (annotated / split / self.drive / "proj_depth/groundtruth" / _LEFT_CAMERA for split in splits)
        return next((folder / self.name for folder in folders if (folder / self.name).is_file()), None)


def raw_folder(raw: Path, drive: str) -> Path:
    """Returns the folder of a drive's pictures in the extracted raw data."""
    return raw / drive[:10] / drive / _LEFT_CAMERA / "data"


def read_frames(path: Path) -> list[Frame]:
    """Reads a list of frames. The head of this file describes its lines.

    Args:
        path: The list. Empty lines and lines that start with # are skipped.

    Returns:
        The frames in the order of the list, each once.

    Raises:
        DataError: The list is missing or empty, or a line has another form or names another camera.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as text: {error}") from error
    frames = []
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise DataError(f"{path}: line {number}: expected 'DATE/DRIVE FRAME l' or a picture's path, found {line!r}")
        drive, camera, number_in_path, number_in_column, side = match.groups()
        camera = camera or _CAMERAS.get(side, side)
        if camera != _LEFT_CAMERA:
            raise DataError(f"{path}: line {number}: expected the left camera (l, {_LEFT_CAMERA}), found {camera}")
        frames.append(Frame(drive, (number_in_path or number_in_column).zfill(10)))
    if not frames:
        raise DataError(f"{path}: expected a list of frames, found none")
    return list(dict.fromkeys(frames))


def deal(
    raw: Path,
    annotated: Path,
    frames: list[Frame],
    output: Path,
    link: bool = False,
    splits: Sequence[str] = SPLITS[:1],
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
    without_depth, without_picture = [], []
    with Progress(len(frames), "Kitti", "frames") as progress:
        for frame in frames:
            picture, depth = raw_folder(raw, frame.drive) / frame.name, frame.annotated_path(annotated, splits)
            if depth is None:
                without_depth.append(frame)
            elif not picture.is_file():
                without_picture.append(frame)
            else:
                place_file(picture, output / frame.drive / "image" / frame.name, link)
                place_file(depth, output / frame.drive / "depth" / frame.name, link)
            progress.update()
    return without_depth, without_picture


def frames_in(output: Path) -> list[Frame]:
    """Lists the frames in a folder of the documented layout, as an evaluation would."""
    depths = sorted(path for path in output.glob("*/depth/*.png") if not path.name.startswith("."))
    return [Frame(path.parents[1].name, path.stem) for path in depths]


def _numbers_by_drive(frames: list[Frame]) -> dict[str, str]:
    """Returns drive -> numbers of its frames, separated by spaces."""
    numbers = defaultdict(list)
    for frame in frames:
        numbers[frame.drive].append(frame.number)
    return {drive: " ".join(found) for drive, found in numbers.items()}


def main(arguments: Optional[list[str]] = None) -> int:
    """Reads the command line, brings the frames into the layout and says what was left out."""
    parser = argparse.ArgumentParser(description="Brings KITTI raw drives and annotated depth into one layout.")
    parser.add_argument("--raw", type=Path, required=True, help="raw data: DATE/DRIVE/image_02/data/NAME.png")
    parser.add_argument("--annotated", type=Path, required=True, help="data_depth_annotated, with train/ and val/")
    parser.add_argument("--frames", type=Path, required=True, help="list of frames, e.g. the Eigen test split")
    default = Path(__file__).resolve().parents[1] / "data" / "Kitti_raw_data"
    parser.add_argument("--output", type=Path, default=default, help="folder to fill (default: %(default)s)")
    parser.add_argument("--link", action="store_true", help="link to the files instead of copying them")
    parser.add_argument(
        "--splits", nargs="+", choices=SPLITS, default=SPLITS[:1], help="parts of the annotated depth (default: val)"
    )
    options = parser.parse_args(arguments)
    frames = read_frames(options.frames)
    without_depth, without_picture = deal(
        options.raw, options.annotated, frames, options.output, options.link, options.splits
    )
    for drive, numbers in _numbers_by_drive(without_depth).items():
        print(f"no annotated depth for {drive}: {numbers}")
    for drive, numbers in _numbers_by_drive(without_picture).items():
        print(f"no picture in {raw_folder(options.raw, drive)}: {numbers}")
    made = set(frames).difference(without_depth, without_picture)
    others = [frame for frame in frames_in(options.output) if frame not in made]
    for drive, numbers in _numbers_by_drive(others).items():
        print(f"not made by this run, but in {options.output / drive}: {numbers}")
    with_depth = len(frames) - len(without_depth)
    print(f"{len(frames)} frames listed, {with_depth} with annotated depth in {', '.join(options.splits)}")
    print(f"{options.output}: {len(made)} frames made, {len(without_picture)} have depth but no picture")
    if others:
        print(f"{options.output}: {len(others)} other frames, which would be scored too: remove them")
    return 0 if made and not without_picture and not others else 1


if __name__ == "__main__":
    run_script(main)
