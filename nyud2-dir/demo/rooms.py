"""Made-up rooms and a ray caster that gives a picture of one and its exact depth.

A room is a box with boxes, spheres and lamps in it; textures have a fixed size in metres, so that
a network can tell distances by them. All numbers here are chosen by eye.
"""

from typing import NamedTuple

import numpy as np

FOCAL = 518.9 / 480  # in picture heights: the Kinect's that took NYU's scenes
RANGE = 10.0  # metres, the sensor's: what is farther counts as this
# Name, share of the scenes, least and largest width and length of the room (m).
KINDS = (
    ("bathroom", 0.12, (1.9, 2.8), (2.2, 3.4)),
    ("bedroom", 0.30, (2.8, 4.2), (3.2, 5.0)),
    ("kitchen", 0.25, (2.4, 3.8), (3.0, 5.5)),
    ("living_room", 0.23, (3.4, 5.2), (4.5, 7.5)),
    ("hall", 0.10, (3.0, 7.0), (7.5, 11.5)),
)
# Furniture that is a box: size along x, y and z (m). Cupboard, table, bed, stool, chest, case.
FURNITURE = (
    (0.9, 0.5, 1.9), (1.6, 0.8, 0.74), (1.9, 1.0, 0.5), (0.45, 0.45, 0.46), (0.8, 0.35, 0.85),
    (0.35, 0.3, 0.3),
)  # fmt: skip


class Solid(NamedTuple):
    """A box (low and high corner) or a sphere (centre and radius in `high`), and its surface."""

    is_box: bool
    low: np.ndarray  # float32 [3], m
    high: np.ndarray  # float32 [3], m
    colour: np.ndarray  # float32 [3] in [0, 1]
    texture: str  # 'plain', 'checks', 'stripes', 'planks' or 'glow'
    scale: float  # m, of the texture


class Scene(NamedTuple):
    """A room from the origin to `size`, its surfaces, what stands in it, and its lamps."""

    kind: str
    size: np.ndarray  # float32 [3]: width, length, height, m
    surfaces: list  # floor, ceiling, walls in x, walls in y: `Solid` for colour and texture
    solids: list
    lamps: np.ndarray  # float32 [n, 3], m


def make_scene(rng):
    """Draw a room from a `numpy.random.Generator`."""
    kind, _, widths, lengths = KINDS[rng.choice(len(KINDS), p=[kind[1] for kind in KINDS])]
    size = np.float32([rng.uniform(*widths), rng.uniform(*lengths), rng.uniform(2.3, 2.9)])
    nothing = np.zeros(3, np.float32)

    def surface(colour, textures, scale):
        return Solid(True, nothing, nothing, np.float32(colour), str(rng.choice(textures)), scale)

    wall = rng.uniform(0.45, 0.95) * rng.uniform(0.8, 1, 3)
    surfaces = [
        surface(rng.uniform(0.25, 0.7, 3), ["checks", "planks"], 0.3),
        surface(rng.uniform(0.75, 1) * np.ones(3), ["plain"], 1.0),
        surface(wall, ["plain", "stripes"], 0.2),
        surface(wall * rng.uniform(0.85, 1), ["plain", "stripes"], 0.2),
    ]
    solids = [make_box(rng, size) for _ in range(rng.integers(3, 5 + int(size[0] * size[1] / 5)))]
    for _ in range(rng.integers(0, 4)):  # balls on the floor
        radius = np.float32(rng.uniform(0.1, 0.3))
        centre = np.float32([*(rng.uniform(0.05, 0.95, 2) * size[:2]), radius])
        colour = np.float32(rng.uniform(0, 1, 3))
        texture = str(rng.choice(["plain", "stripes"]))
        solids.append(Solid(False, centre, np.full(3, radius), colour, texture, 0.1))
    lamps = []
    for _ in range(rng.integers(1, 4)):  # a glowing ball that hangs from the ceiling by a rod
        place = rng.uniform(0.15, 0.85, 2) * size[:2]
        centre = np.float32([*place, size[2] - rng.uniform(0.3, 0.8)])
        low = centre - np.float32([0.01, 0.01, 0])
        high = centre + np.float32([0.01, 0.01, 2])
        ball = Solid(False, centre, np.full(3, 0.12, np.float32), np.float32([1, 1, 1]), "glow", 1)
        solids += [ball, Solid(True, low, high, np.full(3, 0.1, np.float32), "plain", 1)]
        lamps.append(centre - np.float32([0, 0, 0.15]))
    return Scene(kind, size, surfaces, solids, np.array(lamps, dtype=np.float32))


