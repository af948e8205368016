"""Images survive every round trip to files, and each bad file is named."""

import gzip
import os
import resource
import struct
import tracemalloc

import numpy as np
import pytest
import torch
from command import read_folder, tree
from PIL import Image

from hsivi_cli.errors import HsiviError
from hsivi_cli.files import images as images_module
from hsivi_cli.files.images import (
    GAP,
    dataset_images,
    from_images,
    open_images,
    read_npz,
    save_grid,
    save_npz,
    seeds_done,
    to_images,
)
from hsivi_cli.files.logs import rows_of
from hsivi_cli.files.pngs import save_png, saving
from hsivi_cli.files.whole import read_json, read_tensors


def random_images(count=5, height=6, width=7, channels=3, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, height, width, channels), generator=rng).to(torch.uint8)


def open_first(file):
    """The first batch of the folder in which a file lies."""
    return next(open_images(file.parent)[1])


def test_all_grey_levels_survive_the_way_to_floats_and_back():
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1)
    x = levels.permute(0, 3, 1, 2).float() / 127.5 - 1
    assert torch.equal(to_images(x), levels) and torch.equal(from_images(levels), x)


def test_values_are_rounded_to_the_nearest_level_after_clamping():
    x = torch.tensor([-7.0, -1, 0.9 / 127.5 - 1, 0.4 / 127.5 - 1, 253.6 / 127.5 - 1, 1, 1.5])
    assert to_images(x.reshape(1, 1, 1, 7)).flatten().tolist() == [0, 0, 1, 0, 254, 255, 255]


