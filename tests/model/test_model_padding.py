"""Padding by repeated reflection, and the sizes that it makes possible."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import cpl
from cpl.nn import pad_to_multiple, reflected_index


@pytest.mark.parametrize("n", range(1, 18))
def test_the_index_is_numpys_reflection(n):
    """numpy.pad's "reflect" repeats as often as it must; all sizes from 1 to one past two periods of 8."""
    expected = np.pad(np.arange(n), (0, 40), mode="reflect")
    assert reflected_index(n, n + 40).tolist() == expected.tolist()


@pytest.mark.parametrize("shape", [(1, 1), (1, 8), (2, 3), (5, 40), (9, 17)])
def test_an_image_is_padded_right_and_below(shape):
    x = torch.rand(2, 3, *shape)
    padded = pad_to_multiple(x, 8)
    pad = [(0, 0), (0, 0), (0, -shape[0] % 8), (0, -shape[1] % 8)]
    assert np.array_equal(padded.numpy(), np.pad(x.numpy(), pad, mode="reflect"))


def test_a_size_that_fits_is_not_copied():
    x = torch.rand(1, 3, 16, 8)
    assert pad_to_multiple(x, 8) is x


@pytest.mark.parametrize("shape", [(0, 8), (8, 0)])
def test_nothing_cannot_be_reflected(shape):
    with pytest.raises(ValueError, match="B, H, W >= 1"):
        cpl.create_model("cplir-tiny")(torch.rand(1, 3, *shape))


@torch.no_grad()
def test_every_size_comes_out_as_it_went_in():
    """All heights 1 to 17 against a thin width and an odd one; the pad never leaks: it is made of the image."""
    model = cpl.create_model("restormer", dim=8, num_blocks=(1, 1, 1, 1), num_refinement_blocks=1)
    for size in range(1, 18):
        for shape in ((size, 1), (3, size)):
            x = torch.rand(1, 3, *shape)
            y = model(x)
            assert y.shape == x.shape
            whole = model(
                torch.from_numpy(
                    np.pad(x.numpy(), [(0, 0), (0, 0)] + [(0, -n % 8) for n in shape], "reflect")
                )
            )
            assert torch.equal(y, whole[:, :, : shape[0], : shape[1]])
