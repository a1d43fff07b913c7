"""Raw data of SHHS-DIR: how to ask for it, and fetching it with the token that you were given.

The Sleep Heart Health Study is given by the National Sleep Research Resource (sleepdata.org) to
those whose request it has granted; it may not be passed on. Without a token nothing is asked of any
host.

    python download.py                                              # says how to get the data
    python download.py --token_file token.txt --list                # what it would fetch
    python download.py --token_file token.txt                       # visit 2: recordings, scores

The two addresses used (a folder's list of files, a file) are those of the resource's own `nsrr`
client as we know them. They could not be tried without an account: if they have changed, use that
client, then `python prepare.py --raw FOLDER`.
"""

import argparse
import hashlib
import http.client
import json
import os
import re
import urllib.parse
import urllib.request
from pathlib import Path, PurePosixPath

from fetch import fetch

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
   (or the variable NSRR_TOKEN). It fetches 2,651 recordings, some 100 GB, and the tables, goes on
   where it broke off, and compares each file's MD5 with the one that the host gives.
   The resource's own client does the same: `nsrr download shhs/polysomnography/edfs/shhs2`.
3. `python prepare.py` makes the nights and the split. The score is SF-36's general health; if the
   table's column has another name than prepare.py expects, name it with --score_column.
The data may not be passed on, and neither may nights, splits or predictions made from them.
To try the code without them, `python demo_data.py` simulates nights in the same format."""


def ask(url, token):
    """Return what the host sends for an address, as text; the token stays out of any message."""
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            return response.read().decode("utf-8")
    except (OSError, http.client.HTTPException, ValueError) as error:
        hidden = [str(x).replace(urllib.parse.quote(token), "<token>") for x in (url, error)]
        raise ValueError(
            f"cannot ask {hidden[0]} ({hidden[1]}): is the token right, and has the request been "
            "granted? `python download.py` says how to get both"
        ) from None


def list_files(base_url, token, folder, pattern):
    """Return (path, size, MD5 or None) of a folder's files whose name matches, by path.

    Raises:
        ValueError: the host refuses, sends no list, or names a file outside of the folder.
    """
    query = urllib.parse.urlencode({"auth_token": token, "path": folder})
    text = ask(f"{base_url}/api/v1/datasets/{DATASET}/files.json?{query}", token)
    try:
        listed = [(row["full_path"], row) for row in json.loads(text) if row["is_file"]]
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"{base_url} sent no list of the files in {folder}: its address may have changed, the "
            "resource's own client `nsrr` is another way"
        ) from None
    files = []
    for path, row in sorted(listed, key=lambda item: item[0]):
        if str(PurePosixPath(path).parent) != folder or "\\" in path or ".." in path:
            raise ValueError(f"the host names {path!a}, which does not lie in {folder}: refused")
        if pattern.fullmatch(PurePosixPath(path).name):
            files.append((path, row.get("file_size") or 0, row.get("file_checksum_md5")))
    return files


def md5_of(path):
    """Return the MD5 of a file as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def fetch_file(base_url, token, path, md5, target):
    """Fetch one file unless it is there, and compare its MD5.

    Raises:
        ValueError: the host refuses, or the file is another than it says.
    """
    if target.is_file() and (md5 is None or md5_of(target) == md5):
        return
    hidden = urllib.parse.quote(token)
    url = f"{base_url}/datasets/{DATASET}/files/a/{hidden}/{urllib.parse.quote(path)}"
    try:
        fetch(url, target)
    except ValueError as error:
        raise ValueError(str(error).replace(hidden, "<token>")) from None
    if md5 is not None and (found := md5_of(target)) != md5:
        target.unlink()
        raise ValueError(f"{path} has the MD5 {found}, the host says {md5}: give the command again")


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--data_dir", type=Path, default="./data", help="files go to <data_dir>/shhs")
    secret = parser.add_mutually_exclusive_group()
    secret.add_argument("--token_file", type=Path, help="its first line is your token")
    secret.add_argument("--token", help="your token; it stays in the shell's history")
    add("--what", nargs="+", choices=("tables", "nights"), default=("tables", "nights"))
    add("--limit", type=int, help="fetch that many recordings alone, for a trial")
    add("--list", action="store_true", help="print what would be fetched, fetch nothing")
    add("--base_url", default=BASE_URL, help="of the host")
    return parser.parse_args(argv)


def main(argv=None):
    """Say how to get the data, or fetch it with the token."""
    args = parse_args(argv)
    token = args.token or os.environ.get("NSRR_TOKEN", "")
    if args.token_file:
        token = args.token_file.read_text(encoding="utf-8").partition("\n")[0]
    token = token.strip()
    if not token:
        print(INSTRUCTIONS)
        return
    if not re.fullmatch(r"[\w-]+", token):
        raise ValueError("the token holds other signs than letters, digits, - and _: copy it again")
    files, base_url = [], args.base_url.rstrip("/")
    for (folder, pattern), what in zip(FOLDERS.items(), ("tables", "nights")):
        if what in args.what:
            files += list_files(base_url, token, folder, pattern)[: args.limit]
            print(f"{folder}: {len(files)} files so far (nights expected: {EXPECTED_NIGHTS:,})")
    print(f"{len(files):,} files, {sum(size for _, size, _ in files) / 1e9:.1f} GB")
    for path, size, md5 in files:
        if args.list:
            print(f"{size:>14,}  {path}")
        else:
            fetch_file(base_url, token, path, md5, args.data_dir / "shhs" / path)
    if not args.list:
        print("next: python prepare.py")


if __name__ == "__main__":
    main()
