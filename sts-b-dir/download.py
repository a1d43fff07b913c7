"""Raw data of STS-B-DIR: the official split, GLUE's STS-B and the word vectors of GloVe.

    python download.py                   # says how to get the data
    python download.py --what split      # glue_data/STS-B/*_new.tsv, 1.3 MB
    python download.py --what raw        # glue_data/STS-B/{train,dev}.tsv, for prepare.py
    python download.py --checkpoint lds  # a released network: lds, fds or lds_fds
    python download.py --what glove      # glove/glove.840B.300d.txt: 2.2 GB, unpacked 5.6 GB

What breaks off is resumed where it stopped, at once or when the command is given again.
"""

import argparse
from pathlib import Path

import program
from archive import unpack
from fetch import compare_with_record, fetch, fetch_small, record_of, sole_use, write_record
from pair_file import FILES
from prepare import DATA_DIR, OFFICIAL_SHA256, RAW_FILES

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
    """Fetch the three official files to `data_dir`; all are verified before one is written.

    Args:
        base_url: what stands before `/sts-b-dir/glue_data/STS-B/`, for a mirror.
        overwrite: replace other files of these names; official ones stay as they are.
    """
    folder = f"{base_url.rstrip('/')}/{SPLIT_FOLDER}"
    files = {
        data_dir / name: (f"{folder}/{name}", OFFICIAL_SHA256[split])
        for split, name in FILES.items()
    }
    fetch_small(files, overwrite)


def fetch_archive(url, folder, wanted, overwrite=False, max_gb=20.0):
    """Fetch an archive and unpack the wanted files, unless that is done.

    Args:
        url: of the archive.
        folder: where it and its files go.
        wanted: patterns of the files' names.
        overwrite: do it again.
        max_gb: largest size when unpacked.

    Raises:
        ValueError: what `fetch` and `unpack` refuse, or an archive other than the first one.
    """

    def choose(sizes):
        """Return the wanted files at the top of the archive, or one folder below."""
        chosen = {}
        for name in sizes:
            file = name.rpartition("/")[2]
            if name.count("/") < 2 and any(Path(file).match(pattern) for pattern in wanted):
                chosen[name] = file
        lacking = [p for p in wanted if not any(Path(file).match(p) for file in chosen.values())]
        if lacking:
            raise ValueError(f"the archive holds no {', '.join(lacking)}: is it the right one?")
        return chosen

    path = folder / url.partition("?")[0].rpartition("/")[2]
    held = [[file.name for file in folder.glob(pattern)] for pattern in wanted]
    if record_of(path).exists() and all(held) and not overwrite:
        names = ", ".join(name for names in held for name in names)
        return print(f"{folder} holds {names}: --overwrite fetches them again")
    there = [n for n in (*wanted, f"{path.stem}.txt") if (folder / n).exists()]
    if there and not overwrite:  # said before gigabytes are fetched
        raise ValueError(f"{folder} holds {there}, of another origin: --overwrite replaces them")
    if overwrite or not path.exists():
        fetch(url, path, UNPACKED)
    digest = compare_with_record(path)
    files = unpack(path, folder, choose, overwrite, max_gb)
    write_record(path, digest)
    print(f"wrote {', '.join(files)} to {folder}; {path} may be deleted")


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(usage=program.USAGE, description=__doc__.split("\n\n")[0])
    what = ("split", "raw", "glove")
    parser.add_argument("--what", nargs="+", choices=what, default=[], help="what to fetch")
    parser.add_argument("--checkpoint", choices=OFFICIAL, help="fetch a released checkpoint only")
    parser.add_argument("--data_dir", type=Path, default=DATA_DIR, help="folder of the pairs")
    parser.add_argument("--glove_dir", type=Path, default="glove", help="folder of the vectors")
    parser.add_argument("--base_url", default=BASE_URL, help="of the official split, for a mirror")
    parser.add_argument("--raw_url", default=RAW_URL, help="of GLUE's STS-B.zip")
    parser.add_argument("--glove_url", default=GLOVE_URL, help="of a .zip of vectors as text")
    parser.add_argument("--max_gb", type=float, default=20, help="largest size when unpacked")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    return parser.parse_args(argv)


def main(argv=None):
    """Say how to get the data, or fetch them."""
    args = parse_args(argv)
    if not (args.checkpoint or args.what):
        return print(INSTRUCTIONS)
    rest = (args.overwrite, args.max_gb)
    with sole_use(args.data_dir):
        if args.checkpoint:
            from released import fetch_official  # torch, which nothing else here needs

            path = args.data_dir / f"official_{args.checkpoint}.th"
            return fetch_official(*OFFICIAL[args.checkpoint], path)
        if "split" in args.what:
            fetch_split(args.data_dir, args.base_url, args.overwrite)
        if "raw" in args.what:
            fetch_archive(args.raw_url, args.data_dir, RAW_FILES, *rest)
    if "glove" in args.what:
        with sole_use(args.glove_dir):
            fetch_archive(args.glove_url, args.glove_dir, ("*.txt",), *rest)
    if "split" in args.what:
        print("next: python prepare.py --check")


if __name__ == "__main__":
    program.run(main)
