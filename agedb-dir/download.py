"""Raw data of AgeDB-DIR: the faces of AgeDB and the official split file.

AgeDB's authors give its archive and password for research: nothing here can fetch it.

    python download.py                                    # says how to get both
    python download.py --split_file                       # data/agedb.csv, 0.7 MB
    python download.py --checkpoint lds_fds               # a released network: lds, fds or lds_fds
    python download.py --zip AgeDB.zip --password_file password.txt   # data/AgeDB/*.jpg
"""

import argparse
import os
from pathlib import Path

import program
from archive import unpack
from fetch import compare_with_record, fetch_small, sole_use, write_record
from prepare import NAME, missing_paths, read_ages

BASE_URL = "https://raw.githubusercontent.com/YyzHarry/imbalanced-regression/HEAD"
SPLIT_FILE = "agedb-dir/data/agedb.csv"  # its path in the official release
SPLIT_SHA256 = "ab9f8d4c7099a9d74ec5094c42b6fe9f1927a166a48d2ab800a88b2fd6081252"
IMAGES = 16_488  # rows of the official split file
# Released networks: Drive id, and MAE of the test set, all / many / medium / few.
OFFICIAL = {
    "lds": ("1CPDlcRCQ1EC4E3x9w955cmILSaVOlkyz", "mae", (7.67, 6.98, 8.86, 10.89)),
    "fds": ("1JmRS4V8zmmS9eschsBSmSeQjFWefYlib", "mae", (7.69, 7.11, 8.86, 9.98)),
    "lds_fds": ("1N0nMdu-wuWoAOS1x_m-pnzHcAp61ajY9", "mae", (7.47, 6.91, 8.26, 10.55)),
}

INSTRUCTIONS = """AgeDB-DIR needs two things:
1. The faces. AgeDB is given for research, with a password: ask its authors for it as
   https://ibug.doc.ic.ac.uk/resources/agedb says, download AgeDB.zip there, then
       python download.py --zip AgeDB.zip --password_file FILE
   (or --password PW, or the variable AGEDB_PASSWORD); it decrypts 1 MB or more a second. An
   archive with AES encryption, which Python cannot read, is unpacked by `7z x AgeDB.zip`; put
   the folder of the faces at data/AgeDB, then continue with 2.
2. The official split file, which the published numbers belong to:
       python download.py --split_file
Then `python prepare.py --check` verifies both. To try the code without the faces,
`python demo_data.py` writes a small generated data set in the same format."""


def choose_faces(sizes):
    """Return {name: path below the data folder} of the faces in AgeDB's archive.

    Args:
        sizes: {name: bytes} of the archive's files.

    Raises:
        ValueError: faces lack, or lie in several folders.
    """
    names = [name for name in sizes if name.endswith(".jpg")]
    folders = {name.rpartition("/")[0] for name in names}  # its name is free, or there is none
    if len(names) < IMAGES or len(folders) > 1:
        raise ValueError(
            f"{len(names)} faces in {len(folders)} folders, expected {IMAGES} in one: this is not "
            "AgeDB.zip"
        )
    return {name: f"AgeDB/{name.rpartition('/')[2]}" for name in names}


def unpack_faces(path, data_dir, password, overwrite=False, max_gb=20.0):
    """Unpack AgeDB's archive into `<data_dir>/AgeDB`, which appears when it is whole.

    The sha256 of the first archive unpacked is recorded and compared from then on.

    Raises:
        FileNotFoundError, ValueError: as `archive.unpack`; or another archive than the first.
    """
    place = data_dir / "AgeDB.zip"  # the archive may lie elsewhere, and may be deleted
    digest = compare_with_record(path, place)
    faces = unpack(path, data_dir, choose_faces, overwrite, max_gb, password)
    write_record(place, digest)
    print(f"wrote {data_dir / 'AgeDB'}, {len(faces)} faces")


def match_names(data_dir):
    """Rename faces whose name is spelled otherwise in `agedb.csv`; return how many.

    In 131 names the official file has a Cyrillic letter for an accented one: their byte in code
    pages 866 and 437. Number, age and gender tell which face is meant.
    """
    faces = Path(data_dir) / "AgeDB"
    paths = read_ages(Path(data_dir) / "agedb.csv", ("age", "path"))["path"]
    missing = [NAME.fullmatch(Path(path).name) for path in missing_paths(data_dir, paths)]
    wanted = {match.group(1, 3, 4): match.group() for match in missing if match}
    known, renamed = {Path(path).name for path in paths}, 0
    for match in map(NAME.fullmatch, sorted(set(os.listdir(faces)) - known)):
        if match and match.group(1, 3, 4) in wanted:
            os.rename(faces / match.group(), faces / wanted.pop(match.group(1, 3, 4)))
            renamed += 1
    print(f"{renamed} faces renamed as agedb.csv spells them, {len(missing) - renamed} missing")
    return renamed


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(usage=program.USAGE, description=__doc__.split("\n\n")[0])
    parser.add_argument("--data_dir", type=Path, default="./data", help="folder of the data")
    parser.add_argument("--split_file", action="store_true", help="fetch the official agedb.csv")
    parser.add_argument("--base_url", default=BASE_URL, help="of the split file, for a mirror")
    parser.add_argument("--checkpoint", choices=OFFICIAL, help="fetch a released checkpoint only")
    parser.add_argument("--zip", type=Path, help="AgeDB.zip, to be unpacked")
    secret = parser.add_mutually_exclusive_group()
    secret.add_argument("--password", help="of AgeDB.zip; stays in the shell's history")
    secret.add_argument("--password_file", type=Path, help="its first line is the password")
    parser.add_argument("--max_gb", type=float, default=20, help="largest size when unpacked")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    return parser.parse_args(argv)


def main(argv=None):
    """Say how to get the data, fetch the split file, unpack the faces."""
    args = parse_args(argv)
    if not (args.checkpoint or args.split_file or args.zip):
        return print(INSTRUCTIONS)
    password = args.password or os.environ.get("AGEDB_PASSWORD", "")
    if args.password_file:
        password = args.password_file.read_text(encoding="utf-8").partition("\n")[0]
    meta = args.data_dir / "agedb.csv"
    with sole_use(args.data_dir):
        if args.checkpoint:
            from released import fetch_official  # torch, which nothing else here needs

            path = args.data_dir / f"official_{args.checkpoint}.pth.tar"
            return fetch_official(*OFFICIAL[args.checkpoint], path)
        if args.split_file:
            url = f"{args.base_url.rstrip('/')}/{SPLIT_FILE}"
            fetch_small({meta: (url, SPLIT_SHA256)}, args.overwrite)
        if args.zip:
            unpack_faces(args.zip, args.data_dir, password.encode(), args.overwrite, args.max_gb)
        if meta.exists() and (args.data_dir / "AgeDB").is_dir():
            match_names(args.data_dir)
            print("next: python prepare.py --check")


if __name__ == "__main__":
    program.run(main)
