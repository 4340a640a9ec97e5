"""Slices in the patient."""

from dataclasses import replace

import numpy as np
import pytest

from segnode.dicom.geometry import Plane, stack
from segnode.errors import NotAVolume

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
OBLIQUE = (0.8, 0.6, 0.0, -0.48, 0.64, 0.6)


def planes(count: int = 5, orientation: tuple[float, ...] = AXIAL, step: float = 2.5) -> list[Plane]:
    """Slices along their normal."""
    normal = np.cross(orientation[:3], orientation[3:])
    return [
        Plane(
            sop_instance_uid=f"1.{i}",
            frame_of_reference_uid="1.2",
            position=tuple(np.array([-10.0, 20.0, 30.0]) + normal * step * i),
            orientation=orientation,
            spacing=(0.7, 0.9),
            rows=4,
            columns=6,
            thickness=3.0,
        )
        for i in range(count)
    ]


@pytest.mark.parametrize("orientation", [AXIAL, OBLIQUE, (0.0, 1.0, 0.0, 0.0, 0.0, -1.0), (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0)])
def test_affine_maps_each_slice_to_its_position(orientation: tuple[float, ...]) -> None:
    """The affine takes (slice, 0, 0) to ImagePositionPatient, and columns and rows along their cosines."""
    given = planes(orientation=orientation)
    shuffled = [given[i] for i in (3, 0, 4, 1, 2)]
    found = stack(shuffled)
    assert [shuffled[i].sop_instance_uid for i in found.order] == ["1.0", "1.1", "1.2", "1.3", "1.4"]
    for index, plane in enumerate(given):
        np.testing.assert_allclose((found.affine @ [index, 0, 0, 1])[:3], plane.position, atol=1e-9)
    row, column = np.reshape(orientation, (2, 3))
    np.testing.assert_allclose(found.affine[:3, 1], column * 0.7, atol=1e-12)
    np.testing.assert_allclose(found.affine[:3, 2], row * 0.9, atol=1e-12)


def test_one_slice_is_as_thick_as_it_says() -> None:
    """A single slice takes its extent along the normal from SliceThickness."""
    np.testing.assert_allclose(stack(planes(1)).affine[:3, 0], [0, 0, 3.0])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda p: p[:2] + p[3:], "gap of 5.00 mm where 2.50 mm is usual .*1.1 and 1.3"),
        (lambda p: [*p, replace(p[2], sop_instance_uid="1.9")], "two slices lie in one place .*(1.2 and 1.9|1.9 and 1.2)"),
        (lambda p: [*p[:4], replace(p[4], orientation=OBLIQUE)], "mixes orientations .*1.4"),
        (lambda p: [*p[:4], replace(p[4], frame_of_reference_uid="1.3")], "mixes frames of reference .*1.4"),
        (lambda p: [*p[:4], replace(p[4], rows=5)], "mixes image sizes .*1.4"),
        (lambda p: [*p[:4], replace(p[4], spacing=(0.7, 0.8))], "mixes pixel spacings .*1.4"),
        (lambda p: [replace(x, position=(x.position[0], x.position[1] + i, x.position[2])) for i, x in enumerate(p)], "tilted"),
        (lambda p: [replace(x, orientation=(1.0, 0.0, 0.0, 1.0, 0.0, 0.0)) for x in p], "perpendicular"),
        (lambda _: [], "no image"),
    ],
)
def test_what_is_not_one_volume_is_refused_with_the_reason(change, reason) -> None:
    """A gap, a duplicate position, a mixture or a tilt is named, with the images."""
    with pytest.raises(NotAVolume, match=reason):
        stack(change(planes()))
