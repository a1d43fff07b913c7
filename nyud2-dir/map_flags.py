"""Flags of maps of your own target; without torch, so that --help answers fast."""

from depth_maps import DEPTH, SIZE
from target import add_target, check_target

NARROW = "depth maps need float64, which Apple's GPU lacks: use --device cpu"
SMALLEST = 32  # height and width of maps: the encoder divides them by 32


def add_maps(add):
    """Add the flags; `add` adds one, as `add_argument` does."""
    add_target(add, DEPTH, "%% of an even share of the training pixels")
    no_label_help = "value of pixels without a label in your own maps; NaN always is one"
    add("--no_label", type=float, metavar="V", help=no_label_help)
    size_help = "to which your own images and maps are scaled [240 320]"
    add("--map_size", type=int, nargs=2, metavar=("H", "W"), help=size_help)


def check_maps(parser, args):
    """End with a message where the flags cannot be used."""
    check_target(parser, args, DEPTH)
    if getattr(args, "device", "") == "mps":  # no flag of prepare.py
        parser.error(f"--device mps: {NARROW}")
    own = DEPTH.of(args).own
    if not own and (args.map_size or args.no_label is not None):
        parser.error("--map_size and --no_label go with your own --target, --low or --high")
    downscale = getattr(args, "downscale", 1)  # not of prepare.py
    if own and (downscale > 1 or min(args.map_size or SIZE) < SMALLEST):
        parser.error(f"--map_size is the size of your own maps, from {SMALLEST}: no --downscale")
