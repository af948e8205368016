"""Plots of inference, as PNG files in memory."""

from __future__ import annotations

import io

import torch
from torch import Tensor

from ..files.outputs import SOFTWARE

SIDE = 120  # cells of a layer's density and histogram along each coordinate


def png(figure) -> bytes:
    """A matplotlib figure as the bytes of a PNG that says whose it is."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": SOFTWARE})
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
    count, side = len(marginals), SIDE
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


def densities_png(drawn: dict[str, Tensor]) -> bytes:
    """Histograms of sets of plane points beside each other, by their names; the last one sets the
    colours' scale. Each [N, 2]
    """
    *_, last = drawn.values()
    reach, side = 1.1 * last.abs().quantile(0.999, dim=0).max().item(), 100
    box = (-reach, reach, -reach, reach)
    seen = {}
    for name, x in drawn.items():
        hist = torch.histogramdd(x, bins=[side, side], range=list(box)).hist
        seen[name] = hist.T.numpy() / len(x)
    top = max(list(seen.values())[-1].max(), 1e-9)
    figure, axes = new_figure(1, len(drawn), 2.6)
    for ax, (name, values) in zip(axes[0], seen.items(), strict=True):
        ax.imshow(values, origin="lower", extent=box, cmap="viridis", vmin=0, vmax=top)
        ax.set(xticks=[], yticks=[], title=name)
    return png(figure)


def pairs_png(samples: Tensor, truth: Tensor | None = None, most: int = 6) -> bytes:
    """Histograms of the first coordinates on the diagonal, the truth's as lines, and of their pairs
    below it, the truth's mirrored above.

    samples, truth  [N, dim]
    """
    count = min(most, samples.shape[1])
    figure, axes = new_figure(count, count, 1.8)
    # in double: far from 0, float32 may have too few numbers for the bins
    below = samples.double().numpy()
    above = None if truth is None else truth.double().numpy()
    for i in range(count):
        for j in range(count):
            ax = axes[i, j]
            if i == j:
                ax.hist(below[:, i], bins=60, density=True, histtype="stepfilled")
                if above is not None:
                    ax.hist(above[:, i], bins=60, density=True, histtype="step", color="black")
                ax.set_title(f"x[{i}]", fontsize=8)
                ax.set_yticks([])
            elif j < i:
                ax.hist2d(below[:, j], below[:, i], bins=60)
            elif above is not None:
                ax.hist2d(above[:, j], above[:, i], bins=60)
            else:
                ax.axis("off")
            ax.tick_params(labelsize=6)
    return png(figure)


def band_png(samples: Tensor, truth: Tensor | None = None) -> bytes:
    """Each coordinate's median with its 50 % and 90 % intervals; the truth's as black lines.

    samples, truth  [N, dim]
    """
    figure, axes = new_figure(1, 1, 4.5)
    figure.set_size_inches(8, 4.5)
    ax, at = axes[0, 0], range(samples.shape[1])
    level = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])
    low, lower, middle, upper, high = samples.quantile(level, dim=0).numpy()
    ax.fill_between(at, low, high, alpha=0.25, step="mid", label="90 %")
    ax.fill_between(at, lower, upper, alpha=0.5, step="mid", label="50 %")
    ax.plot(at, middle, drawstyle="steps-mid", label="median")
    if truth is not None:
        lines = [torch.stack([c.quantile(q) for c in truth.T]).numpy() for q in level]
        for line in lines:
            ax.plot(at, line, drawstyle="steps-mid", color="black", linewidth=0.6)
        ax.plot([], [], color="black", linewidth=0.6, label="the truth's")
    ax.set(xlabel="coordinate")
    ax.legend()
    return png(figure)
