"""Raw data of SHHS-DIR: how to ask for it, and fetching it with the token that you were given.

The Sleep Heart Health Study is given by the National Sleep Research Resource (sleepdata.org) to
those whose request it has granted; it may not be passed on. Without a token no host is
contacted.

    python download.py                                              # says how to get the data
    python download.py --token_file token.txt --list                # what it would fetch
    python download.py --token_file token.txt                       # visit 2: recordings, scores

The two addresses used (a folder's list of files, a file) are those of the resource's own `nsrr`
client as we know them. They could not be tried without an account: if they have changed, use that
client, then `python prepare.py --raw FOLDER`.
"""

import argparse
import contextlib
import hashlib
import json
import os
import re
import urllib.parse
from pathlib import Path, PurePosixPath

import program
from fetch import fetch, read_url, sole_use

BASE_URL = "https://sleepdata.org"
DATASET = "shhs"
# Folders of the data set, and which of their files are needed.
FOLDERS = {
    "datasets": re.compile(r"shhs2-dataset.*\.csv|shhs-data-dictionary.*variables.*\.csv"),
    "polysomnography/edfs/shhs2": re.compile(r"shhs2-\d+\.edf"),
}
EXPECTED_NIGHTS = 2_651  # recordings of visit 2

INSTRUCTIONS = """SHHS-DIR needs visit 2 of the Sleep Heart Health Study, recordings and scores:
1. Make an account at https://sleepdata.org and request the data set "shhs" there
   (https://sleepdata.org/datasets/shhs): you describe your use and sign a data use agreement.
2. Once it is granted, your token is shown at https://sleepdata.org/token. Put it in a file that
   only you can read, then
       python download.py --token_file FILE
   (or the variable NSRR_TOKEN). It fetches 2,651 recordings, some 100 GB, and the tables, resumes
   what broke off, and compares each file's size and MD5 with the host's, where it gives them.
   The resource's own client does the same: `nsrr download shhs/polysomnography/edfs/shhs2`.
3. `python prepare.py` makes the nights and the split. The score is SF-36's general health; if the
   table's column has another name than prepare.py expects, name it with --score_column.
The data may not be passed on, and neither may nights, splits or predictions made from them.
To try the code without them, `python demo_data.py` simulates nights in the same format."""


@contextlib.contextmanager
def hidden(token):
    """Keep the token out of the message of any ValueError."""
    try:
        yield
    except ValueError as error:
        message = str(error).replace(urllib.parse.quote(token), "<token>")
        raise ValueError(message) from None


def list_files(base_url, token, folder, pattern):
    """Return (path, size or 0, MD5 or None) of a folder's files whose name matches, by path.

    Raises:
        ValueError: the host refuses, sends no list or an empty one, or names a file outside of the
            folder.
    """
    query = urllib.parse.urlencode({"auth_token": token, "path": folder})
    with hidden(token):
        content = read_url(
            f"{base_url}/api/v1/datasets/{DATASET}/files.json?{query}",
            "is the token right, and has the request been granted? `python download.py` says how "
            "to get both",
        )
    listed = []
    try:
        for row in json.loads(content):
            if row["is_file"]:
                size = row.get("file_size")
                md5 = row.get("file_checksum_md5")
                path = PurePosixPath(row["full_path"])
                listed.append((row["full_path"], path, int(size or 0), (md5 or "").lower() or None))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(
            f"{base_url} sent no list of the files in {folder}: its address may have changed, the "
            "resource's own client `nsrr` is another way"
        ) from None
    files = []
    for name, path, *facts in sorted(listed, key=lambda item: item[0]):
        if str(path.parent) != folder or "\\" in name or ".." in name:
            raise ValueError(f"the host names {name!a}, which does not lie in {folder}: refused")
        if pattern.fullmatch(path.name):
            files.append((name, *facts))
    if not files:
        raise ValueError(
            f"{base_url} lists {len(listed)} files in {folder}, none of those needed: its names "
            "may have changed, or your request does not cover them"
        )
    return files


def difference(path, size, md5):
    """Return in words how a file differs from the host's size and MD5, as far as it gives them."""
    if size and (found := path.stat().st_size) != size:
        return f"has {found:,} bytes, the host says {size:,}"
    with open(path, "rb") as file:
        if md5 and (found := hashlib.file_digest(file, "md5").hexdigest()) != md5:
            return f"has the MD5 {found}, the host says {md5}"
    return ""


def fetch_file(base_url, token, path, size, md5, target):
    """Fetch one file unless it exists, and compare its size and MD5.

    Raises:
        ValueError: the host refuses, or the file does not match its size and MD5.
    """
    if target.is_file() and not difference(target, size, md5):
        return
    address = f"{base_url}/datasets/{DATASET}/files/a"
    with hidden(token):
        fetch(f"{address}/{urllib.parse.quote(token)}/{urllib.parse.quote(path)}", target)
    if found := difference(target, size, md5):
        target.unlink()
        raise ValueError(f"{path} {found}: give the command again")


def read_token(path):
    """Return the first line of a file, without a byte order mark; its content is never shown."""
    try:
        return path.read_text(encoding="utf-8-sig").partition("\n")[0]
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no text in UTF-8: write the token there, no more") from None
    except OSError as error:
        raise ValueError(
            f"cannot read {path} ({error.strerror}): `python download.py` says how to get a token"
        ) from None


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(usage=program.USAGE, description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--data_dir", type=Path, default="./data", help="files go to <data_dir>/shhs")
    secret = parser.add_mutually_exclusive_group()
    secret.add_argument("--token_file", type=Path, help="its first line is your token")
    secret.add_argument("--token", help="your token; it stays in the shell's history")
    add("--what", nargs="+", choices=("tables", "nights"), default=("tables", "nights"))
    add("--limit", type=int, help="fetch only that many recordings, for a trial")
    add("--list", action="store_true", help="print what would be fetched, fetch nothing")
    add("--base_url", default=BASE_URL, help="of the host")
    args = parser.parse_args(argv)
    if args.limit is not None and args.limit < 1:
        parser.error(f"--limit must be 1 or more, got {args.limit}")
    return args


def main(argv=None):
    """Say how to get the data, or fetch it with the token."""
    args = parse_args(argv)
    token = args.token or os.environ.get("NSRR_TOKEN", "")
    if args.token_file:
        token = read_token(args.token_file)
    token = token.strip()
    if not token:
        print(INSTRUCTIONS)
        return
    if not re.fullmatch(r"[\w-]+", token, re.ASCII):
        raise ValueError("the token holds other signs than letters, digits, - and _: copy it again")
    files, base_url = [], args.base_url.rstrip("/")
    for (folder, pattern), what in zip(FOLDERS.items(), ("tables", "nights")):
        if what in args.what:
            found = list_files(base_url, token, folder, pattern)
            files += found[: args.limit] if what == "nights" else found
            print(f"{folder}: {len(files)} files so far (nights expected: {EXPECTED_NIGHTS:,})")
    print(f"{len(files):,} files, {sum(size for _, size, _ in files) / 1e9:.1f} GB")
    if args.list:
        for path, size, _ in files:
            print(f"{size:>14,}  {path}")
        return
    with sole_use(args.data_dir):
        for path, size, md5 in files:
            fetch_file(base_url, token, path, size, md5, args.data_dir / "shhs" / path)
    print("next: python prepare.py")


if __name__ == "__main__":
    program.run(main)
