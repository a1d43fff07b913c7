"""What the pictures share: colours, our own code loaded from its folder, PNG and GIF."""

import io
import sys
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tools"))

from load import load as load  # noqa: E402 - found through the line above

# One colour, one meaning: plain or not smoothed, LDS or smoothed, FDS; counts and text are grey.
# After Okabe and Ito (2008), darker, so that a line's contrast with white is at least 4.5.
VERMILLION, BLUE, GREEN = "#BF4A00", "#0072B2", "#00795A"
GREY, DARK = "#BBBBBB", "#555555"
# The shots have colours of their own, and a hatching, so that neither alone tells them apart.
SHOTS = {"many": ("#5E4FA2", ""), "medium": ("#857518", "////"), "few": ("#C2185B", "xxxx")}
DPI = 100
TIMES = 3  # an animation is played, then it rests on its last frame


def new_figure(width, height):
    """Return an empty figure of so many pixels; its white is legible on a dark page, too."""
    return Figure((width / DPI, height / DPI), dpi=DPI, facecolor="white")


def tidy(*axes):
    """Take the upper and right line off."""
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)


def ease(share):
    """Return a share of the way, 0 to 1, slowed down at both ends."""
    return 3 * share**2 - 2 * share**3


def image_of(figure):
    """Return a figure as an RGB image."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])


def png_bytes(figure):
    """Return a figure as a PNG."""
    return picture_bytes(image_of(figure))


def picture_bytes(image):
    """Return an RGB image as a PNG of 64 colours, so that it is small."""
    content = io.BytesIO()
    picture = image.quantize(64, dither=Image.Dither.NONE)
    picture.save(content, format="PNG", optimize=True)
    return content.getvalue()


def gif_bytes(frames):
    """Return frames as a GIF that is played TIMES times.

    Args:
        frames: list of (RGB image, time it stays in milliseconds), all of one size.

    Returns:
        Bytes; the frames share a palette of 96 colours, without which their greys would flicker.
    """
    chosen = [image for image, _ in frames[:: max(1, len(frames) // 6)]] + [frames[-1][0]]
    together = np.concatenate([np.asarray(image) for image in chosen])
    palette = Image.fromarray(together).quantize(96, dither=Image.Dither.NONE)
    colours = np.array(palette.getpalette()).reshape(-1, 3)
    # Pillow's look-up of the nearest colour is not exact: white would become nearly white.
    colours[colours.min(1) >= 245] = 255
    palette.putpalette(colours.ravel().tolist())
    pictures = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image, _ in frames]
    content = io.BytesIO()
    pictures[0].save(
        content, format="GIF", save_all=True, append_images=pictures[1:], loop=TIMES - 1,
        optimize=False, duration=[time for _, time in frames],
    )  # fmt: skip
    return content.getvalue()
