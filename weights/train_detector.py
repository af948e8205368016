"""Train the embedded detector, a small Fashion-MNIST classifier, and write the reference
statistics of the train split.

    python weights/train_detector.py --data-root DIR

DIR holds FashionMNIST/raw as torchvision lays it out. Writes detector/{config.json,
model.safetensors, README.md} and reference.npz beside this script. Images are shifted by up to 2
pixels in training, so that the features do not hang on exact positions; nothing else is changed in
them: noise and blur must move the features, for a distance has to see them.
"""

import argparse
import json
import os
import time
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional as F
from torchvision.datasets import FashionMNIST

from hsivi_cli.metrics.detectors import EMBEDDED, Classifier, Detector, load_detector
from hsivi_cli.metrics.frechet import frechet_distance
from hsivi_cli.metrics.statistics import Statistics, moments_of, save_statistics

FOLDER = Path(__file__).parent
SHAPE = {
    "image_size": 28,
    "in_channels": 1,
    "widths": [16, 32, 48, 64],
    "feature_dim": 64,
    "classes": 10,
}
SHIFT = 2  # pixels
BATCH = 256
RATE = 4e-3
KEPT = 5000  # features in reference.npz, for KID and recall

README = """\
# The embedded detector

A convolutional classifier of Fashion-MNIST ({parameters} parameters). Its penultimate layer,
{width} features after ReLU, stands for an image in the distances that `hsivi` prints by default for
the embedded teacher and its students. Numbers by this detector compare with one another only, never
with FIDs by Inception.

| | |
|---|---|
| test accuracy | {accuracy:.2%} |
| floor: test split (10,000) to train split (60,000) | {floor:.4f} |
| floor at n random train images, three draws | {floors} |
| stamp | `{stamp}` |
| made by | `{command}`, {minutes:.1f} minutes, {threads} CPU thread(s), torch {torch} |

Training: {epochs} epochs of AdamW, one-cycle rate, images shifted by up to {shift} pixels and
otherwise as they are. Inputs are uint8 / 127.5 - 1 at 28 x 28, never resized. Weights are stored in
float16 and used in float32. `../reference.npz` holds mean and covariance of the features of all
60,000 train images (float64) and the features of {kept} of them (float16), for KID and recall.

Data: Fashion-MNIST, (c) 2017 Zalando SE, MIT licence
(https://github.com/zalandoresearch/fashion-mnist).
"""


def shifted(x: Tensor, rng: torch.Generator) -> Tensor:
    """Each image moved by its own whole number of pixels, up to SHIFT both ways, filled with the
    background."""
    size = x.shape[-1]
    padded = F.pad(x, [SHIFT] * 4, value=-1.0)
    down, right = torch.randint(0, 2 * SHIFT + 1, (2, len(x), 1), generator=rng)
    rows = (torch.arange(size) + down)[:, :, None]
    columns = (torch.arange(size) + right)[:, None, :]
    return padded[torch.arange(len(x))[:, None, None], 0, rows, columns].unsqueeze(1)


def train(images: Tensor, labels: Tensor, epochs: int) -> Classifier:
    """images uint8 [N, H, W, 1], labels [N]"""
    torch.manual_seed(0)
    rng = torch.Generator().manual_seed(0)
    network = Classifier(**SHAPE)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0.01)
    steps = epochs * (len(images) // BATCH)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for epoch in range(epochs):
        begin, total = time.time(), 0.0
        order = torch.randperm(len(images), generator=rng)
        batches = order[: len(order) // BATCH * BATCH].split(BATCH)
        for rows in batches:
            x = images[rows].permute(0, 3, 1, 2).float() / 127.5 - 1
            loss = F.cross_entropy(network(shifted(x, rng)), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rates.step()
            total += loss.item()
        seconds = time.time() - begin
        print(
            f"epoch {epoch + 1}/{epochs} loss {total / len(batches):.4f} {seconds:.0f} s",
            flush=True,
        )
    return network.eval()


@torch.inference_mode()
def accuracy(network: Classifier, images: Tensor, labels: Tensor) -> float:
    right = 0
    for rows, wanted in zip(images.split(1000), labels.split(1000), strict=True):
        logits = network(rows.permute(0, 3, 1, 2).float() / 127.5 - 1)
        right += (logits.argmax(1) == wanted).sum().item()
    return right / len(images)


def distance(images: Tensor, detector: Detector, reference: Statistics) -> float:
    return frechet_distance(moments_of(images.split(1000), detector)[0], reference.moments)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--epochs", type=int, default=8)
    args = parser.parse_args()
    begin = time.time()
    train_split, test_split = (FashionMNIST(args.data_root, train=flag) for flag in (True, False))
    images, test_images = train_split.data.unsqueeze(-1), test_split.data.unsqueeze(-1)

    network = train(images, train_split.targets, args.epochs)
    folder = FOLDER / "detector"
    folder.mkdir(exist_ok=True)
    state = {
        key: value.half() if value.is_floating_point() else value
        for key, value in network.state_dict().items()
    }
    (folder / "model.tmp").write_bytes(save(state))
    os.replace(folder / "model.tmp", folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"name": EMBEDDED, **SHAPE}, indent=2) + "\n")

    # from here on the stored detector, as every user loads it
    detector = load_detector(str(folder))
    network.load_state_dict({key: value.float() for key, value in state.items()})
    right = accuracy(network, test_images, test_split.targets)
    print(f"test accuracy {right:.2%}", flush=True)

    clock = time.time()
    moments, features = moments_of(images.split(1000), detector, keep_features=True)
    print(f"features: {len(images) / (time.time() - clock):.0f} images/s", flush=True)
    kept = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:KEPT]
    reference = Statistics(moments, detector.stamp, features[kept])
    save_statistics(FOLDER / "reference.npz", reference)

    floor = distance(test_images, detector, reference)
    floors = []
    for count in (1000, 5000, 10_000):
        draws = [torch.Generator().manual_seed(seed) for seed in (1, 2, 3)]
        rows = [torch.randperm(len(images), generator=rng)[:count] for rng in draws]
        values = [distance(images[r], detector, reference) for r in rows]
        floors.append(f"{count:,}: {min(values):.4f} to {max(values):.4f}")
    text = README.format(
        parameters=f"{sum(p.numel() for p in network.parameters()):,}",
        width=detector.feature_dim,
        accuracy=right,
        floor=floor,
        floors="; ".join(floors),
        stamp=detector.stamp,
        command=f"python weights/train_detector.py --data-root DIR --epochs {args.epochs}",
        minutes=(time.time() - begin) / 60,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        epochs=args.epochs,
        shift=SHIFT,
        kept=KEPT,
    )
    (folder / "README.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
