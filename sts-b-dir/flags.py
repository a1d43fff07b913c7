"""Command-line flags that the benchmark folders share, each declared in one place.

Every flag has a role. The run folder's name, the warning on resume, the grouping of seeds in tables
and what is published follow from it:

- NETWORK: makes the network; an evaluation takes it from the checkpoint.
- TRAINING: changes what is trained, with the same network.
- PLACE: says where and how a run runs, not what it trains.
"""

import argparse
import hashlib
from pathlib import Path

from lds import KERNELS, REWEIGHTS, get_lds_kernel_window

NETWORK, TRAINING, PLACE = "network", "training", "place"
MOST_LR = 1e6
MOST = 2**32 - 1  # of any whole number; a seed of numpy's is not larger
MOST_BUCKETS = 10_000  # their statistics take 2 · D numbers each, several times
DENSE = "dense"  # a --reweight that needs the labels, not their counts
# Groups whose flags count only where their first is not "none".
SYNTHETIC = "synthetic samples"
REGULARIZER = "regularizer"
OPTIONAL = {"resample": SYNTHETIC, "regularizer": REGULARIZER}
VARIANTS = ("paper", "official", "live", "calibrated")  # of FDS
LOSSES = ("mse", "l1", "focal_l1", "focal_mse", "huber", "bmc", "gai", "bni", "gar")


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Help texts with the default behind them, where there is one."""

    def _get_help_string(self, action):
        if action.default is None or action.default is False or action.default == "":
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """A parser that knows the role of each flag.

    Args:
        doc: docstring of the program; its first paragraph is the description.
    """

    def __init__(self, doc):
        super().__init__(
            usage="%(prog)s [flags]   (--help lists them)",
            description=doc.split("\n\n")[0],
            formatter_class=Help,
            allow_abbrev=False,
        )
        self.roles = {}  # role of each flag, by its name in the parsed arguments
        self.groups = {}  # flags of each group, by its title
        self.appended = []  # flags that stand in the run folder's name if not at their default

    def section(self, title, role, appended=True):
        """Return a function that adds a flag to the group `title`.

        It takes what `add_argument` takes, and `role` and `appended` where they differ from the
        group's. A flag of the role PLACE is never appended.
        """
        group = self.add_argument_group(title)

        def add(*names, role=role, appended=appended, **options):
            action = group.add_argument(*names, **options)
            self.roles[action.dest] = role
            self.groups.setdefault(title, []).append(action.dest)
            if appended and role != PLACE:
                self.appended.append(action.dest)

        return add

    def flags_of(self, role):
        """Return the flags of a role."""
        return [flag for flag, own in self.roles.items() if own == role]

    def changed(self, args):
        """Return the end of a run folder's name: '_flag_value' of each not at its default."""
        parts = [args.fds_variant] * (args.fds and not self.is_default(args, "fds_variant"))
        parts += [args.reweight] * (args.lds and args.reweight != "none")
        for flag in self.appended:
            value = getattr(args, flag)
            if self.is_default(args, flag):
                continue
            if isinstance(value, list):
                value = "-".join(map(str, value))
            elif isinstance(value, str) and Path(value).name != value:
                # The end of a path, and a mark that tells it from another of that end.
                value = f"{Path(value).name}-{hashlib.sha256(value.encode()).hexdigest()[:6]}"
            parts.append(flag if value is True else f"{flag}_{value}")
        return [f"_{part}" for part in parts]

    def is_default(self, args, flag):
        """Whether a flag has its default value."""
        return getattr(args, flag) == self.get_default(flag)


# ---- groups --------------------------------------------------------------------------------


def add_lds(parser, unit, ks=5, sigma=2):
    """Add LDS and re-weighting; `unit` is what one step of the window is: 'years'."""
    add = parser.section("re-weighting and LDS", TRAINING, appended=False)
    reweight_help = "weight of a sample: 1/count^0, ½ or 1, or DenseWeight"
    add("--reweight", default="none", choices=(*REWEIGHTS, DENSE), help=reweight_help)
    add("--lds", action="store_true", help="label distribution smoothing; needs --reweight")
    add("--lds_kernel", default="gaussian", choices=KERNELS, help="window over the label")
    add("--lds_ks", type=int, default=ks, help=f"length of the window, odd, {unit}")
    add("--lds_sigma", type=float, default=sigma, help=f"width of the window, {unit}")


