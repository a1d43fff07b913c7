"""Raw data of NYUD2-DIR: the official archive, the official split files, released checkpoints.

    python download.py                          # all of the data, about 4 GB, into ./data
    python download.py --archive nyud2.zip      # unpack an archive fetched by hand
    python download.py --split_files            # FDS subset and test mask only
    python download.py --checkpoint lds_fds     # a released network: lds, fds or lds_fds

The archive lies on Google Drive; an interrupted download goes on. Without it, `python prepare.py
--labeled_mat` takes the 1,449 labelled pairs of NYU Depth v2, which the data set's page gives.
"""

import argparse
import hashlib
import http.client
import urllib.request
from pathlib import Path

from depth_archive import PARTS, unpack
from pair_lists import MASK, SUBSET
from released import compare_with_record, fetch_from_drive, fetch_official
from utils import write_atomically

ARCHIVE_ID = "1WoOZOBpOWfmwe7bknWS5PMUCLBPFKTOw"  # Google Drive, official release
# Released networks: Drive id, and RMSE of the test set, all / many / medium / few.
OFFICIAL = {
    "lds": ("1RgQx-nreiJ-chH0887xCy7gxah-zrrEO", "rmse", (1.387, 0.671, 0.913, 1.954)),
    "fds": ("1FEKzBzMPaGubmv9iK4BP6LJng44Mhc7s", "rmse", (1.442, 0.615, 0.940, 2.059)),
    "lds_fds": ("1QlZJOPYSyRRFqa1Q-y7-JlTDABiQZJUF", "rmse", (1.301, 0.731, 0.832, 1.799)),
}
BASE_URL = "https://raw.githubusercontent.com/YyzHarry/imbalanced-regression/HEAD/nyud2-dir/data"
SPLIT_FILES = (SUBSET, MASK)


def fetch_split_files(data_dir, base_url=BASE_URL, overwrite=False):
    """Fetch the official FDS subset and test mask; each must be what its name says.

    Raises:
        ValueError: if another file is there, or the host gives none or something else.
    """
    for name in SPLIT_FILES:
        path, url = Path(data_dir) / name, f"{base_url.rstrip('/')}/{name}"
        if path.exists() and not overwrite:
            print(f"{path} is there and stays: --overwrite replaces it")
            continue
        try:
            with urllib.request.urlopen(url, timeout=60) as response:
                content = response.read()
        except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: no URL
            raise ValueError(
                f"cannot fetch {url} ({error}): put it at {path} by hand, or let `python "
                "prepare.py` make another"
            ) from error
        beginning = b"\x93NUMPY" if name == MASK else b"data/nyu2_train/"
        if not content.startswith(beginning):
            raise ValueError(f"{url} gave no such file, it begins {content[:20]!a}: not kept")
        digest = hashlib.sha256(content).hexdigest()
        compare_with_record(path, digest, note=False)
        write_atomically(path, content)
        compare_with_record(path, digest)
        print(f"wrote {path}")


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--data_dir", type=Path, default="./data", help="folder of the data")
    add("--archive", type=Path, help="the official archive, fetched by hand")
    add("--split_files", action="store_true", help="fetch FDS subset and test mask only")
    add("--base_url", default=BASE_URL, help="of the split files, for a mirror")
    add("--checkpoint", choices=OFFICIAL, help="fetch a released checkpoint only")
    add("--max_gb", type=float, default=40, help="largest size when unpacked")
    add("--overwrite", action="store_true", help="replace what is there")
    return parser.parse_args(argv)


def main(argv=None):
    """Fetch and unpack what the command line asks for."""
    args = parse_args(argv)
    if args.checkpoint:
        path = args.data_dir / f"official_{args.checkpoint}.pth.tar"
        return fetch_official(*OFFICIAL[args.checkpoint], path)
    if not args.split_files:
        archive = args.archive or args.data_dir / "nyud2_archive"
        if not args.archive:
            fetch_from_drive(ARCHIVE_ID, archive)
        if args.archive or args.overwrite or not all((args.data_dir / p).exists() for p in PARTS):
            if archive.is_file():
                compare_with_record(archive, note=False)
            unpack(archive, args.data_dir, args.overwrite, args.max_gb)
            compare_with_record(archive)
        else:
            print(f"{args.data_dir} has {', '.join(PARTS)}: --overwrite unpacks them again")
    fetch_split_files(args.data_dir, args.base_url, args.overwrite)
    print("next: python prepare.py --check")


if __name__ == "__main__":
    main()
