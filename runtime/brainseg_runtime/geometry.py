"""Where voxels lie in the patient: a grid of voxels and its affine, in mm, RAS+."""

from dataclasses import dataclass, field
from typing import Self, TypeVar

import numpy as np
from nibabel.orientations import aff2axcodes, io_orientation
from numpy.typing import NDArray

__all__ = ["Geometry", "HeaderGeometry", "Reorientation", "to_canonical"]

Shape = tuple[int, int, int]
Affine = NDArray[np.float64]
Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True)
class HeaderGeometry:
    """How a NIfTI file spells its geometry, kept so that a result can repeat it field for field."""

    version: int
    """1 or 2, for NIfTI-1 and NIfTI-2."""
    pixdim: tuple[float, float, float, float]
    """qfac, then the voxel size along I, J, K."""
    xyzt_units: int
    qform_code: int
    quaternion: tuple[float, float, float]
    """quatern_b, quatern_c, quatern_d."""
    qoffset: tuple[float, float, float]
    sform_code: int
    srow: tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]
    """srow_x, srow_y, srow_z: three rows of four."""


@dataclass(frozen=True, eq=False)
class Geometry:
    """A voxel grid in patient space."""

    shape: Shape
    """(I, J, K) voxels."""
    affine: Affine
    """4x4 float64, voxel index -> mm, RAS+."""
    header: HeaderGeometry | None = field(default=None, repr=False)
    """The spelling in the file that the grid was read from, if it was read from one."""

    def __post_init__(self) -> None:
        affine = np.array(self.affine, dtype=np.float64)
        if affine.shape != (4, 4):
            raise ValueError(f"an affine is 4x4. Received: {affine.shape}")
        affine.flags.writeable = False
        object.__setattr__(self, "affine", affine)
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))

    def moved(self, matrix: Affine) -> "Geometry":
        """The same voxels where a motion, 4x4 from mm to mm, brings them."""
        return Geometry(self.shape, matrix @ self.affine)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size along I, J, K, in mm."""
        i, j, k = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(i), float(j), float(k)

    @property
    def orientation(self) -> str:
        """The patient direction that each axis runs closest to, such as ``"LPS"``."""
        return "".join(aff2axcodes(self.affine))

    @property
    def voxel_volume(self) -> float:
        """Volume of one voxel, in mm3."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    def corners(self) -> NDArray[np.float64]:
        """Positions of the eight corner voxels' centres, (8, 3), in mm."""
        last = np.array(self.shape) - 1
        corners = np.stack(np.meshgrid(*[(0, n) for n in last], indexing="ij"), axis=-1)
        return corners.reshape(-1, 3) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def distance(self, other: Self) -> float:
        """Largest distance between equal corners of two grids, in mm; inf if the shapes differ."""
        if self.shape != other.shape:
            return float("inf")
        return float(np.linalg.norm(self.corners() - other.corners(), axis=1).max())


@dataclass(frozen=True)
class Reorientation:
    """A permutation and flips of the three voxel axes: the exact part of a change of grid."""

    axes: tuple[int, int, int]
    """Which old axis becomes the new axes 0, 1, 2."""
    flips: tuple[bool, bool, bool]
    """Which new axes are then reversed."""

    def apply(self, array: NDArray[Scalar]) -> NDArray[Scalar]:
        """Reorder the first three axes of (I, J, K, ...); a view, no copy."""
        rest = tuple(range(3, array.ndim))
        steps = tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)
        return array.transpose(*self.axes, *rest)[steps]

    def undo(self, array: NDArray[Scalar]) -> NDArray[Scalar]:
        """Bring (I, J, K, ...) back to the order it had before ``apply``; a view, no copy."""
        rest = tuple(range(3, array.ndim))
        steps = tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)
        back = tuple(int(axis) for axis in np.argsort(self.axes))
        return array[steps].transpose(*back, *rest)

    def geometry(self, geometry: Geometry) -> Geometry:
        """The grid of an array that ``apply`` made from one on ``geometry``; no voxel moves in mm."""
        shape = tuple(geometry.shape[axis] for axis in self.axes)
        change = np.zeros((4, 4))
        change[3, 3] = 1.0
        for new, (old, flip) in enumerate(zip(self.axes, self.flips, strict=True)):
            change[old, new] = -1.0 if flip else 1.0
            change[old, 3] = shape[new] - 1 if flip else 0.0
        return Geometry((shape[0], shape[1], shape[2]), geometry.affine @ change)


def to_canonical(geometry: Geometry) -> Reorientation:
    """The reorientation that brings the axes of a grid closest to R, A, S, judged by its matrix."""
    ends = io_orientation(geometry.affine)
    axes = tuple(int(axis) for axis in np.argsort(ends[:, 0]))
    flips = tuple(bool(ends[axis, 1] < 0) for axis in axes)
    return Reorientation((axes[0], axes[1], axes[2]), (flips[0], flips[1], flips[2]))
