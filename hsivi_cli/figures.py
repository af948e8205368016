"""Plots of inference, as PNG files in memory."""

from __future__ import annotations

import io

import torch
from torch import Tensor


def png(figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def new_figure(rows: int, columns: int, size: float):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(size * columns, size * rows), dpi=100, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def layers_png(marginals: Tensor, log_prob) -> bytes:
    """Above each other, for every layer from the base to the samples, the density that it is
    matched to and the samples' histogram.

    marginals  [K+1, N, 2], entry 0 the samples
    log_prob   (x [B, 2], k) -> [B], up to a constant
    """
    reach = 1.1 * marginals.abs().flatten(0, 1).quantile(0.999, dim=0).max().item()
    count, side = len(marginals), 120
    figure, axes = new_figure(2, count, 2.6)
    line = ((torch.arange(side) + 0.5) / side * 2 - 1) * reach
    grid = torch.cartesian_prod(line, line)
    box = (-reach, reach, -reach, reach)
    for column, k in enumerate(reversed(range(count))):
        with torch.no_grad():
            density = log_prob(grid, k).softmax(0).view(side, side)
        seen = torch.histogramdd(
            marginals[k].cpu(), bins=[side, side], range=[-reach, reach, -reach, reach]
        ).hist
        for ax, values in zip(axes[:, column], (density, seen), strict=True):
            ax.imshow(values.T.numpy(), origin="lower", extent=box, cmap="viridis")
            ax.set(xticks=[], yticks=[])
        axes[0, column].set_title(f"p_{k}")
        axes[1, column].set_title(f"x_{k}")
    return png(figure)


def pairs_png(samples: Tensor, most: int = 6) -> bytes:
    """Histograms of the first coordinates on the diagonal, and of their pairs below it.

    samples  [N, dim]
    """
    count = min(most, samples.shape[1])
    figure, axes = new_figure(count, count, 1.8)
    values = samples.cpu().numpy()
    for i in range(count):
        for j in range(count):
            ax = axes[i, j]
            if i == j:
                ax.hist(values[:, i], bins=60, density=True, histtype="stepfilled")
                ax.set_title(f"x[{i}]", fontsize=8)
                ax.set_yticks([])
            elif j < i:
                ax.hist2d(values[:, j], values[:, i], bins=60)
            else:
                ax.axis("off")
            ax.tick_params(labelsize=6)
    return png(figure)


def band_png(samples: Tensor) -> bytes:
    """Each coordinate's median with its 50 % and 90 % intervals. samples [N, dim]"""
    figure, axes = new_figure(1, 1, 4.5)
    level = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])
    low, lower, middle, upper, high = samples.cpu().quantile(level, dim=0).numpy()
    at = range(samples.shape[1])
    axes[0, 0].fill_between(at, low, high, alpha=0.25, step="mid", label="90 %")
    axes[0, 0].fill_between(at, lower, upper, alpha=0.5, step="mid", label="50 %")
    axes[0, 0].plot(at, middle, drawstyle="steps-mid", label="median")
    axes[0, 0].set(xlabel="coordinate")
    axes[0, 0].legend()
    return png(figure)
