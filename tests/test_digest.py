"""Content decides, and nothing else."""

import hashlib

import torch

from hsivi_cli.files.digest import digest


def test_a_digest_is_sha256_of_the_parts_joined():
    numbers = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    joined = b"name" + b"\x00\x01" + numbers.numpy().tobytes()
    assert digest("name", b"\x00\x01", numbers) == hashlib.sha256(joined).hexdigest()


def test_a_tensor_counts_by_its_numbers_in_order_however_they_lie_in_memory():
    numbers = torch.arange(6.0).view(2, 3)
    strided = numbers.T.contiguous().T
    assert not strided.is_contiguous() and digest(strided) == digest(numbers)
    assert digest(numbers.T) != digest(numbers) != digest(numbers.double())
