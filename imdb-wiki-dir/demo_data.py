"""Draw a small set of made-up faces in IMDB-WIKI's format, so that the folder runs without it.

It writes `imdb_crop.tar` and `wiki_crop.tar`, each with a MATLAB file of the real one's fields.
Then it unpacks them as `download.py` does and makes `imdb_wiki.csv` as `prepare.py` does. Among the
faces that count are rows of every kind that `prepare.py` leaves out. Nobody in the pictures exists,
and no number obtained on them says anything about real faces.

    # About a minute of CPU time, shared among the processes.
    python demo_data.py --out ./data --num_images 3000 --img_size 96 --seed 0
    # Only the two archives, for example to try download.py.
    python demo_data.py --out ./mirror --archives_only
"""

import argparse
import io
import os
import tarfile
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat
from tqdm import tqdm

import program
from demo.picture import make_face
from fetch import sole_use
from matlab_meta import MATLAB_YEAR, MID_YEAR, SOURCES
from meta_file import missing_paths, read_ages
from prepare import DATASET, faces_of_sources, write_meta
from prepare import parse_args as preparation
from unpack import MARK, is_demo, unpack_archive

AGES, PEAK = np.arange(101), 30
MISTAKEN = (112, 131, 150, 186)  # ages that follow from wrong dates, as some of the real ones
IMDB_SHARE = 0.85  # of the images; the real share is 0.88
FAULTS = ("no face", "low score", "second face", "no year", "no birth", "not born")
FAULTY = 0.2  # rows of these kinds for each face that counts


def age_density():
    """Return the share of each age of AGES, a sharp peak on a wide base; they sum to 1.

    An age gives a third of its faces to validation and another to test, until it has 450: to leave
    more than 100 in training it needs more than 300. At 3,000 faces about three ages are
    many-shot (> 100), four medium-shot and the others few-shot (< 20).
    """
    density = np.full(len(AGES), 0.04 / len(AGES))
    for share, below, above in ((0.6, 1.5, 1.5), (0.36, 10, 20)):  # spreads in years
        part = np.exp(-0.5 * ((AGES - PEAK) / np.where(AGES < PEAK, below, above)) ** 2)
        density += share * part / part.sum()
    return density


