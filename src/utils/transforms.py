"""Resizing, normalising and laying out images for the network.

Samples are dicts with the key ``"image"`` and, for training, ``"depth"`` (the target, not the network's output) and
``"mask"``. The transforms run in the order ``Resize``, ``NormalizeImage``, ``PrepareForNet``; each takes such a dict
and returns a new one, leaving its input and keys that it does not know alone.

The type of an image says its scale, everywhere: **uint8 is 0..255, floating point is 0..1** (before normalisation).
Images are RGB, (H, W, 3). ``Resize`` and ``NormalizeImage`` take either and return float32, so no pixel is ever
rounded to 8 bits on the way, and every pass but the first runs on float32 of the smaller, resized image. What they
return lies channel by channel in memory (a transposed view), which spares ``PrepareForNet`` a copy.
"""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from src.common.names import RESIZE_METHODS

Sample = dict[str, Any]


def _keep_freed_memory() -> None:
    """Makes the C library keep the memory of an image for the next one.

    glibc hands blocks of this size back to the system, which has to map and clear them anew, page by page, for the
    next image: a third of the time that a training sample takes. The largest block freed so far, up to 32 MB, teaches
    it better (mallopt(3), M_MMAP_THRESHOLD). With another C library this does nothing.
    """
    np.empty(31 << 20, np.uint8)


def use_one_opencv_thread() -> None:
    """Turns OpenCV's own threads off in this process, for good: samples are what is worked on in parallel.

    A process that is forked while OpenCV keeps a thread pool hangs in its first parallel call; so this must come before
    anything that would start the pool.
    """
    cv2.setNumThreads(1)


class Resize:
    """Resizes a sample to a size that the network takes.

    With ``keep_aspect_ratio`` off, both sides become the given width and height. With it on, one factor scales both:

    * ``lower_bound``: the larger of the two, so that no side falls below the given size;
    * ``upper_bound``: the smaller of the two, so that no side exceeds it;
    * ``minimal``: the one nearer to 1, so that the image changes as little as possible.

    Each side is then rounded to a multiple of ``ensure_multiple_of``; where that would break the bound, it is rounded
    up (``lower_bound``) or down (``upper_bound``). A side is never less than one multiple.

    Args:
        width: Width in pixels, at least ``ensure_multiple_of``.
        height: Height in pixels, at least ``ensure_multiple_of``.
        resize_target: Resize ``"depth"`` and ``"mask"`` as well, by nearest neighbour (to the size of the image).
        keep_aspect_ratio: Scale both sides by one factor.
        ensure_multiple_of: Both sides become multiples of this.
        resize_method: ``"lower_bound"``, ``"upper_bound"`` or ``"minimal"``.
        image_interpolation: OpenCV interpolation flag of the image.

    Raises:
        ValueError: An argument is out of its range.
    """

    def __init__(
        self,
        width: int,
        height: int,
        resize_target: bool = True,
        keep_aspect_ratio: bool = False,
        ensure_multiple_of: int = 1,
        resize_method: str = "lower_bound",
        image_interpolation: int = cv2.INTER_CUBIC,
    ):
        if resize_method not in RESIZE_METHODS:
            raise ValueError(f"resize_method: expected one of {', '.join(RESIZE_METHODS)}, found {resize_method!r}")
        if ensure_multiple_of < 1:
            raise ValueError(f"ensure_multiple_of: expected at least 1, found {ensure_multiple_of}")
        if min(width, height) < ensure_multiple_of:
            raise ValueError(
                f"expected width and height of at least {ensure_multiple_of} (ensure_multiple_of),"
                f" found {width} x {height}"
            )
        _keep_freed_memory()
        self.width = width
        self.height = height
        self.resize_target = resize_target
        self.keep_aspect_ratio = keep_aspect_ratio
        self.multiple = ensure_multiple_of
        self.resize_method = resize_method
        self.image_interpolation = image_interpolation

    def get_size(self, width: int, height: int) -> tuple[int, int]:
        """Returns the (width, height) that an image of this width and height is resized to."""
        scale_x, scale_y = self.width / width, self.height / height
        if self.keep_aspect_ratio:
            if self.resize_method == "lower_bound":
                scale_x = scale_y = max(scale_x, scale_y)
            elif self.resize_method == "upper_bound":
                scale_x = scale_y = min(scale_x, scale_y)
            else:
                scale_x = scale_y = min(scale_y, scale_x, key=lambda scale: abs(1 - scale))
        return self._snap(scale_x * width, self.width), self._snap(scale_y * height, self.height)

    def _snap(self, length: float, bound: int) -> int:
        """Rounds a side to a multiple, on the right side of its bound."""
        multiples = round(length / self.multiple)  # halves go to the even multiple
        if self.resize_method == "lower_bound" and multiples * self.multiple < bound:
            multiples = int(np.ceil(length / self.multiple))
        elif self.resize_method == "upper_bound" and multiples * self.multiple > bound:
            multiples = int(np.floor(length / self.multiple))
        return max(multiples, 1) * self.multiple

    def __call__(self, sample: Sample) -> Sample:
        """Resizes ``"image"`` to float32 (H, W, 3) of scale 0..1 and, if asked to, ``"depth"`` and ``"mask"``.

        Cubic interpolation overshoots: values a little outside 0..1 are kept as they are.
        """
        image = sample["image"]
        width, height = size = self.get_size(image.shape[1], image.shape[0])
        planes = np.empty((3, height, width), np.float32)
        for channel, plane in enumerate(planes):
            # One plane at a time, so that what is converted at full size fits in the cache.
            source = cv2.extractChannel(image, channel).astype(np.float32, copy=False)
            cv2.resize(source, size, plane, interpolation=self.image_interpolation)
        if image.dtype == np.uint8:
            planes *= np.float32(1 / 255)
        result = {**sample, "image": planes.transpose(1, 2, 0)}
        if self.resize_target:
            for key in ("depth", "mask"):
                if key in sample:
                    # INTER_NEAREST takes the first pixel, not the middle one: half a pixel of the result off the image.
                    result[key] = cv2.resize(sample[key], size, interpolation=cv2.INTER_NEAREST_EXACT)
        return result


