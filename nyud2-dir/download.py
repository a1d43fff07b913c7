"""Raw data of NYUD2-DIR: the official archive, the official split files, released checkpoints.

    python download.py                          # all of the data, about 4 GB, into ./data
    python download.py --archive nyud2.zip      # unpack an archive fetched by hand
    python download.py --split_files            # FDS subset and test mask only
    python download.py --checkpoint lds_fds     # a released network: lds, fds or lds_fds

The archive lies on Google Drive; an interrupted download is resumed. Without it, `python prepare.py
--labeled_mat` takes the 1,449 labelled pairs of NYU Depth v2, which the data set's page gives.
"""

import argparse
from pathlib import Path

import program
from archive import unpack
from fetch import compare_with_record, fetch_from_drive, fetch_small, sole_use, write_record
from pair_lists import MASK, SUBSET, TEST, TRAIN

PARTS = ("nyu2_train", "nyu2_test", TRAIN, TEST)  # of the archive; the others are left out
ARCHIVE_ID = "1WoOZOBpOWfmwe7bknWS5PMUCLBPFKTOw"  # Google Drive, official release
# Released networks: Drive id, and RMSE of the test set, all / many / medium / few.
OFFICIAL = {
    "lds": ("1RgQx-nreiJ-chH0887xCy7gxah-zrrEO", "rmse", (1.387, 0.671, 0.913, 1.954)),
    "fds": ("1FEKzBzMPaGubmv9iK4BP6LJng44Mhc7s", "rmse", (1.442, 0.615, 0.940, 2.059)),
    "lds_fds": ("1QlZJOPYSyRRFqa1Q-y7-JlTDABiQZJUF", "rmse", (1.301, 0.731, 0.832, 1.799)),
}
BASE_URL = "https://raw.githubusercontent.com/YyzHarry/imbalanced-regression/HEAD/nyud2-dir/data"
SPLIT_FILES = {SUBSET: b"data/nyu2_train/", MASK: b"\x93NUMPY"}  # what they begin with


def choose_pairs(sizes):
    """Return {name: path within the data folder} of the pairs and lists of the official archive.

    Args:
        sizes: {name: bytes} of the archive's files.

    Raises:
        ValueError: if pairs or lists are missing.
    """
    chosen = {}
    for name in sizes:
        parts = name.split("/")
        start = next((i for i, part in enumerate(parts) if part in PARTS), None)
        if start is not None:
            chosen[name] = "/".join(parts[start:])
    held = {place.split("/")[0] for place in chosen.values()}
    lacking = [part for part in PARTS if part not in held]
    if lacking:
        raise ValueError(f"the archive lacks {', '.join(lacking)}: it is not NYUD2-DIR's")
    return chosen


def unpack_pairs(archive, data_dir, overwrite=False, max_gb=40.0):
    """Unpack the official archive; its parts appear in the data folder when all is whole.

    Raises:
        FileNotFoundError, ValueError: as `archive.unpack`; or another archive than the first.
    """
    digest = compare_with_record(archive)
    unpack(archive, data_dir, choose_pairs, overwrite, max_gb)
    write_record(archive, digest)


def check_beginning(path, content):
    """Refuse a file that does not begin as an FDS subset or a test mask does."""
    if not content.startswith(SPLIT_FILES[path.name]):
        raise ValueError(
            f"the host gave no {path.name}, it begins {content[:20]!a}: it was not kept"
        )


def fetch_split_files(data_dir, base_url=BASE_URL, overwrite=False):
    """Fetch the official FDS subset and test mask; existing ones stay without `overwrite`.

    Raises:
        ValueError: the host gives none, something else, or another file than the first time.
    """
    files = {}
    for name in SPLIT_FILES:
        path = Path(data_dir) / name
        if path.exists() and not overwrite:
            print(f"{path} exists and stays: --overwrite replaces it")
        else:
            files[path] = (f"{base_url.rstrip('/')}/{name}", None)
    fetch_small(files, overwrite, check_beginning, "; or let `python prepare.py` make another")


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(usage=program.USAGE, description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--data_dir", type=Path, default="./data", help="folder of the data")
    add("--archive", type=Path, help="the official archive, fetched by hand")
    add("--split_files", action="store_true", help="fetch FDS subset and test mask only")
    add("--base_url", default=BASE_URL, help="of the split files, for a mirror")
    add("--checkpoint", choices=OFFICIAL, help="fetch a released checkpoint only")
    add("--max_gb", type=float, default=40, help="largest size when unpacked")
    add("--overwrite", action="store_true", help="replace existing files")
    return parser.parse_args(argv)


def main(argv=None):
    """Fetch and unpack what the command line asks for."""
    args = parse_args(argv)
    with sole_use(args.data_dir):
        if args.checkpoint:
            from released import fetch_official  # torch, which nothing else here needs

            path = args.data_dir / f"official_{args.checkpoint}.pth.tar"
            return fetch_official(*OFFICIAL[args.checkpoint], path)
        if not args.split_files:
            archive = args.archive or args.data_dir / "nyud2_archive"
            if not args.archive:
                fetch_from_drive(ARCHIVE_ID, archive)
            held = all((args.data_dir / part).exists() for part in PARTS)
            if args.archive or args.overwrite or not held:
                unpack_pairs(archive, args.data_dir, args.overwrite, args.max_gb)
            else:
                print(f"{args.data_dir} has {', '.join(PARTS)}: --overwrite unpacks them again")
        fetch_split_files(args.data_dir, args.base_url, args.overwrite)
    print("next: python prepare.py --check")


if __name__ == "__main__":
    program.run(main)
