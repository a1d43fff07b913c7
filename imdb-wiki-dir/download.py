"""Raw data of IMDB-WIKI-DIR: the archives of cropped faces, and the official split file.

    python download.py                # says what there is
    python download.py --images       # data/imdb_crop, data/wiki_crop: about 8 GB to fetch
    python download.py --split_file   # data/imdb_wiki.csv
    python download.py --checkpoint lds_fds    # a released network: lds, fds or lds_fds

What breaks off goes on where it stopped, at once or when the command is given again.
"""

import argparse
import os
import shutil
import tarfile
from pathlib import Path

from tqdm import tqdm

from fetch import fetch
from matlab_meta import SOURCES
from meta_file import read_meta, report_counts
from prepare import EXPECTED
from released import fetch_official, sha256_of
from utils import write_atomically

BASE_URL = "https://data.vision.ee.ethz.ch/cvl/rrothe/imdb-wiki/static"
SPLIT_URL = "https://raw.githubusercontent.com/YyzHarry/imbalanced-regression/HEAD"
SPLIT_FILE = "imdb-wiki-dir/data/imdb_wiki.csv"  # its path in the official release
IMAGES = {"imdb": 460_723, "wiki": 62_328}  # as the data set's page counts them
# Bytes on the disk for a byte of archive: small files fill up their last block of 4 KiB.
UNPACKED = 1.25
BLOCK = 512  # bytes; an archive ends with at least one block of zeros
# Released networks: Drive id, and MAE of the test set, all / many / medium / few.
OFFICIAL = {
    "lds": ("1HnGw1gs6UAlvbol4EulHX_Kqx_pwJZ70", "mae", (7.87, 7.31, 12.45, 22.60)),
    "fds": ("1H7_dDMn83-paFrcrEmOiDLZmoham4js9", "mae", (7.66, 7.06, 12.60, 22.37)),
    "lds_fds": ("1C_YxpTW-rhCRIF4wnFShojp5ydAjFmHo", "mae", (7.68, 7.07, 12.79, 21.85)),
}

INSTRUCTIONS = """IMDB-WIKI-DIR needs two things:
1. The faces, for research: two archives, about 8 GB, and as much again unpacked:
       python download.py --images
   (--base_url for a mirror; archives that lie in --data_dir already are only unpacked)
2. The meta file with the split, made from the MATLAB files among the faces:
       python prepare.py
   or the official one: python download.py --split_file
Then `python prepare.py --check` verifies both. To try the code without the faces,
`python demo_data.py` writes a small generated data set in the same format."""


def check_digest(path, record):
    """Return a file's sha256; an error if another one was recorded for the first download."""
    digest = sha256_of(path)
    if record.exists() and record.read_text().split()[:1] != [digest]:
        raise ValueError(
            f"{path} ({digest}) is not the one of {record}: delete {path} and fetch it again, or "
            "delete that record if the new one is right"
        )
    return digest


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
            if not (name or "").endswith((".jpg", ".mat")):
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
        # A header that is damaged ends the loop as the end does: only zeros are the end.
        archive.fileobj.seek(archive.offset)
        if archive.fileobj.read(BLOCK) != bytes(BLOCK):
            raise tarfile.ReadError(f"it breaks off at byte {archive.offset:,}")
    if left_out:
        print(f"left out: {left_out[:10]!a} ({len(left_out)})")
    return images


