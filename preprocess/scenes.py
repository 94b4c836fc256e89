"""Small ray-cast scenes with exact depth: rooms and streets that hold boxes and spheres.

World and camera axes point the same way: x right, y DOWN, z forward. Lengths are metres and the ground is y = 0. Rays
have component 1 along the optical axis, so the parameter at which a ray meets a surface is the depth that is stored:
picture and depth come from the same intersection.

Arrays of vectors have shape (3, N), one column per pixel in row-major order.
"""

from dataclasses import dataclass
from typing import Optional, Union

import numpy as np

# Every depth in a setting is smaller than this, m: the caps of the indoor and of the strictest outdoor benchmark.
MAX_DEPTH_M = {"room": 10.0, "street": 72.0}
AMBIENT_LIGHT = 0.5
_SEGMENT_END = 1e-7  # share of a segment left out at either end, so that a surface does not hide itself
_NOISE_CELLS = 64


@dataclass(frozen=True)
class Material:
    """A surface covered with cells of two colours, with grain.

    Attributes:
        colours: (2, 3) RGB in 0..1: between the cells, and in them.
        period_m: Width and height of a cell, m.
        fill: Share of the cell's width and height that has the second colour.
        shift: Shift of every other row, as a share of a cell (0.5 for bricks).
        checker: Whether every other cell is left out, as on a chess board.
    """

    colours: np.ndarray
    period_m: tuple[float, float]
    fill: tuple[float, float]
    shift: float = 0.0
    checker: bool = False


@dataclass(frozen=True)
class Camera:
    """A pinhole camera. Angles are in radians; a positive pitch looks down, a positive yaw to the right."""

    position: np.ndarray
    yaw: float
    pitch: float
    focal_px: float

    def axes(self) -> np.ndarray:
        """Returns the (3, 3) matrix whose columns are the camera's right, down and forward in the world."""
        sin_yaw, cos_yaw = np.sin(self.yaw), np.cos(self.yaw)
        sin_pitch, cos_pitch = np.sin(self.pitch), np.cos(self.pitch)
        return np.array(
            [
                [cos_yaw, -sin_yaw * sin_pitch, sin_yaw * cos_pitch],
                [0.0, cos_pitch, sin_pitch],
                [-sin_yaw, -cos_yaw * sin_pitch, cos_yaw * cos_pitch],
            ]
        )

    def rays(self, height: int, width: int) -> np.ndarray:
        """Returns the (3, height * width) world directions through the pixel centres, of unit optical component."""
        right = (np.arange(width) + 0.5 - width / 2) / self.focal_px
        down = (np.arange(height) + 0.5 - height / 2) / self.focal_px
        right, down = np.meshgrid(right, down)
        return self.axes() @ np.stack([right.ravel(), down.ravel(), np.ones(right.size)])


