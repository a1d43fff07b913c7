"""An archive of cropped faces, `imdb_crop.tar` or `wiki_crop.tar`, unpacked safely.

What `demo_data.py` draws bears a mark, in its archives and so in the folders that come of them: by
it alone the generated faces are told from the real ones.
"""

import contextlib
import shutil
import tarfile
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm import tqdm

from released import compare_with_record, sha256_of

# Bytes on the disk for a byte of archive: small files fill up their last block of 4 KiB.
UNPACKED = 1.25
BLOCK = 512  # bytes; an archive ends with at least one block of zeros
MARK = "made_by_demo_data"  # an empty file, the first of a demo's archive


@contextlib.contextmanager
def sole_use(data_dir):
    """Keep other processes from fetching and unpacking in a folder; wait for one that does."""
    data_dir = Path(data_dir)
    data_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(data_dir / ".download.lock", is_singleton=True)  # may be held twice by one
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        print(f"another process fetches or unpacks in {data_dir}: waiting for its end", flush=True)
        held = lock.acquire()
    with held:
        yield


def is_demo(path):
    """Return whether a folder `<source>_crop`, or an archive of one, bears the demo's mark."""
    if path.is_dir():
        return (path / MARK).is_file()
    with contextlib.suppress(OSError, tarfile.TarError), tarfile.open(path, "r:") as archive:
        first = archive.next()
        return first is not None and first.name == f"{path.name.removesuffix('.tar')}/{MARK}"
    return False


def check_target(target, overwrite):
    """Refuse a folder that is not to be replaced, and a link, which would be replaced itself."""
    if target.is_symlink():
        raise ValueError(
            f"{target} is a symbolic link, which is never replaced: remove it, or give --data_dir "
            "another folder"
        )
    if target.exists() and not overwrite:
        raise ValueError(f"{target} exists: --overwrite replaces it")


def check_member(member, top):
    """Return the path below `top` of an archive's member, None for `top`; refuse what could harm.

    Raises:
        ValueError: the member leads out of the folder `top`, or is no plain file or folder.
    """
    first, *parts = member.name.removeprefix("./").split("/")
    leads_out = first != top or {"", ".", ".."} & set(parts) or set("\\\0") & set(member.name)
    plain = (member.isreg() or member.isdir()) and not member.issparse()
    try:
        tarfile.data_filter(member, ".")
    except tarfile.FilterError as error:
        raise ValueError(f"{member.name!a} is refused: {error}") from error
    if leads_out or not plain:
        raise ValueError(f"{member.name!a} leads out, or is a link, device or sparse: refused")
    return "/".join(parts) or None


def check_end(archive):
    """Refuse an archive that does not end where its members do: only zeros are the end.

    A header that is damaged, or zeros in place of one, end the reading of members as the end does.
    """
    archive.fileobj.seek(archive.offset)
    rest = archive.fileobj.read(BLOCK)
    if len(rest) < BLOCK:
        raise tarfile.ReadError(f"it breaks off at byte {archive.offset:,}")
    while rest:
        if rest.count(0) != len(rest):
            raise tarfile.ReadError(f"no archive from byte {archive.offset:,} on")
        rest = archive.fileobj.read(1 << 20)


def unpack_members(path, folder, top):
    """Write an archive's images and MATLAB file to `folder`; return how many images there were.

    Raises:
        ValueError: a member is refused or there twice, or the archive is cut or damaged.
    """
    images, left_out = 0, []
    bar = tqdm(desc=path.name, total=path.stat().st_size, unit="B", unit_scale=True)
    with tarfile.open(path, "r:") as archive, bar:
        while (member := archive.next()) is not None:
            archive.members.clear()  # half a million of them would be kept
            name = check_member(member, top)
            if member.isdir():
                continue
            if not (name or "").endswith((".jpg", ".mat")) and name != MARK:
                left_out.append(member.name)
                continue
            try:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                with archive.extractfile(member) as source, open(folder / name, "xb") as file:
                    shutil.copyfileobj(source, file)
            except (FileExistsError, NotADirectoryError) as error:
                raise ValueError(f"{member.name!a} occurs twice in the archive") from error
            images += name.endswith(".jpg")
            bar.update(archive.offset - bar.n)
        check_end(archive)
    if left_out:
        print(f"left out: {left_out[:10]!a} ({len(left_out)})")
    return images


def unpack_archive(path, data_dir, overwrite=False):
    """Unpack `<source>_crop.tar` into `<data_dir>/<source>_crop`, which appears when complete.

    The archive is read to the end of the file, and the sha256 of the first one is recorded and
    compared from then on, the demo's apart: no checksum is published.

    Raises:
        ValueError: a folder is in the way, the disk is too full, or the archive is refused.
    """
    top = path.name.removesuffix(".tar")
    source, target = top.removesuffix("_crop"), Path(data_dir) / top
    partial, archive = target.with_name(f"{top}.partial"), target.with_name(path.name)
    with sole_use(data_dir):
        check_target(target, overwrite)
        if not hasattr(tarfile, "data_filter"):
            raise ValueError("this Python unpacks archives unsafely: use 3.11.4 or later")
        # Left by a run that was killed; it takes room on the disk.
        shutil.rmtree(partial, ignore_errors=True)
        needed, free = int(UNPACKED * path.stat().st_size), shutil.disk_usage(target.parent).free
        if needed > free:
            raise ValueError(f"{needed:,} bytes to unpack, {free:,} free in {data_dir}: make room")
        digest = None if is_demo(path) else sha256_of(path)
        if digest:
            compare_with_record(archive, digest, note=False)
        try:
            partial.mkdir()
            images = unpack_members(path, partial, top)
            if not (partial / f"{source}.mat").is_file():
                raise ValueError(f"{path} holds no {top}/{source}.mat: is it the right archive?")
            shutil.rmtree(target, ignore_errors=True)
            partial.rename(target)
        except tarfile.TarError as error:
            raise ValueError(
                f"{path} is cut or damaged ({error}): delete it, fetch again"
            ) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        if digest:
            compare_with_record(archive, digest)
    print(f"wrote {target}, {images:,} images")
    return images
