"""Smooth noise and soft shapes: what anatomy is made of."""

import numpy as np
import pytest
from brainseg_trainer.fields import Points, ellipsoid, fraction, smooth_noise, waves


def grid(n=41):
    """Positions of a cube of voxels of 1 mm about the origin."""
    axis = np.arange(n, dtype=np.float32) - n // 2
    return Points(*np.meshgrid(axis, axis, axis, indexing="ij"))


@pytest.mark.parametrize("wavelength", [2.0, 7.5, 30.0, 500.0])
def test_noise_is_normalised_and_reproducible(wavelength):
    """Mean 0, deviation 1, float32, whatever the wavelength; equal generators give equal noise."""
    one, two = (smooth_noise((20, 31, 17), (wavelength,) * 3, np.random.default_rng(4)) for _ in range(2))
    assert one.shape == (20, 31, 17)
    assert one.dtype == np.float32
    assert one.mean() == pytest.approx(0.0, abs=1e-4)
    assert one.std() == pytest.approx(1.0, abs=1e-3)
    np.testing.assert_array_equal(one, two)


def test_noise_holds_nothing_shorter_than_its_wavelength():
    """Beyond the wavelength's frequency less than a hundredth of the noise's power is left."""
    noise = smooth_noise((128, 8, 8), (16.0,) * 3, np.random.default_rng(0))
    # A window, for the noise does not repeat at the edges.
    windowed = noise * np.hanning(128).astype(np.float32)[:, None, None]
    power = (np.abs(np.fft.rfft(windowed, axis=0)) ** 2).sum((1, 2))
    assert power[2 * 128 // 16 :].sum() < 0.01 * power.sum()


def test_an_ellipsoid_is_a_distance_near_its_surface():
    """A sphere's field is the distance to its surface to first order, positive inside."""
    points = grid()
    distance = 12 - points.radius((0, 0, 0), (1, 1, 1))
    field = ellipsoid(points, (0, 0, 0), (12, 12, 12))
    near = np.abs(distance) < 2
    np.testing.assert_allclose(field[near], distance[near], atol=0.5)
    assert (np.sign(field) == np.sign(distance))[np.abs(distance) > 0.5].mean() > 0.99


def test_fractions_keep_the_volume():
    """Summed partial volumes give the volume of the shape."""
    volume = fraction(12 - grid().radius((0, 0, 0), (1, 1, 1)), 1).sum()
    assert volume == pytest.approx(4 / 3 * np.pi * 12**3, rel=0.005)


def test_waves_have_one_length():
    """Waves have deviation 1, and their power stands at their length."""
    field = waves(grid(64), 8.0, np.random.default_rng(1))
    assert field.std() == pytest.approx(1.0, abs=0.1)
    power = np.abs(np.fft.fftn(field)) ** 2
    k = np.sqrt(sum(f**2 for f in np.meshgrid(*[np.fft.fftfreq(64)] * 3, indexing="ij")))
    assert power[np.abs(k - 1 / 8) < 0.03].sum() > 0.8 * power.sum()