def add_fds(parser, bucket_num=100, bucket_start=0, ks=5, sigma=2, variant="official"):
    """Add FDS."""
    add = parser.section("FDS", TRAINING, appended=False)
    passes = ("extra_pass", "online")
    add("--fds", action="store_true", help="feature distribution smoothing")
    add("--fds_kernel", default="gaussian", choices=KERNELS, help="window over buckets")
    add("--fds_ks", type=int, default=ks, help="length of the window, odd, buckets")
    add("--fds_sigma", type=float, default=sigma, help="width of the window, buckets")
    add("--start_update", type=int, default=0, help="first epoch in the statistics")
    add("--start_smooth", type=int, default=1, help="first epoch with calibrated features")
    add("--bucket_num", type=int, default=bucket_num, help="last bucket + 1", appended=True)
    add("--bucket_start", type=int, default=bucket_start, help="first bucket", appended=True)
    add("--fds_mmt", type=float, default=0.9, help="momentum of the statistics")
    add("--fds_variant", default=variant, choices=VARIANTS, help="see the README: Departures")
    help_text = "statistics from one more pass, or from the training pass"
    add("--fds_stats", default="extra_pass", choices=passes, help=help_text, appended=True)


def add_two_stage(parser, head="last layer", taken=None):
    """Add two-stage training (RRT); `taken` is what --pretrained gives, if not all but the head."""
    add = parser.section("two-stage training (RRT)", TRAINING, appended=False)
    taken = taken or f"all but its {head}"
    add("--retrain_fc", action="store_true", help=f"train the {head} of --pretrained again")
    pretrained_help = f"checkpoint to start from, {taken}"
    add("--pretrained", default="", appended=True, help=pretrained_help)


def add_output(parser, store_name=""):
    """Add where a run is kept, resumed and evaluated."""
    add = parser.section("output", PLACE)
    trackers = ("tensorboard", "wandb", "none")
    add("--store_root", default="checkpoint", help="folder of the run folders")
    add("--store_name", default=store_name, help="part of the run folder's name")
    add("--print_freq", type=int, default=10, help="steps between two looks at the loss")
    add("--save_every", type=float, default=0.0, help="minutes between saves in an epoch, or 0")
    resume_help = "resume the run in the run folder, or from the given checkpoint"
    add("--resume", nargs="?", const="auto", default="", help=resume_help)
    changed_help = "resume although the data have changed"
    add("--data_changed", action="store_true", help=changed_help)
    add("--overwrite", action="store_true", help="replace the run, or its evaluation")
    add("--evaluate", action="store_true", help="only evaluate --eval_model, --resume or the best")
    add("--eval_model", default="", help="checkpoint to evaluate")
    add("--track", default="tensorboard", choices=trackers, help="where events are written")


def add_run_time(parser, seed=0, seed_appended=True):
    """Add seed, device and precision."""
    add = parser.section("run time", PLACE)
    precisions = ("fp32", "tf32", "bf16", "fp16")
    seed_role = {"role": TRAINING, "appended": seed_appended, "dest": "seed"}
    add("--seed", "--random_seed", type=int, default=seed, help="of all random draws", **seed_role)
    devices = ("auto", "cpu", "cuda", "mps")
    add("--device", default="auto", choices=devices, help="auto is a CUDA GPU, else the CPU")
    add("--gpu", "--cuda", type=int, dest="gpu", help="index of the one GPU to use, -1 for the CPU")
    add("--precision", choices=precisions, help="[tf32 on CUDA, else fp32]", role=TRAINING)
    add("--compile", action="store_true", help="torch.compile", role=TRAINING, appended=False)
    add("--debug", action="store_true", help="show where a mistake was noticed")


# ---- checks --------------------------------------------------------------------------------


