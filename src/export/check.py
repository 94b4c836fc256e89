"""Whether an exported model computes what the network computes."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, Union

import cv2
import numpy as np

from src.common.errors import ExportError

PathLike = Union[str, Path]
Run = Callable[[np.ndarray], np.ndarray]  # (1, 3, H, W) float32 -> (1, H, W)
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
    """Images, (1, 3, H, W), and what the network makes of each, (1, H, W)."""

    images: Sequence[np.ndarray]
    expected: Sequence[np.ndarray]

    @property
    def first(self) -> "Trial":
        """The first image alone."""
        return Trial(self.images[:1], self.expected[:1])

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


def load_onnx(path: PathLike) -> tuple[Run, str]:
    """Loads an ONNX file into ONNX Runtime, or into OpenVINO where that alone is installed, on the CPU in float32.

    Returns:
        What runs it, and what that is called.
    """
    if find_spec("onnxruntime"):
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return lambda image: session.run(None, {session.get_inputs()[0].name: image})[0], "ONNX Runtime"
    import openvino

    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda image: compiled(image)[0], "OpenVINO"
