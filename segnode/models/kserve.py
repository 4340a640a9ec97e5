"""The door `kserve:http://host:8000/v2/models/NAME`: a model that a server of the Open Inference Protocol (KServe v2) runs.

Triton, MLServer, OpenVINO Model Server and KServe's own servers speak it.
"""

import json
import math
import ssl
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import Any, Final
from urllib.parse import quote

import httpx
import msgspec
import numpy as np

from segnode.config import ModelConfig
from segnode.dicom.volume import Volume
from segnode.errors import ConfigError, ModelFailed
from segnode.models.progress import report_progress
from segnode.models.tensors import DATATYPES, HEADER_LENGTH, Array, Packed, pack_request, unpack_response
from segnode.models.windows import LabelParts, ScoreParts, Windows
from segnode.pipeline.ports import Model, Result

Delays = Sequence[float]
# Seconds before each further try: a server that is started with the node, or anew, is waited for.
DELAYS: Final = (1.0, 2.0, 4.0, 8.0, 16.0)
_CONNECT_S: Final = 10.0
_METADATA_S: Final = 60.0
_TRANSIENT: Final = (429, 502, 503, 504)
_TOLD: Final = 150  # characters that are repeated of each end of what a server says: a traceback's last line says what it was
_ERROR_BYTES: Final = 1 << 14
_PIECE: Final = 1 << 20


class NotReached(ModelFailed):
    """A server does not answer, or not now."""


class _Tensor(msgspec.Struct, frozen=True):
    """An input or output, as metadata have it; a length of -1 is free."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name!r}, {self.datatype} of shape {list(self.shape)}"


class _Metadata(msgspec.Struct, frozen=True):
    name: str
    inputs: tuple[_Tensor, ...] = ()
    outputs: tuple[_Tensor, ...] = ()
    versions: tuple[str, ...] | None = None


class _ServerMetadata(msgspec.Struct, frozen=True):
    extensions: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Reply:
    status: int
    headers: httpx.Headers
    body: bytearray

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300

    def __str__(self) -> str:
        """What the server said, no more than fits a message."""
        text = self.body.decode(errors="replace")
        try:
            said = json.loads(text)
            text = str(said.get("error") or said.get("detail") or text)
        except (ValueError, AttributeError):
            pass
        text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
        short = text if len(text) <= 2 * _TOLD else f"{text[:_TOLD]} … {text[-_TOLD:]}"
        return f"HTTP {self.status}{f': {short}' if short else ''}"


@dataclass(frozen=True)
class _Server:
    """How a model's server is asked: tries, waiting, and what a message says when it is of no use."""

    model: str
    client: httpx.Client
    delays: Delays

    def ask(
        self, url: str, deadline: float, request: Packed | None = None, *, until: Callable[[_Reply], bool] | None = None
    ) -> _Reply:
        """What the server answers to a GET, or to a POST of a request; what is transient is tried again until a deadline.

        Raises ModelFailed when no answer comes, or none that `until` takes, which is NotReached where it may at another time;
        without `until` anything is an answer that is not transient.
        """
        for delay in (*self.delays, math.inf):
            try:
                reply = self._once(url, deadline, request)
            except httpx.RequestError as error:
                trouble, wait = _trouble(error), delay
                if not _may_pass(error):
                    raise self.failed(url, trouble) from error
            else:
                if until(reply) if until else reply.status not in _TRANSIENT:
                    return reply
                trouble, wait = str(reply), max(delay, _retry_after(reply))
            if time.monotonic() + wait > deadline:
                break
            time.sleep(wait)
        raise NotReached(str(self.failed(url, f"{trouble}; see that the server runs, and has room for requests")))

    def failed(self, url: str, reason: str) -> ModelFailed:
        """An error that names the model and where it was asked."""
        return ModelFailed(f"model {self.model!r} at {url}: {reason}")

    def _once(self, url: str, deadline: float, request: Packed | None) -> _Reply:
        left = max(deadline - time.monotonic(), 0.001)
        # What is compressed would have to be bounded, and labels take longer to be squeezed than to be sent.
        headers = {"Accept-Encoding": "identity", **(request.headers if request else {})}
        pieces = _in_pieces(request) if request else None
        timeout = httpx.Timeout(left, connect=min(_CONNECT_S, left))
        with self.client.stream(
            "POST" if request else "GET", url, headers=headers, content=pieces, timeout=timeout
        ) as response:
            body = bytearray()
            for piece in response.iter_bytes():
                body += piece
                if not response.is_success and len(body) > _ERROR_BYTES:
                    break
            return _Reply(response.status_code, response.headers, body)


