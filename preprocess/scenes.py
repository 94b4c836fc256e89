"""Small ray-cast scenes with exact depth: rooms and streets that hold boxes and ellipsoids.

World and camera axes point the same way: x right, y DOWN, z forward. Lengths are metres and the ground is y = 0. Rays
have component 1 along the optical axis, so the parameter at which a ray meets a surface is the depth that is stored:
picture and depth come from the same intersection.

Arrays of vectors have shape (3, N), one column per pixel in row-major order.
"""

from dataclasses import dataclass
from typing import Optional

import numpy as np

# Every depth in a setting is smaller than this, m: the caps of the indoor and of the strictest outdoor benchmark.
MAX_DEPTH_M = {"room": 10.0, "street": 72.0}
# The least and the greatest values that scenes are drawn from, in metres and degrees; the camera is at z = 0.
# The diagonal of a room from the camera stays below 10 m. Houses along a street are so tall that no ray passes above
# them. Rays have a component of at least 0.8 along it, and it ends at 56 m or nearer, so no depth reaches 72 m.
_RANGES = {
    "room": {
        "hull": ([3.4, 3.4, 5.5], [4.6, 4.0, 8.0]),  # width, height with 1 m below the ground, length
        "eye": ([-0.7, -1.6, 0.0], [0.7, -1.2, 0.0]),
        "yaw": (-20, 20),
        "pitch": (6, 18),
        "light": ([-1.0, -2.3, 1.5], [1.0, -2.3, 4.0]),
        "period": (0.3, 0.8),  # of textures
        "count": (4, 8),  # of solids
        "half_sizes": [([0.15, 0.15, 0.15], [0.45, 0.6, 0.45])],
        "nearest": 1.1,  # solid: z of its front
    },
    "street": {
        "hull": ([9.0, 200.0, 33.0], [18.0, 200.0, 62.0]),
        "eye": ([-2.0, -2.2, 0.0], [2.0, -1.4, 0.0]),
        "yaw": (-8, 8),
        "pitch": (-2, 5),
        "light": ([-300.0, -400.0, -300.0], [300.0, -300.0, 300.0]),
        "period": (1.0, 3.0),
        "count": (8, 14),
        "half_sizes": [([0.8, 0.5, 1.2], [1.1, 1.1, 2.3]), ([0.2, 1.5, 0.2], [0.5, 3.0, 0.5])],  # cars, pillars
        "nearest": 3.5,
    },
}
_HAZE_M = 150.0  # distance over which the air takes 63 % of the contrast
_SEGMENT_END = 1e-7  # share of a segment left out at either end, so that a surface does not hide itself


def _turned(yaw: float) -> np.ndarray:
    """Returns the (3, 3) matrix that turns vectors to the right about the vertical."""
    sin, cos = np.sin(yaw), np.cos(yaw)
    return np.array([[cos, 0.0, sin], [0.0, 1.0, 0.0], [-sin, 0.0, cos]])


@dataclass(frozen=True)
class Camera:
    """A pinhole camera. Angles are in radians; a positive pitch looks down, a positive yaw to the right."""

    position: np.ndarray
    yaw: float
    pitch: float
    focal_px: float

    def axes(self) -> np.ndarray:
        """Returns the (3, 3) matrix whose columns are the camera's right, down and forward in the world."""
        sin, cos = np.sin(self.pitch), np.cos(self.pitch)
        return _turned(self.yaw) @ np.array([[1.0, 0.0, 0.0], [0.0, cos, sin], [0.0, -sin, cos]])

    def rays(self, height: int, width: int) -> np.ndarray:
        """Returns the (3, height * width) world directions through the pixel centres, of unit optical component."""
        down, right = np.indices((height, width)).reshape(2, -1)
        right, down = right + 0.5 - width / 2, down + 0.5 - height / 2
        return self.axes() @ np.stack([right, down, np.full(right.size, self.focal_px)]) / self.focal_px


