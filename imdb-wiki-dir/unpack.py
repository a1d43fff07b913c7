"""An archive of cropped faces, `imdb_crop.tar` or `wiki_crop.tar`, unpacked safely.

What `demo_data.py` draws bears a mark, in its archives and so in the folders unpacked from them.
Only that mark tells the generated faces from the real ones.
"""

import contextlib
import tarfile

import archive
from fetch import compare_with_record, sha256_of, sole_use, write_record

# Bytes on the disk for a byte of archive: small files fill up their last block of 4 KiB.
UNPACKED = 1.25
MARK = "made_by_demo_data"  # an empty file, the first of a demo's archive


def is_demo(path):
    """Return whether a folder `<source>_crop`, or an archive of one, bears the demo's mark."""
    if path.is_dir():
        return (path / MARK).is_file()
    if not path.is_file():
        return False
    with contextlib.suppress(OSError, tarfile.TarError), tarfile.open(path, "r:") as archive:
        first = archive.next()
        return first is not None and first.name == f"{path.name.removesuffix('.tar')}/{MARK}"
    return False


def unpack_archive(path, data_dir, overwrite=False):
    """Unpack `<source>_crop.tar` into `<data_dir>/<source>_crop`, which appears when it is whole.

    The sha256 of the first archive is recorded and compared from then on, but not a demo's: no
    checksum is published.

    Returns:
        The number of images.

    Raises:
        ValueError: as `archive.unpack`; or another archive than the first.
    """
    top = path.name.removesuffix(".tar")

    def choose(sizes):
        """Return images, MATLAB file and mark, at the places that they have in the archive."""
        outside = [name for name in sizes if not name.startswith(f"{top}/")]
        if outside:
            raise ValueError(f"{outside[0]!a} leads out of {top}: the archive is refused")
        matlab = f"{top}/{top.removesuffix('_crop')}.mat"
        if matlab not in sizes:
            raise ValueError(f"{path} holds no {matlab}: is it the right archive?")
        wanted = (".jpg", ".mat", f"/{MARK}")
        return {name: name for name in sizes if name.endswith(wanted)}

    with sole_use(data_dir):
        record = data_dir / path.name
        digest = None if is_demo(path) else compare_with_record(path, record)
        places = archive.unpack(path, data_dir, choose, overwrite)
        if digest:
            write_record(record, digest)
        matlab = data_dir / top / f"{top.removesuffix('_crop')}.mat"
        write_record(matlab, sha256_of(matlab))  # looked at before the file is read
    images = sum(place.endswith(".jpg") for place in places)
    print(f"wrote {data_dir / top}, {images:,} images")
    return images
