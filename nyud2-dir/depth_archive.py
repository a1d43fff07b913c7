"""The official archive of pairs, unpacked so that it can do no harm."""

import shutil
import stat
import tarfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from pair_lists import TEST, TRAIN

PARTS = ("nyu2_train", "nyu2_test", TRAIN, TEST)  # of the archive; the others are left out


def open_archive(path):
    """Open a zip or tar archive; return it and its members as (name, mode, bytes, member).

    Raises:
        ValueError: if it is neither, or damaged.
    """
    try:
        if zipfile.is_zipfile(path):
            archive = zipfile.ZipFile(path)
            members = archive.infolist()
            return archive, [(m.filename, m.external_attr >> 16, m.file_size, m) for m in members]
        archive = tarfile.open(path)  # noqa: SIM115 - the caller closes it
        kinds = {tarfile.REGTYPE: stat.S_IFREG, tarfile.AREGTYPE: stat.S_IFREG,
                 tarfile.DIRTYPE: stat.S_IFDIR}  # fmt: skip
        return archive, [
            (m.name, kinds.get(m.type, stat.S_IFLNK), m.size, m) for m in archive.getmembers()
        ]
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error) as error:
        raise ValueError(
            f"{path} is no whole zip or tar archive ({error}): delete it and fetch it again"
        ) from error


def choose_members(members, max_gb):
    """Return {path within the data folder: member} of the pairs and lists of an archive.

    Raises:
        ValueError: a member leads out of the folder, is a link or a device, or occurs twice; the
            pairs are not there; or they take more than `max_gb` when unpacked.
    """
    chosen, total, left_out = {}, 0, 0
    for name, mode, size, member in members:
        parts = PurePosixPath(name.replace("\\", "/")).parts
        kind = stat.S_IFMT(mode)  # a zip written on another system says 0
        if not parts or parts[0] == "/" or ".." in parts or set(":\0") & set(name):
            raise ValueError(f"{name!a} leads out of the folder: this archive is refused")
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise ValueError(f"{name!a} is a link or a device: this archive is refused")
        if name.endswith("/") or kind == stat.S_IFDIR:
            continue
        start = next((i for i, part in enumerate(parts) if part in PARTS), None)
        if start is None or "__MACOSX" in parts or parts[-1].startswith("._"):
            left_out += 1
            continue
        path = "/".join(parts[start:])
        if path in chosen:
            raise ValueError(f"{path!a} occurs twice in the archive: it is refused")
        chosen[path], total = member, total + size
    lacking = [part for part in PARTS if not any(p.split("/")[0] == part for p in chosen)]
    if lacking:
        raise ValueError(f"the archive lacks {', '.join(lacking)}: it is not NYUD2-DIR's")
    if total > 1e9 * max_gb:
        raise ValueError(f"{total / 1e9:.3g} GB when unpacked, above {max_gb:g}: see --max_gb")
    print(f"{len(chosen):,} files, {total / 1e9:.2f} GB; {left_out} others are left out")
    return chosen


def unpack(path, data_dir, overwrite=False, max_gb=40.0):
    """Unpack the official archive; its parts appear in the data folder when all is whole.

    Raises:
        FileNotFoundError, ValueError: without the archive, with data in the way, or refused.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no archive {path}: `python download.py` fetches it")
    held = [part for part in PARTS if (data_dir / part).exists()]
    if held and not overwrite:
        raise ValueError(f"{data_dir} has {', '.join(held)}: --overwrite replaces them")
    partial = data_dir / "nyu2.partial"
    shutil.rmtree(partial, ignore_errors=True)  # left by a run that was killed
    archive, members = open_archive(path)
    try:
        with archive:
            chosen = choose_members(members, max_gb)
            for name, member in tqdm(chosen.items(), "unpacking", unit="file"):
                target = partial / name
                target.parent.mkdir(parents=True, exist_ok=True)
                zipped = isinstance(archive, zipfile.ZipFile)
                source = archive.open(member) if zipped else archive.extractfile(member)
                with source, open(target, "xb") as file:
                    shutil.copyfileobj(source, file)  # a zip's CRC is verified at its end
        for part in PARTS:
            target = data_dir / part
            shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
            (partial / part).rename(target)
    except (
        zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError,
        FileExistsError, NotADirectoryError, NotImplementedError, RuntimeError,  # encrypted, odd
    ) as error:  # fmt: skip
        raise ValueError(
            f"{path} is damaged ({error}): nothing was kept; delete it and fetch it again"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
