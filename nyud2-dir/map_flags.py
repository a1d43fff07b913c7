"""Flags of your own maps and of ConR; without torch, so that --help answers fast."""

from depth_maps import DEPTH, SIZE
from flags import REGULARIZER, TRAINING
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
    if own and downscale > 1:
        parser.error("--map_size scales your own maps: no --downscale")
    if own and min(args.map_size or SIZE) < SMALLEST:
        parser.error(f"--map_size takes sides from {SMALLEST}, got {args.map_size}")


def add_conr(parser):
    """Add ConR's flags; the defaults are those of its authors' script for NYUD2."""
    add = parser.section(REGULARIZER, TRAINING)
    add("--regularizer", default="none", choices=("none", "conr"), help="what adds to the loss")
    add("--regularizer_weight", type=float, default=0.2, help="its weight")
    add("--temperature", type=float, default=0.2, help="of cosines")
    omega_help = "mean depths so near are alike, m; the range of your own target counts as 10"
    add("--conr_omega", type=float, default=0.2, help=omega_help)
    add("--conr_push", type=float, default=0.2, help="growth of the push, 1 / m")
    official_help = "with the released code's denominators, see the README"
    add("--conr_official", action="store_true", help=official_help)


def check_conr(parser, args):
    """End with a message where these flags cannot be used."""
    group = parser.groups[REGULARIZER]
    changed = [f"--{flag}" for flag in group if not parser.is_default(args, flag)]
    if changed and args.regularizer == "none":
        parser.error(f"{', '.join(changed)} needs --regularizer conr")
    if args.gather:
        parser.error("--gather is not for maps: ConR compares those that one process holds")
    if not args.temperature > 0:
        parser.error(f"--temperature must be above 0, got {args.temperature}")
    for flag in ("regularizer_weight", "conr_omega", "conr_push"):
        if not 0 <= getattr(args, flag) < float("inf"):
            parser.error(f"--{flag} must be 0 or more, got {getattr(args, flag)}")