def draw_rows(num_images, rng):
    """Draw the faces that count and the faulty rows among them, as a list of dictionaries."""
    kinds = ["face"] * num_images
    kinds += [FAULTS[i % len(FAULTS)] for i in range(max(len(FAULTS), int(FAULTY * num_images)))]
    kinds = [kinds[i] for i in rng.permutation(len(kinds))]
    ages = rng.choice(AGES, len(kinds), p=age_density())
    ages[rng.permutation(len(kinds))[: num_images // 500]] = rng.choice(MISTAKEN, num_images // 500)
    rows = []
    for number, (kind, age) in enumerate(zip(kinds, ages.tolist())):
        month = int(rng.integers(1, 13))
        year = int(rng.integers(1990, 2016))
        # The rule of the ages, solved for the year of birth.
        born = date(year - age - (month >= MID_YEAR), month, int(rng.integers(1, 29)))
        born = born.replace(year=year + 3) if kind == "not born" else born
        source = "imdb" if rng.random() < IMDB_SHARE or kind == "no year" else "wiki"
        gender = "mf"[int(rng.integers(2))]
        row = {"number": number, "kind": kind, "age": age, "source": source, "gender": gender}
        row |= {"born": born, "photo_taken": float("nan") if kind == "no year" else year}
        name = f"nm{9_000_000 + number // 4}_rm{number:09}_{born.year}-{born.month}-{born.day}"
        name = name if source == "imdb" else f"{9_000_000 + number}_{born}"
        row["full_path"] = f"{number % 7:02}/{name}_{year}.jpg"
        row["dob"] = number % MATLAB_YEAR if kind == "no birth" else born.toordinal() + MATLAB_YEAR
        low = {"no face": -np.inf, "low score": rng.uniform(0, 0.99)}
        row["face_score"] = low.get(kind, rng.uniform(1, 6))
        second = rng.choice([float("nan"), -1.0], p=[0.95, 0.05])
        row["second_face_score"] = rng.uniform(0.1, 4) if kind == "second face" else second
        rows.append(row)
    return rows


def draw_image(row, seed, img_size):
    """Return a row's image as JPEG bytes. Its generator depends only on seed and number."""
    rng = np.random.default_rng([seed, 1 + row["number"]])
    side = int(rng.integers(max(16, 3 * img_size // 4), 3 * img_size // 2 + 1))  # crops differ
    if row["kind"] == "no face":
        image = Image.fromarray(rng.integers(60, 200, (side, side, 3), dtype=np.uint8))
    else:
        image = make_face(min(row["age"], AGES[-1]), rng, side, row["gender"])
    file = io.BytesIO()
    image.save(file, "JPEG", quality=int(rng.integers(60, 96)))
    return file.getvalue()


def matlab_file(rows, source):
    """Return the bytes of `<source>.mat` for these rows, in the real one's fields and types."""

    def cells(values):
        column = np.empty((1, len(rows)), dtype=object)
        column[0] = list(values)
        return column

    def numbers(field, dtype=np.float64):
        return np.array([[row[field] for row in rows]], dtype=dtype)

    years = numbers("photo_taken")
    struct = {
        "dob": numbers("dob", np.int32),
        # As MATLAB stores whole numbers: unsigned and short, unless one is missing.
        "photo_taken": years if np.isnan(years).any() else years.astype(np.uint16),
        "full_path": cells(row["full_path"] for row in rows),
        "gender": np.array([[float(row["gender"] == "m") for row in rows]]),
        "name": cells(f"Nobody {row['number'] // 4}" for row in rows),
        "face_location": cells(np.array([[1.0, 1.0, 96.0, 96.0]]) for row in rows),
        "face_score": numbers("face_score"),
        "second_face_score": numbers("second_face_score"),
    }
    if source == "imdb":
        people = sorted({row["number"] // 4 for row in rows})
        names = np.empty((1, len(people)), dtype=object)
        names[0] = [f"Nobody {person}" for person in people]
        place = {person: 1.0 + i for i, person in enumerate(people)}
        ids = np.array([[place[row["number"] // 4] for row in rows]])
        struct |= {"celeb_names": names, "celeb_id": ids}
    file = io.BytesIO()
    savemat(file, {source: struct}, do_compression=True)
    # The first 116 bytes are a text that holds the time: the same seed gives the same bytes.
    return b"MATLAB 5.0 MAT-file, made by demo_data.py".ljust(116) + file.getvalue()[116:]


def write_archive(path, rows, images):
    """Write `<source>_crop.tar`: mark, folders, images, and the MATLAB file that describes them."""
    top = path.name.removesuffix(".tar")
    source = top.removesuffix("_crop")
    unfinished = path.with_suffix(".demo")
    with tarfile.open(unfinished, "w") as archive:

        def add(name, content=None):
            member = tarfile.TarInfo(f"{top}/{name}".rstrip("/"))
            member.type = tarfile.DIRTYPE if content is None else tarfile.REGTYPE
            member.mode = 0o755 if content is None else 0o644
            member.size = len(content or b"")
            archive.addfile(member, io.BytesIO(content or b""))

        add(MARK, b"")  # first, so that `is_demo` finds it at once
        for folder in ["", *sorted({row["full_path"][:3] for row in rows})]:
            add(folder)
        for row, image in zip(rows, images):
            add(row["full_path"], image)
        add(f"{source}.mat", matlab_file(rows, source))
    os.replace(unfinished, path)


def lists_demo(path):
    """Return whether a meta file exists and lists only faces of the folders next to it."""
    try:
        return not missing_paths(path.parent, read_ages(path, ("age", "path"))["path"])
    except (OSError, ValueError):
        return False


def check_place(out, overwrite):
    """Refuse a folder that holds an earlier demo, unless it may be replaced, or real data."""
    names = [f"{source}_crop{suffix}" for source in SOURCES for suffix in ("", ".tar")]
    is_ours = dict.fromkeys(names, is_demo) | {f"{DATASET}.csv": lists_demo}
    there = [name for name in is_ours if os.path.lexists(out / name)]
    real = [n for n in there if (out / n).is_symlink() or not is_ours[n](out / n)]
    if real or (there and not overwrite):
        raise ValueError(
            f"{out} holds {', '.join(real or there)}: --overwrite replaces an earlier demo, and "
            "nothing else; or give another --out"
        )


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(usage=program.USAGE, description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default="./data", help="folder of the data")
    parser.add_argument("--num_images", type=int, default=3000, help="number of faces that count")
    parser.add_argument("--img_size", type=int, default=96, help="side of a picture in pixels")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same files")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--archives_only", action="store_true", help="leave the archives packed")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier demo")
    args = parser.parse_args(argv)
    for flag, least in (("num_images", 12), ("img_size", 16), ("seed", 0), ("workers", 1)):
        if getattr(args, flag) < least:
            parser.error(f"--{flag} is {getattr(args, flag)}: it must be >= {least}")
    return args


def main(argv=None):
    """Write the archives, then unpack them and make the meta file."""
    args = parse_args(argv)
    with sole_use(args.out):
        check_place(args.out, args.overwrite)
        rows = draw_rows(args.num_images, np.random.default_rng([args.seed, 0]))
        draw = partial(draw_image, seed=args.seed, img_size=args.img_size)
        with ProcessPoolExecutor(args.workers) as pool:
            images = list(tqdm(pool.map(draw, rows, chunksize=16), "faces", len(rows), unit="face"))
        paths = [args.out / f"{source}_crop.tar" for source in SOURCES]
        for source, path in zip(SOURCES, paths):
            chosen = [i for i, row in enumerate(rows) if row["source"] == source]
            write_archive(path, [rows[i] for i in chosen], [images[i] for i in chosen])
        if args.archives_only:
            return print(f"wrote {', '.join(map(str, paths))}")
        # One of other faces than the folders' would not pass for a demo's, if this were killed.
        (args.out / f"{DATASET}.csv").unlink(missing_ok=True)
        for path in paths:
            unpack_archive(path, args.out, overwrite=True)
            path.unlink()
        meta = write_meta(faces_of_sources(args.out), args.out / f"{DATASET}.csv", preparation([]))
    counts = meta.loc[meta["split"] == "train", "age"].value_counts()
    many, few = sum(counts > 100), sum(counts < 20)
    medium = len(counts) - many - few
    print(f"ages in train: {many} many-shot, {medium} medium-shot, {few} few-shot")


if __name__ == "__main__":
    program.run(main)