def make_box(rng, room):
    """Draw a piece of furniture, most often at a wall."""
    size = np.float32(FURNITURE[rng.integers(len(FURNITURE))]) * rng.uniform(0.85, 1.15)
    size = size[[1, 0, 2]] if rng.random() < 0.5 else size
    place = rng.uniform(0, 1, 2) * np.maximum(room[:2] - size[:2], 0)
    if rng.random() < 0.8:
        side = rng.integers(2)
        place[side] = rng.integers(2) * max(room[side] - size[side], 0)
    low = np.float32([*place, 0])
    low[2] = rng.uniform(1.2, 1.5) if size[2] < 0.4 and rng.random() < 0.5 else 0.0
    colour = np.float32(rng.uniform(0.1, 0.95, 3))
    texture = str(rng.choice(["plain", "planks", "stripes", "checks"], p=[0.5, 0.2, 0.2, 0.1]))
    return Solid(True, low, low + np.float32(size), colour, texture, 0.1)


def make_view(rng, scene, free=0.5):
    """Draw a camera `free` metres clear of furniture: position [3], axes right, down, forward."""
    while True:
        eye = np.float32([*(rng.uniform(0.06, 0.94, 2) * scene.size[:2]), rng.uniform(1.1, 1.7)])
        gaps = [np.linalg.norm(eye - np.clip(eye, s.low, s.high)) if s.is_box
                else np.linalg.norm(eye - s.low) - s.high[0] for s in scene.solids]  # fmt: skip
        target = scene.size * rng.uniform(0.2, 0.8, 3) * np.float32([1, 1, 0.7])
        forward = target - eye
        if min(gaps) > free and np.hypot(*forward[:2]) > 0.3 * np.hypot(*scene.size[:2]):
            break
        free *= 0.99  # a room full of furniture has no clear place
    forward = forward / np.linalg.norm(forward)
    right = np.cross(forward, [0, 0, 1])
    right /= np.linalg.norm(right)
    return eye, np.float32([right, np.cross(forward, right), forward])


# ---- rays ----------------------------------------------------------------------------------


def hit_box(eye, rays, low, high):
    """Return where rays [P, 3] enter a box, in lengths of the ray, and through which axis."""
    enter = np.full(len(rays), -np.inf, np.float32)
    leave = np.full(len(rays), np.inf, np.float32)
    axis = np.zeros(len(rays), np.int8)
    for k in range(3):  # column by column: a maximum over rows of three is slow
        with np.errstate(divide="ignore", invalid="ignore"):
            a = (low[k] - eye[..., k]) / rays[:, k]
            b = (high[k] - eye[..., k]) / rays[:, k]
        near = np.minimum(a, b)
        axis[near > enter] = k
        enter = np.fmax(enter, near)
        leave = np.fmin(leave, np.maximum(a, b))
    return np.where((enter < leave) & (enter > 1e-3), enter, np.inf), axis


def hit_sphere(eye, rays, centre, radius):
    """Return where rays [P, 3] enter a sphere, in lengths of the ray."""
    offset = eye - centre
    a, b = (rays * rays).sum(1), (rays * offset).sum(1)
    root = b * b - a * ((offset * offset).sum(-1) - radius * radius)
    t = (-b - np.sqrt(np.maximum(root, 0))) / a
    return np.where((root > 0) & (t > 1e-3), t, np.inf)


