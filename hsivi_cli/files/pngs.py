"""PNG files by the ten thousand: threads that encode and write them beside the drawing.

Images are uint8 [N, H, W, C], C = 1 (grey) or 3 (RGB). A picture is written under a temporary name
and then moved, so that a file that exists is whole.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from .images import image_png
from .whole import remove, writing

WRITERS = min(4, os.cpu_count() or 1)
WAITING = 4  # batches that may wait for their writing, or memory would fill


def save_png(images: Tensor, seeds: Sequence[int], folder: Path) -> None:
    """One PNG for each image, uint8 [N, H, W, C], named by its seed."""
    folder = Path(folder)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for image, seed in zip(images, seeds, strict=True):
            name = f"{seed:05d}.png"
            temporary = f"{folder}/.{name}.{os.getpid()}.tmp"
            _write(image_png(image), f"{folder}/{name}", temporary)


def _write(data: bytes, path: str, temporary: str) -> None:
    """`whole.replacing` for many small files, in as few calls of the system as can be."""
    try:
        with open(temporary, "wb", buffering=0) as file:
            if file.write(data) < len(data):  # a disk that is full takes a part without a word
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.replace(temporary, path)
    except OSError:
        remove(Path(temporary))
        raise


Save = Callable[[Tensor, Sequence[int]], None]


@contextmanager
def saving(folder: Path) -> Iterator[Save]:
    """A `save_png` into this folder that returns at once: threads encode and write. All is written
    when the block ends; an error of theirs is raised by a later call or by the end.
    """
    pending = deque()
    with ThreadPoolExecutor(WRITERS) as pool:

        def save(images: Tensor, seeds: Sequence[int]) -> None:
            while len(pending) >= WAITING * WRITERS:
                pending.popleft().result()
            size = -(-len(images) // WRITERS)
            for start in range(0, len(images), size):
                part = slice(start, start + size)
                pending.append(pool.submit(save_png, images[part], seeds[part], folder))

        try:
            yield save
            for job in pending:
                job.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