@dataclass(frozen=True)
class _KserveModel:
    """The port Model, by a server that has been asked what its model takes and gives."""

    config: ModelConfig
    server: _Server
    url: str
    input: _Tensor
    output: _Tensor
    window: tuple[int | None, int | None, int | None]
    binary: bool

    def __call__(self, volume: Volume) -> Result:
        """Segment a volume, window by window. Raises ModelFailed."""
        deadline = time.monotonic() + _patience(self.config)
        lowest, highest = float(volume.array.min()), float(volume.array.max())
        self._require_room(lowest, highest)
        size = [window or length for window, length in zip(self.window, volume.array.shape, strict=True)]
        windows = Windows(volume.array.shape, size, self.config.overlap)
        parts = ScoreParts(windows) if self._gives_scores else LabelParts(windows)
        for number, place in enumerate(windows):
            report_progress(number / len(windows), f"window {number + 1} of {len(windows)}")
            answer = self._infer(windows.cut(volume.array, place, lowest), deadline)
            try:
                parts.add(place, answer)
            except ValueError as error:
                raise self.server.failed(self.url, f"output {self.output.name!r} has {error}") from error
        return Result(labelmap=parts.labelmap())

    @property
    def _gives_scores(self) -> bool:
        return DATATYPES[self.output.datatype].kind == "f"

    def _require_room(self, lowest: float, highest: float) -> None:
        """Raise ModelFailed where the input's datatype does not hold the values of a volume: they would be others."""
        dtype = DATATYPES[self.input.datatype]
        limits = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
        if not limits.min <= lowest <= highest <= limits.max:  # nor is NaN
            raise self.server.failed(
                self.url, f"input {self.input} does not hold the volume, whose values are from {lowest:g} to {highest:g}"
            )

    def _infer(self, part: Array, deadline: float) -> Array:
        """What the server makes of a window: labels (slices, rows, columns), or scores with channels before that."""
        dtype = DATATYPES[self.input.datatype]
        values = part.astype(dtype, copy=False) if dtype.kind == "f" else np.rint(part).astype(dtype)
        tensor = values.reshape((1,) * (len(self.input.shape) - 3) + part.shape)
        request = pack_request(self.input.name, self.input.datatype, tensor, self.output.name, binary=self.binary)
        url = f"{self.url}/infer"
        reply = self.server.ask(url, deadline, request)
        if not reply.is_success:
            raise self.server.failed(url, str(reply))
        try:
            answer = unpack_response(reply.body, reply.headers.get(HEADER_LENGTH), self.output.name)
            labels_or_scores = _without_batch(answer.tensor, part.shape, scores=self._gives_scores)
        except ValueError as error:
            raise self.server.failed(url, f"its answer cannot be read: {error}") from error
        if answer.model_version not in ("", self.config.version):
            raise self.server.failed(
                url, f"version {answer.model_version!r} answers, and `version` of [[models]] is {self.config.version!r}"
            )
        return labels_or_scores


def load(config: ModelConfig, delays: Delays = DELAYS) -> Model:
    """A model on its server, after what its metadata say; a server that does not answer now is asked again for each volume.

    A node starts without the servers of its models, as it has images to receive. Raises what `reach` does but NotReached.
    """
    server = _Server(config.name, httpx.Client(), delays)

    def ask_and_segment(volume: Volume) -> Result:
        return _load(config, server)(volume)

    try:
        return replace(reach(config), server=server)
    except NotReached as error:
        print(error, file=sys.stderr)  # noqa: T201  as models do; the job that meets it says so too
        return ask_and_segment


def reach(config: ModelConfig) -> _KserveModel:
    """A model as its server has it, which is asked once. Raises NotReached; ConfigError for what will not do."""
    try:
        return _load(config, _Server(config.name, httpx.Client(), ()))
    except NotReached:
        raise
    except ModelFailed as error:
        raise ConfigError(str(error)) from error
    except httpx.InvalidURL as error:
        raise ConfigError(f"model {config.name!r}: run: {error}") from error


def _patience(config: ModelConfig) -> float:
    """Seconds that a server has: its process is ended at `timeout`, and would not have said what it waited for."""
    return config.timeout - min(1.0, config.timeout / 10)


def _load(config: ModelConfig, server: _Server) -> _KserveModel:
    deadline = time.monotonic() + min(_METADATA_S, _patience(config))
    where = config.run.partition(":")[2]
    url, metadata = _metadata(server, where, config.version, deadline)
    server.ask(f"{url}/ready", deadline, until=lambda reply: reply.is_success)
    extensions = server.ask(where.rpartition("/models/")[0], deadline)
    binary = extensions.is_success and "binary_tensor_data" in _decode(server, where, extensions, _ServerMetadata).extensions
    if len(metadata.inputs) != 1 or len(metadata.outputs) != 1:
        described = " and ".join(f"({'; '.join(map(str, tensors))})" for tensors in (metadata.inputs, metadata.outputs))
        raise server.failed(url, f"one input and one output are needed; it has {described}")
    (given,), (wanted,) = metadata.inputs, metadata.outputs
    if given.datatype not in DATATYPES or given.datatype == "BOOL":
        raise server.failed(url, f"input {given}: numbers are needed")
    if wanted.datatype not in DATATYPES:
        raise server.failed(url, f"output {wanted}: integers, or floats with a channel for each label, are needed")
    return _KserveModel(config, server, url, given, wanted, _window(config, server, url, given), binary)


