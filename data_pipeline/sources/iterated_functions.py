"""Fractals of iterated function systems: random affine contractions, and the chaos game.

A system is a handful of contracting affine maps of the plane; the points reached by applying maps
at random draw its attractor. Every class of the fractal dataset is one system; its images vary the
maps a little.

Source: Kataoka et al. 2020, "Pre-training without Natural Images" (FractalDB), arXiv:2101.08515.
Ours differs: maps are drawn by their singular values, so that each contracts by construction (as in
Anderson and Farrell 2021, arXiv:2110.03091), all parameters vary at once, and an image shows how
often each pixel was reached, not only whether.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]

_MIN_MAPS, _MAX_MAPS = 2, 6
_CHOICES = 256  # a map is chosen by one random byte
# Steps before points count. Every step shrinks the distance to the attractor, at worst by
# _LARGEST_SCALE; with the middle scale of random_system, 0.6, twelve leave 0.2 %.
_BURN_IN_STEPS = 12
_LARGEST_SCALE = 0.92


@dataclass(frozen=True)
class Systems:
    """B systems of K maps each: x -> R(angle) diag(scales) R(turn) x + shift.

    Shapes: `angles` (B, K, 2), `scales` (B, K, 2) singular values with a sign, `shifts` (B, K, 2).
    A system with fewer than K maps repeats its first one with scale 0 and weight 0.
    """

    angles: Array
    scales: Array
    shifts: Array

    def varied(self, rng: np.random.Generator, strength: float) -> Systems:
        """Change every parameter at random; strength 0.1 turns maps by about 6 degrees."""
        angles = self.angles + strength * rng.uniform(-1, 1, self.angles.shape)
        scales = self.scales * (1 + strength * rng.uniform(-1, 1, self.scales.shape))
        shifts = self.shifts + strength * rng.uniform(-1, 1, self.shifts.shape)
        return Systems(angles, np.clip(scales, -_LARGEST_SCALE, _LARGEST_SCALE), shifts)

    def matrices(self) -> Array:
        """Rows (a, b, c, d, e, f): x' = a x + b y + e, y' = c x + d y + f; shape (B, K, 6)."""
        (cos1, cos2), (sin1, sin2) = (np.moveaxis(f(self.angles), -1, 0) for f in (np.cos, np.sin))
        s1, s2 = np.moveaxis(self.scales, -1, 0)
        linear = [
            cos1 * s1 * cos2 - sin1 * s2 * sin2,
            -cos1 * s1 * sin2 - sin1 * s2 * cos2,
            sin1 * s1 * cos2 + cos1 * s2 * sin2,
            -sin1 * s1 * sin2 + cos1 * s2 * cos2,
        ]
        return np.stack([*linear, self.shifts[..., 0], self.shifts[..., 1]], axis=-1)

    def weights(self) -> Array:
        """Probability of each map, its share of the area (|determinant|), shape (B, K)."""
        areas = np.abs(self.scales.prod(axis=-1))
        # A thin map still draws something: without a floor it would never be chosen.
        areas = np.where(areas > 0, np.maximum(areas, 0.02), 0.0)
        return areas / areas.sum(axis=-1, keepdims=True)


def random_system(rng: np.random.Generator) -> Systems:
    """One random system, shapes (1, K, 2)."""
    num_maps = rng.integers(_MIN_MAPS, _MAX_MAPS + 1)
    angles = rng.uniform(-np.pi, np.pi, (1, _MAX_MAPS, 2))
    larger = rng.uniform(0.35, 0.9, (1, _MAX_MAPS))
    smaller = larger * rng.uniform(0.3, 1.0, (1, _MAX_MAPS))
    mirrored = rng.choice([-1.0, 1.0], (1, _MAX_MAPS))
    scales = np.stack([larger, smaller * mirrored], axis=-1)
    scales[:, num_maps:] = 0.0
    shifts = rng.uniform(-1, 1, (1, _MAX_MAPS, 2))
    return Systems(angles, scales, shifts)


def chaos_game(systems: Systems, num_points: int, rng: np.random.Generator) -> Array:
    """Points of the attractors, x and y in turn: shape (2, B, P), float32, P >= num_points.

    Many short orbits run side by side, for all systems at once, instead of one long orbit each.
    """
    num_systems, num_maps = systems.scales.shape[:2]
    maps = systems.matrices().astype(np.float32).reshape(-1, 6)
    chances = _choice_table(systems.weights())
    num_orbits = int(min(4096, max(64, num_points // 8)))
    num_kept = -(-num_points // num_orbits)
    first_map = (np.arange(num_systems) * num_maps)[:, None]
    rows = np.arange(num_systems)[:, None]
    x = np.zeros((num_systems, num_orbits), np.float32)
    y = np.zeros_like(x)
    points = np.empty((2, num_systems, num_kept, num_orbits), np.float32)
    shape = (_BURN_IN_STEPS + num_kept, num_systems, num_orbits)
    draws = rng.integers(0, _CHOICES, shape, dtype=np.uint8)
    for step, draw in enumerate(draws):
        chosen = maps[first_map + chances[rows, draw]]
        x, y = (
            chosen[..., 0] * x + chosen[..., 1] * y + chosen[..., 4],
            chosen[..., 2] * x + chosen[..., 3] * y + chosen[..., 5],
        )
        if step >= _BURN_IN_STEPS:
            points[0, :, step - _BURN_IN_STEPS] = x
            points[1, :, step - _BURN_IN_STEPS] = y
    return points.reshape(2, num_systems, -1)


def draw_density(points: Array, height_px: int, width_px: int) -> Array:
    """How often each pixel was reached, as brightness in 0..1, shape (B, height_px, width_px).

    `points` has the shape (2, B, P) that `chaos_game` gives. The attractor is stretched to the
    image's borders; brightness saturates softly, so that the points most often reached do not hide
    the rest.
    """
    low = points.min(axis=-1, keepdims=True)
    extent = np.maximum(points.max(axis=-1, keepdims=True) - low, 1e-6)
    size = np.array([width_px, height_px], np.float32)[:, None, None]
    columns, rows = np.minimum((points - low) * (size / extent), size - 1).astype(np.int32)
    num_images, num_pixels = points.shape[1], height_px * width_px
    flat = rows * width_px + columns + np.arange(num_images)[:, None] * num_pixels
    counts = np.bincount(flat.ravel(), minlength=num_images * num_pixels)
    density = counts.reshape(num_images, height_px, width_px).astype(np.float32)
    lit = np.maximum((density > 0).sum(axis=(1, 2), keepdims=True), 1)
    return 1 - np.exp(-density * lit / density.sum(axis=(1, 2), keepdims=True))


def _choice_table(weights: Array) -> NDArray[np.intp]:
    """For every system and byte the map that the byte chooses, shape (B, 256)."""
    edges = np.cumsum(weights, axis=-1)[:, None, :-1] * _CHOICES
    return (np.arange(_CHOICES)[None, :, None] >= edges).sum(axis=-1)