class NormalizeImage:
    """Subtracts a mean and divides by a standard deviation, per channel.

    Args:
        mean: Three values, RGB, on the scale 0..1.
        std: Three values above 0, RGB, on the scale 0..1.

    Raises:
        ValueError: There are not three values each, or a deviation is not above 0.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        if len(mean) != 3 or len(std) != 3:
            raise ValueError(f"expected three values of mean and std, found {mean} and {std}")
        if min(std) <= 0:
            raise ValueError(f"std: expected values above 0, found {std}")
        self._gain = np.reshape([1.0 / deviation for deviation in std], (3, 1, 1))
        self._shift = np.reshape(mean, (3, 1, 1)) * -self._gain

    def __call__(self, sample: Sample) -> Sample:
        """Normalises ``"image"`` (H, W, 3), uint8 or floating, to float32."""
        image = sample["image"]
        gain = self._gain / 255 if image.dtype == np.uint8 else self._gain
        planes = np.multiply(image.transpose(2, 0, 1), gain.astype(np.float32), dtype=np.float32, order="C")
        planes += self._shift.astype(np.float32)
        return {**sample, "image": planes.transpose(1, 2, 0)}


class PrepareForNet:
    """Lays a sample out for the network: contiguous float32, the image as (3, H, W)."""

    def __call__(self, sample: Sample) -> Sample:
        """Converts ``"image"`` (H, W, 3) and, where present, ``"depth"`` and ``"mask"`` (H, W).

        Raises:
            ValueError: The image is uint8: its scale would be lost.
        """
        image = sample["image"]
        if image.dtype == np.uint8:
            raise ValueError("PrepareForNet takes a floating-point image; NormalizeImage comes before it")
        result = {**sample, "image": np.ascontiguousarray(image.transpose(2, 0, 1), np.float32)}
        for key in ("depth", "mask"):
            if key in sample:
                result[key] = np.ascontiguousarray(sample[key], np.float32)
        return result


def _resize_axis_asymmetric(array: np.ndarray, size: int, axis: int) -> np.ndarray:
    source = np.arange(size) * (array.shape[axis] / size)
    low = np.floor(source).astype(np.intp)
    high = np.minimum(low + 1, array.shape[axis] - 1)
    weight = np.expand_dims((source - low).astype(np.float32), 1 - axis)
    below = array.take(low, axis)
    return below + weight * (array.take(high, axis) - below)


def resize_prediction(inverse_depth: np.ndarray, height: int, width: int, half_pixel: bool = True) -> np.ndarray:
    """Resizes a prediction bilinearly, without smoothing, to the size of its ground truth.

    Args:
        inverse_depth: Float array (H, W).
        height: New height.
        width: New width.
        half_pixel: True samples pixel centres at (i + 0.5) * old / new - 0.5, as PyTorch's ``interpolate``
            does with ``align_corners=False``. False samples at i * old / new, as the 2021 suite did.

    Returns:
        float32 array (height, width).
    """
    inverse_depth = np.ascontiguousarray(inverse_depth, np.float32)
    if half_pixel:
        return cv2.resize(inverse_depth, (width, height), interpolation=cv2.INTER_LINEAR)
    return _resize_axis_asymmetric(_resize_axis_asymmetric(inverse_depth, height, 0), width, 1)


def _cubic_taps(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """Where each of ``new`` samples lies among ``old`` ones.

    Coordinates and weights are float32, like PyTorch's: on pictures of thousands of pixels exact ones differ by more
    than 1e-5.

    Returns:
        Indices of the four neighbours (4, new), and their weights, float32 (4, new).
    """
    one, a = np.float32(1), np.float32(-0.75)
    scale = np.float64(np.float32(old) / np.float32(new))
    centre = (scale * (np.arange(new) + 0.5) - 0.5).astype(np.float32)  # rounded once, as by a fused multiply-add
    low = np.floor(centre)
    after = centre - low  # 0..1
    near, far = np.stack([after, one - after]), np.stack([after + one, np.float32(2) - after])
    near = ((a + 2) * near - (a + 3)) * near * near + one
    far = ((a * far - 5 * a) * far + 8 * a) * far - 4 * a
    indices = low.astype(np.intp) + np.arange(-1, 3)[:, None]
    return indices.clip(0, old - 1), np.stack([far[0], near[0], near[1], far[1]])


_ROWS = 16  # at a time, which fit into the cache


def resize_bicubic(inverse_depth: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes a prediction as PyTorch's ``interpolate(mode="bicubic", align_corners=False)`` does.

    This is what ``run.py`` of isl-org/MiDaS does with its prediction: cubic convolution with a = -0.75 (Keys 1981,
    doi:10.1109/TASSP.1981.1163711, has -0.5), borders repeated, no smoothing. ``cv2.resize`` rounds positions, which
    changes values by up to 5e-5 of their range.

    Args:
        inverse_depth: Float array (H, W).
        height: New height.
        width: New width.

    Returns:
        float32 array (height, width). Values may exceed the range of the input, at sharp edges, by up to 45 % of it
        at either end: those of a network, which are never below 0, may become so.
    """
    source = np.ascontiguousarray(inverse_depth, np.float32)
    columns, weights = _cubic_taps(source.shape[1], width)
    wide = np.empty((source.shape[0], width), np.float32)
    for start in range(0, len(wide), _ROWS):
        rows = slice(start, start + _ROWS)
        wide[rows] = sum(weights[tap] * source[rows].take(columns[tap], axis=1) for tap in range(4))
    lines, weights = _cubic_taps(source.shape[0], height)
    result = np.empty((height, width), np.float32)
    for start in range(0, height, _ROWS):
        rows = slice(start, start + _ROWS)
        result[rows] = sum(weights[tap, rows, None] * wide.take(lines[tap, rows], axis=0) for tap in range(4))
    return result