def check(parser, args, positive=(), buckets=None):
    """End with a message where shared flags contradict each other or cannot be used.

    Args:
        parser, args: the parser, and what it parsed.
        positive: the folder's own flags that must be 1 or more.
        buckets: most that --bucket_num may be, or None.
    """
    smoothed = args.reweight in ("sqrt_inv", "inverse") or args.loss == "bni"
    if args.lds and not (smoothed or args.experts):
        parser.error("--lds smooths the weights: add --reweight sqrt_inv or inverse, or drop --lds")
    if args.retrain_fc and not args.pretrained:
        parser.error("--retrain_fc trains a part of a network again: add --pretrained CKPT")
    if args.eval_model and not args.evaluate:
        parser.error("--eval_model needs --evaluate; to train from a checkpoint use --pretrained")
    if args.resume and args.overwrite and not args.evaluate:
        parser.error("--resume continues a run, --overwrite replaces it: choose one")
    if args.gpu is not None and args.device == ("cpu" if args.gpu >= 0 else "cuda"):
        parser.error(f"--gpu {args.gpu} and --device {args.device} contradict each other")
    if not 0 <= args.fds_mmt <= 1:
        parser.error(f"--fds_mmt {args.fds_mmt} must be in [0, 1]")
    if not 0 < args.lr < MOST_LR:
        parser.error(f"--lr {args.lr} must be above 0 and below {MOST_LR:g}")
    for flag in {"weight_decay", "momentum", "save_every", "seed", "patience"} & set(vars(args)):
        if not 0 <= getattr(args, flag) <= MOST:
            parser.error(f"--{flag} must be 0 or more, got {getattr(args, flag)}; most is {MOST}")
    for flag in ("print_freq", "batch_size", *positive):
        if getattr(args, flag) < 1:
            parser.error(f"--{flag} must be 1 or more, got {getattr(args, flag)}")
    if min(args.start_update, args.start_smooth, *getattr(args, "schedule", ())) < 0:
        parser.error("--start_update, --start_smooth and --schedule must be 0 or more")
    most = MOST_BUCKETS if buckets is None else buckets
    if not 0 <= args.bucket_start < args.bucket_num <= most:
        parser.error(f"--bucket_start and --bucket_num must rise, from 0 to at most {most}")
    if args.fds and args.bucket_num - args.bucket_start < (args.fds_ks + 1) // 2:
        parser.error("--bucket_num - --bucket_start must be at least (--fds_ks + 1) / 2")
    for method in ("lds", "fds"):
        kernel, ks, sigma = (f"{method}_{part}" for part in ("kernel", "ks", "sigma"))
        try:
            if getattr(args, ks) > 2 * MOST_BUCKETS:
                raise ValueError(f"ks {getattr(args, ks)} is above {2 * MOST_BUCKETS}")
            get_lds_kernel_window(getattr(args, kernel), getattr(args, ks), getattr(args, sigma))
        except ValueError as error:
            parser.error(f"--{kernel}, --{ks}, --{sigma}: {error}")
    for flag, value in vars(args).items():
        for number in value if isinstance(value, list) else [value]:
            if number != number or (isinstance(number, int) and number > MOST):
                parser.error(f"--{flag} must be a number of at most {MOST}, got {number}")


# ---- names ---------------------------------------------------------------------------------


def methods_in_name(args):
    """Return the middle of a run folder's name: re-weighting, LDS, FDS, retraining."""
    parts = []
    if args.reweight != "none" and not args.lds:
        parts.append(args.reweight)
    for method in ("lds", "fds"):
        if getattr(args, method):
            kernel = getattr(args, f"{method}_kernel")
            parts += [method, kernel[:3], getattr(args, f"{method}_ks")]
            parts += [getattr(args, f"{method}_sigma")] * (kernel != "triang")
    if args.fds:
        parts += [args.start_update, args.start_smooth, args.fds_mmt]
    if args.retrain_fc:
        parts.append("retrain_fc")
    return "".join(f"_{part}" for part in parts)


def lds_options(args):
    """Return the arguments of LDS for `lds.label_density`."""
    return {name: getattr(args, name) for name in ("lds", "lds_kernel", "lds_ks", "lds_sigma")}


def fds_options(args):
    """Return the arguments of `fds.FDS` that are flags."""
    same = ("bucket_num", "bucket_start", "start_update", "start_smooth")
    return {
        **{name: getattr(args, name) for name in same},
        "kernel": args.fds_kernel,
        "ks": args.fds_ks,
        "sigma": args.fds_sigma,
        "momentum": args.fds_mmt,
        "variant": args.fds_variant,
    }
