"""Resizing against scipy and timm."""

import pytest
import scipy.ndimage
import torch
from timm.layers import resample_abs_pos_embed

from models.pos_embed import resize_position_embedding

GRIDS = [((7, 8), (14, 14)), ((14, 14), (24, 24)), ((4, 6), (3, 5)), ((8, 8), (12, 12))]


def make(grid, prefix=1, width=24):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, prefix + grid[0] * grid[1], width, generator=generator)


@pytest.mark.parametrize(("old", "new"), GRIDS)
@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_linear_is_scipys_zoom(old, new, prefix):
    pos_embed = make(old, prefix)
    ours = resize_position_embedding(pos_embed, old, new, prefix, "linear")
    grid = pos_embed[0, prefix:].reshape(*old, -1).double().numpy()
    zoom = (new[0] / old[0], new[1] / old[1], 1)
    expected = torch.from_numpy(scipy.ndimage.zoom(grid, zoom, order=1)).flatten(0, 1)
    assert torch.equal(ours[:, :prefix], pos_embed[:, :prefix])
    torch.testing.assert_close(ours[0, prefix:].double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("old", "new"), GRIDS)
def test_bicubic_is_timms(old, new):
    pos_embed = make(old)
    ours = resize_position_embedding(pos_embed, old, new, 1, "bicubic")
    theirs = resample_abs_pos_embed(pos_embed, list(new), list(old), num_prefix_tokens=1)
    assert torch.equal(ours, theirs)
    assert ours.shape == (1, 1 + new[0] * new[1], 24)


@pytest.mark.parametrize("method", ["linear", "bicubic"])
def test_the_same_grid_is_the_same_embedding(method):
    pos_embed = make((4, 6))
    same = resize_position_embedding(pos_embed, (4, 6), (4, 6), 1, method)
    assert torch.equal(same, pos_embed)
    assert same.data_ptr() != pos_embed.data_ptr()


@pytest.mark.parametrize("method", ["linear", "bicubic"])
def test_a_wrong_grid_is_an_error_not_a_guess(method):
    with pytest.raises(ValueError, match=r"57 tokens is not 1 prefix tokens and a grid of 7x7"):
        resize_position_embedding(make((7, 8)), (7, 7), (14, 14), 1, method)


@pytest.mark.parametrize("method", ["linear", "bicubic"])
def test_the_type_is_kept(method):
    pos_embed = make((4, 6)).bfloat16()
    assert resize_position_embedding(pos_embed, (4, 6), (8, 8), 1, method).dtype == torch.bfloat16


def test_corners_keep_their_values():
    pos_embed = make((4, 6), prefix=0)
    resized = resize_position_embedding(pos_embed, (4, 6), (9, 11), 0)[0].reshape(9, 11, -1)
    old = pos_embed[0].reshape(4, 6, -1)
    for row in (0, -1):
        for column in (0, -1):
            torch.testing.assert_close(resized[row, column], old[row, column])
