"""Tensors of the Open Inference Protocol come through binary framing and JSON as they are; what is damaged is said."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from segnode.models.tensors import DATATYPES, pack_request, unpack_response

names = st.text(min_size=1, max_size=8)


@st.composite
def tensors(draw: st.DrawFn) -> tuple[str, np.ndarray]:
    """A datatype and an array of it, of any finite values."""
    datatype = draw(st.sampled_from(sorted(DATATYPES)))
    shape = array_shapes(min_dims=1, max_dims=5, min_side=0, max_side=4)
    elements = {"allow_nan": False, "allow_infinity": False} if datatype.startswith("FP") else None
    return datatype, draw(arrays(DATATYPES[datatype], shape, elements=elements))


def described(name: str, datatype: str, array: np.ndarray) -> dict[str, Any]:
    """A tensor as JSON names it."""
    return {"name": name, "datatype": datatype, "shape": list(array.shape)}


def response(outputs: list[tuple[str, str, np.ndarray]], **more: Any) -> tuple[bytes, str]:
    """A response as Triton writes it: JSON, and the bytes of each tensor behind it."""
    listed = [{**described(*output), "parameters": {"binary_data_size": output[2].nbytes}} for output in outputs]
    header = json.dumps({"model_name": "m", "outputs": listed, **more}).encode()
    return header + b"".join(array.tobytes() for _, _, array in outputs), str(len(header))


@given(names, names, tensors())
def test_binary_request_is_header_and_bytes(name: str, output: str, tensor: tuple[str, np.ndarray]) -> None:
    """The header has the length that is said, and names the bytes behind it, which are little-endian and row-major."""
    datatype, array = tensor
    packed = pack_request(name, datatype, array.swapaxes(0, -1), output, binary=True)
    body, length = b"".join(packed.body), int(packed.headers["Inference-Header-Content-Length"])
    request = json.loads(body[:length])
    assert request["inputs"] == [
        {**described(name, datatype, array.swapaxes(0, -1)), "parameters": {"binary_data_size": len(body) - length}}
    ]
    assert request["outputs"] == [{"name": output, "parameters": {"binary_data": True}}]
    assert body[length:] == np.array(array.swapaxes(0, -1), array.dtype.newbyteorder("<"), order="C").tobytes()
    assert int(packed.headers["Content-Length"]) == len(body)


@given(names, names, tensors())
def test_json_request_holds_every_number(name: str, output: str, tensor: tuple[str, np.ndarray]) -> None:
    """A request in JSON is JSON, and its numbers are those of the tensor, row-major."""
    datatype, array = tensor
    packed = pack_request(name, datatype, array, output, binary=False)
    request = json.loads(b"".join(packed.body))
    assert request["inputs"] == [{**described(name, datatype, array), "data": array.ravel().tolist()}]
    assert request["outputs"] == [{"name": output}]


@given(st.lists(st.tuples(names, tensors()), min_size=1, max_size=4, unique_by=lambda output: output[0]), st.data())
def test_binary_response_gives_the_tensor_that_was_asked_for(outputs: list[Any], data: st.DataObject) -> None:
    """Among several tensors it is the one of that name, bit for bit, with the version of the model."""
    listed = [(name, *tensor) for name, tensor in outputs]
    name, _, array = data.draw(st.sampled_from(listed))
    answer = unpack_response(*response(listed, model_version="7"), output=name)
    assert answer.tensor.dtype == array.dtype
    assert (answer.tensor.shape, answer.tensor.tobytes(), answer.model_version) == (array.shape, array.tobytes(), "7")


@given(tensors(), st.booleans())
def test_json_response_gives_the_tensor(tensor: tuple[str, np.ndarray], nested: bool) -> None:
    """Flat as MLServer writes it, or nested, the numbers are the same."""
    datatype, array = tensor
    listed = [{**described("labels", datatype, array), "data": (array if nested else array.ravel()).tolist()}]
    answer = unpack_response(json.dumps({"outputs": listed}).encode(), None, "labels")
    assert answer.tensor.dtype == array.dtype
    np.testing.assert_array_equal(answer.tensor, array)


@given(tensors(), st.data())
def test_damaged_response_is_said(tensor: tuple[str, np.ndarray], data: st.DataObject) -> None:
    """A body that is cut, longer than it says, or changed, is read as something or ends in a ValueError; nothing else."""
    body, length = response([("labels", *tensor)])
    cut = body[: data.draw(st.integers(0, len(body) - 1))]
    for broken in (cut, body + b"\0"):
        with pytest.raises(ValueError, match=r"\w"):
            unpack_response(broken, length, "labels")
    place = data.draw(st.integers(0, len(body) - 1))
    changed = body[:place] + data.draw(st.binary(min_size=1, max_size=3)) + body[place + 1 :]
    for header_length in (length, None, data.draw(st.text(max_size=3))):
        try:
            unpack_response(changed, header_length, "labels")
        except ValueError:
            pass


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": [1, 2, 3]}, "has 3 numbers, and its shape needs 2"),
        ({"data": [1, 256]}, "not all of UINT8"),
        ({"data": [1, 0.5]}, "not all of UINT8"),
        ({"data": ["a", "b"]}, "not all of UINT8"),
        ({"data": [[1], [1, 2]]}, "no array of numbers"),
        ({"data": None}, "not all of UINT8"),
        ({"datatype": "BYTES"}, r"is BYTES of shape \[2\]"),
        ({"shape": [-1]}, r"shape \[-1\]"),
        ({"name": "other"}, "no output 'labels'; its outputs: 'other'"),
        ({"parameters": {"binary_data_size": -1}}, "-1 as its binary_data_size"),
        ({"parameters": {"binary_data_size": 2}}, "2 bytes"),
    ],
)
def test_what_is_wrong_with_an_output_is_said(changes: dict[str, Any], said: str) -> None:
    """An output that is not what its shape and datatype say is refused, with the reason."""
    output = {"name": "labels", "datatype": "UINT8", "shape": [2], "data": [0, 1], **changes}
    with pytest.raises(ValueError, match=said):
        unpack_response(json.dumps({"outputs": [output]}).encode(), None, "labels")
