"""Joins the depth and the stereo archive of MPI Sintel into the documented layout.

    python preprocess/sintel.py --depth MPI-Sintel-depth-training-20150305.zip \
        --stereo MPI-Sintel-stereo-training-20150305.zip [--output data/Sintel]

Makes depth/SCENE/FRAME.dpt, final_left/SCENE/FRAME.png and occlusions/SCENE/FRAME.png for every frame that has all
three, and names the others. Exit status: 0 if every frame had all three, else 1.
"""

import re
import sys
from pathlib import Path
from typing import Optional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from preprocess.place import Source, create_parser, list_files, place_file
from src.common.errors import DataError, run_script
from src.common.progress import Progress

SUFFIXES = {"depth": ".dpt", "final_left": ".png", "occlusions": ".png"}  # kind of file -> its suffix


def find_frames(path: Path, files: dict[str, Source], kind: str) -> dict[str, Source]:
    """Finds the files of one kind, e.g. ``training/depth/SCENE/frame_0001.dpt``.

    Args:
        path: The archive or its ``training`` folder.
        files: What is in it.
        kind: A key of ``SUFFIXES``.

    Returns:
        Frame (``SCENE/frame_0001``) -> file.

    Raises:
        DataError: There are none.
    """
    pattern = re.compile(rf"(?:.*/)?{kind}/(\w+/frame_\d+){re.escape(SUFFIXES[kind])}")
    found = {match[1]: file for name, file in files.items() if (match := pattern.fullmatch(name))}
    if not found:
        raise DataError(f"{path}: expected training/{kind}/SCENE/frame_XXXX{SUFFIXES[kind]}, found none")
    return found


def join_archives(depth: Path, stereo: Path, output: Path, link: bool) -> tuple[int, dict[str, list[str]]]:
    """Brings the frames that have depth, picture and occlusion mask into the documented layout.

    Args:
        depth: Depth archive: .zip file or extracted folder.
        stereo: Stereo archive: .zip file or extracted folder.
        output: Folder to fill.
        link: Whether to link to the extracted files instead of copying them.

    Returns:
        How many frames were joined, and for every other frame what it lacks (keys of ``SUFFIXES``).

    Raises:
        DataError: An archive is missing or damaged, or no frame has all three.
        UsageError: ``link`` is set, but an archive is a .zip file.
    """
    depth_files, stereo_files = list_files(depth, link), list_files(stereo, link)
    frames = {"depth": find_frames(depth, depth_files, "depth")}
    frames.update({kind: find_frames(stereo, stereo_files, kind) for kind in ("final_left", "occlusions")})
    every_frame = sorted(set().union(*frames.values()))
    lacking = {frame: [kind for kind in frames if frame not in frames[kind]] for frame in every_frame}
    complete = [frame for frame in every_frame if not lacking[frame]]
    if not complete:
        raise DataError(f"{depth}: expected frames of {stereo}, found none in common")
    with Progress(len(complete), "Sintel", "frames") as progress:
        for frame in complete:
            for kind, suffix in SUFFIXES.items():
                place_file(frames[kind][frame], output / kind / f"{frame}{suffix}", link)
            progress.update()
    return len(complete), {frame: kinds for frame, kinds in lacking.items() if kinds}


def main(arguments: Optional[list[str]] = None) -> int:
    """Reads the command line and joins the archives."""
    archives = {kind: f"{kind} archive: .zip file or extracted folder" for kind in ("depth", "stereo")}
    parser = create_parser("Joins the depth and stereo archives of MPI Sintel.", "Sintel", **archives)
    options = parser.parse_args(arguments)
    joined, lacking = join_archives(options.depth, options.stereo, options.output, options.link)
    for frame, kinds in lacking.items():
        print(f"left out: {frame} has no {', '.join(kinds)}")
    print(f"{options.output}: {joined} frames joined, {len(lacking)} left out")
    return 1 if lacking else 0


if __name__ == "__main__":
    run_script(main)
