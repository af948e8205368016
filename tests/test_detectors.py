"""Features equal other implementations' with the same weights; statistics survive their files."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hsivi_cli.errors import HsiviError
from hsivi_cli.files.images import save_npz
from hsivi_cli.files.places import weights_folder
from hsivi_cli.files.pngs import save_png
from hsivi_cli.metrics import inception
from hsivi_cli.metrics.detectors import Classifier, load_detector
from hsivi_cli.metrics.frechet import Moments, frechet_distance
from hsivi_cli.metrics.inception import Inception
from hsivi_cli.metrics.statistics import (
    Statistics,
    kind_of,
    load_statistics,
    moments_of,
    save_statistics,
    statistics_of,
)

SHAPE = {"image_size": 8, "in_channels": 1, "widths": [4, 6], "feature_dim": 5, "classes": 3}


def random_images(count=6, size=8, channels=1, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, size, size, channels), generator=rng).to(torch.uint8)


def write_detector(folder, seed=0, **changes):
    """A small random detector with batch statistics of its own."""
    torch.manual_seed(seed)
    network = Classifier(**SHAPE)
    for _ in range(3):
        network(torch.randn(32, 1, 8, 8))
    folder.mkdir(exist_ok=True)
    save_file(network.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"name": "tiny", **SHAPE, **changes}))
    return network.eval()


# ------------------------------------------------------------------------- small classifiers


def test_features_are_the_networks_penultimate_layer(tmp_path):
    network = write_detector(tmp_path / "d")
    detector = load_detector(str(tmp_path / "d"))
    images = random_images()
    features = detector.features(images)
    assert (
        features.shape == (6, 5) and features.dtype == torch.float32 and detector.feature_dim == 5
    )
    x = images.permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        assert torch.allclose(network.head(features), network(x), atol=1e-6)


def test_features_of_an_image_do_not_depend_on_its_batch(tmp_path):
    write_detector(tmp_path / "d")
    detector = load_detector(str(tmp_path / "d"))
    images = random_images()
    alone = torch.cat([detector.features(image[None]) for image in images])
    assert torch.allclose(detector.features(images), alone, atol=1e-5)  # float32 sums in any order


def test_features_are_full_float32_under_autocast(tmp_path):
    write_detector(tmp_path / "d")
    detector = load_detector(str(tmp_path / "d"))
    plain = detector.features(random_images())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(detector.features(random_images()), plain)


def test_tf32_is_off_while_features_are_computed_and_as_before_afterwards(tmp_path, monkeypatch):
    write_detector(tmp_path / "d")
    detector = load_detector(str(tmp_path / "d"))
    backends = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = [backend.fp32_precision for backend in backends]
    seen = []
    original = torch.nn.Flatten.forward

    def look(self, x):
        seen.append([backend.fp32_precision for backend in backends])
        return original(self, x)

    monkeypatch.setattr(torch.nn.Flatten, "forward", look)
    try:
        for backend in backends:
            backend.fp32_precision = "tf32"
        detector.features(random_images())
        assert seen == [["ieee", "ieee"]]
        assert [backend.fp32_precision for backend in backends] == ["tf32", "tf32"]
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.fp32_precision = value


def test_the_stamp_follows_the_weights_and_not_the_container(tmp_path):
    write_detector(tmp_path / "a")
    write_detector(tmp_path / "b")
    write_detector(tmp_path / "c", seed=1)
    stamps = [load_detector(str(tmp_path / name)).stamp for name in "abc"]
    assert stamps[0] == stamps[1] != stamps[2]
    assert stamps[0].startswith("tiny 8x8 no-resize sha256:")


def test_images_that_do_not_fit_are_refused(tmp_path):
    write_detector(tmp_path / "d")
    detector = load_detector(str(tmp_path / "d"))
    with pytest.raises(HsiviError, match=r"takes images of 8 x 8 with 1 channel.*not 9 x 9 with 3"):
        detector.features(random_images(size=9, channels=3))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"colour": 1}, "exactly the fields"),
        ({"image_size": "8"}, "image_size must be a whole number"),
        ({"widths": [4, 0]}, "widths must be a list"),
        ({"widths": []}, "widths must be a list"),
        ({"feature_dim": True}, "feature_dim must be a whole number"),
        ({"widths": 2}, "widths must be a list of whole numbers"),
        ({"widths": {"4": 6}}, "widths must be a list of whole numbers"),
        ({"name": 3}, "name must be a word"),
        ({"widths": [4, 7]}, "not the weights that config.json describes"),
        ({"classes": 2**70}, "not the weights that config.json describes"),
        ({"widths": [4, 10**6]}, "not the weights that config.json describes"),
        ({"widths": [4] * 10**6}, "not the weights that config.json describes"),
        ({"image_size": 10**9}, "not the weights that config.json describes"),
        ({"feature_dim": 10**12}, "not the weights that config.json describes"),
    ],
)
def test_detector_configurations_are_checked_by_field(tmp_path, changes, complaint):
    write_detector(tmp_path / "d", **changes)
    with pytest.raises(HsiviError, match=complaint):
        load_detector(str(tmp_path / "d"))


def test_detectors_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(HsiviError, match="not found; give inception, fashion-mnist, or a folder"):
        load_detector(str(tmp_path / "none"))
    write_detector(tmp_path / "d")
    for text in ("{", "[" * 100_000):
        (tmp_path / "d" / "config.json").write_text(text)
        with pytest.raises(HsiviError, match=r"config\.json cannot be read as JSON"):
            load_detector(str(tmp_path / "d"))
    with pytest.raises(HsiviError, match="only the detector inception takes a weights file"):
        load_detector("fashion-mnist", tmp_path / "x.pth")


# ------------------------------------------------------------------------------ the embedded


def test_the_embedded_reference_is_of_the_embedded_detector():
    detector = load_detector("fashion-mnist")
    reference = load_statistics(weights_folder() / "reference.npz")
    assert reference.stamp == detector.stamp
    assert reference.moments.count == 60_000
    assert reference.moments.cov.shape == (detector.feature_dim, detector.feature_dim)
    assert reference.features.shape == (5000, detector.feature_dim)
    # the kept features are a sample of what the moments are of; other 5,000 read 0.001 of this
    kept = moments_of_features(reference.features)
    assert frechet_distance(kept, reference.moments) < 0.01 * reference.moments.cov.trace()


def moments_of_features(features):
    cov = torch.from_numpy(np.cov(features.double().numpy(), rowvar=False))
    return Moments(len(features), features.double().mean(0), cov)


# --------------------------------------------------------------------------------- inception


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    """pytorch-fid's checkpoint with random weights whose activations neither vanish nor explode."""
    rng = torch.Generator().manual_seed(0)
    state = Inception().net.state_dict()
    for key, value in state.items():
        if key.endswith("conv.weight"):
            deviation = (2 / value[0].numel()) ** 0.5
            state[key] = torch.randn(value.shape, generator=rng) * deviation
        elif key.endswith(("bn.bias", "bn.running_mean")):
            state[key] = torch.randn(value.shape, generator=rng) * 0.1
        elif key.endswith(("bn.weight", "bn.running_var")):
            state[key] = torch.rand(value.shape, generator=rng) + 0.5
    state |= {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(state, path)
    return path


def test_inception_features_are_pytorch_fids_of_grey_images_and_of_colour(
    inception_file, monkeypatch
):
    from pytorch_fid import inception as fid

    state = torch.load(inception_file, weights_only=True)
    monkeypatch.setattr(fid, "load_state_dict_from_url", lambda *args, **kwargs: state)
    theirs, detector = fid.InceptionV3().eval(), load_detector("inception", inception_file)
    ours = Inception().eval()
    ours.net.load_state_dict({key: state[key] for key in ours.net.state_dict()})
    ours = inception.fold_batch_norm(ours.double())
    for channels in (1, 3):
        images = random_images(2, 32, channels)
        x = images.permute(0, 3, 1, 2).expand(-1, 3, -1, -1) / 255
        with torch.no_grad():
            expected = theirs.float()(x)[0][..., 0, 0]
            exact = theirs.double()(x.double())[0][..., 0, 0]
            folded = ours(x.double())
        features = detector.features(images)
        assert features.shape == (2, detector.feature_dim) and features.std() > 0.01
        # batch normalisation is folded into the convolutions: rounding apart, the same
        torch.testing.assert_close(folded, exact, rtol=1e-9, atol=1e-9)
        # float32's rounding differs by machine
        torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)


