"""The door `kserve:`: real servers, and one that says what a test has it say."""

import json
import socket
import ssl
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pytest
import trustme
from dicomweb_client.api import DICOMwebClient
from pydicom import dcmread

from segnode.config import ModelConfig, parse_dimse_address
from segnode.dicom.slices import order_slices, read_volume
from segnode.dicom.volume import Volume
from segnode.dimse.scu import send_files
from segnode.errors import ConfigError, ModelFailed
from segnode.models.kserve import load
from segnode.models.progress import hearing
from segnode.testing.servers import await_jobs, free_port, node_config, segnode
from tests.inference_servers import mlserver, triton

Reply = tuple[int, dict[str, str], bytes]
FREE = [-1, -1, -1]
MODEL = """
import numpy as np
from segnode.models import Result

def segment(volume):
    return Result(labelmap=(volume.array > -300) + 2 * (volume.array > 200).astype(np.uint8))
"""


@pytest.fixture(scope="module")
def json_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """MLServer, whose REST has no binary tensors."""
    with mlserver(tmp_path_factory.mktemp("mlserver") / "served") as address:
        yield address


@pytest.fixture(scope="module")
def binary_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Triton, which has them."""
    with triton(tmp_path_factory.mktemp("triton") / "served") as address:
        yield address


@pytest.fixture(scope="module")
def volume(ct: Path) -> Volume:
    """A small CT."""
    slices = order_slices([dcmread(file) for file in ct.iterdir()])
    return read_volume(slices, slices.images)


def config(address: str, model: str, **keys: Any) -> ModelConfig:
    """The configuration of a model on a server."""
    keys = {"version": "1", "timeout": 60.0, **keys}
    return ModelConfig(name="m", run=f"kserve:{address}/v2/models/{model}", labels="threshold", **keys)


def thresholds(array: np.ndarray) -> np.ndarray:
    """What the models on the servers make of a volume."""
    return (array > -300) + 2 * (array > 200).astype(np.uint8)


def test_mlserver_labels_a_volume(json_server: str, volume: Volume) -> None:
    """In JSON, with windows and without, the labels are those of the same model here."""
    for keys in ({}, {"window": (5, 32, 24)}):
        labelmap = load(config(json_server, "labels", version="7", **keys))(volume).labelmap
        np.testing.assert_array_equal(labelmap, thresholds(volume.array))
    assert set(np.unique(labelmap)) == {0, 1, 3}


def test_triton_labels_a_volume(binary_server: str, volume: Volume) -> None:
    """By binary tensors, with windows and without, the labels are those of the same model here."""
    for keys in ({}, {"window": (5, 32, 24)}, {"window": (100, 100, 100)}):
        labelmap = load(config(binary_server, "labels", **keys))(volume).labelmap
        np.testing.assert_array_equal(labelmap, thresholds(volume.array))


def test_triton_is_asked_in_windows_of_the_size_that_it_fixes(binary_server: str, volume: Volume) -> None:
    """Half precision, a batch, a channel, fixed lengths, and a score for each label: the labels are the same."""
    labelmap = load(config(binary_server, "scores"))(volume).labelmap
    np.testing.assert_array_equal(labelmap, thresholds(volume.array))


def test_what_a_model_on_a_server_raises_is_told(binary_server: str, volume: Volume) -> None:
    """The failure names the model, where it was asked and what the server said, and no more than fits a line."""
    model = load(config(binary_server, "broken"))
    where = f"{binary_server}/v2/models/broken/versions/1/infer"
    with pytest.raises(ModelFailed, match=f"model 'm' at {where}: HTTP 500: .*there are no weights") as error:
        model(volume)
    assert len(str(error.value)) < 500


def test_version_is_that_of_the_server(binary_server: str, json_server: str, volume: Volume) -> None:
    """Where a server knows of versions, another in the configuration is refused; where it does not, that is taken."""
    with pytest.raises(ConfigError, match=r"has no version '2', as `version` of \[\[models\]\] says; it has 1"):
        load(config(binary_server, "labels", version="2"))
    with pytest.raises(ModelFailed, match="version '7' answers, and `version` of .* is '8'"):
        load(config(json_server, "labels", version="8"))(volume)
    np.testing.assert_array_equal(load(config(json_server, "nameless", version="8"))(volume).labelmap, thresholds(volume.array))


@pytest.mark.parametrize("server", ["json_server", "binary_server"])
def test_model_that_a_server_does_not_have_is_said_at_the_start(server: str, request: pytest.FixtureRequest) -> None:
    """The error says where, and what the server said."""
    address = request.getfixturevalue(server)
    with pytest.raises(ConfigError, match=f"model 'm' at {address}/v2/models/absent: HTTP 404: .*absent.* not found"):
        load(config(address, "absent"))


def test_every_door_makes_the_same_segmentation(
    json_server: str, binary_server: str, ct: Path, volume: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One series by the Python door, MLServer and Triton: three SEGs whose labels are equal, voxel for voxel."""
    (tmp_path / "thresholds_here.py").write_text(MODEL)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    runs = {
        "here": ("python:thresholds_here", "1"),
        "mlserver": (f"kserve:{json_server}/v2/models/labels", "7"),
        "triton": (f"kserve:{binary_server}/v2/models/scores", "1"),
    }
    tables = "".join(
        f'[[models]]\nname = "{name}"\nrun = "{run}"\nlabels = "threshold"\nversion = "{version}"\n'
        f'[[rules]]\nwhen = {{ Modality = "CT" }}\nmodel = "{name}"\nquiet = 1.0\n'
        for name, (run, version) in runs.items()
    )
    with segnode(tmp_path / "node", tables) as node:
        list(send_files(sorted(ct.iterdir()), parse_dimse_address(node.dimse, ""), "TEST"))
        jobs = await_jobs(node_config(node), len(runs))
        assert [job.state for job in jobs] == ["delivered"] * 3, [job.reason for job in jobs]
        client = DICOMwebClient(node.dicomweb)
        found = client.search_for_instances(search_filters={"Modality": "SEG"})
        uids = [[item[tag]["Value"][0] for tag in ("0020000D", "0020000E", "00080018")] for item in found]
        datasets = [client.retrieve_instance(*u, media_types=(("application/dicom", "*"),)) for u in uids]
    names = {dataset.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0].AlgorithmName for dataset in datasets}
    assert len(datasets) == len(names) == len(runs)
    for dataset in datasets:
        segmentation = highdicom.seg.Segmentation.from_dataset(dataset)
        labels = segmentation.get_pixels_by_source_instance(volume.sop_instance_uids, combine_segments=True)
        np.testing.assert_array_equal(labels, thresholds(volume.array))