def unpack_archive(path, data_dir, overwrite=False):
    """Unpack `<source>_crop.tar` into `<data_dir>/<source>_crop`, which appears when complete.

    The archive is read to its end, and the sha256 of the first one is recorded and compared from
    then on: no checksum is published.

    Raises:
        ValueError: a folder is in the way, the disk is too full, or the archive is refused.
    """
    top = path.name.removesuffix(".tar")
    source, target = top.removesuffix("_crop"), Path(data_dir) / top
    partial, record = target.with_name(f"{top}.partial"), target.with_name(f"{top}.tar.sha256")
    if target.exists() and not overwrite:
        raise ValueError(f"{target} exists: --overwrite replaces it")
    if not hasattr(tarfile, "data_filter"):
        raise ValueError("this Python unpacks archives unsafely: use 3.11.4 or later")
    needed, free = int(UNPACKED * path.stat().st_size), shutil.disk_usage(target.parent).free
    if needed > free:
        raise ValueError(f"{needed:,} bytes to unpack, {free:,} free in {data_dir}: make room")
    digest = check_digest(path, record)
    shutil.rmtree(partial, ignore_errors=True)  # left by a run that was killed
    try:
        partial.mkdir()
        images = unpack_members(path, partial, top)
        if not (partial / f"{source}.mat").is_file():
            raise ValueError(f"{path} holds no {top}/{source}.mat: is it the right archive?")
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
    except tarfile.TarError as error:
        raise ValueError(f"{path} is cut or damaged ({error}): delete it, fetch again") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    write_atomically(record, f"{digest}  {path.name}\n".encode())
    print(f"wrote {target}, {images:,} images; {path} may be deleted")
    return images


def fetch_images(data_dir, base_url=BASE_URL, overwrite=False):
    """Fetch and unpack both archives; what is done already is left as it is."""
    data_dir.mkdir(parents=True, exist_ok=True)
    for source in SOURCES:
        target, path = data_dir / f"{source}_crop", data_dir / f"{source}_crop.tar"
        if target.exists() and not overwrite:
            print(f"{target} is there: --overwrite unpacks it again")
            continue
        if not path.exists():
            fetch(f"{base_url.rstrip('/')}/{path.name}", path, UNPACKED)
        images = unpack_archive(path, data_dir, overwrite)
        if images != IMAGES[source]:
            print(f"   DIFFERS: {IMAGES[source]:,} images expected")


def fetch_split_file(data_dir, base_url=SPLIT_URL, overwrite=False):
    """Fetch the official `imdb_wiki.csv`, whose counts must be the paper's.

    Raises:
        ValueError: another `imdb_wiki.csv` is there, or the host gives none, or one of other
            counts or of another sha256 than the first.
    """
    path, fresh = data_dir / "imdb_wiki.csv", data_dir / "imdb_wiki.csv.official"
    record = data_dir / "imdb_wiki.csv.sha256"
    if path.exists() and not overwrite:
        if record.exists() and record.read_text().split()[:1] == [sha256_of(path)]:
            return print(f"{path} is the official file")
        raise ValueError(f"{path} is not a fetched file: --overwrite replaces it")
    fetch(f"{base_url.rstrip('/')}/{SPLIT_FILE}", fresh)
    try:
        digest = check_digest(fresh, record)
        counts = report_counts(read_meta(fresh, ("age", "path", "split"))["split"], EXPECTED)
        if counts != EXPECTED:
            raise ValueError(f"{base_url} gives a file of other counts: it was not kept")
        write_atomically(record, f"{digest}  {path.name}\n".encode())
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)
    print(f"wrote {path}")


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data_dir", type=Path, default="./data", help="folder of the data")
    parser.add_argument("--images", action="store_true", help="fetch and unpack the archives")
    parser.add_argument("--split_file", action="store_true", help="fetch the official csv")
    parser.add_argument("--checkpoint", choices=OFFICIAL, help="fetch a released checkpoint only")
    parser.add_argument("--base_url", default=BASE_URL, help="of the archives, for a mirror")
    parser.add_argument("--split_url", default=SPLIT_URL, help="of the split file, for a mirror")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    return parser.parse_args(argv)


def main(argv=None):
    """Say how to get the data, fetch and unpack the images, fetch the split file."""
    args = parse_args(argv)
    if args.checkpoint:
        path = args.data_dir / f"official_{args.checkpoint}.pth.tar"
        return fetch_official(*OFFICIAL[args.checkpoint], path)
    if args.images:
        fetch_images(args.data_dir, args.base_url, args.overwrite)
    if args.split_file:
        fetch_split_file(args.data_dir, args.split_url, args.overwrite)
    if not (args.images or args.split_file):
        print(INSTRUCTIONS)
    elif args.images and not args.split_file:
        print("next: python prepare.py")


if __name__ == "__main__":
    main()
