"""Flags of the losses and weights of later methods: Balanced MSE, GAR, UVOTE, DenseWeight."""

from flags import DENSE, NETWORK, TRAINING

LATER = "losses of later methods"  # the group
BALANCED = ("bmc", "gai", "bni")  # losses with a noise, of Balanced MSE
SCHEDULES = ("rise", "fade", "constant")
MOST_EXPERTS = 100


def add_losses(parser, unit, noise=1.0, schedule="fade"):
    """Add the flags; `unit` is that of predictions, `noise` and `schedule` are defaults."""
    add = parser.section(LATER, TRAINING)
    add("--noise_sigma", type=float, default=noise, help=f"noise of bmc, gai, bni at first, {unit}")
    add("--fix_noise_sigma", action="store_true", help="keep that noise")
    add("--sigma_lr", type=float, default=1e-2, help="learning rate of the noise, never lowered")
    gather_help = "bmc and conr compare over the batch of all processes"
    add("--gather", action="store_true", help=gather_help)
    add(
        "--gar_alpha", type=float, default=0.2, help="the smaller, the more gar's worst part counts"
    )
    add("--dense_alpha", type=float, default=1.0, help="of --reweight dense: 0 weighs all alike")
    experts_help = "UVOTE: heads, of which the least uncertain answers; 0 is the usual one"
    add("--experts", type=int, default=0, role=NETWORK, help=experts_help)
    schedule_help = "losses of the second and later experts rise; that of the first may fade"
    add("--expert_schedule", default=schedule, choices=SCHEDULES, help=schedule_help)


def check_losses(parser, args):
    """End with a message where these flags contradict each other or cannot be used."""
    balanced = args.loss in BALANCED
    regularizer = getattr(args, "regularizer", "none")  # not every benchmark has it
    gathers = args.loss == "bmc" or regularizer == "conr"
    needs = {
        "--loss bmc, gai or bni": (balanced, ("noise_sigma", "fix_noise_sigma", "sigma_lr")),
        "--loss bmc or --regularizer conr": (gathers, ("gather",)),
        "--loss gar": (args.loss == "gar", ("gar_alpha",)),
        "--reweight dense": (args.reweight == DENSE, ("dense_alpha",)),
        "--experts": (args.experts > 0, ("expert_schedule",)),
    }
    for needed, (given, group) in needs.items():
        changed = [f"--{flag}" for flag in group if not parser.is_default(args, flag)]
        if changed and not given:
            parser.error(f"{', '.join(changed)} needs {needed}")
    if args.experts and not parser.is_default(args, "loss"):
        parser.error(f"--experts has a loss of its own: leave out --loss {args.loss}")
    if args.experts and regularizer != "none":
        parser.error("--regularizer compares predictions, --experts gives several: choose one")
    if weighs_itself(args) and args.reweight != "none":
        method = "--experts" if args.experts else f"--loss {args.loss}"
        parser.error(f"{method} takes no weights: leave out --reweight {args.reweight}")
    if args.loss == "bmc" and args.batch_size == 1 and not args.gather:
        parser.error("--loss bmc compares the samples of a batch: --batch_size must be 2 or more")
    if args.fix_noise_sigma and not parser.is_default(args, "sigma_lr"):
        parser.error("--fix_noise_sigma keeps the noise, --sigma_lr moves it: choose one")
    if not 0 <= args.experts <= MOST_EXPERTS:
        parser.error(f"--experts must be from 0 to {MOST_EXPERTS}, got {args.experts}")
    for flag in ("noise_sigma", "sigma_lr", "gar_alpha"):
        if not 0 < getattr(args, flag) < float("inf"):
            parser.error(f"--{flag} must be above 0, got {getattr(args, flag)}")
    if not 0 <= args.dense_alpha < float("inf"):
        parser.error(f"--dense_alpha must be 0 or more, got {args.dense_alpha}")


def weighs_itself(args):
    """Whether the loss is one that takes no weights of samples."""
    return args.experts > 0 or args.loss in (*BALANCED, "gar")


def balances(args):
    """Whether weights or the loss act against the imbalance."""
    return args.reweight != "none" or weighs_itself(args)
