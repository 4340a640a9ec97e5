"""Tensors of the Open Inference Protocol (KServe v2): requests and responses, in JSON or by its extension of binary tensors."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
# A tensor in binary is little-endian and row-major; BOOL is a byte that is 0 or 1.
DATATYPES: Final[Mapping[str, np.dtype[Any]]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
HEADER_LENGTH: Final = "Inference-Header-Content-Length"
_NUMBERS_AT_ONCE: Final = 1 << 16


@dataclass(frozen=True, eq=False)
class Packed:
    """A request: its headers, and its body in pieces."""

    headers: Mapping[str, str]
    body: tuple[bytes | memoryview, ...]


@dataclass(frozen=True, eq=False)
class Answer:
    """What a server answered: the tensor that was asked for, and the model's version where it says that."""

    tensor: Array
    model_version: str


class _Output(msgspec.Struct, frozen=True):
    name: str
    datatype: str
    shape: tuple[int, ...]
    data: msgspec.Raw = msgspec.Raw()
    parameters: dict[str, Any] | None = None

    @property
    def binary_size(self) -> int | None:
        """The bytes that it takes behind the JSON; None where its data are in there."""
        size = (self.parameters or {}).get("binary_data_size")
        if size is not None and (type(size) is not int or size < 0):
            raise ValueError(f"output {self.name!r} has {size!r} as its binary_data_size")
        return size


class _Response(msgspec.Struct, frozen=True):
    outputs: tuple[_Output, ...]
    model_version: str | None = None


def pack_request(name: str, datatype: str, tensor: Array, output: str, *, binary: bool) -> Packed:
    """A request of one input, a tensor of the dtype of its datatype, for one output."""
    described: dict[str, Any] = {"name": name, "shape": list(tensor.shape), "datatype": datatype}
    if not binary:
        request = json.dumps({"inputs": [{**described, "data": []}], "outputs": [{"name": output}]})
        head, tail = request.split('"data": []')
        text = f'{head}"data": ['.encode(), *_as_text(tensor), f"]{tail}".encode()
        return Packed({"Content-Type": "application/json", "Content-Length": _length(text)}, text)
    described["parameters"] = {"binary_data_size": tensor.nbytes}
    wanted = {"name": output, "parameters": {"binary_data": True}}
    header = json.dumps({"inputs": [described], "outputs": [wanted]}).encode()
    body = header, np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data
    headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(header)), "Content-Length": _length(body)}
    return Packed(headers, body)


def unpack_response(body: bytes | bytearray, header_length: str | None, output: str) -> Answer:
    """The answer to a request; without the length of its header all of it is JSON. Raises ValueError, saying what is wrong."""
    end = len(body) if header_length is None else _number(header_length)
    if end > len(body):
        raise ValueError(f"its header is to have {end} bytes, and there are {len(body)}")
    try:
        response = msgspec.json.decode(memoryview(body)[:end], type=_Response)
    except msgspec.DecodeError as error:
        raise ValueError(f"it is no inference response: {error}") from error
    found: Array | None = None
    for tensor in response.outputs:
        size = tensor.binary_size
        if tensor.name == output:
            found = _listed(tensor) if size is None else _binary(tensor, memoryview(body)[end : end + size], size)
        end += size or 0
    if end != len(body):
        raise ValueError(f"its header and tensors are to have {end} bytes, and there are {len(body)}")
    if found is None:
        named = ", ".join(repr(tensor.name) for tensor in response.outputs) or "none"
        raise ValueError(f"it has no output {output!r}; its outputs: {named}")
    return Answer(found, response.model_version or "")


def _as_text(tensor: Array) -> Iterable[bytes]:
    """The numbers of a tensor as JSON has them: a Python object for each would take many times its room."""
    flat = tensor.reshape(-1)
    for start in range(0, len(flat), _NUMBERS_AT_ONCE):
        text = msgspec.json.encode(flat[start : start + _NUMBERS_AT_ONCE].tolist())[1:-1]
        yield text if start == 0 else b"," + text


def _length(pieces: Iterable[bytes | memoryview]) -> str:
    return str(sum(map(len, pieces)))


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise ValueError(f"{HEADER_LENGTH} is {text!r}")
    return int(text)


def _binary(tensor: _Output, data: memoryview, size: int) -> Array:
    dtype, needed = _dtype(tensor), math.prod(tensor.shape) * _dtype(tensor).itemsize
    if size != needed or len(data) != needed:
        raise ValueError(f"output {tensor.name!r} has {len(data)} of {size} bytes, and its shape and datatype need {needed}")
    array = np.frombuffer(data, np.uint8 if dtype == np.bool_ else dtype).reshape(tensor.shape)
    return array != 0 if dtype == np.bool_ else array


def _listed(tensor: _Output) -> Array:
    """The numbers of a tensor in JSON, flat or nested."""
    dtype = _dtype(tensor)
    try:
        array = np.asarray(msgspec.json.decode(tensor.data))
    except (msgspec.DecodeError, ValueError) as error:
        raise ValueError(f"the data of output {tensor.name!r} are no array of numbers") from error
    integers = array.size == 0 or array.dtype.kind in "bui"
    if not (integers or (dtype.kind == "f" and array.dtype.kind == "f")):
        raise ValueError(f"the data of output {tensor.name!r} are not all of {tensor.datatype}")
    if array.size != math.prod(tensor.shape):
        raise ValueError(f"output {tensor.name!r} has {array.size} numbers, and its shape needs {math.prod(tensor.shape)}")
    cast = array.astype(dtype)
    if dtype.kind in "ui" and not np.array_equal(cast, array):
        raise ValueError(f"the data of output {tensor.name!r} are not all of {tensor.datatype}")
    return cast.reshape(tensor.shape)


def _dtype(tensor: _Output) -> np.dtype[Any]:
    if tensor.datatype not in DATATYPES or any(length < 0 for length in tensor.shape):
        raise ValueError(f"output {tensor.name!r} is {tensor.datatype} of shape {list(tensor.shape)}")
    return DATATYPES[tensor.datatype]
