"""Log densities as a user may write them, targets by the names `densities:NAME`."""

import torch


def good(x):
    return -x.square().sum(1)


def normal(x):
    return -x.square().sum(1) / 2


def tilted(x):
    """Precision 10 along two axes; correlations of .9 in all."""
    return -(10 * x.square().sum(1) - 9 / 2.8 * x.sum(1).square()) / 2


def apart(x):
    """Two standard normals, 12 apart along the first axis."""
    return torch.logaddexp(
        *(-(x - torch.eye(len(x.T))[0] * at).square().sum(1) / 2 for at in (-6, 6))
    )


def ridge(x):
    """Without end along the second axis: improper."""
    return -x[:, 0].square()


def steep(x):
    return -x[:, 0].square() + x[:, 1].where(x[:, 1] > 0, x[:, 1] * torch.nan)


def wide(x):
    return -x.square()


def held(x):
    return -x.detach().square().sum(1)


def lost(x):
    return {}[x.shape[1]]


def mute(x):
    raise AssertionError


def cut(x):
    return torch.where(x[:, 0] > 0, -x.square().sum(1), -torch.inf)


def touchy(x):
    if x.abs().max() > 5:
        raise ValueError("too far\nand more")
    return -x.square().sum(1) / 200


def fenced(x):
    return torch.where(x.abs().amax(1) < 6, -x.square().sum(1) / 200, -torch.inf)


def noisy(x):
    return -(x * (1 + 0.1 * torch.rand(len(x), 1))).square().sum(1)


class Once(torch.autograd.Function):
    """`good`, whose score cannot be differentiated."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return -x.square().sum(1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return -2 * ctx.saved_tensors[0] * g[:, None]


once = Once.apply
number = 3
