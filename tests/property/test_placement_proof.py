"""The proof of placement on any labels, geometry and fault: it refuses what differs, and nothing else."""

from collections.abc import Callable
from io import BytesIO

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread

from segnode.dicom.slices import order_slices
from segnode.errors import Misplaced
from segnode.pipeline.placement_proof import model_labels, require_placed, source_header
from segnode.seg.forms import FORMS
from segnode.seg.write import write_labelmap
from tests.property.test_labelmap import ALGORITHM, IDENTITY, cases, dictionary, headers

Fault = Callable[[np.ndarray], np.ndarray]
AXES = st.integers(0, 2)
FAULTS = st.one_of(
    st.builds(lambda axis: lambda labels: np.flip(labels, axis), AXES),
    st.builds(lambda axis, by: lambda labels: np.roll(labels, by, axis), AXES, st.integers(-3, 3)),
    st.builds(lambda seed: np.random.default_rng(seed).permutation, st.integers(0, 99)),
    st.just(lambda labels: labels),
)


@settings(max_examples=100)
@given(case=cases(), fault=FAULTS, form=st.sampled_from(sorted(FORMS)), order=st.randoms())
def test_what_differs_is_refused(case, fault: Fault, form, order) -> None:
    """A mirror, a shift, a shuffle: refused where it changes a label, and proven where it changes none."""
    labels, numbers, turn = case
    images = headers(labels.shape, turn)
    slices = order_slices(images)
    of_model = model_labels(labels, [str(image.SOPInstanceUID) for image in slices.images])
    written = np.ascontiguousarray(fault(labels))
    part10 = write_labelmap(written, slices.affine, slices.images, dictionary(numbers), ALGORITHM, IDENTITY, FORMS[form])
    order.shuffle(images)
    refused = False
    try:
        require_placed(dcmread(BytesIO(part10)), [source_header(image) for image in images], of_model, dictionary(numbers))
    except Misplaced:
        refused = True
    assert refused == (not np.array_equal(written, labels))
