"""Raw data of STS-B-DIR: the official split, GLUE's STS-B and the word vectors of GloVe.

    python download.py                   # says what there is
    python download.py --what split      # glue_data/STS-B/*_new.tsv, 1.3 MB
    python download.py --what raw        # glue_data/STS-B/{train,dev}.tsv, for prepare.py
    python download.py --checkpoint lds  # a released network: lds, fds or lds_fds
    python download.py --what glove      # glove/glove.840B.300d.txt: 2.2 GB, unpacked 5.6 GB

What breaks off goes on where it stopped, at once or when the command is given again.
"""

import argparse
import hashlib
import http.client
import json
import os
import shutil
import stat
import urllib.request
import zipfile
import zlib
from pathlib import Path

from tqdm import tqdm

from datasets import FILES
from fetch import fetch
from prepare import DATA_DIR, OFFICIAL_SHA256, RAW_FILES
from released import fetch_official, sha256_of
from utils import write_atomically

BASE_URL = "https://raw.githubusercontent.com/YyzHarry/imbalanced-regression/HEAD"
SPLIT_FOLDER = "sts-b-dir/glue_data/STS-B"  # its path in the official release
RAW_URL = "https://dl.fbaipublicfiles.com/glue/data/STS-B.zip"
GLOVE_URL = "http://nlp.stanford.edu/data/glove.840B.300d.zip"
UNPACKED = 2.6  # bytes of a vector file for each of its archive: 5.65 GB from 2.18 GB
# Released networks: Drive id, and MSE of the test set, all / many / medium / few.
OFFICIAL = {
    "lds": ("1CVyycq0OMgD9N9gJX5UDcfpRaJdZBjzo", "mse", (0.914, 0.819, 1.319, 0.955)),
    "fds": ("13e-1kd-KQrzFFVrJp1FeNDIBwUp3qtYx", "mse", (0.916, 0.875, 1.027, 1.086)),
    "lds_fds": ("1kb_GV2coJRK_o9OxnMcxchq1EKOcpx-h", "mse", (0.907, 0.802, 1.363, 0.942)),
}

INSTRUCTIONS = """STS-B-DIR needs two things:
1. The pairs of sentences. The official split, which the published numbers belong to:
       python download.py --what split
   or GLUE's STS-B (--what raw), from which `python prepare.py` draws a split of the same sizes.
2. Word vectors: GloVe 840B, 2.2 GB, unpacked 5.6 GB:
       python download.py --what glove
   `python train.py --word_embs_file FILE --d_word D` takes any GloVe or word2vec text file.
Then `python prepare.py --check` verifies the split. To try the code without any of it,
`python demo_data.py` writes generated pairs and vectors in the same formats."""


def fetch_split(data_dir, base_url=BASE_URL, overwrite=False):
    """Fetch the three official files to `data_dir`, verify each sha256, then write them.

    Args:
        base_url: what stands before `/sts-b-dir/glue_data/STS-B/`, for a mirror.
        overwrite: replace other files of these names; official ones stay as they are.
    Raises:
        ValueError: other files are there, or the host gives none, or one with another sha256.
    """
    contents = {}
    for split, name in FILES.items():
        path, url = Path(data_dir) / name, f"{base_url.rstrip('/')}/{SPLIT_FOLDER}/{name}"
        if path.exists() and sha256_of(path) == OFFICIAL_SHA256[split]:
            print(f"{path} is the official file")
            continue
        if path.exists() and not overwrite:
            raise ValueError(f"{path} is not the official file: --overwrite replaces it")
        try:
            with urllib.request.urlopen(url, timeout=60) as response:
                contents[path] = response.read()
        except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: no URL
            raise ValueError(
                f"cannot fetch {url} ({error}): fetch it by hand, put it at {path}, then run "
                "`python download.py --what split` again, which verifies it"
            ) from error
        found = hashlib.sha256(contents[path]).hexdigest()
        if found != OFFICIAL_SHA256[split]:
            raise ValueError(
                f"{url} has the sha256 {found}, not {OFFICIAL_SHA256[split]}: it was not kept"
            )
    for path, content in contents.items():
        write_atomically(path, content)
        print(f"wrote {path}")


def list_members(archive, wanted, max_gb):
    """Return `{file name: member}` of what is wanted; refuse an archive that could do harm.

    Raises:
        ValueError: a member is unsafe, there twice or missing, or all are larger than `max_gb`.
    """
    chosen = {}
    for member in archive.infolist():
        *folder, name = parts = member.orig_filename.replace("\\", "/").split("/")
        kind = stat.S_IFMT(member.external_attr >> 16)  # Unix mode; other systems leave it 0
        leads_out = not parts[0] or ".." in parts or set(":\0") & set(member.orig_filename)
        if leads_out or kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise ValueError(f"{member.orig_filename!a} leads out or is a link or device: refused")
        named = any(name and Path(name).match(pattern) for pattern in wanted)
        if named and len(folder) < 2 and "__MACOSX" not in folder:
            if name in chosen:
                raise ValueError(f"{name!a} occurs twice in the archive")
            chosen[name] = member
    # Python's zipfile gives no more of a member than it declares, so this bounds what is written.
    total_gb = sum(member.file_size for member in chosen.values()) / 1e9
    if lacking := [p for p in wanted if not any(Path(name).match(p) for name in chosen)]:
        raise ValueError(f"the archive holds no {', '.join(lacking)}: is it the right one?")
    if total_gb > max_gb:
        raise ValueError(f"{total_gb:.3g} GB when unpacked, above {max_gb:g}: see --max_gb")
    return chosen