class Script:
    """A server of one model that answers inference by a script, and counts how often it was asked."""

    def __init__(self, replies: Sequence[Reply], **metadata: Any) -> None:
        self.replies = list(replies)
        self.asked = 0
        self.metadata = {
            "name": "m",
            "versions": ["1"],
            "inputs": [{"name": "volume", "datatype": "FP32", "shape": FREE}],
            "outputs": [{"name": "labels", "datatype": "UINT8", "shape": FREE}],
            **metadata,
        }

    def answer(self, path: str) -> Reply:
        """The next of the script; else what a server says of itself."""
        if path.endswith("/infer"):
            self.asked += 1
            return self.replies.pop(0)
        return 200, {}, json.dumps(self.metadata).encode()


@contextmanager
def scripted(script: Script, port: int = 0) -> Iterator[str]:
    """The address of a server that answers by a script."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, headers, body = script.answer(self.path)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            with suppress(ConnectionError):  # of who has given up
                self.end_headers()
                self.wfile.write(body)

        do_POST = do_GET  # noqa: N815  that name is http.server's

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()


SMALL = Volume(np.array([[[-1000, 0, 500]]], np.float32), np.eye(4), {}, ("1",))


def labels_reply(
    *labels: Any, shape: Sequence[int] = (1, 1, 3), datatype: str = "UINT8", **more: Any
) -> tuple[int, dict, bytes]:
    """An answer in JSON."""
    output = {"name": "labels", "datatype": datatype, "shape": shape, "data": labels}
    return 200, {}, json.dumps({"outputs": [output], **more}).encode()


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_what_passes_is_tried_again(status: int) -> None:
    """A server that is busy, or not there behind its proxy, is asked again until it answers."""
    script = Script([(status, {"Retry-After": "0"}, b"busy"), (status, {}, b"busy"), labels_reply(0, 1, 3)])
    with scripted(script) as address:
        assert load(config(address, "m"), (0, 0))(SMALL).labelmap.tolist() == [[[0, 1, 3]]]
    assert script.asked == 3


@pytest.mark.parametrize("status", [400, 404, 422, 500])
def test_what_does_not_pass_is_not_tried_again(status: int) -> None:
    """An error of the request, or of the model, is told at once."""
    script = Script([(status, {}, b'{"error": "no such\\tthing"}')])
    with scripted(script) as address, pytest.raises(ModelFailed, match=f"m/versions/1/infer: HTTP {status}: no such thing$"):
        load(config(address, "m"), (0, 0))(SMALL)
    assert script.asked == 1


def test_tries_end() -> None:
    """A server that stays busy is a failure that says what it said, and so is one that wants more time than there is."""
    script = Script([(503, {}, b"busy " * 1000)] * 3)
    with scripted(script) as address, pytest.raises(ModelFailed, match="HTTP 503: busy") as error:
        load(config(address, "m"), (0, 0))(SMALL)
    assert script.asked == 3
    assert len(str(error.value)) < 500
    script = Script([(429, {"Retry-After": "3600"}, b"later")])
    with scripted(script) as address, pytest.raises(ModelFailed, match="HTTP 429: later"):
        load(config(address, "m"), (0, 0))(SMALL)
    assert script.asked == 1


def test_server_that_does_not_answer_is_a_failure_that_says_so() -> None:
    """Before the process of the model is ended, which would not have said what it waited for."""
    let_go = threading.Event()

    class Silent(Script):
        def answer(self, path: str) -> Reply:
            if path.endswith("/infer"):
                let_go.wait()
            return super().answer(path)

    with scripted(Silent([labels_reply(0, 1, 3)])) as address:
        with pytest.raises(ModelFailed, match="infer: it did not answer in time"):
            load(config(address, "m", timeout=0.5), (0, 0))(SMALL)
        let_go.set()


def test_server_that_comes_after_the_node_is_waited_for() -> None:
    """Without its server a model is loaded; a volume waits for it, and is an error with its address where it does not come."""
    port = free_port()
    with pytest.raises(ModelFailed, match=f"model 'm' at http://127.0.0.1:{port}/v2/models/m/versions/1: Connection refused"):
        load(config(f"http://127.0.0.1:{port}", "m"), (0, 0))(SMALL)
    model = load(config(f"http://127.0.0.1:{port}", "m"), (0.05,) * 600)
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(model(SMALL)))
    thread.start()
    with scripted(Script([labels_reply(0, 1, 3)]), port):
        thread.join()
        assert results[0].labelmap.tolist() == [[[0, 1, 3]]]


def test_address_that_is_none_is_said() -> None:
    """A host that no name can be is an error of the configuration."""
    with pytest.raises(ConfigError, match="model 'm': run: Invalid IDNA hostname"):
        load(config("http://☃.example", "m"), ())


def test_connection_that_breaks_off_is_tried_again() -> None:
    """A server that closes a connection without an answer is asked again, and again, and then it is said."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        asked = []

        def break_off() -> None:
            for _ in range(4):
                connection, _ = listener.accept()
                asked.append(connection.recv(1 << 16))
                connection.close()

        thread = threading.Thread(target=break_off)
        thread.start()
        with pytest.raises(ModelFailed, match="it broke off|Connection reset"):
            load(config(f"http://127.0.0.1:{listener.getsockname()[1]}", "m"), (0, 0))(SMALL)
        thread.join()
    assert len(asked) == 4  # once at the load


