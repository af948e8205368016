"""Train a detector, a small classifier, and write the reference statistics of the train split; by
default the embedded one, of Fashion-MNIST.

    python weights/train_detector.py --data-root DIR
    python weights/train_detector.py --images TRAIN.npz TEST.npz --name WORD --out DIR

--data-root holds FashionMNIST/raw as torchvision lays it out; the .npz files hold `images`, uint8
[N, H, W, C] of any size and number of channels, and `labels` [N]. Writes detector/{config.json,
model.safetensors, README.md} and, last, reference.npz to --out, by default beside this script.
Images are shifted by up to 2 pixels in training, so that the features do not hang on exact
positions; nothing else is changed in them: noise and blur must move the features, for a distance
has to see them.
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

from hsivi_cli.files.images import read_labels, read_npz
from hsivi_cli.metrics.detectors import EMBEDDED, Classifier, Detector, load_detector
from hsivi_cli.metrics.frechet import frechet_distance
from hsivi_cli.metrics.statistics import Statistics, moments_of, save_statistics

FOLDER = Path(__file__).parent
SHAPE = {"widths": [16, 32, 48, 64], "feature_dim": 64}
SHIFT = 2  # pixels
BATCH = 256
RATE = 4e-3
KEPT = 5000  # features in reference.npz, for KID and recall

README = """\
# The detector {name}

A convolutional classifier ({parameters} parameters). Its penultimate layer, {width} features after
ReLU, stands for an image in the distances that `hsivi` prints. Numbers by this detector compare
with one another only, never with FIDs by Inception.

| | |
|---|---|
| test accuracy | {accuracy:.2%} |
| floor: test split ({test_count:,}) to train split ({train_count:,}) | {floor:.4f} |
| floor at n random train images, three draws | {floors} |
| stamp | `{stamp}` |
| made by | `{command}`, {minutes:.1f} minutes, {threads} CPU thread(s), torch {torch} |

Training: {epochs} epochs of AdamW, one-cycle rate, images shifted by up to {shift} pixels and
otherwise as they are. Inputs are uint8 / 127.5 - 1 at {side} x {side}, never resized. Weights are
stored in float16 and used in float32. `../reference.npz` holds mean and covariance of the features
of all {train_count:,} train images (float64) and the features of {kept} of them (float16), for KID
and recall.
{note}"""

NOTE = """
It is the detector that the embedded teacher and its students are measured by.
Data: Fashion-MNIST, (c) 2017 Zalando SE, MIT licence
(https://github.com/zalandoresearch/fashion-mnist).
"""


def shifted(x: Tensor, rng: torch.Generator) -> Tensor:
    """Each image [B, C, H, W] moved by its own whole number of pixels, up to SHIFT both ways,
    filled with the background."""
    count, channels, size, _ = x.shape
    padded = F.pad(x, [SHIFT] * 4, value=-1.0)
    down, right = torch.randint(0, 2 * SHIFT + 1, (2, len(x), 1), generator=rng)
    image, channel = torch.arange(count).view(-1, 1, 1, 1), torch.arange(channels).view(-1, 1, 1)
    rows = (torch.arange(size) + down)[:, None, :, None]
    columns = (torch.arange(size) + right)[:, None, None, :]
    return padded[image, channel, rows, columns]


def train(images: Tensor, labels: Tensor, shape: dict, epochs: int, device: str) -> Classifier:
    """images uint8 [N, H, W, C], labels [N], shape a Classifier's; it comes back on the CPU"""
    torch.manual_seed(0)
    rng = torch.Generator().manual_seed(0)
    network = Classifier(**shape).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0.01)
    steps = epochs * (len(images) // BATCH)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for epoch in range(epochs):
        begin, total = time.time(), 0.0
        order = torch.randperm(len(images), generator=rng)
        batches = order[: len(order) // BATCH * BATCH].split(BATCH)
        for rows in batches:
            x = images[rows].permute(0, 3, 1, 2).float() / 127.5 - 1
            loss = F.cross_entropy(network(shifted(x, rng).to(device)), labels[rows].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rates.step()
            total += loss.detach()
        seconds = time.time() - begin
        print(
            f"epoch {epoch + 1}/{epochs} loss {total / len(batches):.4f} {seconds:.0f} s",
            flush=True,
        )
    return network.cpu().eval()


def labelled(file: str) -> tuple[Tensor, Tensor]:
    """The images of an .npz file, uint8 [N, H, W, C], and their labels [N]."""
    return read_npz(Path(file)), read_labels(Path(file))


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
    parser.add_argument("--data-root", default="data", help="where Fashion-MNIST lies")
    parser.add_argument("--images", nargs=2, metavar=("TRAIN", "TEST"),
                        help="two .npz files in its place")  # fmt: skip
    parser.add_argument("--name", default=EMBEDDED, help="one word, which tells detectors apart")
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu",
                        help="to train it on; all else is a CPU's work")  # fmt: skip
    args = parser.parse_args()
    begin = time.time()
    if args.images:
        source = f"--images TRAIN.npz TEST.npz --name {args.name}"
        (images, labels), (test_images, test_labels) = map(labelled, args.images)
    else:
        source = "--data-root DIR"
        splits = [FashionMNIST(args.data_root, train=flag) for flag in (True, False)]
        images, test_images = (split.data.unsqueeze(-1) for split in splits)
        labels, test_labels = (split.targets for split in splits)
    side, channels = images.shape[2:]
    shape = {"image_size": side, "in_channels": channels} | SHAPE
    shape["classes"] = len(labels.unique())

    network = train(images, labels, shape, args.epochs, args.device)
    folder = args.out / "detector"
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        key: value.half() if value.is_floating_point() else value
        for key, value in network.state_dict().items()
    }
    (folder / "model.tmp").write_bytes(save(state))
    os.replace(folder / "model.tmp", folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"name": args.name} | shape, indent=2) + "\n")

    # from here on the stored detector, as every user loads it
    detector = load_detector(str(folder))
    network.load_state_dict({key: value.float() for key, value in state.items()})
    right = accuracy(network, test_images, test_labels)
    print(f"test accuracy {right:.2%}", flush=True)

    clock = time.time()
    moments, features = moments_of(images.split(1000), detector, keep_features=True)
    print(f"features: {len(images) / (time.time() - clock):.0f} images/s", flush=True)
    kept = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:KEPT]
    image = tuple(images.shape[1:])
    reference = Statistics(moments, detector.stamp, features[kept], image)

    floor = distance(test_images, detector, reference)
    floors = []
    for count in (1000, 5000, 10_000):
        draws = [torch.Generator().manual_seed(seed) for seed in (1, 2, 3)]
        rows = [torch.randperm(len(images), generator=rng)[:count] for rng in draws]
        values = [distance(images[r], detector, reference) for r in rows]
        floors.append(f"{count:,}: {min(values):.4f} to {max(values):.4f}")
    text = README.format(
        name=args.name,
        parameters=f"{sum(p.numel() for p in network.parameters()):,}",
        width=detector.feature_dim,
        side=side,
        train_count=len(images),
        test_count=len(test_images),
        accuracy=right,
        floor=floor,
        floors="; ".join(floors),
        stamp=detector.stamp,
        command=f"python weights/train_detector.py {source} --epochs {args.epochs}",
        minutes=(time.time() - begin) / 60,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        epochs=args.epochs,
        shift=SHIFT,
        kept=len(kept),
        note=NOTE if args.name == EMBEDDED else "",
    )
    (folder / "README.md").write_text(text)
    save_statistics(args.out / "reference.npz", reference)
    print(text)


if __name__ == "__main__":
    main()