def unpack(path, folder, wanted, overwrite=False, max_gb=20.0):
    """Unpack the wanted files of an archive to `folder`; each is verified by its CRC first.

    Returns:
        `{file name: size}`.
    Raises:
        ValueError: a file is there already, the archive is damaged or refused, the disk is full.
    """
    partial = folder / f"{path.name}.unpacked"
    try:
        with zipfile.ZipFile(path) as archive:
            members = list_members(archive, wanted, max_gb)
            sizes = {name: member.file_size for name, member in members.items()}
            there = [name for name in sizes if (folder / name).exists()]
            if there and not overwrite:
                raise ValueError(f"{folder} holds {there}: --overwrite replaces them")
            if sum(sizes.values()) > (free := shutil.disk_usage(folder).free):
                raise ValueError(
                    f"{sum(sizes.values()):,} bytes to unpack, {free:,} free: make room"
                )
            shutil.rmtree(partial, ignore_errors=True)  # left by a run that was killed
            partial.mkdir()
            for name, member in members.items():
                bar = tqdm(desc=name, total=sizes[name], unit="B", unit_scale=True)
                with archive.open(member) as source, open(partial / name, "xb") as file, bar:
                    while content := source.read(1 << 20):
                        file.write(content)
                        bar.update(len(content))
        for name in sizes:
            os.replace(partial / name, folder / name)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise ValueError(f"{path} is damaged ({error}): --overwrite fetches it again") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return sizes


def fetch_archive(url, folder, wanted, overwrite=False, max_gb=20.0):
    """Fetch an archive and unpack it, unless that is done; its sha256 must stay the recorded one.

    Raises:
        ValueError: what `fetch` and `unpack` refuse, or an archive other than the first one.
    """
    path = folder / url.partition("?")[0].rpartition("/")[2]
    record = path.with_name(path.name + ".json")
    first = json.loads(record.read_text()) if record.exists() else {"files": {}}
    done = [(folder / n).exists() and (folder / n).stat().st_size for n in first["files"]]
    if done and done == list(first["files"].values()) and not overwrite:
        return print(f"{folder} holds {', '.join(first['files'])}: --overwrite fetches them again")
    there = [n for n in (*wanted, f"{path.stem}.txt") if (folder / n).exists()]
    if there and not overwrite:  # said before gigabytes are fetched
        raise ValueError(f"{folder} holds {there}, of another origin: --overwrite replaces them")
    if overwrite or not path.exists():
        fetch(url, path, UNPACKED)
    digest = sha256_of(path)
    if digest != first.get("sha256", digest):
        raise ValueError(
            f"{path} has the sha256 {digest}, the first one had {first['sha256']}: if the new one "
            f"is right, delete {record}; if not, fetch it again with --overwrite"
        )
    files = unpack(path, folder, wanted, overwrite, max_gb)
    write_atomically(record, json.dumps({"sha256": digest, "files": files}).encode())
    print(f"wrote {', '.join(files)} to {folder}; {path} may be deleted")


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    what = ("split", "raw", "glove")
    parser.add_argument("--what", nargs="+", choices=what, default=[], help="what to fetch")
    parser.add_argument("--checkpoint", choices=OFFICIAL, help="fetch a released checkpoint only")
    parser.add_argument("--data_dir", type=Path, default=DATA_DIR, help="folder of the pairs")
    parser.add_argument("--glove_dir", type=Path, default="glove", help="folder of the vectors")
    parser.add_argument("--base_url", default=BASE_URL, help="of the official split, for a mirror")
    parser.add_argument("--raw_url", default=RAW_URL, help="of GLUE's STS-B.zip")
    parser.add_argument("--glove_url", default=GLOVE_URL, help="of a .zip of vectors as text")
    parser.add_argument("--max_gb", type=float, default=20, help="largest size when unpacked")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    return parser.parse_args(argv)


def main(argv=None):
    """Say what there is, or fetch it."""
    args = parse_args(argv)
    if args.checkpoint:
        path = args.data_dir / f"official_{args.checkpoint}.th"
        return fetch_official(*OFFICIAL[args.checkpoint], path)
    rest = (args.overwrite, args.max_gb)
    if "split" in args.what:
        fetch_split(args.data_dir, args.base_url, args.overwrite)
    if "raw" in args.what:
        fetch_archive(args.raw_url, args.data_dir, RAW_FILES, *rest)
    if "glove" in args.what:
        fetch_archive(args.glove_url, args.glove_dir, ("*.txt",), *rest)
    if not args.what:
        print(INSTRUCTIONS)
    elif "split" in args.what:
        print("next: python prepare.py --check")


if __name__ == "__main__":
    main()
