"""Random views of training samples: which part of the image is used, and whether it is mirrored."""

from dataclasses import dataclass
from typing import Optional

import numpy as np


@dataclass(frozen=True)
class View:
    """A part of an image, mirrored or not. It does not depend on the number of pixels.

    Attributes:
        is_mirrored: Left and right are exchanged.
        side: Sides of the part, as a share of the largest part that has the aspect ratio asked for; None: the part is
            the whole image, whatever its aspect ratio.
        x: Where the part lies: 0 is at the left edge, 1 at the right.
        y: 0 is at the upper edge, 1 at the lower.
    """

    is_mirrored: bool = False
    side: Optional[float] = None
    x: float = 0.0
    y: float = 0.0

    def crop(self, image: np.ndarray, aspect: float, shape: tuple[int, int]) -> np.ndarray:
        """Cuts the part out.

        Args:
            image: (H, W) or (H, W, C).
            aspect: Width / height of the part where pixels are those of ``shape``.
            shape: Height and width of the picture. Its ground truth shows the same with another number of pixels, and
                the same share of it is cut out, rounded to whole pixels.

        Returns:
            A view of ``image``, not empty.
        """
        if self.side is None:
            return image
        height, width = shape
        wide = min(1.0, aspect * height / width)  # shares of width and height
        high = min(1.0, width / (aspect * height))
        rows = _interval(self.y, self.side * high, image.shape[0])
        return image[rows, _interval(self.x, self.side * wide, image.shape[1])]

    def mirror(self, image: np.ndarray) -> np.ndarray:
        """Mirrors an image (H, W) or (H, W, C), if it is to be; the result is a view of it."""
        return image[:, ::-1] if self.is_mirrored else image


def _interval(place: float, share: float, length: int) -> slice:
    start = place * (1 - share)
    first = min(round(start * length), length - 1)
    return slice(first, max(round((start + share) * length), first + 1))


@dataclass(frozen=True)
class Augmentation:
    """Draws the view of each visit to a sample.

    Attributes:
        seed: Of the run.
        flip: Probability that a sample is mirrored.
        crop: Smallest side of the part that is used, as a share of the largest part with the aspect ratio of the
            network's input; sides are uniform from this to 1, positions are uniform. 0: the whole image is used.
    """

    seed: int
    flip: float = 0.0
    crop: float = 0.0

    def view(self, number: int, turn: int) -> View:
        """Returns the view of a sample.

        It depends on the attributes and the arguments alone: not on what was drawn before, or by which process.

        Args:
            number: Of the sample.
            turn: How often the run has been through its set before.
        """
        if not (self.flip or self.crop):
            return View()
        # The 1 keeps this apart from the order of the samples, which is drawn from three numbers.
        mirrored, side, x, y = np.random.default_rng([self.seed, turn, number, 1]).random(4).tolist()
        if not self.crop:
            return View(mirrored < self.flip)
        return View(mirrored < self.flip, self.crop + side * (1 - self.crop), x, y)
