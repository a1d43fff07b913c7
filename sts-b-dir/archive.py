"""Zip and tar archives, unpacked so that they can do no harm: all of one appears, or nothing."""

import functools
import gzip
import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections import Counter

from tqdm import tqdm
from tqdm.utils import CallbackIOWrapper

from fetch import check_room
from outside import shown

BLOCK = 512  # bytes; a tar archive ends with at least one block of zeros
PADDING = 2**24  # bytes; an archive ends with fewer zeros
MOST_GB = 50.0  # 10⁹ bytes; no archive of these data has more when unpacked
SECTOR = 4096  # bytes; a file fills up its last one on the disk
DAMAGED = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, gzip.BadGzipFile, lzma.LZMAError, EOFError
)  # fmt: skip


def check_targets(folder, names, overwrite):
    """Refuse to replace what is in a folder without `overwrite`, and a link at any time.

    Raises:
        ValueError: naming what it holds.
    """
    for name in names:
        if (folder / name).is_symlink():
            raise ValueError(
                f"{folder / name} is a symbolic link, which is never replaced: remove it, or give "
                "another folder"
            )
    held = [name for name in names if (folder / name).exists()]
    if held and not overwrite:
        raise ValueError(f"{folder} holds {', '.join(held)}: --overwrite replaces them")


