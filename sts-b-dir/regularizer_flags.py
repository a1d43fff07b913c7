"""Flags of the regularizers (`regularizers.py`); no torch, so that they are checked at once."""

import argparse
from math import inf

from flags import REGULARIZER, TRAINING

METHODS = ("none", "conr", "ordinal_entropy", "srl", "dist")
ON_FEATURES = METHODS[1:4]  # those that move the features, so not with --retrain_fc
USED_BY = {  # by which methods a flag is used; the others by all
    "temperature": ("conr", "srl"),
    "conr_omega": ("conr",),
    "conr_push": ("conr",),
    "conr_official": ("conr",),
    "srl_momentum": ("srl",),
    "dist_strength": ("dist",),
}

LEAST_STRENGTH = 1e-6  # of the soft sort: far below it, float64 loses the predictions


class Chosen(argparse.Action):
    """Takes a method, by its name or by a short flag; two different ones end with a message."""

    def __call__(self, parser, args, values, option=None):
        method = values or self.const
        if args.regularizer not in ("none", method):
            parser.error(f"--regularizer is {args.regularizer} and {method}: choose one")
        args.regularizer = method


def add_regularizer(parser, step, weights, srl_temperature):
    """Add the flags.

    Args:
        parser: `flags.Parser`.
        step: what the flags count labels in: "years".
        weights: dictionary of each method's default weights; they stay with the parser.
        srl_temperature: default of SRL's temperature; ConR's is 0.07.
    """
    parser.regularizer_defaults = weights, {"conr": 0.07, "srl": srl_temperature}
    add = parser.section(REGULARIZER, TRAINING)
    method_help = "method that adds to the loss"
    add("--regularizer", default="none", choices=METHODS, action=Chosen, help=method_help)
    known = ", ".join(" ".join(map(str, [name, *values])) for name, values in weights.items())
    weight_help = f"its weight; srl's: contrast, enveloping, homogeneity [{known}]"
    add("--regularizer_weight", type=float, nargs="+", help=weight_help)
    add("--temperature", type=float, help=f"of cosines [conr 0.07, srl {srl_temperature}]")
    add("--conr_omega", type=float, default=1.0, help=f"labels so near are alike, {step}")
    add("--conr_push", type=float, default=0.01, help=f"growth of the push, 1 / {step}")
    official_help = "with the released code's further term in the denominator"
    add("--conr_official", action="store_true", help=official_help)
    momentum_help = "part of the old surrogate that an epoch leaves"
    add("--srl_momentum", type=float, default=0.9, help=momentum_help)
    strength_help = f"of the soft sort, 1 / {step}; 0 sorts hard"
    add("--dist_strength", type=float, default=0.1, help=strength_help)
    short = {"dest": "regularizer", "action": Chosen, "nargs": 0, "const": "dist"}
    parser.add_argument("--dist_loss", **short, help="short for --regularizer dist")


def check_regularizer(parser, args):
    """End with a message where these flags cannot be used."""
    for flag in parser.groups[REGULARIZER]:
        users = USED_BY.get(flag, METHODS[1:])
        if not parser.is_default(args, flag) and args.regularizer not in users:
            parser.error(f"--{flag} needs --regularizer {' or '.join(users)}")
    if args.retrain_fc and args.regularizer in ON_FEATURES:
        parser.error(
            f"--regularizer {args.regularizer} moves the features, which --retrain_fc holds fixed"
        )
    needed = 3 if args.regularizer == "srl" else 1
    weights = args.regularizer_weight
    if weights is not None and (len(weights) != needed or not all(0 <= w < inf for w in weights)):
        parser.error(f"--regularizer_weight takes {needed} of 0 or more here, got {weights}")
    if args.temperature is not None and not args.temperature > 0:
        parser.error(f"--temperature must be above 0, got {args.temperature}")
    for flag in ("conr_omega", "conr_push", "dist_strength"):
        if not 0 <= getattr(args, flag) < inf:
            parser.error(f"--{flag} must be 0 or more, got {getattr(args, flag)}")
    if 0 < args.dist_strength < LEAST_STRENGTH:
        parser.error(f"--dist_strength must be 0, or {LEAST_STRENGTH:g} or more")
    if not 0 <= args.srl_momentum <= 1:
        parser.error(f"--srl_momentum {args.srl_momentum} must be in [0, 1]")
