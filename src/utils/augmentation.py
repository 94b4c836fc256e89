"""Random views of training samples: which part of the image is used, and whether it is mirrored."""

from collections.abc import Sequence
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

    def crop(self, images: Sequence[np.ndarray], aspect: float) -> list[np.ndarray]:
        """Cuts the part out of images that show the same with different numbers of pixels.

        Edges lie between pixels of the coarsest of them, and so at the same place in all whose sizes are multiples.

        Args:
            images: (H, W) or (H, W, C); the first is the picture.
            aspect: Width / height of the part, in pixels of the picture.

        Returns:
            Views of ``images``, not empty.
        """
        if self.side is None:
            return list(images)
        height, width = images[0].shape[:2]
        wide = min(1.0, aspect * height / width)  # shares of width and height
        high = min(1.0, width / (aspect * height))
        rows = _intervals(self.y, self.side * high, [image.shape[0] for image in images])
        columns = _intervals(self.x, self.side * wide, [image.shape[1] for image in images])
        return [image[part] for image, part in zip(images, zip(rows, columns))]

    def mirror(self, image: np.ndarray) -> np.ndarray:
        """Mirrors an image (H, W) or (H, W, C), if it is to be; the result is a view of it."""
        return image[:, ::-1] if self.is_mirrored else image


def _intervals(place: float, share: float, lengths: Sequence[int]) -> list[slice]:
    coarsest, start = min(lengths), place * (1 - share)
    first = min(round(start * coarsest), coarsest - 1)
    end = max(round((start + share) * coarsest), first + 1)
    # Halves go up: so the ends of what is at least one pixel wide are never rounded to the same.
    return [slice(*(int(edge * length / coarsest + 0.5) for edge in (first, end))) for length in lengths]


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