def _metadata(server: _Server, where: str, version: str, deadline: float) -> tuple[str, _Metadata]:
    """Where the version is asked, and its metadata; a server that knows of no versions is taken at the configuration's word."""
    versioned = f"{where}/versions/{quote(version, safe='')}"
    reply = server.ask(versioned, deadline)
    if reply.is_success:
        return versioned, _decode(server, versioned, reply, _Metadata)
    reply = server.ask(where, deadline)
    if not reply.is_success:
        raise server.failed(where, str(reply))
    metadata = _decode(server, where, reply, _Metadata)
    if metadata.versions:
        there = ", ".join(metadata.versions)
        raise server.failed(where, f"it has no version {version!r}, as `version` of [[models]] says; it has {there}")
    return where, metadata


def _window(config: ModelConfig, server: _Server, url: str, tensor: _Tensor) -> tuple[int | None, int | None, int | None]:
    """The size of a window; None where it is the volume's own. Before it come at most channel and batch, of one each."""
    if not 3 <= len(tensor.shape) <= 5 or any(length not in (-1, 1) for length in tensor.shape[:-3]):
        raise server.failed(
            url,
            f"input {tensor}: (slices, rows, columns) is needed, or one channel before that, or a batch and one channel",
        )
    window: list[int | None] = []
    for length, configured in zip(tensor.shape[-3:], config.window or (None,) * 3, strict=True):
        if length > 0 and configured not in (None, length):
            raise server.failed(url, f"input {tensor} does not take `window` of [[models]], {list(config.window or ())}")
        window.append(length if length > 0 else configured)
    return window[0], window[1], window[2]


def _without_batch(tensor: Array, size: Sequence[int], *, scores: bool) -> Array:
    """Labels of the shape of a window, or scores with their channels before that. Raises ValueError for other shapes."""
    axes = 2 if size[0] == 1 else 3  # a model of planes has no axis of slices
    channels = max(tensor.shape[:-axes], default=1)
    fits = tensor.shape[-axes:] == tuple(size[-axes:]) and tensor.size == channels * np.prod(size)
    if not fits or (channels < 2 if scores else channels != 1):
        wanted = "two or more channels before" if scores else "one label for each voxel of"
        raise ValueError(f"it has shape {list(tensor.shape)}: {wanted} {list(size)} {'are' if scores else 'is'} needed")
    return tensor.reshape((channels, *size) if scores else size)


def _decode(server: _Server, url: str, reply: _Reply, kind: type[Any]) -> Any:
    try:
        return msgspec.json.decode(reply.body, type=kind)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise server.failed(url, f"what it answers is not of the Open Inference Protocol (KServe v2): {error}") from error


def _in_pieces(request: Packed) -> Iterator[bytes]:
    """The body, never much of it at once: what writes to the socket copies what is left after each write."""
    for part in request.body:
        for start in range(0, len(part), _PIECE):
            yield bytes(part[start : start + _PIECE])


def _retry_after(reply: _Reply) -> float:
    """Seconds that a server asks for by Retry-After (RFC 9110 10.2.3); 0 where it does not."""
    value = reply.headers.get("Retry-After", "")
    if value.isascii() and value.isdecimal():
        return float(value)
    try:
        return max(parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except (ValueError, OverflowError):
        return 0.0


def _may_pass(error: httpx.RequestError) -> bool:
    """Whether a connection may come about at another time; a certificate stays what it is."""
    return not any(isinstance(seen, ssl.SSLError) for seen in _chain(error))


def _trouble(error: httpx.RequestError) -> str:
    """What is wrong with a connection."""
    if isinstance(error, httpx.TimeoutException):
        return "it did not answer in time"
    for seen in _chain(error):
        if isinstance(seen, ssl.SSLCertVerificationError):
            return f"its certificate is not trusted ({seen.verify_message}): SSL_CERT_FILE names authorities that are"
        if isinstance(seen, ssl.SSLError):
            return f"TLS with it fails ({seen.reason or 'no reason given'})"
        if isinstance(seen, OSError) and seen.strerror:
            return seen.strerror
    return f"it broke off ({type(error).__name__})"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
