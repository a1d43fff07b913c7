"""Raw data of IMDB-WIKI-DIR: the archives of cropped faces, and the official split file.

    python download.py                # says how to get the data
    python download.py --images       # data/imdb_crop, data/wiki_crop: about 8 GB to fetch
    python download.py --split_file   # data/imdb_wiki.csv
    python download.py --checkpoint lds_fds    # a released network: lds, fds or lds_fds

What breaks off is resumed where it stopped, at once or when the command is given again.
"""

import argparse
import io
import shutil
from pathlib import Path

import pandas as pd

import program
from archive import check_targets
from fetch import check_room, fetch, fetch_small, length_of, size_of, sole_use
from matlab_meta import SOURCES
from meta_file import report_counts
from prepare import EXPECTED
from unpack import UNPACKED, is_demo, unpack_archive

BASE_URL = "https://data.vision.ee.ethz.ch/cvl/rrothe/imdb-wiki/static"
SPLIT_URL = "https://raw.githubusercontent.com/YyzHarry/imbalanced-regression/HEAD"
SPLIT_FILE = "imdb-wiki-dir/data/imdb_wiki.csv"  # its path in the official release
IMAGES = {"imdb": 460_723, "wiki": 62_328}  # as the data set's page counts them
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


def bytes_needed(archives, base_url):
    """Return how many bytes the disk must have for the archives and the unpacked faces.

    If the host tells no length, room for an archive is checked when its turn comes.

    Args:
        archives: paths; existing ones are only unpacked.
    """
    needed = 0
    for path in archives:
        if path.exists():
            needed += UNPACKED * size_of(path)
        elif length := length_of(f"{base_url}/{path.name}"):
            needed += (1 + UNPACKED) * length - size_of(path.with_name(f"{path.name}.part"))
    return needed


def fetch_images(data_dir, base_url=BASE_URL, overwrite=False):
    """Fetch and unpack both archives; finished ones stay as they are.

    Raises:
        ValueError: what `fetch` and `unpack_archive` refuse, or the disk is too full for all.
    """
    base_url, archives = base_url.rstrip("/"), []
    for source in SOURCES:
        target = data_dir / f"{source}_crop"
        if target.exists() and not overwrite:
            demo = ", and it is the demo, NOT IMDB-WIKI" if is_demo(target) else ""
            print(f"{target} exists{demo}: --overwrite replaces it")
            continue
        check_targets(data_dir, [target.name], overwrite)
        # Left by a run that was killed; it takes room on the disk.
        shutil.rmtree(target.with_name(f"{target.name}.partial"), ignore_errors=True)
        archives.append(data_dir / f"{source}_crop.tar")
    check_room(data_dir, bytes_needed(archives, base_url))  # before hours are spent on one
    for path in archives:
        if not path.exists():
            fetch(f"{base_url}/{path.name}", path, UNPACKED)
        expected = IMAGES[path.name.removesuffix("_crop.tar")]
        demo = is_demo(path)
        images = unpack_archive(path, data_dir, overwrite)
        if demo:
            print(f"   it is the demo, NOT IMDB-WIKI: delete {path} to fetch the real one")
        elif images != expected:
            print(f"   DIFFERS: {expected:,} images expected. Keep {path}: something is wrong")
        else:
            print(f"   as many as expected; {path} may be deleted")


def check_split_file(path, content):
    """Refuse a meta file whose counts are not the paper's."""
    split = pd.read_csv(io.BytesIO(content), usecols=["split"])["split"]
    if report_counts(split, EXPECTED) != EXPECTED:
        raise ValueError(f"the host gives a {path.name} of other counts: it was not kept")


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(usage=program.USAGE, description=__doc__.split("\n\n")[0])
    parser.add_argument("--data_dir", type=Path, default="./data", help="folder of the data")
    parser.add_argument("--images", action="store_true", help="fetch and unpack the archives")
    parser.add_argument("--split_file", action="store_true", help="fetch the official csv")
    parser.add_argument("--checkpoint", choices=OFFICIAL, help="fetch a released checkpoint only")
    parser.add_argument("--base_url", default=BASE_URL, help="of the archives, for a mirror")
    parser.add_argument("--split_url", default=SPLIT_URL, help="of the split file, for a mirror")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    return parser.parse_args(argv)


def main(argv=None):
    """Say how to get the data, fetch and unpack the images, fetch the split file."""
    args = parse_args(argv)
    if not (args.checkpoint or args.images or args.split_file):
        return print(INSTRUCTIONS)
    with sole_use(args.data_dir):
        if args.checkpoint:
            from released import fetch_official  # torch, which nothing else here needs

            path = args.data_dir / f"official_{args.checkpoint}.pth.tar"
            return fetch_official(*OFFICIAL[args.checkpoint], path)
        if args.images:
            fetch_images(args.data_dir, args.base_url, args.overwrite)
        if args.split_file:
            url = f"{args.split_url.rstrip('/')}/{SPLIT_FILE}"
            files = {args.data_dir / "imdb_wiki.csv": (url, None)}
            fetch_small(files, args.overwrite, check_split_file)
    if not args.split_file:
        print("next: python prepare.py")


if __name__ == "__main__":
    program.run(main)
