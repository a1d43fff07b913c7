"""Image files: of known formats only, turned as their EXIF data say."""

import os

from PIL import Image, ImageOps

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM")  # others start programs, say EPS
ORIENTATION = 0x0112  # EXIF tag; 1 is upright
# What Pillow raises over a damaged file.
UNREADABLE = (
    OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, OverflowError, MemoryError,
    RecursionError, NotImplementedError, EOFError, Image.DecompressionBombError,
)  # fmt: skip


def open_image(file, turned=None):
    """Open an image file of one of FORMATS, for `with`.

    Args:
        file: path.
        turned: list that takes the path if EXIF data turn the image.

    Raises:
        UNREADABLE: if it is no such file; a pipe or device is not opened.
    """
    if not os.path.isfile(file):
        raise OSError("it is no file")
    image = Image.open(file, formats=FORMATS)
    if image.getexif().get(ORIENTATION, 1) == 1:
        return image
    if turned is not None:
        turned.append(file)
    with image:
        return ImageOps.exif_transpose(image)