def test_the_inception_stamp_tells_resize_and_weights(inception_file, tmp_path):
    stamp = load_detector(None, inception_file).stamp
    assert stamp.startswith("inception-pool3 bilinear-299 sha256:")
    state = torch.load(inception_file, weights_only=True)
    save_file(state, tmp_path / "same.safetensors")
    assert load_detector("inception", tmp_path / "same.safetensors").stamp == stamp


def test_inception_weights_that_are_none_are_refused(tmp_path):
    with pytest.raises(HsiviError, match=r"none\.pth: not readable"):
        load_detector("inception", tmp_path / "none.pth")
    for content in (
        "no weights",
        "hello",
        "(lp0",
        "}",
    ):  # foreign bytes break torch.load each its way
        (tmp_path / "text.pth").write_text(content)
        with pytest.raises(HsiviError, match=r"text\.pth: not readable"):
            load_detector("inception", tmp_path / "text.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(HsiviError, match="a dictionary of tensors is wanted"):
        load_detector("inception", tmp_path / "list.pth")
    torch.save({"x": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(HsiviError, match="not pytorch-fid's InceptionV3 checkpoint"):
        load_detector("inception", tmp_path / "other.pth")


@pytest.mark.parametrize(
    "foreign",
    [
        {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)},
        {"AuxLogits.conv0.conv.weight": torch.zeros(128, 768, 1, 1)},
    ],
)
def test_torchvisions_imagenet_network_is_none_of_fids(inception_file, tmp_path, foreign):
    state = torch.load(inception_file, weights_only=True)
    torch.save(state | foreign, tmp_path / "inception_v3_google.pth")
    told = r"inception_v3_google\.pth: torchvision's ImageNet network .*; give pytorch-fid"
    with pytest.raises(HsiviError, match=told):
        load_detector("inception", tmp_path / "inception_v3_google.pth")


def test_inception_weights_that_are_not_pytorch_fids_are_told(inception_file, capsys, monkeypatch):
    stamp = load_detector("inception", inception_file).stamp.split()[-1]
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        line.startswith(f"warning: {inception_file} does not hold pytorch-fid's") and stamp in line
    )
    own = hashlib.sha256(inception_file.read_bytes()).hexdigest()
    for name, known in (("KNOWN_WEIGHTS", stamp), ("KNOWN_FILE", own[:8])):
        with monkeypatch.context() as patch:
            patch.setattr(inception, name, known)
            load_detector("inception", inception_file)
        assert capsys.readouterr().err == ""


def test_the_known_file_is_the_one_that_pytorch_fid_names():
    from pytorch_fid.inception import FID_WEIGHTS_URL  # whose name ends in its hash, as torch.hub's

    assert FID_WEIGHTS_URL.endswith(f"-{inception.KNOWN_FILE}.pth")


def test_weights_files_that_would_run_code_are_refused(tmp_path):
    torch.save({"x": print}, tmp_path / "code.pth")
    with pytest.raises(HsiviError, match=r"code\.pth: not readable"):
        load_detector("inception", tmp_path / "code.pth")


def test_a_failing_download_names_the_address_and_the_option(monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise OSError("network is unreachable")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    told = "not in .*pt_inception.*pth, and --offline, or HF_HUB_OFFLINE, forbids to fetch it: down"
    with pytest.raises(HsiviError, match=told):  # conftest sets it
        load_detector("inception")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with pytest.raises(
        HsiviError, match=r"unreachable.*https://github.com/mseitzer.*--detector-we"
    ):
        load_detector("inception")


def test_what_a_download_tells_is_no_result(inception_file, monkeypatch, capsys):
    def fetch(url, map_location, weights_only):
        print(f"Downloading: {url}")
        return torch.load(inception_file, weights_only=True)

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fetch)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    load_detector("inception")
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("Downloading")


# -------------------------------------------------------------------------------- statistics


def test_moments_are_numpys_of_all_features(tmp_path):
    write_detector(tmp_path / "d")
    detector = load_detector(str(tmp_path / "d"))
    images = random_images(20)
    moments, features = moments_of(images.split(7), detector, keep_features=True)
    expected = detector.features(images).double().numpy()
    assert moments.count == 20 and features.shape == (20, 5)
    np.testing.assert_allclose(features, expected, atol=1e-5)
    np.testing.assert_allclose(moments.cov, np.cov(expected, rowvar=False), atol=1e-5)
    assert moments_of(images.split(7), detector)[1] is None
    with pytest.raises(HsiviError, match="at least 2 images on each side; found 1"):
        moments_of(images[:1].split(1), detector)


def random_statistics(stamp="tiny 8x8", width=5, features=True):
    rng = torch.Generator().manual_seed(1)
    rows = torch.randn(30, width, generator=rng)
    cov = torch.from_numpy(np.cov(rows.double().numpy(), rowvar=False))
    return Statistics(Moments(30, rows.double().mean(0), cov), stamp, rows if features else None)


@pytest.mark.parametrize("features", [True, False])
def test_statistics_survive_their_file(tmp_path, features):
    before = random_statistics(features=features)
    save_statistics(tmp_path / "s.npz", before)
    after = load_statistics(tmp_path / "s.npz")
    assert after.stamp == before.stamp and after.moments.count == 30
    assert torch.equal(after.moments.mean, before.moments.mean)
    assert torch.equal(after.moments.cov, before.moments.cov)
    if features:  # kept in float16
        torch.testing.assert_close(after.features, before.features, rtol=1e-3, atol=1e-6)
    else:
        assert after.features is None


def test_pytorch_fid_reads_the_statistics_files_written_here(tmp_path):
    from pytorch_fid.fid_score import compute_statistics_of_path

    ours = replace(random_statistics(), image=(8, 8, 1))
    save_statistics(tmp_path / "s.npz", ours)
    mean, cov = compute_statistics_of_path(str(tmp_path / "s.npz"), None, 50, 2048, "cpu")
    assert (mean == ours.moments.mean.numpy()).all() and (cov == ours.moments.cov.numpy()).all()


def test_pytorch_fids_own_statistics_files_are_read(tmp_path):
    statistics = random_statistics()
    np.savez_compressed(
        tmp_path / "plain.npz", mu=statistics.moments.mean, sigma=statistics.moments.cov
    )
    plain = load_statistics(tmp_path / "plain.npz")
    assert plain.stamp is None and plain.features is None and plain.moments.count == 0
    assert frechet_distance(plain.moments, statistics.moments) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("arrays", "complaint"),
    [
        ({"images": np.zeros(3)}, "holds mu and sigma; found images"),
        ({"mu": np.zeros(3), "sigma": np.zeros((2, 2))}, r"found \(3,\) and \(2, 2\)"),
        ({"mu": np.array([0, np.nan]), "sigma": np.eye(2)}, "NaN or infinite"),
        ({"mu": np.array([0, 1e308]), "sigma": np.eye(2)}, "NaN or infinite"),
        ({"mu": np.zeros(0), "sigma": np.zeros((0, 0))}, r"mu \[D\] and sigma \[D, D\] are"),
        (
            {"mu": np.zeros(2), "sigma": np.eye(2), "features": np.zeros((4, 3))},
            r"must be \[N, 2\]; found \(4, 3\)",
        ),
        ({"mu": np.array(["a", "b"]), "sigma": np.eye(2)}, "mu must be numbers, not <U1"),
        ({"mu": np.zeros(2), "sigma": np.eye(2, dtype=complex)}, "sigma must be numbers"),
        ({"mu": np.zeros(2), "sigma": np.eye(2), "count": np.zeros(3)}, "count must be one number"),
        ({"mu": np.zeros(2), "sigma": np.eye(2), "count": np.nan}, "count must be one number"),
        ({"mu": np.zeros(2), "sigma": np.eye(2), "count": -5}, "count must be one number"),
        ({"mu": np.zeros(2), "sigma": -np.eye(2)}, "sigma is no covariance"),
        ({"mu": np.zeros(2), "sigma": np.array([[1.0, 2.0], [2.0, 1.0]])}, "sigma is no cov"),
        ({"mu": np.zeros(2), "sigma": np.array([[1.0, 0.5], [0.0, 1.0]])}, "sigma is no cov"),
    ],
)
def test_statistics_files_that_are_none_are_refused(tmp_path, arrays, complaint):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(HsiviError, match=rf"bad\.npz: .*{complaint}"):
        load_statistics(tmp_path / "bad.npz")