def unpack(path, folder, choose, overwrite=False, max_gb=MOST_GB, password=None):
    """Unpack what is chosen of a zip or tar archive; all of it appears in a folder, or nothing.

    Args:
        path: `pathlib.Path` of the archive.
        folder: `pathlib.Path` of the folder.
        choose: function of {name: bytes} of the files, names with "/" only, that returns
            {name: path below the folder} of those to unpack.
        overwrite: replace the files and folders of these names in the folder.
        max_gb: largest size when unpacked, 10⁹ bytes.
        password: bytes, for an encrypted zip archive.

    Returns:
        Paths below the folder, a list.

    Raises:
        ValueError: the archive is damaged, holds what could do harm or is too large, data are in
            the way, or what `choose` raises.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: give the archive's path")
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{path.stem}.partial"
    shutil.rmtree(partial, ignore_errors=True)  # left by a run that was killed; it takes room
    try:
        chosen, total = _choose(path, folder, choose, max_gb)
        tops = list(dict.fromkeys(place.split("/")[0] for place in chosen.values()))
        check_targets(folder, tops, overwrite)
        _write(path, partial, chosen, total, password)
        for top in tops:
            if (folder / top).is_dir():
                shutil.rmtree(folder / top)
            else:
                (folder / top).unlink(missing_ok=True)
            os.replace(partial / top, folder / top)
    except DAMAGED as error:
        raise ValueError(
            f"{path} is cut, damaged or no zip or tar archive: delete it and fetch it again; "
            f"nothing was kept ({shown(error)})"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return list(chosen.values())


def _choose(path, folder, choose, max_gb):
    """Return {name: path below the folder} of what is to be unpacked, and its bytes."""
    sizes = {}
    claimed = 0
    for name, size, _ in _files(path):
        if name in sizes:
            raise ValueError(f"{name!a} occurs twice in the archive: refused")
        sizes[name] = size
        claimed += size
        if claimed > 1e9 * max_gb:  # said before a byte of it is unpacked
            raise ValueError(
                f"{claimed / 1e9:.3g} GB when unpacked, above {max_gb:g}: see --max_gb"
            )
    chosen = choose(sizes)
    twice = [place for place, number in Counter(chosen.values()).items() if number > 1]
    if twice:
        raise ValueError(f"{twice[0]!a} occurs twice in the archive: refused")
    left_out = [name for name in sizes if name not in chosen]
    total = sum(sizes[name] for name in chosen)
    print(
        f"{len(chosen):,} files, {total / 1e9:.2f} GB; {len(left_out):,} others are left out: "
        f"{', '.join(map(ascii, left_out[:5])) or '-'}"
    )
    check_room(folder, sum(-(-sizes[name] // SECTOR) * SECTOR for name in chosen))
    return chosen, total


def _write(path, partial, chosen, total, password):
    """Write the chosen files to the folder `partial`; each is verified as it is read."""
    with tqdm(desc=path.name, total=total, unit="B", unit_scale=True) as bar:
        for name, _, open_file in _files(path, password):
            if name not in chosen:
                continue
            target = partial / chosen[name]
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                with open_file() as source, open(target, "xb") as file:
                    shutil.copyfileobj(CallbackIOWrapper(bar.update, source, "read"), file)
            except (FileExistsError, NotADirectoryError) as error:
                raise ValueError(f"{name!a} occurs twice in the archive: refused") from error
            except NotImplementedError as error:
                raise ValueError(
                    f"Python cannot unpack {name!a} ({shown(error)}, say AES): unpack the "
                    f"archive by hand, say by `7z x {path.name}`"
                ) from error
            except (RuntimeError, *DAMAGED) as error:
                # One wrong password in 256 passes the check in the header and fails at the CRC.
                maybe = password or isinstance(error, RuntimeError)
                cause = "wrong --password_file or " if maybe else ""
                raise ValueError(
                    f"{cause}damaged archive, nothing was kept: {name!a} ({shown(error)}); if it "
                    f"is damaged, delete {path} and fetch it again"
                ) from error


def _files(path, password=None):
    """Yield (name, bytes, function that opens it) of the files in an archive, but for macOS's own.

    Raises:
        ValueError: a member could do harm.
        DAMAGED: the archive is cut or damaged.
    """
    members = _zip_members(path, password) if zipfile.is_zipfile(path) else _tar_members(path)
    for name, kind, size, open_file in members:
        # Some tools write backslashes; others begin each name by "./".
        parts = [p for p in name.replace("\\", "/").removesuffix("/").split("/") if p != "."]
        if {"", ".."} & set(parts) or set(":\0") & set(name):
            raise ValueError(f"{name!a} leads out of the folder: the archive is refused")
        if kind not in (stat.S_IFREG, stat.S_IFDIR):
            raise ValueError(f"{name!a} is a link or device or sparse: the archive is refused")
        if kind == stat.S_IFDIR or not parts or "__MACOSX" in parts or parts[-1].startswith("._"):
            continue
        yield "/".join(parts), size, open_file


def _zip_members(path, password):
    """Yield (name, kind as in a Unix mode, bytes, function that opens it) of all members."""
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            name = member.orig_filename
            if not 0 <= member.header_offset < archive.start_dir:  # of a cut archive
                raise zipfile.BadZipFile(f"{name!a} is outside of it")
            # The mode is 0 if another system wrote the archive.
            kind = stat.S_IFMT(member.external_attr >> 16) or stat.S_IFREG
            if kind == stat.S_IFREG and name.endswith(("/", "\\")):
                kind = stat.S_IFDIR
            open_file = functools.partial(archive.open, member, "r", password)
            yield name, kind, member.file_size, open_file  # which gives no more bytes than that


def _tar_members(path):
    """Yield what `_zip_members` does; an archive that does not end where it should is damaged."""
    with tarfile.open(path) as archive:
        while (member := archive.next()) is not None:
            archive.members.clear()  # half a million of them would be kept
            plain = member.isreg() and not member.issparse()  # a sparse one can claim any size
            kind = stat.S_IFREG if plain else stat.S_IFDIR if member.isdir() else stat.S_IFLNK
            open_file = functools.partial(archive.extractfile, member)
            yield member.name, kind, member.size, open_file
        # A damaged header, or zeros in its place, ends the list of members as its true end does.
        archive.fileobj.seek(archive.offset)
        rest = archive.fileobj.read(BLOCK)
        if len(rest) < BLOCK:
            raise tarfile.ReadError(f"it breaks off at byte {archive.offset:,}")
        while rest:
            if archive.fileobj.tell() > archive.offset + PADDING:
                raise tarfile.ReadError(f"nothing but zeros from byte {archive.offset:,} on")
            if rest.count(0) != len(rest):
                raise tarfile.ReadError(f"no archive from byte {archive.offset:,} on")
            rest = archive.fileobj.read(1 << 20)