def test_https_of_an_unknown_authority_is_refused_at_once(tmp_path: Path) -> None:
    """The error says what is wrong with the certificate, and which setting names its authority."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def shake() -> None:
            connection, _ = listener.accept()
            with connection, pytest.raises(ssl.SSLError):
                context.wrap_socket(connection, server_side=True)

        thread = threading.Thread(target=shake)
        thread.start()
        with pytest.raises(ConfigError, match="its certificate is not trusted .*SSL_CERT_FILE names authorities that are$"):
            load(config(f"https://127.0.0.1:{listener.getsockname()[1]}", "m"), (60, 60))
        thread.join()


@pytest.mark.parametrize(
    ("metadata", "keys", "said"),
    [
        ({"inputs": []}, {}, r"one input and one output are needed; it has \(\) and \('labels', UINT8 of"),
        ({"inputs": [{"name": "v", "datatype": "BYTES", "shape": FREE}]}, {}, "'v', BYTES of .*: numbers are needed"),
        (
            {"inputs": [{"name": "v", "datatype": "FP32", "shape": [3, *FREE]}]},
            {},
            r"'v', FP32 of shape \[3, -1, .* one channel",
        ),
        ({"inputs": [{"name": "v", "datatype": "FP32", "shape": [-1, -1]}]}, {}, r"\(slices, rows, columns\) is needed"),
        (
            {"inputs": [{"name": "v", "datatype": "FP32", "shape": [64, 9, 9]}]},
            {"window": (32, 9, 9)},
            "does not take `window`",
        ),
        ({"outputs": [{"name": "o", "datatype": "BYTES", "shape": FREE}]}, {}, "'o', BYTES of .*: integers, or floats"),
        ({"name": 3}, {}, "not of the Open Inference Protocol"),
    ],
)
def test_model_that_takes_no_volume_is_said_at_the_start(metadata: dict[str, Any], keys: dict[str, Any], said: str) -> None:
    """Inputs and outputs that a volume and its labels do not fit are an error of the configuration."""
    with scripted(Script([], **metadata)) as address, pytest.raises(ConfigError, match=said):
        load(config(address, "m", **keys), ())


def scores_reply(scores: np.ndarray) -> Reply:
    """An answer in binary."""
    output = {"name": "labels", "datatype": "FP32", "shape": scores.shape, "parameters": {"binary_data_size": scores.nbytes}}
    header = json.dumps({"outputs": [output]}).encode()
    return 200, {"Inference-Header-Content-Length": str(len(header))}, header + scores.tobytes()


@pytest.mark.parametrize(
    ("reply", "datatype", "said"),
    [
        ((200, {}, b"<html>"), "UINT8", "cannot be read: it is no inference response"),
        (labels_reply(0, 1, shape=(1, 1, 2)), "UINT8", r"shape \[1, 1, 2\]: one label for each voxel of \[1, 1, 3\] is needed"),
        (labels_reply(0, 1, 3, model_version="2"), "UINT8", "version '2' answers"),
        (labels_reply(0, -1, 3, datatype="INT64"), "INT64", "labels from -1 to 3: they must be from 0 to 65535"),
        (labels_reply(0.0, 1.0, 3.0, datatype="FP32"), "FP32", "two or more channels before"),
        (scores_reply(np.full((2, 1, 1, 3), np.nan, np.float32)), "FP32", "output 'labels' has scores that are not finite"),
        ((200, {"Inference-Header-Content-Length": "10000"}, b"{}"), "UINT8", "its header is to have 10000 bytes"),
    ],
)
def test_answer_that_is_none_is_a_failure_that_says_why(reply: Any, datatype: str, said: str) -> None:
    """What is no label for each voxel, and no scores, is never taken for some."""
    outputs = [{"name": "labels", "datatype": datatype, "shape": FREE}]
    with scripted(Script([reply], outputs=outputs)) as address, pytest.raises(ModelFailed, match=said):
        load(config(address, "m"), ())(SMALL)


def test_model_of_planes_is_given_one_slice_at_a_time() -> None:
    """A network of (batch, channel, rows, columns) labels each slice by itself and how far it is, is heard."""
    metadata = {"inputs": [{"name": "volume", "datatype": "INT16", "shape": [-1, 1, 2, 4]}]}
    metadata["outputs"] = [{"name": "labels", "datatype": "FP32", "shape": [-1, 2, 2, 4]}]
    planes = Volume(np.zeros((2, 2, 3), np.float32), np.eye(4), {}, ("1", "2"))
    scores = np.zeros((2, 1, 2, 2, 4), np.float32)
    scores[0, 0, 1, 0, 1] = scores[1, 0, 1, 1, 2] = 1
    script = Script([scores_reply(plane) for plane in scores], **metadata)
    said = []
    with scripted(script) as address, hearing(lambda fraction, text: said.append((fraction, text))):
        labelmap = load(config(address, "m"), ())(planes).labelmap
    assert said == [(0.0, "window 1 of 2"), (0.5, "window 2 of 2")]
    assert labelmap.tolist() == [[[0, 1, 0], [0, 0, 0]], [[0, 0, 0], [0, 0, 1]]]


def test_values_that_the_datatype_does_not_hold_are_refused() -> None:
    """A model that takes bytes is not given Hounsfield units that wrap around; it is not asked at all."""
    script = Script([], inputs=[{"name": "volume", "datatype": "UINT8", "shape": FREE}])
    with scripted(script) as address, pytest.raises(ModelFailed, match="does not hold the volume, .* from -1000 to 500"):
        load(config(address, "m"), ())(SMALL)
    assert script.asked == 0