def test_a_variance_that_rounding_left_below_zero_is_read(tmp_path):
    np.savez(tmp_path / "s.npz", mu=np.ones(2), sigma=np.diag([1.0, -4e-14]), stamp=" ")
    statistics = load_statistics(tmp_path / "s.npz")
    assert frechet_distance(statistics.moments, statistics.moments) < 1e-9
    assert statistics.stamp is None and statistics.moments.count == 0


def test_statistics_files_hold_no_pickle(tmp_path):
    save_statistics(tmp_path / "s.npz", random_statistics())
    with np.load(tmp_path / "s.npz", allow_pickle=False) as file:
        kinds = {key: file[key].dtype for key in file.files}
    assert kinds.pop("stamp").kind == "U"
    assert kinds == {"mu": "f8", "sigma": "f8", "count": "i8", "features": "f2"}


def test_every_kind_of_source_is_told_apart(tmp_path):
    save_png(random_images(2), [0, 1], tmp_path / "folder")
    save_npz(random_images(2), tmp_path / "images.npz")
    save_statistics(tmp_path / "statistics.npz", random_statistics())
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model_index.json").write_text("{}")
    assert kind_of(tmp_path / "folder") == "folder"
    assert kind_of(tmp_path / "images.npz") == "npz"
    assert kind_of(tmp_path / "statistics.npz") == "statistics"
    assert kind_of(tmp_path / "run") == "network"
    assert kind_of("cifar10-train") == "data set"
    with pytest.raises(HsiviError, match=r"none: neither a file, nor a folder, nor one of cifar10"):
        kind_of(tmp_path / "none")


def test_images_of_a_folder_and_of_an_npz_file_have_the_same_statistics(tmp_path):
    write_detector(tmp_path / "d")
    detector = load_detector(str(tmp_path / "d"))
    images = random_images(10)
    save_png(images, range(10), tmp_path / "folder")
    save_npz(images, tmp_path / "images.npz")
    a = statistics_of(tmp_path / "folder", detector, batch_size=3)
    b = statistics_of(tmp_path / "images.npz", detector, batch_size=3)
    assert torch.equal(a.moments.cov, b.moments.cov) and a.stamp == b.stamp == detector.stamp
