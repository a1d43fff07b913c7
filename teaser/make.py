"""Draw the pictures of the READMEs: the overview, three animations, the labels of benchmarks.

All are drawn from our own code, from the tutorial's run and from label_counts.csv.

    python teaser/make.py                     # all of them, into teaser/
    python teaser/make.py --only lds.gif      # some of them
    python teaser/make.py --counts ../shared  # count the labels first
"""

import argparse
from pathlib import Path

import torch

import fds_animation
import lds_animation
import overview
from drawing import ROOT, gif_bytes, load, picture_bytes, png_bytes
from label_counts import count_all, csv_bytes, read_counts
from label_pictures import BENCHMARKS, draw_labels

FOLDER = ROOT / "teaser"
ANIMATIONS = {
    "overview.gif": overview.frames, "lds.gif": lds_animation.frames,
    "fds.gif": fds_animation.frames,
}  # fmt: skip
# The overview for a light and a dark page, wide and narrow; a still of an animation is its last
# frame, for who wants no motion.
OVERVIEWS = {
    "overview.png": ("light", False), "overview_dark.png": ("dark", False),
    "overview_narrow.png": ("light", True), "overview_narrow_dark.png": ("dark", True),
}  # fmt: skip
STILLS = {"lds.png": "lds.gif", "fds.png": "fds.gif"}
LABELS = tuple(f"{benchmark}.png" for benchmark in BENCHMARKS)
NAMES = (*OVERVIEWS, *ANIMATIONS, *STILLS, *LABELS)


def content_of(name, counts):
    """Return the bytes of a picture.

    Args:
        name: one of NAMES.
        counts: path of label_counts.csv.
    """
    if name in ANIMATIONS:
        return gif_bytes(ANIMATIONS[name]())
    if name in STILLS:
        return picture_bytes(ANIMATIONS[STILLS[name]]()[-1][0])
    if name in OVERVIEWS:
        return png_bytes(overview.draw(overview.read_errors(), *OVERVIEWS[name]))
    benchmark = name.removesuffix(".png")
    return png_bytes(draw_labels(benchmark, read_counts(counts, benchmark)))


def main(argv=None):
    """Count the labels if asked to, and draw what was chosen."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME",
                        help=f"pictures to draw, of {', '.join(NAMES)}")  # fmt: skip
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder to write to")
    parser.add_argument("--counts", type=Path, metavar="FOLDER",
                        help="count the labels in this folder's data/ and golden/")  # fmt: skip
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # the same sums, and so the same picture, on any number of cores
    write, counts = load("agedb-dir", "utils").write_atomically, FOLDER / "label_counts.csv"
    if args.counts:
        counts = args.out / "label_counts.csv"
        write(counts, csv_bytes(count_all(args.counts)))
    for name in args.only:
        write(args.out / name, content_of(name, counts))
        print(f"{args.out / name}: {(args.out / name).stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
