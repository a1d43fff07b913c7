"""Draw a small set of made-up faces in AgeDB's layout, so that the folder runs without AgeDB.

It writes `<out>/AgeDB/<id>_<name>_<age>_<gender>.jpg` and `<out>/agedb.csv` (`age,path,split`),
split by the routine of `prepare.py`, so that training runs on it as on the real set. The
labels are imbalanced as AgeDB's are, more sharply: at 3,000 faces there are many, medium and few
shot ages. Nobody in the pictures exists, the names are random syllables, and no number obtained
on them says anything about real faces.

    # About 40 s of CPU time, shared among the processes.
    python demo_data.py --out ./data --num_images 3000 --img_size 96 --seed 0
    # Again, with a sheet to look at.
    python demo_data.py --out ./data --overwrite --contact_sheet faces.png
"""

import argparse
import os
import re
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw
from tqdm import tqdm

import program
from demo.picture import make_face
from files import write_atomically
from meta_file import balanced_split, report_counts
from prepare import CAP

AGES = np.arange(1, 102)  # the ages in AgeDB-DIR's training set
PEAK = 35  # its most frequent age: 353 of 12,208 faces (the paper's appendix)
DEMO_NAME = re.compile(r"\d+_Demo[a-z]{6}_\d+_[mf]\.jpg")
SYLLABLES = ("ba", "do", "fi", "gu", "ka", "le", "mo", "nu", "pe", "ra", "si", "tu", "vo", "zy")


def age_density():
    """Return the share of each age of AGES, a skewed peak on a wide base; they sum to 1.

    The wide part is about AgeDB's shape, whose peak holds 3 % of the faces: of 3,000 it would
    leave no age with more than 100 in training. The narrow part does: at 3,000 faces about five
    ages are many-shot (> 100), eight medium-shot and the others few-shot (< 20). The uniform part
    gives the youngest and the oldest a face or two.
    """
    density = np.full(len(AGES), 0.04 / len(AGES))
    for share, below, above in ((0.5, 2.5, 4.2), (0.46, 11, 25)):  # spreads in years
        part = np.exp(-0.5 * ((AGES - PEAK) / np.where(AGES < PEAK, below, above)) ** 2)
        density += share * part / part.sum()
    return density


def write_face(index_age, out, seed, img_size):
    """Draw and save one face. Its generator depends only on the seed and its number."""
    index, age = index_age
    rng = np.random.default_rng([seed, 1 + index])
    name = "Demo" + "".join(rng.choice(SYLLABLES, 3))
    gender = "mf"[rng.integers(2)]
    path = f"AgeDB/{index}_{name}_{age}_{gender}.jpg"
    image = make_face(age, rng, img_size, gender)
    image.save(out / path, quality=int(rng.integers(60, 96)))
    return path


def write_contact_sheet(file, meta, out, columns=12, most=72):
    """Write a labelled sheet of faces by ascending age, every age as likely to be on it."""
    meta = meta.sort_values("age", kind="stable")
    weight = (1 / meta.groupby("age")["age"].transform("size")).cumsum().to_numpy()
    places = np.linspace(0, weight[-1], most, endpoint=False)
    chosen = meta.iloc[np.unique(np.searchsorted(weight, places, side="right"))]
    side, label, rows = 128, 14, -(-len(chosen) // columns)  # the first two in pixels
    sheet = Image.new("RGB", (columns * side, rows * (side + label)), "white")
    for i, (age, path) in enumerate(zip(chosen["age"], chosen["path"])):
        x, y = i % columns * side, i // columns * (side + label)
        with Image.open(out / path, formats=("JPEG",)) as face:
            sheet.paste(face.resize((side, side)), (x, y + label))
        ImageDraw.Draw(sheet).text((x + 2, y + 1), f"{age} years", fill="black")
    file.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(file)


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(usage=program.USAGE, description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default="./data", help="folder of the data")
    parser.add_argument("--num_images", type=int, default=3000, help="number of faces")
    parser.add_argument("--img_size", type=int, default=96, help="side of a picture in pixels")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same files")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing agedb.csv")
    parser.add_argument("--contact_sheet", type=Path, help="also write a sheet of faces, a .png")
    args = parser.parse_args(argv)
    for flag, least in (("num_images", 1), ("img_size", 16), ("seed", 0), ("workers", 1)):
        if getattr(args, flag) < least:
            parser.error(f"--{flag} is {getattr(args, flag)}: it must be >= {least}")
    if args.contact_sheet and args.contact_sheet.suffix != ".png":
        parser.error(f"--contact_sheet is {args.contact_sheet}: its name must end in .png")
    return args


def main(argv=None):
    """Write the faces, then the meta file, and print the counts."""
    args = parse_args(argv)
    meta_path = args.out / "agedb.csv"
    folder = args.out / "AgeDB"
    if meta_path.exists() and not args.overwrite:
        raise ValueError(f"{meta_path} exists: replace it with --overwrite or give another --out")
    folder.mkdir(parents=True, exist_ok=True)
    # Faces of an earlier demo go, or `prepare.py` would list them too; no other file is touched.
    faces = {face.name: face for face in folder.glob("*.jpg")}
    foreign = [name for name in faces if not DEMO_NAME.fullmatch(name)]
    if foreign:
        raise ValueError(f"{folder} holds other faces, as {foreign[0]!a}: give another --out")
    for face in faces.values():
        face.unlink()

    rng = np.random.default_rng([args.seed, 0])
    ages = rng.choice(AGES, args.num_images, p=age_density()).tolist()
    write = partial(write_face, out=args.out, seed=args.seed, img_size=args.img_size)
    progress = partial(tqdm, total=len(ages), desc="faces", unit="face")
    if args.workers == 1:
        paths = list(progress(map(write, enumerate(ages))))
    else:
        with ProcessPoolExecutor(args.workers) as pool:
            paths = list(progress(pool.map(write, enumerate(ages), chunksize=16)))
    meta = pd.DataFrame({"age": ages, "path": paths, "split": balanced_split(ages, paths, CAP)})
    write_atomically(meta_path, meta.to_csv(index=False, lineterminator="\n").encode())

    counts = meta.loc[meta["split"] == "train", "age"].value_counts()
    many, few = sum(counts > 100), sum(counts < 20)
    medium = len(counts) - many - few
    print(f"wrote {meta_path}, {len(meta):,} faces")
    report_counts(meta["split"])
    print(f"ages in train: {many} many-shot, {medium} medium-shot, {few} few-shot")
    if args.contact_sheet:
        write_contact_sheet(args.contact_sheet, meta, args.out)
        print(f"wrote {args.contact_sheet}")


if __name__ == "__main__":
    program.run(main)
