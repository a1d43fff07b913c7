"""What losses of later methods add to a network: several heads, a noise that is learned.

As parts of the network they are in its checkpoints, and processes share their gradients.
"""

import torch
from torch import nn

from loss_flags import BALANCED

NOISE = "noise_sigma"  # its name in the network
SLOW = 0.1  # learning rate of the heads for the scale, in that of the others (released code)


class Experts(nn.Module):
    """UVOTE's heads: a mean and a log-scale of a Laplace distribution each.

    Args:
        feature_dim: D.
        number: M of experts.
        clip: bounds of the log-scales in the loss.

    Source: Jiang et al., GCPR 2024, arXiv 2305.15178; the initialisation is the released code's.
    """

    def __init__(self, feature_dim, number, clip=(-5.0, 5.0)):
        super().__init__()
        self.clip = clip
        self.mean = nn.Linear(feature_dim, number)
        self.log_scale = nn.Linear(feature_dim, number)
        for head in (self.mean, self.log_scale):
            nn.init.normal_(head.weight, std=0.01)
            nn.init.zeros_(head.bias)

    def forward(self, features):
        """Return all means and then all log-scales, [N, 2·M]; in evaluation the answer [N, 2].

        The answer is the mean of the expert of the smallest scale, and its standard deviation.
        """
        means = self.mean(features)
        log_scales = self.log_scale(features)
        if self.training:
            return torch.cat([means, log_scales], dim=1)
        least, expert = log_scales.float().min(dim=1, keepdim=True)
        scale = least.clamp(max=self.clip[1]).exp()
        return torch.cat([means.float().gather(1, expert), 2**0.5 * scale], dim=1)


def extend(model, args, clip=(-5.0, 5.0)):
    """Give a network what its loss needs: UVOTE's heads for its last layer, a noise. Returns it."""
    if args.experts:
        experts = Experts(model.linear.in_features, args.experts, clip)
        model.add_module(last_layer_of(model), experts)
    if args.loss in BALANCED:
        noise = torch.tensor(float(args.noise_sigma))
        model.register_parameter(NOISE, nn.Parameter(noise, not args.fix_noise_sigma))
    return model


def last_layer_of(model):
    """Return the name of a network's `linear`: released checkpoints may have another."""
    return next(name for name, child in model.named_children() if child is model.linear)


def parameter_groups(args, model, head=None):
    """Return an optimizer's groups of the parameters to train; with --retrain_fc the others freeze.

    Args:
        args: the flags.
        model: the network.
        head: name of the part that --retrain_fc trains, if not the last layer.
    """
    head = f"{head or last_layer_of(model)}."
    named = dict(model.named_parameters())
    for name, parameter in named.items():
        if args.retrain_fc and name != NOISE:
            parameter.requires_grad_(name.startswith(head))
    named = {name: parameter for name, parameter in named.items() if parameter.requires_grad}
    slow = [parameter for name, parameter in named.items() if ".log_scale." in name]
    noise = [named.pop(NOISE)] if NOISE in named else []
    groups = [{"params": [p for name, p in named.items() if ".log_scale." not in name]}]
    if slow:
        groups.append({"params": slow, "lr": SLOW * args.lr, "lr_factor": SLOW})
    if noise:
        groups.append({"params": noise, "lr": args.sigma_lr, "lr_factor": 0, "weight_decay": 0.0})
    return groups


def set_lr(optimizer, lr):
    """Set the learning rate of each group of `parameter_groups`; the noise keeps its own."""
    for group in optimizer.param_groups:
        if factor := group.get("lr_factor", 1):
            group["lr"] = factor * lr
