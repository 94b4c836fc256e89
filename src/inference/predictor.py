"""From an image to its inverse depth map, whatever runs the network.

A predictor splits its work in two: ``prepare`` (CPU: resize, normalise) may run ahead in other threads, ``infer`` runs
the network.
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import cv2
import numpy as np

from src.common.errors import CheckpointError
from src.common.names import RESIZE_METHODS
from src.utils.transforms import NormalizeImage, PrepareForNet, Resize


class Predictor(ABC):
    """Maps an RGB image to an inverse depth map.

    Args:
        width: Image width in pixels that the aspect-keeping resize aims at; with ``height`` the bounds that
            ``resize_method`` speaks of.
        height: See ``width``.
        mean: Of red, green and blue on the scale 0..1.
        std: Of red, green and blue on the scale 0..1.
        ensure_multiple_of: Sides become multiples of this, itself a multiple of 32.
        resize_method: ``upper_bound``, ``lower_bound`` or ``minimal``, see ``src/utils/transforms.py``.
        invert_output: Turn the output round, for a network that predicts far as large.
        shapes: Of the images that the network sees. ``dynamic``: aspect ratio kept, any size is welcome. ``static``:
            aspect ratio kept, MindSpore is made ready for each size that comes. ``fixed``: all images become
            ``width`` x ``height``.

    Attributes:
        compilations: How often the network was made ready for a size or for all.
    """

    def __init__(
        self,
        width: int = 384,
        height: int = 384,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
        ensure_multiple_of: int = 32,
        resize_method: str = "upper_bound",
        invert_output: bool = False,
        shapes: str = "dynamic",
    ):
        self.compilations = 0
        self.width, self.height = width, height
        self.shapes = shapes
        self.resize_method = resize_method
        self.invert_output = invert_output
        self._resize = {
            method: Resize(
                width,
                height,
                resize_target=False,
                keep_aspect_ratio=shapes != "fixed",
                ensure_multiple_of=1 if shapes == "fixed" else ensure_multiple_of,
                resize_method=method,
                image_interpolation=cv2.INTER_CUBIC,
            )
            for method in RESIZE_METHODS
        }
        self._normalize = NormalizeImage(mean, std)
        self._to_net = PrepareForNet()

    def prepare(self, image: np.ndarray, resize_method: str = "") -> np.ndarray:
        """Resizes, see ``shapes``, and normalises.

        Args:
            image: uint8 (H, W, 3), RGB.
            resize_method: Instead of the predictor's own.

        Returns:
            float32 (1, 3, h, w).
        """
        resize = self._resize[resize_method or self.resize_method]
        return self._to_net(self._normalize(resize({"image": image})))["image"][None]

    def infer(self, prepared: np.ndarray) -> np.ndarray:
        """Runs the network, and turns its output round where that is asked for.

        Args:
            prepared: float32 (1, 3, h, w) from ``prepare``.

        Returns:
            float32 (h, w), inverse depth >= 0: the network's output p, or max(p) - p.

        Raises:
            CheckpointError: The network is an exported one of another kind: it cannot take the image, or its output has
                another size.
        """
        output = self._run(prepared)
        return output.max() - output if self.invert_output else output

    @abstractmethod
    def _run(self, prepared: np.ndarray) -> np.ndarray:
        """Runs the network: float32 (1, 3, h, w) -> (h, w), >= 0, with sides of 1 wherever the network has them."""


def as_map(output: np.ndarray, prepared: np.ndarray) -> np.ndarray:
    """Returns the output of a network as (h, w), which are the sides of the image; ValueError if it has others."""
    size = prepared.shape[2:]
    if output.shape[-2:] != size or output.size != size[0] * size[1]:
        expected, found = (" x ".join(map(str, shape)) for shape in (size, output.shape))
        raise ValueError(f"expected an output of the size of the image, {expected}, found {found}")
    return output.reshape(size)


_LONGEST = 400  # characters of a reason


@contextmanager
def refusals_of(what: str, *errors: type[Exception]) -> Iterator[None]:
    """Makes errors of a program that runs networks one line.

    Args:
        what: Names the file and the program.
        *errors: The classes of its errors.

    Raises:
        CheckpointError: There was one.
    """
    try:
        yield
    except MemoryError:
        raise  # another image may be smaller
    except errors as error:
        lines = itertools.takewhile(lambda line: "C++ Call Stack" not in line, str(error).splitlines())
        lines = (line.strip() for line in lines if line.strip(" -") and not line.startswith("Exception from"))
        reason = " ".join(lines)[:_LONGEST] or type(error).__name__
        raise CheckpointError(f"{what} cannot run this model: {reason}") from error
