"""Raw data of AgeDB-DIR: the faces of AgeDB and the official split file.

AgeDB's authors give its archive and password for research: nothing here can fetch it.

    python download.py                                    # says how to get both
    python download.py --split_file                       # data/agedb.csv, 0.7 MB
    python download.py --checkpoint lds_fds               # a released network: lds, fds or lds_fds
    python download.py --zip AgeDB.zip --password_file password.txt   # data/AgeDB/*.jpg
"""

import argparse
import hashlib
import http.client
import os
import shutil
import stat
import urllib.request
import zipfile
import zlib
from pathlib import Path

from tqdm import tqdm

from prepare import NAME, missing_paths, read_meta
from released import fetch_official, sha256_of
from utils import write_atomically

BASE_URL = "https://raw.githubusercontent.com/YyzHarry/imbalanced-regression/HEAD"
SPLIT_FILE = "agedb-dir/data/agedb.csv"  # its path in the official release
SPLIT_SHA256 = "ab9f8d4c7099a9d74ec5094c42b6fe9f1927a166a48d2ab800a88b2fd6081252"
IMAGES = 16_488  # rows of the official split file
READABLE = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # AES encryption has a method of its own
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
   (or --password PW, or the variable AGEDB_PASSWORD); it decrypts 1 MB or more a second
2. The official split file, which the published numbers belong to:
       python download.py --split_file
