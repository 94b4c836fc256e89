"""Whether an exported model computes what the network computes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Union

import cv2
import numpy as np

from src.common.errors import ExportError

PathLike = Union[str, Path]
Run = Callable[[np.ndarray], np.ndarray]  # (1, 3, H, W) float32 -> (H, W)
LARGEST_DIFFERENCE = 1e-4


def random_image(size: tuple[int, int], mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Makes an image of soft blobs under noise, normalised.

    Args:
        size: Height and width in pixels.
        mean: Of red, green and blue on the scale 0..1.
        std: Likewise.

    Returns:
        (1, 3, H, W) float32.
    """
    generator = np.random.default_rng(0)
    blobs = cv2.resize(generator.random((6, 8, 3)), size[::-1], interpolation=cv2.INTER_CUBIC)
    image = np.clip(blobs + generator.normal(0, 0.05, blobs.shape), 0, 1)
    return np.ascontiguousarray(((image - mean) / std).astype(np.float32).transpose(2, 0, 1)[None])


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Returns the largest absolute difference of two outputs / the largest number expected.

    Raises:
        ValueError: The outputs have different shapes, or one of them is not finite.
    """
    if found.shape != expected.shape:
        raise ValueError(f"expected the shape {expected.shape}, found {found.shape}")
    if not (np.isfinite(found).all() and np.isfinite(expected).all()):
        raise ValueError("expected finite numbers, found NaN or infinity")
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), np.finfo(np.float32).tiny))


class Trial(NamedTuple):
    """Images, (1, 3, H, W), and what the network makes of each, (H, W)."""

    images: Sequence[np.ndarray]
    expected: Sequence[np.ndarray]

    @property
    def first(self) -> "Trial":
        """The first image alone."""
        return Trial(self.images[:1], self.expected[:1])

    @property
    def is_flat(self) -> bool:
        """Whether some output varies so little that a model could pass with hardly a picture in its own."""
        return any(np.ptp(output) <= 100 * LARGEST_DIFFERENCE * np.abs(output).max() for output in self.expected)

    def compare(self, path: PathLike, run: Run, where: str, advice: str = "") -> str:
        """Compares a model with the network.

        Args:
            path: The file, for messages.
            run: What runs it.
            where: What that is called, for the text.
            advice: What to do if the model differs.

        Returns:
            A text with the largest ``difference``.

        Raises:
            ExportError: The model does something else.
        """
        largest = 0.0
        sizes = [f"{image.shape[2]}x{image.shape[3]}" for image in self.images]
        for size, image, expected in zip(sizes, self.images, self.expected):
            try:
                found = difference(run(image), expected)
            except ValueError as error:
                raise ExportError(f"{path}: differs from the network at {size}: {error}") from error
            if found > LARGEST_DIFFERENCE:
                raise ExportError(
                    f"{path}: expected what the network computes to {LARGEST_DIFFERENCE:g} of the largest output, "
                    f"found a difference of {found:.1e} at {size}{advice}"
                )
            largest = max(largest, found)
        return f"differs from the network by {largest:.1e} of the largest output ({where}, {' and '.join(sizes)})"