@dataclass(frozen=True)
class Box:
    """An upright box, turned by ``yaw`` about the vertical.

    Attributes:
        centre: (3,) m.
        half_size: (3,) m, before turning.
        yaw: Radians.
        materials: One for each of the faces -x, +x, -y (top), +y, -z, +z.
    """

    centre: np.ndarray
    half_size: np.ndarray
    yaw: float
    materials: list[Material]

    def _axes(self) -> np.ndarray:
        sin, cos = np.sin(self.yaw), np.cos(self.yaw)
        return np.array([[cos, 0.0, sin], [0.0, 1.0, 0.0], [-sin, 0.0, cos]])

    def interval(self, origins: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the parameters (N,) at which rays enter and leave. A ray that misses enters after it leaves.

        Args:
            origins: (3, N) or (3, 1).
            directions: (3, N), of any length.
        """
        to_local = self._axes().T
        local_origins = to_local @ (origins - self.centre[:, None])
        with np.errstate(divide="ignore", invalid="ignore"):  # a ray along a face meets it at +-inf, or 0 / 0 in it
            inverse = 1.0 / (to_local @ directions)
            low = (-self.half_size[:, None] - local_origins) * inverse
            high = (self.half_size[:, None] - local_origins) * inverse
        return np.fmin(low, high).max(axis=0), np.fmax(low, high).min(axis=0)

    def surface(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns outward normals (3, N), texture coordinates (2, N) in metres and face indices (N,) of its points."""
        axes = self._axes()
        local = axes.T @ (points - self.centre[:, None])
        axis = np.abs(local / self.half_size[:, None]).argmax(axis=0)
        pixels = np.arange(points.shape[1])
        outward = local[axis, pixels] > 0
        normals = axes[:, axis] * np.where(outward, 1.0, -1.0)
        across = np.where(axis == 0, local[2], local[0])
        along = np.where(axis == 1, local[2], local[1])
        return normals, np.stack([across, along]), 2 * axis + outward


@dataclass(frozen=True)
class Sphere:
    """A ball. ``centre`` (3,) and ``radius`` are in metres; ``materials`` holds one material."""

    centre: np.ndarray
    radius: float
    materials: list[Material]

    def interval(self, origins: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `Box.interval`."""
        from_centre = origins - self.centre[:, None]
        a = (directions**2).sum(axis=0)
        half_b = (from_centre * directions).sum(axis=0)
        discriminant = half_b**2 - a * ((from_centre**2).sum(axis=0) - self.radius**2)
        hit = discriminant > 0
        root = np.sqrt(np.where(hit, discriminant, 0.0))
        return np.where(hit, (-half_b - root) / a, np.inf), np.where(hit, (-half_b + root) / a, -np.inf)

    def surface(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As `Box.surface`; the texture coordinates are arc lengths of longitude and latitude."""
        normals = (points - self.centre[:, None]) / self.radius
        longitude = np.arctan2(normals[0], -normals[2])
        latitude = np.arcsin(np.clip(normals[1], -1, 1))
        coordinates = self.radius * np.stack([longitude, latitude])
        return normals, coordinates, np.zeros(points.shape[1], dtype=int)


@dataclass(frozen=True)
class Scene:
    """A closed box seen from within (room or street) and the solids in it.

    Attributes:
        hull: The enclosing box. The camera and everything else are inside.
        solids: Boxes and spheres.
        light: (3,) position of the lamp or of the (distant) sun, m.
        haze_m: Distance over which the air takes 63 % of the contrast, m; infinite in rooms.
        noise: (64, 64) values in 0..1, the source of grain and of the tint of single cells.
        camera: The left eye.
    """

    hull: Box
    solids: list[Union[Box, Sphere]]
    light: np.ndarray
    haze_m: float
    noise: np.ndarray
    camera: Camera

    def is_hidden(self, points: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Tells for each of the points (3, N) whether a solid lies between it and ``target`` (3,)."""
        directions = target[:, None] - points
        hidden = np.zeros(points.shape[1], dtype=bool)
        for solid in self.solids:  # the hull is convex: it hides nothing inside it
            enter, leave = solid.interval(points, directions)
            hidden |= (enter < leave) & (enter < 1 - _SEGMENT_END) & (leave > _SEGMENT_END)
        return hidden


@dataclass(frozen=True)
class View:
    """What a camera sees.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        depth: (H, W) float32 along the optical axis, m.
        points: (3, H * W) world positions of what the pixels show, m.
    """

    image: np.ndarray
    depth: np.ndarray
    points: np.ndarray


def _cells(position: np.ndarray, fill: float, blur: np.ndarray) -> np.ndarray:
    """Coverage 0..1 of cells of width ``fill`` with spacing 1, smoothed over ``blur`` (in cells) against aliasing."""
    inside = (fill / 2 - np.abs(position % 1.0 - 0.5)) / blur + 0.5
    return np.where(blur < 0.5, np.clip(inside, 0, 1), fill)


def _grain(noise: np.ndarray, across: np.ndarray, along: np.ndarray) -> np.ndarray:
    """Smooth noise in -0.5..0.5 that varies over one unit: ``noise`` interpolated bilinearly and repeated."""
    column, row = np.floor(across).astype(int), np.floor(along).astype(int)
    x, y = across - column, along - row
    left, right = column % _NOISE_CELLS, (column + 1) % _NOISE_CELLS
    top, bottom = row % _NOISE_CELLS, (row + 1) % _NOISE_CELLS
    upper = noise[top, left] * (1 - x) + noise[top, right] * x
    lower = noise[bottom, left] * (1 - x) + noise[bottom, right] * x
    return upper * (1 - y) + lower * y - 0.5


def _albedo(material: Material, coordinates: np.ndarray, footprint: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Colours (3, N) of a material where a pixel covers ``footprint`` metres; detail finer than that fades out."""
    across, along = coordinates[0] / material.period_m[0], coordinates[1] / material.period_m[1]
    row = np.floor(along).astype(int)
    across = across + material.shift * (row % 2)
    column = np.floor(across).astype(int)
    blur = footprint / min(material.period_m)
    sharp = np.clip(1.5 - 2 * blur, 0, 1)
    coverage = _cells(across, material.fill[0], blur) * _cells(along, material.fill[1], blur)
    if material.checker:
        coverage = 0.5 * coverage + sharp * coverage * ((row + column) % 2 - 0.5)
    between, within = material.colours[:, :, None]
    colours = between + (within - between) * coverage
    tint = 0.25 * sharp * (noise[row % _NOISE_CELLS, column % _NOISE_CELLS] - 0.5)
    for grain_m, amplitude in ((0.06, 0.25), (0.9, 0.35)):
        fade = np.clip(1.5 - footprint / grain_m, 0, 1)
        tint += amplitude * fade * _grain(noise, coordinates[0] / grain_m, coordinates[1] / grain_m)
    return colours * (1 + tint)


def render(scene: Scene, height: int, width: int, camera: Optional[Camera] = None) -> View:
    """Renders a scene.

    Args:
        scene: What to show.
        height: Height of the picture, pixels.
        width: Width of the picture, pixels.
        camera: The camera; None for the scene's own.

    Returns:
        Picture, depth and the surface points behind the pixels.
    """
    camera = scene.camera if camera is None else camera
    rays = camera.rays(height, width)
    origin = camera.position[:, None]
    depth = scene.hull.interval(origin, rays)[1]  # seen from within
    owner = np.zeros(depth.size, dtype=int)
    for index, solid in enumerate(scene.solids, start=1):
        enter, leave = solid.interval(origin, rays)
        nearer = (enter < leave) & (enter > 0) & (enter < depth)
        depth[nearer], owner[nearer] = enter[nearer], index
    points = origin + rays * depth

    colours = np.empty_like(points)
    to_light = scene.light[:, None] - points
    to_light /= np.linalg.norm(to_light, axis=0)
    lit = ~scene.is_hidden(points, scene.light)
    for index, solid in enumerate([scene.hull, *scene.solids]):
        pixels = np.flatnonzero(owner == index)
        normals, coordinates, faces = solid.surface(points[:, pixels])
        if index == 0:
            normals = -normals
        ray_lengths = np.linalg.norm(rays[:, pixels], axis=0)
        facing = np.abs((normals * rays[:, pixels]).sum(axis=0)) / ray_lengths
        footprint = depth[pixels] / camera.focal_px / np.maximum(facing, 0.05)
        lambert = np.maximum((normals * to_light[:, pixels]).sum(axis=0), 0) * lit[pixels]
        light = AMBIENT_LIGHT + (1.05 - AMBIENT_LIGHT) * lambert
        for face, material in enumerate(solid.materials):
            at = np.flatnonzero(faces == face)
            albedo = _albedo(material, coordinates[:, at], footprint[at], scene.noise)
            colours[:, pixels[at]] = albedo * light[at]
    clear = np.exp(-depth / scene.haze_m)
    colours = 0.8 + (colours - 0.8) * clear
    image = np.rint(np.clip(colours, 0, 1) * 255).astype(np.uint8)
    return View(image.T.reshape(height, width, 3), depth.reshape(height, width).astype(np.float32), points)


def _draw_colours(rng: np.random.Generator) -> np.ndarray:
    """Draws a muted colour and a clearly darker version of it, (2, 3), in random order."""
    colour = rng.uniform(0.1, 1.0, 3)
    colour = (0.65 * colour + 0.35 * colour.mean()) * rng.uniform(0.75, 1.0)
    return np.stack([colour, colour * rng.uniform(0.45, 0.75)])[rng.permutation(2)]


def _draw_material(rng: np.random.Generator, kind: str, size_m: float) -> Material:
    """Draws a material of that kind (a key of the table below) with cells of about ``size_m`` metres."""
    shapes = {  # width and height of a cell, share of it that is filled, shift of every other row
        "tiles": ((1.0, 1.0), (0.93, 0.93), 0.0),
        "checker": ((1.0, 1.0), (1.0, 1.0), 0.0),
        "planks": ((0.35, 2.5), (0.92, 0.99), 0.37),
        "bricks": ((1.0, 0.45), (0.94, 0.86), 0.5),
        "windows": ((1.0, 1.3), (0.5, 0.55), 0.0),
        "plain": ((1.0, 1.0), (1.0, 1.0), 0.0),
    }
    (width, height), fill, shift = shapes[kind]
    return Material(_draw_colours(rng), (width * size_m, height * size_m), fill, shift, kind == "checker")


def _draw_camera(
    rng: np.random.Generator,
    longer_side_px: int,
    position: np.ndarray,
    yaw_deg: tuple[float, float],
    pitch_deg: tuple[float, float],
) -> Camera:
    """Draws a camera with a field of view of 55 to 75 degrees along the longer side."""
    focal_px = longer_side_px / 2 / np.tan(np.radians(rng.uniform(55, 75)) / 2)
    return Camera(position, np.radians(rng.uniform(*yaw_deg)), np.radians(rng.uniform(*pitch_deg)), focal_px)


def _place_solid(
    rng: np.random.Generator,
    hull: Box,
    camera: Camera,
    distance_m: tuple[float, float],
    size: np.ndarray,
    material: Material,
) -> list[Union[Box, Sphere]]:
    """Places a solid on the ground in view of the camera.

    Args:
        rng: Source of the random choices.
        hull: The box that the solid must stay in.
        camera: The camera.
        distance_m: Least and greatest distance to the camera.
        size: (3,) m of a box, or the radius of a sphere (which sinks a little into the ground).
        material: Material of all faces.

    Returns:
        The solid in a list, which is empty if a wall would push the solid too close to the camera.
    """
    radius = size if np.ndim(size) == 0 else np.hypot(size[0], size[2]) / 2
    near, far = distance_m
    distance = np.exp(rng.uniform(np.log(near), np.log(far)))
    bearing = camera.yaw + np.radians(rng.uniform(-27, 27))
    turn = rng.uniform(-np.pi, np.pi)
    place = camera.position + distance * np.array([np.sin(bearing), 0.0, np.cos(bearing)])
    room = hull.half_size - radius
    place = np.clip(place, hull.centre - room, hull.centre + room)
    if np.hypot(*(place - camera.position)[[0, 2]]) - radius < 0.7 * near:
        return []
    if np.ndim(size) == 0:
        place[1] = -0.9 * radius
        return [Sphere(place, radius, [material])]
    place[1] = -size[1] / 2
    return [Box(place, size / 2, turn, [material] * 6)]


def _draw_room(rng: np.random.Generator, longer_side_px: int) -> Scene:
    """Draws a furnished room. Its diagonal from the camera stays below 10 m."""
    width, height, length = rng.uniform([3.4, 2.4, 5.0], [4.6, 3.0, 8.0])
    wall = _draw_material(rng, rng.choice(["bricks", "plain", "planks", "tiles"]), rng.uniform(0.3, 0.6))
    end = _draw_material(rng, rng.choice(["bricks", "plain", "tiles"]), rng.uniform(0.3, 0.6))
    floor = _draw_material(rng, rng.choice(["tiles", "checker", "planks"]), rng.uniform(0.3, 0.6))
    ceiling = Material(rng.uniform(0.75, 0.95, (2, 3)), (0.6, 0.6), (0.95, 0.95))
    hull = Box(
        np.array([0.0, -height / 2, length / 2 - 0.5]),
        np.array([width, height, length]) / 2,
        0.0,
        [wall, wall, ceiling, floor, end, end],
    )
    position = np.array([rng.uniform(-0.2, 0.2) * width, -rng.uniform(1.2, 1.7), 0.0])
    camera = _draw_camera(rng, longer_side_px, position, (-20, 20), (4, 18))
    solids: list[Union[Box, Sphere]] = []
    for _ in range(rng.integers(4, 8)):
        if rng.random() < 0.6:
            size = rng.uniform([0.3, 0.3, 0.3], [0.9, 1.4, 0.9])
            material = _draw_material(rng, rng.choice(["plain", "planks", "checker", "bricks"]), rng.uniform(0.1, 0.3))
        else:
            size = rng.uniform(0.15, 0.45)
            material = _draw_material(rng, rng.choice(["plain", "checker", "tiles"]), rng.uniform(0.1, 0.25))
        solids += _place_solid(rng, hull, camera, (1.4, length - 1.5), size, material)
    light = np.array([rng.uniform(-0.3, 0.3) * width, -0.95 * height, rng.uniform(0.3, 0.7) * length])
    return Scene(hull, solids, light, np.inf, rng.random((_NOISE_CELLS, _NOISE_CELLS)), camera)


def _draw_street(rng: np.random.Generator, longer_side_px: int) -> Scene:
    """Draws a street that ends at a house. The houses are so tall that no ray passes above them.

    The camera's angles are so small that every ray has a component of at least 0.8 along the street. The street ends
    at 56 m or nearer, so no depth reaches 72 m.
    """
    half_width, end_m, wall_m = rng.uniform(4.5, 9.0), rng.uniform(30, 56), 200.0
    road = _draw_material(rng, rng.choice(["plain", "tiles", "planks", "bricks"]), rng.uniform(0.7, 1.5))
    left, right, end = (
        _draw_material(rng, rng.choice(["windows", "windows", "bricks"]), rng.uniform(1.8, 3.5)) for _ in range(3)
    )
    hull = Box(
        np.array([0.0, -wall_m / 2, end_m / 2 - 2.5]),
        np.array([half_width, wall_m / 2, end_m / 2 + 2.5]),
        0.0,
        [left, right, road, road, end, end],
    )
    position = np.array([rng.uniform(-0.4, 0.4) * half_width, -rng.uniform(1.4, 2.2), 0.0])
    camera = _draw_camera(rng, longer_side_px, position, (-8, 8), (-2, 5))
    solids: list[Union[Box, Sphere]] = []
    for _ in range(rng.integers(8, 14)):
        kind = rng.choice(["car", "pillar", "bush"])
        if kind == "bush":
            size = rng.uniform(0.4, 1.3)
        elif kind == "car":
            size = rng.uniform([1.6, 1.3, 3.2], [1.9, 2.2, 4.6])
        else:
            size = rng.uniform([0.3, 3.0, 0.3], [0.9, 6.0, 0.9])
        material = _draw_material(rng, rng.choice(["plain", "tiles", "bricks", "checker"]), rng.uniform(0.3, 0.7))
        solids += _place_solid(rng, hull, camera, (4.5, end_m - 4), size, material)
    elevation, azimuth = np.radians(rng.uniform(35, 65)), rng.uniform(-np.pi, np.pi)
    light = 500 * np.array(
        [np.cos(elevation) * np.sin(azimuth), -np.sin(elevation), np.cos(elevation) * np.cos(azimuth)]
    )
    return Scene(hull, solids, light, 150.0, rng.random((_NOISE_CELLS, _NOISE_CELLS)), camera)


def draw_scene(rng: np.random.Generator, height: int, width: int, setting: Optional[str] = None) -> Scene:
    """Draws a scene and a camera for pictures of that size.

    Args:
        rng: Source of the random choices; the same state gives the same scene.
        height: Height of the picture, pixels.
        width: Width of the picture, pixels.
        setting: ``"room"`` (depths below 10 m) or ``"street"`` (below 72 m); None draws one of them.
    """
    if setting is None:
        setting = "room" if rng.random() < 0.5 else "street"
    draw = {"room": _draw_room, "street": _draw_street}[setting]
    return draw(rng, max(height, width))


def render_scene(
    rng: np.random.Generator, height: int, width: int, setting: Optional[str] = None
) -> tuple[np.ndarray, np.ndarray]:
    """Draws a scene and renders it. The arguments are those of `draw_scene`.

    Returns:
        The picture, (height, width, 3) uint8 RGB, and the depth along the optical axis, (height, width) float32, m.
    """
    view = render(draw_scene(rng, height, width, setting), height, width)
    return view.image, view.depth