@dataclass(frozen=True)
class Solid:
    """An upright box, or the ellipsoid that it encloses.

    Attributes:
        centre: (3,) m.
        half_size: (3,) m, before turning.
        yaw: Turn about the vertical, radians.
        colour: (3,) RGB in 0..1.
        period_m: Period of the texture, m.
        is_round: Whether it is the ellipsoid.
    """

    centre: np.ndarray
    half_size: np.ndarray
    yaw: float
    colour: np.ndarray
    period_m: float
    is_round: bool = False

    def _to_unit(self) -> np.ndarray:
        """Returns the (3, 3) matrix that makes it the cube from -1 to 1 or the unit sphere."""
        return _turned(self.yaw).T / self.half_size[:, None]

    def interval(self, origins: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the parameters (N,) at which rays enter and leave. If not enter < leave, the ray misses.

        Args:
            origins: (3, N) or (3, 1).
            directions: (3, N), of any length.
        """
        origins = self._to_unit() @ (origins - self.centre[:, None])
        directions = self._to_unit() @ directions
        with np.errstate(divide="ignore", invalid="ignore"):
            if self.is_round:
                a, half_b = (directions**2).sum(axis=0), (origins * directions).sum(axis=0)
                root = np.sqrt(half_b**2 - a * ((origins**2).sum(axis=0) - 1))  # NaN if the ray misses
                return (-half_b - root) / a, (-half_b + root) / a
            low, high = (-1 - origins) / directions, (1 - origins) / directions  # along a face: +-inf, or 0 / 0 in it
        return np.fmin(low, high).max(axis=0), np.fmax(low, high).min(axis=0)

    def normals(self, points: np.ndarray) -> np.ndarray:
        """Returns the outward normals (3, N) at points of its surface."""
        outward = self._to_unit() @ (points - self.centre[:, None])
        if not self.is_round:
            outward *= np.abs(outward) == np.abs(outward).max(axis=0)
        normals = self._to_unit().T @ outward
        return normals / np.linalg.norm(normals, axis=0)


@dataclass(frozen=True)
class Scene:
    """A closed box seen from within (room or street) and the solids in it.

    Attributes:
        hull: The enclosing box. The camera and everything else are inside.
        solids: What is in it.
        light: (3,) position of the lamp or of the (distant) sun, m.
        camera: The left eye.
    """

    hull: Solid
    solids: list[Solid]
    light: np.ndarray
    camera: Camera

    def is_hidden(self, points: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Tells for each of the points (3, N) whether a solid lies between it and ``target`` (3,)."""
        directions = target[:, None] - points
        hidden = np.zeros(points.shape[1], dtype=bool)
        for solid in self.solids:  # the hull is convex: it hides nothing inside it
            enter, leave = solid.interval(points, directions)
            hidden |= (enter < leave) & (enter < 1 - _SEGMENT_END) & (leave > _SEGMENT_END)
        return hidden


def _texture(points: np.ndarray, period_m: np.ndarray, footprint_m: np.ndarray) -> np.ndarray:
    """Returns brightness (N,) about 1: coarse and fine checks, which fade out where they are as small as a pixel.

    Args:
        points: (3, N) m.
        period_m: (N,) of the coarse checks, m.
        footprint_m: (N,) what a pixel covers of the surface, m.
    """
    brightness = np.ones(points.shape[1])
    for finer, amplitude in ((1.0, 0.2), (4.3, 0.1)):
        waves = np.sin(2 * np.pi * finer / period_m * points + np.array([[1.0], [2.0], [3.0]])).prod(axis=0)
        contrast = np.maximum(period_m / finer / footprint_m / 4 - 0.5, 0)
        brightness += amplitude * np.clip(contrast * waves, -1, 1)
    return brightness


def render(scene: Scene, height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Renders a scene.

    Args:
        scene: What to show.
        height: Height of the picture, pixels.
        width: Width of the picture, pixels.

    Returns:
        The picture, (height, width, 3) uint8 RGB; the depth along the optical axis, (height, width) float32, m; and
        the world positions of what the pixels show, (3, height * width), m.
    """
    rays = scene.camera.rays(height, width)
    origin = scene.camera.position[:, None]
    depth = scene.hull.interval(origin, rays)[1]  # seen from within
    owner = np.zeros(depth.size, dtype=int)
    for index, solid in enumerate(scene.solids, start=1):
        enter, leave = solid.interval(origin, rays)
        nearer = (enter < leave) & (enter > 0) & (enter < depth)
        depth[nearer], owner[nearer] = enter[nearer], index
    points = origin + rays * depth

    solids = [scene.hull, *scene.solids]
    normals = np.empty_like(points)
    for index, solid in enumerate(solids):
        normals[:, owner == index] = solid.normals(points[:, owner == index])
    slant = (normals * rays).sum(axis=0)
    normals *= -np.sign(slant)  # towards the camera, in the hull, too
    footprint_m = depth / scene.camera.focal_px / np.maximum(np.abs(slant), 0.05)
    period_m = np.array([solid.period_m for solid in solids])[owner]
    to_light = scene.light[:, None] - points
    cosine = (normals * to_light).sum(axis=0) / np.linalg.norm(to_light, axis=0)
    lit = ~scene.is_hidden(points, scene.light) * np.maximum(cosine, 0)
    light = (0.5 + 0.15 * cosine + 0.4 * lit) * _texture(points, period_m, footprint_m)
    colours = np.array([solid.colour for solid in solids])[owner].T * light
    colours = 0.8 + (colours - 0.8) * np.exp(-depth / _HAZE_M)
    image = np.rint(np.clip(colours, 0, 1) * 255).astype(np.uint8)
    return image.T.reshape(height, width, 3), depth.reshape(height, width).astype(np.float32), points


def draw_scene(rng: np.random.Generator, height: int, width: int, setting: Optional[str] = None) -> Scene:
    """Draws a scene and a camera for pictures of that size.

    Args:
        rng: Source of the random choices; the same state gives the same scene.
        height: Height of the picture, pixels.
        width: Width of the picture, pixels.
        setting: ``"room"`` (depths below 10 m) or ``"street"`` (below 72 m); None draws one of them.
    """
    ranges = _RANGES[setting or rng.choice(list(_RANGES))]

    def draw(name: str) -> np.ndarray:
        return rng.uniform(*ranges[name])

    def make_solid(centre: list[float], half_size: np.ndarray, yaw: float = 0.0, is_round: bool = False) -> Solid:
        colour = rng.uniform(0.4, 1) * rng.uniform(0.5, 1, 3)
        return Solid(np.array(centre), half_size, yaw, colour, draw("period"), is_round)

    half_size = draw("hull") / 2
    z = 0.8 * half_size[2]  # of the middle: a tenth of the length is behind the camera
    hull = make_solid([0, 1 - half_size[1], z], half_size)
    solids = [make_solid([0, half_size[1], z], half_size)]  # the ground
    focal_px = max(height, width) / 2 / np.tan(np.radians(rng.uniform(55, 75)) / 2)  # of the field of view
    camera = Camera(draw("eye"), np.radians(draw("yaw")), np.radians(draw("pitch")), focal_px)
    for _ in range(rng.integers(*ranges["count"])):
        size = rng.uniform(*rng.choice(ranges["half_sizes"]))
        radius = np.hypot(size[0], size[2])
        z = np.exp(rng.uniform(*np.log([ranges["nearest"] + radius, 1.8 * half_size[2] - radius])))
        x = camera.position[0] + z * np.tan(camera.yaw + np.radians(rng.uniform(-27, 27)))  # in view
        x = np.clip(x, radius - half_size[0], half_size[0] - radius)  # and between the walls
        solids.append(make_solid([x, -size[1], z], size, rng.uniform(-np.pi, np.pi), rng.random() < 0.4))
    return Scene(hull, solids, draw("light"), camera)


def render_scene(
    rng: np.random.Generator, height: int, width: int, setting: Optional[str] = None
) -> tuple[np.ndarray, np.ndarray]:
    """Draws a scene and renders it. The arguments are those of `draw_scene`; the results the first two of `render`."""
    return render(draw_scene(rng, height, width, setting), height, width)[:2]