Then `python prepare.py --check` verifies both. To try the code without the faces,
`python demo_data.py` writes a small generated data set in the same format."""


def fetch_split_file(data_dir, base_url=BASE_URL, overwrite=False):
    """Fetch the official `agedb.csv` to `data_dir` and verify its sha256.

    Args:
        base_url: what stands before `/agedb-dir/data/agedb.csv`, for a mirror.
        overwrite: replace another `agedb.csv`; the official one stays as it is.
    Raises:
        ValueError: another `agedb.csv` is there, the host gives none, or one with another sha256.
    """
    path, url = Path(data_dir) / "agedb.csv", f"{base_url.rstrip('/')}/{SPLIT_FILE}"
    if path.exists() and sha256_of(path) == SPLIT_SHA256:
        return print(f"{path} is the official file")
    if path.exists() and not overwrite:
        raise ValueError(f"{path} is not the official file: --overwrite replaces it")
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            content = response.read()
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: no URL
        raise ValueError(
            f"cannot fetch {url} ({error}): fetch it by hand, put it at {path}, then run "
            "`python download.py --split_file` again, which verifies it"
        ) from error
    found = hashlib.sha256(content).hexdigest()
    if found != SPLIT_SHA256:
        raise ValueError(f"{url} has the sha256 {found}, not {SPLIT_SHA256}: it was not kept")
    write_atomically(path, content)
    print(f"wrote {path}")


def list_faces(archive, max_gb):
    """Return `{file name: member}` of an archive's faces; refuse an archive that could do harm.

    Raises:
        ValueError: a member is unsafe, unreadable or there twice, faces lack, or `max_gb` is less.
    """
    faces, folders, left_out = {}, set(), []
    for member in archive.infolist():
        # Some tools write backslashes; a cut archive has offsets outside of what is left.
        *folder, name = parts = member.orig_filename.replace("\\", "/").split("/")
        if not 0 <= member.header_offset < archive.start_dir:
            raise zipfile.BadZipFile(f"{name!a} is outside of it")
        kind = stat.S_IFMT(member.external_attr >> 16)  # Unix mode; other systems leave it 0
        leads_out = not parts[0] or ".." in parts or set(":\0") & set(member.orig_filename)
        if leads_out or kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise ValueError(f"{member.orig_filename!a} leads out or is a link or device: refused")
        if not name.endswith(".jpg") or "__MACOSX" in folder:
            left_out += [member.filename] if name else []
            continue
        if member.compress_type not in READABLE or member.flag_bits & 0x60:  # patch, strong cipher
            raise ValueError(
                f"Python cannot read {name!a} (method {member.compress_type}; 99 is AES encryption)"
                ": unpack the archive by `7z x AgeDB.zip`, put the folder of the faces at "
                "data/AgeDB, then run `python download.py --split_file`"
            )
        if name in faces:
            raise ValueError(f"{name!a} occurs twice in the archive: this is not AgeDB.zip")
        faces[name] = member
        folders.add("/".join(folder))
    if len(faces) < IMAGES or len(folders) > 1:  # the folder's name is free, or there is none
        raise ValueError(f"{len(faces)} faces in {len(folders)} folders, expected {IMAGES} in one")
    print(f"{len(faces)} faces ({IMAGES} expected), left out: {left_out[:10]!a} ({len(left_out)})")
    # Python's zipfile gives no more of a member than it declares, so this bounds what is written.
    total_gb = sum(member.file_size for member in faces.values()) / 1e9
    if total_gb > max_gb:
        raise ValueError(f"{total_gb:.3g} GB when unpacked, above {max_gb:g}: see --max_gb")
    return faces


def unpack_faces(archive, faces, folder, password):
    """Write the faces to `folder`, each verified by its CRC; an error says what helps."""
    total = sum(member.file_size for member in faces.values())
    if total > (free := shutil.disk_usage(folder).free):
        raise ValueError(f"{total:,} bytes to unpack, {free:,} free in {folder}: make room")
    with tqdm(total=total, unit="B", unit_scale=True, desc="AgeDB") as progress:
        for name, member in faces.items():
            try:
                with archive.open(member, pwd=password) as face, open(folder / name, "xb") as file:
                    shutil.copyfileobj(face, file)
            except (RuntimeError, zipfile.BadZipFile, zlib.error, EOFError) as error:
                # One wrong password in 256 passes the check in the header and fails at the CRC.
                cause = "wrong --password_file or " * (member.flag_bits & 1) + "damaged archive"
                raise ValueError(f"{cause}, nothing was kept: {name!a}: {error}") from error
            progress.update(member.file_size)


def unpack_archive(path, data_dir, password=None, overwrite=False, max_gb=20.0):
    """Verify AgeDB's archive and unpack it into `<data_dir>/AgeDB`, which appears when complete.

    The sha256 of the first archive unpacked is recorded and compared from then on.

    Raises:
        FileNotFoundError, ValueError: no archive, a folder in the way, or an archive refused.
    """
    target = Path(data_dir) / "AgeDB"
    partial, record = target.with_name("AgeDB.partial"), target.with_name("AgeDB.zip.sha256")
    if not Path(path).is_file():
        raise FileNotFoundError(f"no archive {path}: `python download.py` says how to get it")
    if target.exists() and not overwrite:
        raise ValueError(f"{target} exists: verify it by prepare.py --check or use --overwrite")
    digest = sha256_of(path)
    if record.exists() and record.read_text().split()[:1] != [digest]:
        raise ValueError(
            f"{path} ({digest}) is not the one of {record}: download it again or delete that record"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            faces = list_faces(archive, max_gb)
            shutil.rmtree(partial, ignore_errors=True)  # left by a run that was killed
            partial.mkdir(parents=True)
            unpack_faces(archive, faces, partial, password)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is no whole zip archive ({error}): download it again") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    write_atomically(record, f"{digest}  {Path(path).name}\n".encode())
    print(f"wrote {target}, {len(faces)} faces")


def match_names(data_dir):
    """Rename faces whose name is spelled otherwise in `agedb.csv`; return how many.

    In 131 names the official file has a Cyrillic letter for an accented one: their byte in code
    pages 866 and 437. Number, age and gender tell which face is meant.
    """
    faces = Path(data_dir) / "AgeDB"
    paths = read_meta(Path(data_dir) / "agedb.csv", ("path", "age"))["path"]
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
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data_dir", type=Path, default="./data", help="folder of the data")
    parser.add_argument("--split_file", action="store_true", help="fetch the official agedb.csv")
    parser.add_argument("--base_url", default=BASE_URL, help="of the split file, for a mirror")
    parser.add_argument("--checkpoint", choices=OFFICIAL, help="fetch a released checkpoint only")
    parser.add_argument("--zip", type=Path, help="AgeDB.zip, to be unpacked")
    secret = parser.add_mutually_exclusive_group()
    secret.add_argument("--password", help="of AgeDB.zip; stays in the shell's history")
    secret.add_argument("--password_file", type=Path, help="its first line is the password")
    parser.add_argument("--max_gb", type=float, default=20, help="largest size when unpacked")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    return parser.parse_args(argv)


def main(argv=None):
    """Say how to get the data, fetch the split file, unpack the faces."""
    args = parse_args(argv)
    if args.checkpoint:
        path = args.data_dir / f"official_{args.checkpoint}.pth.tar"
        return fetch_official(*OFFICIAL[args.checkpoint], path)
    password = args.password or os.environ.get("AGEDB_PASSWORD", "")
    if args.password_file:
        password = args.password_file.read_text(encoding="utf-8").partition("\n")[0]
    if args.split_file:
        fetch_split_file(args.data_dir, args.base_url, args.overwrite)
    if args.zip:
        unpack_archive(args.zip, args.data_dir, password.encode(), args.overwrite, args.max_gb)
    if not (args.split_file or args.zip):
        print(INSTRUCTIONS)
    elif (args.data_dir / "agedb.csv").exists() and (args.data_dir / "AgeDB").is_dir():
        match_names(args.data_dir)
        print("next: python prepare.py --check")


if __name__ == "__main__":
    main()
