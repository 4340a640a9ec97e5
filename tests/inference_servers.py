"""Real servers of KServe v2 with models that label body (1) and bone (3) of a CT: MLServer, and Triton."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from segnode.testing.servers import ServerFailed, _process, free_port, until
from tests.conftest import peer

DRIVERS = Path(__file__).parent / "peers"


@contextmanager
def mlserver(folder: Path) -> Iterator[str]:
    """A serving MLServer; its address. `labels` has the version 7, `nameless` has none."""
    http_port, grpc_port, metrics_port = free_port(), free_port(), free_port()
    ports = {"http_port": http_port, "grpc_port": grpc_port, "metrics_port": metrics_port}
    folder.mkdir()
    shutil.copy(DRIVERS / "mlserver" / "thresholds.py", folder)
    (folder / "settings.json").write_text(json.dumps({"host": "127.0.0.1", "parallel_workers": 0, **ports}))
    free = [-1, -1, -1]
    for name, parameters in (("labels", {"version": "7"}), ("nameless", {})):
        settings = {
            "name": name,
            "implementation": "thresholds.Thresholds",
            "inputs": [{"name": "volume", "datatype": "FP32", "shape": free}],
            "outputs": [{"name": "labels", "datatype": "UINT8", "shape": free}],
            "parameters": parameters,
        }
        (folder / name).mkdir()
        (folder / name / "model-settings.json").write_text(json.dumps(settings))
    command = [str(peer("mlserver") / "bin" / "mlserver"), "start", str(folder)]
    with _serving(command, folder, http_port, ["labels", "nameless"]) as address:
        yield address


@contextmanager
def triton(folder: Path) -> Iterator[str]:
    """A serving Triton; its address. Its models are those of serve.py, of version 1."""
    http_port, grpc_port = free_port(), free_port()
    folder.mkdir()
    program = str(peer("triton") / "bin" / "python")
    command = [program, str(DRIVERS / "triton" / "serve.py"), str(folder / "workspace"), str(http_port), str(grpc_port)]
    with _serving(command, folder, http_port, ["labels", "scores", "broken"]) as address:
        yield address


@contextmanager
def _serving(command: list[str], folder: Path, port: int, models: list[str]) -> Iterator[str]:
    address, log = f"http://127.0.0.1:{port}", folder / "server.log"

    def serves() -> bool:
        try:
            return all(httpx.get(f"{address}/v2/models/{model}/ready").is_success for model in models)
        except httpx.TransportError:
            return False

    with _process(command, log, {"PYTHONPATH": str(folder)}) as process:
        until(lambda: serves() or process.poll() is not None)
        if process.poll() is not None:
            raise ServerFailed(f"{command!r} did not start:\n{log.read_text(errors='replace')[-2000:]}")
        yield address
