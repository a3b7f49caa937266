"""One image of a head moved onto another of the same head, rigidly, by SimpleITK."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainseg_runtime.errors import ScanRefused
from brainseg_runtime.geometry import Affine, Geometry

__all__ = ["Motion", "register"]

Voxels = NDArray[np.float32]
Sitk = Any
"""SimpleITK, which publishes no types."""

SHRINK = (4, 2, 1)
"""How much coarser the images are, step after step; voxels are at least ``COARSE_MM`` then."""
COARSE_MM = 2.0
BINS = 40
MAX_DEGREES, MAX_MM = 45.0, 120.0
"""No head is turned or shifted farther between two series of one study."""
RADIUS_MM = 70.0
"""Of a head: what a turn moves at its surface."""
STILL_MM = 0.05
"""Below this a head has not moved, and the image stays as it is."""


@dataclass(frozen=True, eq=False)
class Motion:
    """How an image was moved."""

    matrix: Affine
    """4x4, mm to mm, RAS: from where the image says that it is to where it belongs."""
    degrees: float
    """Turn about one axis."""
    mm: float
    """How far the middle of the image moves."""

    def record(self) -> dict[str, float]:
        """As the scan's JSON tells it."""
        return {"degrees": round(self.degrees, 3), "mm": round(self.mm, 3)}

    @property
    def moves(self) -> bool:
        """Whether anything in the head moves by more than ``STILL_MM``."""
        return bool(self.mm + np.radians(self.degrees) * RADIUS_MM > STILL_MM)


def register(image: Voxels, grid: Geometry, fixed: Voxels, fixed_grid: Geometry, name: str) -> Motion:
    """Find the rigid motion that brings ``image`` onto ``fixed``, each (I, J, K) on its own grid.

    Mutual information, which does not ask that two contrasts look alike (Mattes et al. 2003), from coarse to
    fine; one thread and a regular sample of the voxels, so that the same images give the same motion.

    Raises:
        ScanRefused: ``E_REGISTRATION`` where the images do not come to lie on each other.
    """
    import SimpleITK as sitk  # noqa: N813  (its own name in every text)

    with _one_thread(sitk):
        return _register(sitk, image, grid, fixed, fixed_grid, name)


def _register(
    sitk: Sitk, image: Voxels, grid: Geometry, fixed: Voxels, fixed_grid: Geometry, name: str
) -> Motion:
    standing, moving = (_coarse(sitk, *pair) for pair in ((fixed, fixed_grid), (image, grid)))
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(BINS)
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentage(0.25, 1)  # the seed; by default the time
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=2.0, minStep=1e-3, numberOfIterations=200, gradientMagnitudeTolerance=1e-6
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel(SHRINK)
    method.SetSmoothingSigmasPerLevel([n / 2 for n in SHRINK])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOff()
    starts = [
        sitk.CenteredTransformInitializer(standing, moving, sitk.Euler3DTransform(), way)
        for way in (
            sitk.CenteredTransformInitializerFilter.GEOMETRY,
            sitk.CenteredTransformInitializerFilter.MOMENTS,
        )
    ]
    # As the files say, but turning about the middle of the head.
    as_said = sitk.Euler3DTransform(sitk.Euler3DTransform(starts[1]))
    as_said.SetTranslation((0.0, 0.0, 0.0))
    try:
        worth = [_worth(method, start, standing, moving) for start in (as_said, *starts)]
        best = (as_said, *starts)[int(np.argmin(worth))]
        method.SetInitialTransform(sitk.Euler3DTransform(best), inPlace=False)
        found = method.Execute(standing, moving)
        reached = method.GetMetricValue()
    except RuntimeError as error:
        raise _refused(
            name, f"the images share too little ({str(error).splitlines()[-1].strip()})"
        ) from error
    motion = _motion(found, grid)
    if motion.degrees > MAX_DEGREES or motion.mm > MAX_MM:
        raise _refused(
            name, f"it would be turned by {motion.degrees:.0f} degrees and moved by {motion.mm:.0f} mm"
        )
    if reached > min(worth) + 1e-3:
        raise _refused(name, "no motion was found that makes them agree better")
    return motion


@contextmanager
def _one_thread(sitk: Sitk) -> Iterator[None]:
    """Let SimpleITK compute with one thread; its setting holds for the whole process, so one at a time."""
    with _LOCK:
        before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
        try:
            yield
        finally:
            sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


_LOCK = Lock()


def _worth(method: Sitk, start: Sitk, standing: Sitk, moving: Sitk) -> float:
    """Minus the mutual information of a start; infinity where the images do not meet."""
    method.SetInitialTransform(start, inPlace=False)
    try:
        return float(method.MetricEvaluate(standing, moving))
    except RuntimeError:
        return float("inf")


def _coarse(sitk: Sitk, image: Voxels, grid: Geometry) -> Sitk:
    """An image as SimpleITK has it, in L, P, S and not finer than it takes."""
    shrunk = [max(1, int(COARSE_MM // mm)) for mm in grid.spacing]
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ grid.affine
    made = sitk.GetImageFromArray(np.ascontiguousarray(image.T))
    made.SetSpacing(grid.spacing)
    made.SetOrigin(affine[:3, 3].tolist())
    made.SetDirection((affine[:3, :3] / np.array(grid.spacing)).ravel().tolist())
    return sitk.BinShrink(made, shrunk)


def _motion(found: Sitk, grid: Geometry) -> Motion:
    """The inverse of what SimpleITK found, which leads from the fixed image to the moving one, in RAS."""
    flip = np.diag([-1.0, -1.0, 1.0])
    origin = np.array(found.TransformPoint((0.0, 0.0, 0.0)))
    columns = [np.array(found.TransformPoint(axis)) - origin for axis in np.eye(3).tolist()]
    backwards = np.eye(4)
    backwards[:3, :3] = flip @ np.stack(columns, axis=1) @ flip
    backwards[:3, 3] = flip @ origin
    matrix = np.linalg.inv(backwards).astype(np.float64)
    middle = grid.affine @ np.array([*((n - 1) / 2 for n in grid.shape), 1.0])
    turn = np.degrees(np.arccos(np.clip((np.trace(matrix[:3, :3]) - 1) / 2, -1.0, 1.0)))
    return Motion(matrix, float(turn), float(np.linalg.norm((matrix @ middle - middle)[:3])))


def _refused(name: str, why: str) -> ScanRefused:
    return ScanRefused(
        "E_REGISTRATION",
        f"{name} cannot be registered: {why}.",
        "Look whether they show the same head; register them yourself, or give others.",
    )
