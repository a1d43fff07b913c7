"""A picture of a made-up face of a given age, from the shapes of `demo/faces.py`."""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from demo.faces import CIRCLE, Pen, draw_hair, draw_head, draw_parts, draw_traits


def make_face(age, rng, img_size=96, gender=None):
    """Draw one face.

    Args:
        age: in years, 0 to 120.
        rng: `numpy.random.Generator`; the same state gives the same picture.
        img_size: side of the square picture in pixels, >= 16.
        gender: "m" or "f"; drawn if None.
    Returns:
        PIL image, RGB.
    Raises:
        ValueError: an argument is none of these.
    """
    if not 0 <= age <= 120 or img_size < 16 or gender not in (None, "m", "f"):
        raise ValueError(
            f"age {age}, img_size {img_size}, gender {gender!r}: the age must be in [0, 120], "
            "the size >= 16, the gender 'm', 'f' or None"
        )
    male, size = (gender or "mf"[rng.integers(2)]) == "m", 2 * img_size  # drawn at twice the size
    f, pen = draw_traits(age, male, rng), Pen(size, rng)
    fade = rng.normal(125, 45) + rng.normal(0, 25, 3) + np.outer((-1, 1), rng.normal(0, 25, 3))
    ground = Image.fromarray(np.clip(fade, 0, 255).astype(np.uint8)[:, None])  # [2, 1, 3]
    image = ground.resize((size, size), Image.Resampling.BILINEAR)
    pen.draw = ImageDraw.Draw(image, "RGBA")
    draw_parts(pen, f, f.layers & {"long"})
    draw_parts(pen, f, {"base"})
    draw_head(pen, f)
    draw_parts(pen, f, {"soft"} | f.layers & {"beard"})
    image = image.filter(ImageFilter.BoxBlur(size / 48))  # all so far has soft edges
    pen.draw = ImageDraw.Draw(image, "RGBA")
    for _ in range(int(rng.uniform(60, 90) * f.old)):  # mottled skin
        where = rng.uniform(-0.75, 0.75) + 1j * rng.uniform(-0.95, 0.95)
        spot = where + rng.uniform(0.02, 0.09) * CIRCLE[::4]
        pen.fill(spot, (*f.colours["shadow"], int(rng.uniform(10, 50))))
    draw_parts(pen, f, {"line", "face"} | f.layers - {"long", "beard"})
    draw_hair(pen, f, rng)

    # The picture: sharpness, light from one side, exposure, colour cast, noise.
    image = image.resize((img_size, img_size), Image.Resampling.BOX)
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.8)))
    across = np.linspace(-1, 1, img_size) * rng.normal(0, 0.12, 2)[:, None]
    light = (1 + across[0] + across[1][:, None]) * rng.uniform(0.75, 1.15)
    pixels = np.asarray(image, dtype=float) * light[..., None] * rng.normal(1, 0.04, 3)
    if rng.random() < 0.15:  # black and white, as many of AgeDB's pictures are
        pixels[:] = pixels.mean(axis=2, keepdims=True)
    pixels += rng.normal(0, rng.uniform(1, 7), pixels.shape)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