def shade(solid, u, v):
    """Return the colour [P, 3] of a surface at the texture coordinates u, v (m)."""
    u, v = u / solid.scale, v / solid.scale
    if solid.texture == "checks":
        light = 0.7 + 0.3 * ((np.floor(u) + np.floor(v)) % 2)
    elif solid.texture == "stripes":
        light = 0.85 + 0.15 * (np.floor(u) % 2)
    elif solid.texture == "planks":
        plank = np.floor(u)
        light = 0.8 + 0.2 * np.sin(plank * 12.9898) - 0.35 * (u - plank < 0.06)
        light = light + 0.05 * np.sin(4 * v + 7 * plank)
    else:
        light = np.ones_like(u)
    return solid.colour * light[:, None]


def render(scene, view, height=240):
    """Cast a ray through each pixel.

    Args:
        scene, view: of `make_scene` and `make_view`.
        height: of the picture; its width is 4/3 of it.

    Returns:
        Image float32 [height, width, 3] in about [0, 1], and depth along the optical axis float32
        [height, width] in metres, at most 10.
    """
    eye, axes = view
    width = height * 4 // 3
    y, x = np.mgrid[:height, :width].reshape(2, -1).astype(np.float32)
    x = (x + 0.5 - width / 2) / height
    y = (y + 0.5 - height / 2) / height
    # A ray's part along the optical axis is 1, so that its length in rays is the depth.
    rays = np.stack([x / FOCAL, y / FOCAL, np.ones_like(x)], axis=1) @ axes
    with np.errstate(divide="ignore", invalid="ignore"):
        ends = np.where(rays > 0, (scene.size - eye) / rays, -eye / rays)
    ends[rays == 0] = np.inf  # along a wall, which such a ray never meets
    axis, depth = ends.argmin(axis=1), ends.min(axis=1)
    point, up = eye + rays * depth[:, None], rays[:, 2] > 0
    normal = -np.sign(rays) * np.eye(3, dtype=np.float32)[axis]
    colour = np.empty_like(rays)
    for k, faces in ((0, [2]), (1, [3]), (2, [0, 1])):
        for face in faces:
            on = (axis == k) & (up == (face == 1) if k == 2 else True)
            uv = np.delete(point[on], k, axis=1)
            colour[on] = shade(scene.surfaces[face], uv[:, 0], uv[:, 1])
    glow = np.zeros(len(rays), dtype=bool)
    for solid in scene.solids:
        if solid.is_box:
            t, axis = hit_box(eye, rays, solid.low, solid.high)
        else:
            t = hit_sphere(eye, rays, solid.low, solid.high[0])
        on = t < depth
        depth[on], glow[on] = t[on], solid.texture == "glow"
        point[on] = eye + rays[on] * t[on, None]
        local = point[on] - solid.low
        if solid.is_box:
            normal[on] = -np.sign(rays[on]) * np.eye(3, dtype=np.float32)[axis[on]]
            across = np.eye(3, dtype=bool)[axis[on]]
            uv = local[~across].reshape(-1, 2)
        else:
            normal[on] = local / solid.high[0]
            uv = local[:, [2, 0]]
        colour[on] = shade(solid, uv[:, 0], uv[:, 1])
    light = np.where(glow, 1.4, np.minimum(lighting(scene, point, normal), 1.4))
    image = colour * light[:, None]
    return image.reshape(height, width, 3), np.minimum(depth, RANGE).reshape(height, width)


def lighting(scene, point, normal):
    """Return the light at each point: some from everywhere, and each lamp's with its shadows."""
    light = np.full(len(point), 0.3, dtype=np.float32)
    for lamp in scene.lamps:
        way = lamp - point
        square = (way * way).sum(1)
        seen = np.maximum((normal * way).sum(1), 0) / np.sqrt(square)
        for solid in scene.solids:
            if solid.texture != "glow" and solid.is_box:
                t, _ = hit_box(point + 1e-3 * normal, way, solid.low, solid.high)
                seen[t < 1] = 0
        light += 2.0 / len(scene.lamps) ** 0.5 * seen / (1 + square)
    return light
