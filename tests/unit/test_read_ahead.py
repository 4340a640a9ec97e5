"""What is read of a series before a job asks for it."""

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset

from segnode.dicom.slices import Slices, order_slices, read_volume
from segnode.pipeline.assemble import Assembler, ReadAhead
from segnode.store.index import QuietSeries
from tests.unit.test_placement_proof import Node, images_in


@pytest.fixture
def images(ct: Path) -> list[Dataset]:
    """The images of a series."""
    return images_in(ct)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """A node that has received nothing."""
    return Node(tmp_path)


@pytest.fixture
def assembler(node: Node) -> Assembler:
    """What reads the images of that node."""
    return Assembler(node.objects, node.index)


class Expecting:
    """A ReadAhead that is told of a series, and the time it goes by."""

    def __init__(self, node: Node, assembler: Assembler) -> None:
        self.node = node
        self.now = 0.0
        self.is_busy = False
        self.read_ahead = ReadAhead(assembler, lambda: self.is_busy, lambda: self.now)

    @property
    def series(self) -> QuietSeries:
        """The series that it holds."""
        (series,) = self.node.index.quiet_series()
        return series

    def expect(self, *, is_being_sent: bool = False) -> None:
        """Tell of it, and wait until what follows is done."""
        self.read_ahead.expect(replace(self.series, is_being_sent=is_being_sent))
        for thread in threading.enumerate():
            if thread.name == "reading ahead":
                thread.join()


def without_files(node: Node) -> None:
    """Nothing can be read any more."""
    for path in (node.folder / "objects").glob("??/??/*"):
        path.unlink()


def uid_of(slices: Slices) -> str:
    """The series that slices are of."""
    return str(slices.images[0].SeriesInstanceUID)


def test_array_is_there_when_it_is_asked_for(node: Node, assembler: Assembler, images: list[Dataset]) -> None:
    """The volume is whole, with no file left to read it from; a second one is read anew."""
    slices = order_slices(images)
    node.receive(images)
    assembler.read_ahead(uid_of(slices), with_pixels=True)
    without_files(node)
    volume, expected = assembler.volume(slices), read_volume(slices, slices.images)
    np.testing.assert_array_equal(volume.array, expected.array)
    np.testing.assert_array_equal(volume.affine, expected.affine)
    assert (volume.series, volume.sop_instance_uids) == (expected.series, expected.sop_instance_uids)
    with pytest.raises(FileNotFoundError):
        assembler.volume(slices)


def test_array_of_fewer_images_is_of_no_use(node: Node, assembler: Assembler, images: list[Dataset]) -> None:
    """An image that comes after it is in the volume all the same."""
    slices = order_slices(images)
    node.receive(images[:-1])
    assembler.read_ahead(uid_of(slices), with_pixels=True)
    node.receive(images[-1:])
    np.testing.assert_array_equal(assembler.volume(slices).array, read_volume(slices, slices.images).array)


def test_array_that_could_not_be_read_is_read_by_the_job(node: Node, assembler: Assembler, images: list[Dataset]) -> None:
    """What goes wrong before is nobody's failure."""
    slices = order_slices(images)
    node.receive(images)
    assembler.read_ahead(uid_of(slices), with_pixels=False)
    paths = [*(node.folder / "objects").glob("??/??/*")]
    away = [path.rename(node.folder / path.name) for path in paths]
    assembler.read_ahead(uid_of(slices), with_pixels=True)
    for path, there in zip(away, paths, strict=True):
        path.rename(there)
    np.testing.assert_array_equal(assembler.volume(slices).array, read_volume(slices, slices.images).array)


def test_pixels_are_read_when_nothing_comes_and_nothing_is_done(
    node: Node, assembler: Assembler, images: list[Dataset]
) -> None:
    """While images come, or a job is there, headers are enough; once both are over the array is made."""
    node.receive(images)
    expecting = Expecting(node, assembler)
    expecting.expect(is_being_sent=True)
    assert not assembler.ahead
    expecting.is_busy = True
    expecting.expect()
    assert not assembler.ahead
    expecting.is_busy = False
    expecting.expect()
    assert assembler.ahead == {expecting.series.series_instance_uid}


def test_array_of_one_series_is_not_given_up_for_another(
    node: Node, assembler: Assembler, images: list[Dataset], ct: Path
) -> None:
    """The second has none as long as nobody has asked for that of the first."""
    node.receive(images)
    expecting = Expecting(node, assembler)
    expecting.expect()
    first = expecting.series
    node.index.set_considered(first)
    others = images_in(ct)
    for number, image in enumerate(others):
        image.SeriesInstanceUID, image.SOPInstanceUID = "2.25.7", f"2.25.7.{number}"
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    node.receive(others)
    expecting.expect()
    assert assembler.ahead == {first.series_instance_uid}
    assembler.volume(order_slices(images))
    expecting.expect()
    assert assembler.ahead == {"2.25.7"}


def test_array_that_nobody_asks_for_is_let_go(node: Node, assembler: Assembler, images: list[Dataset]) -> None:
    """A minute after its series was expected for the last time."""
    node.receive(images)
    expecting = Expecting(node, assembler)
    expecting.expect()
    expecting.now = 50.0
    expecting.expect()
    expecting.now = 110.0
    expecting.read_ahead.tire()
    assert assembler.ahead
    expecting.now = 110.5
    expecting.read_ahead.tire()
    assert not assembler.ahead