def test_conversion_equals_diffusers():
    from diffusers.image_processor import VaeImageProcessor

    x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    pictures = VaeImageProcessor(do_normalize=True).postprocess(x, output_type="pil")
    expected = np.stack([np.asarray(picture) for picture in pictures])
    assert np.array_equal(to_images(x).numpy(), expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_images_that_are_not_finite_are_counted(bad):
    x = torch.zeros(4, 1, 2, 2)
    x[1, 0, 0, 0] = x[1, 0, 1, 1] = x[3, 0, 0, 1] = bad
    with pytest.raises(HsiviError, match="2 of 4 images hold NaN or infinite"):
        to_images(x)


@pytest.mark.parametrize("channels", [1, 3])
def test_pngs_come_back_bit_equal_in_the_order_of_their_seeds(tmp_path, channels):
    images = random_images(channels=channels)
    save_png(images, [3, 1, 10, 0, 99], tmp_path)
    assert {f.name for f in tmp_path.iterdir()} == {f"{s:05d}.png" for s in (3, 1, 10, 0, 99)}
    assert torch.equal(read_folder(tmp_path), images[[3, 1, 0, 2, 4]])


def test_pngs_written_by_threads_are_those_written_at_once(tmp_path):
    images = random_images(count=9)
    save_png(images, range(9), tmp_path / "one")
    with saving(tmp_path / "many") as save:
        save(images[:5], range(5))
        save(images[5:], range(5, 9))
    assert tree(tmp_path / "many") == tree(tmp_path / "one")


def test_a_picture_that_cannot_be_written_ends_the_writing_with_its_reason(tmp_path):
    (tmp_path / "00002.png").mkdir()  # where a file cannot take its place
    with pytest.raises(HsiviError, match="could not write"), saving(tmp_path) as save:
        save(random_images(count=4), range(4))
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_a_picture_of_which_a_full_disk_takes_a_part_is_none(tmp_path):
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40, old[1]))
    try:
        with pytest.raises(HsiviError, match=r"could not write .*: No space left"):
            save_png(random_images(count=1), [0], tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert not list(tmp_path.iterdir())


def test_folders_are_read_in_batches_with_their_count(tmp_path):
    images = random_images(count=5)
    save_png(images, range(5), tmp_path)
    (tmp_path / "README.md").write_text("no image")
    (tmp_path / ".hidden.png").write_text("no image")
    count, batches = open_images(tmp_path, batch_size=2)
    batches = list(batches)
    assert count == 5 and [len(batch) for batch in batches] == [2, 2, 1]
    assert torch.equal(torch.cat(batches), images)


def test_npz_files_come_back_bit_equal(tmp_path):
    images = random_images()
    save_npz(images, tmp_path / "deep" / "images.npz")
    assert torch.equal(read_npz(tmp_path / "deep" / "images.npz"), images)
    count, batches = open_images(tmp_path / "deep" / "images.npz", batch_size=4)
    assert count == 5 and [len(batch) for batch in batches] == [4, 1]


def test_arr_0_and_grey_arrays_without_channels_are_read(tmp_path):
    images = random_images(channels=1)
    np.savez(tmp_path / "a.npz", images[..., 0].numpy())
    assert torch.equal(read_npz(tmp_path / "a.npz"), images)


def test_palette_and_bitmap_files_are_read_as_colour_and_grey(tmp_path):
    colour = np.zeros((4, 4, 3), np.uint8)
    colour[:2] = 255, 0, 0
    (tmp_path / "p").mkdir()
    Image.fromarray(colour).convert("P").save(tmp_path / "p" / "0.png")
    assert np.array_equal(read_folder(tmp_path / "p")[0].numpy(), colour)
    (tmp_path / "b").mkdir()
    Image.fromarray(colour[..., 0]).convert("1").save(tmp_path / "b" / "0.png")
    assert np.array_equal(read_folder(tmp_path / "b")[0, ..., 0].numpy(), colour[..., 0])


def test_seeds_done_are_those_of_whole_files(tmp_path):
    assert seeds_done(tmp_path / "none") == set()
    save_png(random_images(3), [0, 7, 123456], tmp_path)
    (tmp_path / ".00008.png.1.tmp").write_bytes(b"half")
    (tmp_path / "grid.png").write_bytes(b"")
    (tmp_path / "9.png").write_bytes(b"")
    assert seeds_done(tmp_path) == {0, 7, 123456}


def test_a_write_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    save_npz(random_images(seed=1), tmp_path / "a.npz")

    def full(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(HsiviError, match=r"could not write .*a\.npz: no space left"):
        save_npz(random_images(seed=2), tmp_path / "a.npz")
    assert os.listdir(tmp_path) == ["a.npz"]
    assert torch.equal(read_npz(tmp_path / "a.npz"), random_images(seed=1))


def test_a_grid_shows_every_image_in_its_place(tmp_path):
    images = random_images(count=5, height=6, width=7)
    save_grid(images, tmp_path / "grid.png")
    sheet = np.asarray(Image.open(tmp_path / "grid.png"))
    assert sheet.shape == (2 * 6 + GAP, 3 * 7 + 2 * GAP, 3)
    for index in range(5):
        top, left = index // 3 * (6 + GAP), index % 3 * (7 + GAP)
        assert np.array_equal(sheet[top : top + 6, left : left + 7], images[index].numpy())
    save_grid(images[..., :1], tmp_path / "row.png", columns=5)
    assert np.asarray(Image.open(tmp_path / "row.png")).shape == (6, 5 * 7 + 4 * GAP)


def test_mixed_sizes_and_modes_are_refused_by_name(tmp_path):
    save_png(random_images(2), [0, 1], tmp_path)
    save_png(random_images(1, height=9), [2], tmp_path)
    with pytest.raises(HsiviError, match=r"00002\.png: 7 x 9 RGB, but 00000\.png is 7 x 6 RGB"):
        list(open_images(tmp_path, batch_size=2)[1])  # across batches
    save_png(random_images(1, channels=1), [2], tmp_path)
    with pytest.raises(HsiviError, match=r"00002\.png: 7 x 6 grey"):
        read_folder(tmp_path)


def test_large_images_come_a_few_at_a_time_and_others_are_refused_unread(tmp_path, monkeypatch):
    save_png(random_images(5), range(5), tmp_path)
    monkeypatch.setattr(images_module, "MOST_BYTES", 2 * 6 * 7 * 3 + 1)
    assert [len(batch) for batch in open_images(tmp_path)[1]] == [2, 2, 1]
    large = tmp_path / "00004.png"
    Image.new("RGB", (4000, 3000)).save(large)
    large.write_bytes(large.read_bytes()[:200])  # its size is told by its first bytes
    with pytest.raises(HsiviError, match=r"00004\.png: 4000 x 3000 RGB, but 00000\.png is 7"):
        read_folder(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without named pipes")
def test_a_pipe_named_like_an_image_is_none(tmp_path):
    save_png(random_images(2), [0, 1], tmp_path)
    os.mkfifo(tmp_path / "00002.png")
    (tmp_path / "00003.png").mkdir()
    assert len(read_folder(tmp_path)) == 2


def test_sizes_are_compared_before_any_image_takes_memory(tmp_path):
    for name in range(30):
        Image.new("RGB", (2000, 2000)).save(tmp_path / f"{name:02d}.png")
    Image.new("RGB", (2000, 1999)).save(tmp_path / "30.png")
    tracemalloc.start()
    with pytest.raises(HsiviError, match=r"30\.png: 2000 x 1999 RGB, but 00\.png is 2000 x 2000"):
        list(open_images(tmp_path)[1])
    assert tracemalloc.get_traced_memory()[1] < 2000 * 2000 * 3
    tracemalloc.stop()


@pytest.mark.parametrize("read", [read_json, read_tensors, rows_of, read_npz])
def test_a_pipe_among_files_is_named_and_not_waited_for(tmp_path, read):
    os.mkfifo(tmp_path / "00000.png")
    with pytest.raises(HsiviError, match=r"00000\.png is no file, but a pipe"):
        read(tmp_path / "00000.png")
    assert seeds_done(tmp_path) == set()


def test_modes_that_would_lose_something_are_refused_by_name(tmp_path):
    Image.new("RGBA", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(HsiviError, match=r"a\.png: mode RGBA is not read; convert it"):
        read_folder(tmp_path)


def test_unreadable_images_are_named(tmp_path):
    save_png(random_images(2), [0, 1], tmp_path)
    whole = (tmp_path / "00001.png").read_bytes()
    for broken in (b"not a picture", whole[:60], b""):
        (tmp_path / "00001.png").write_bytes(broken)
        with pytest.raises(HsiviError, match=r"00001\.png: not a readable image"):
            read_folder(tmp_path)


def test_a_png_with_any_one_byte_broken_is_read_or_refused(tmp_path):
    save_png(random_images(1, height=4, width=4), [0], tmp_path)
    whole = (tmp_path / "00000.png").read_bytes()
    refused = 0
    for position in range(len(whole)):
        for value in (0, 255):
            broken = whole[:position] + bytes([value]) + whole[position + 1 :]
            (tmp_path / "00000.png").write_bytes(broken)
            try:
                read_folder(tmp_path)
            except HsiviError as error:
                refused += "00000.png: " in str(error)
    assert refused > len(whole)  # anything else than HsiviError has ended the test


def test_empty_folders_and_missing_paths_are_refused(tmp_path):
    with pytest.raises(HsiviError, match="no image in this folder"):
        open_images(tmp_path)
    with pytest.raises(HsiviError, match=r"none: not a readable .npz file \(.*No such file"):
        open_images(tmp_path / "none")


@pytest.mark.parametrize(
    ("arrays", "complaint"),
    [
        ({"x": np.zeros(3), "labels": np.zeros(2)}, "found x, labels"),
        ({"images": np.zeros((2, 4, 4, 3), np.float32)}, r"not float32 \[2, 4, 4, 3\]"),
        ({"images": np.zeros((2, 3), np.uint8)}, r"not uint8 \[2, 3\]"),
        ({"images": np.zeros((0, 4, 4, 3), np.uint8)}, "holds no image"),
        ({"images": np.array([{}], dtype=object)}, "not a readable .npz file"),
    ],
)
def test_npz_files_without_usable_images_are_refused(tmp_path, arrays, complaint):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(HsiviError, match=rf"bad\.npz: .*{complaint}"):
        open_images(tmp_path / "bad.npz")


def test_an_npz_with_any_one_byte_broken_is_read_or_refused(tmp_path):
    np.savez_compressed(
        tmp_path / "whole.npz", images=np.arange(192, dtype=np.uint8).reshape(1, 8, 8, 3)
    )
    whole = (tmp_path / "whole.npz").read_bytes()
    read = 0
    for at in range(len(whole)):
        (tmp_path / "x.npz").write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            read += len(read_npz(tmp_path / "x.npz"))
        except HsiviError as error:
            assert "x.npz" in str(error)
    assert 0 < read < len(whole)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"\x80\x04pickle"])
def test_files_that_are_no_npz_are_refused(tmp_path, content):
    (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(HsiviError, match=r"bad\.npz: not a readable \.npz file"):
        read_npz(tmp_path / "bad.npz")
    with pytest.raises(HsiviError, match=r"none\.npz: not a readable"):
        read_npz(tmp_path / "none.npz")


def idx_bytes(array):
    head = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.tobytes()


def lay_out_fashion_mnist(root, images):
    """torchvision's own layout, every file gzipped and unpacked."""
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for split in ("train", "t10k"):
        for kind, array in (("images-idx3", images), ("labels-idx1", np.zeros(len(images), "u1"))):
            data = idx_bytes(array)
            (raw / f"{split}-{kind}-ubyte").write_bytes(data)
            (raw / f"{split}-{kind}-ubyte.gz").write_bytes(gzip.compress(data))


def test_data_sets_are_read_where_they_lie(tmp_path):
    images = random_images(4, 28, 28, 1)
    lay_out_fashion_mnist(tmp_path, images[..., 0].numpy())
    assert torch.equal(dataset_images("fashion-mnist-train", tmp_path), images)
    assert torch.equal(dataset_images("fashion-mnist-test", tmp_path), images)


@pytest.mark.parametrize("name", ["cifar10-test", "mnist-train"])
def test_a_download_that_fails_says_where_the_files_belong(tmp_path, monkeypatch, name):
    from torchvision import datasets

    def refuse(*args, **kwargs):
        raise OSError("network is unreachable")

    monkeypatch.setattr(datasets.cifar, "download_and_extract_archive", refuse)
    monkeypatch.setattr(datasets.mnist, "download_and_extract_archive", refuse)
    told = "not in .*, and --offline, or HF_HUB_OFFLINE, forbids to fetch it; put torchvision's"
    with pytest.raises(HsiviError, match=told):  # conftest sets it
        dataset_images(name, tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with pytest.raises(HsiviError, match=rf"{name}: not in {tmp_path}.*unreachable.*--data-root"):
        dataset_images(name, tmp_path)


def test_unknown_data_sets_are_refused_with_the_known_ones(tmp_path):
    with pytest.raises(HsiviError, match="imagenet-train: no such data set; one of cifar10-train"):
        dataset_images("imagenet-train", tmp_path)
