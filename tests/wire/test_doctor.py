"""`segnode doctor`: what is wrong is found and said, what is well is not blamed, and nothing is changed by looking."""

import http.server
import json
import os
import shutil
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from segnode import doctor
from segnode.config import Config, DimseAddress, parse_config
from segnode.dimse.peer import DimsePeer
from segnode.dimse.scu import DimseDestination
from segnode.doctor import Finding, examine
from segnode.errors import DeliveryDeferred
from segnode.seg import pixels
from segnode.seg.codecs import CODECS
from segnode.store import filesystem
from segnode.testing.answering import answering
from segnode.testing.phantom import Phantom
from segnode.testing.processes import is_alive
from segnode.testing.servers import Server, free_port, node_config, segnode
from tests.wire.test_serve import run

NO_MODELS = "models = []\nrules = []\n"
LOADED = """
import os, pathlib, subprocess, sys
sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path("pids").write_text(f"{os.getpid()} {sleeper.pid}")

def segment(volume): ...
"""


def config_of(folder: Path, tables: str = NO_MODELS, **node: str) -> Config:
    """The configuration of a node that does not run, on free ports."""
    keys = {"dicom": f"127.0.0.1:{free_port()}", "http": f"127.0.0.1:{free_port()}", **node}
    return parse_config(tables + "[node]\n" + "".join(f'{key} = "{value}"\n' for key, value in keys.items()), folder)


def findings(config: Config) -> dict[str, Finding]:
    """What every check found, by its name."""
    return {finding.check: finding for finding in examine(config)}


def troubles(config: Config) -> dict[str, str]:
    """The details of what is wrong, by the name of the check."""
    return {finding.check: finding.detail for finding in examine(config) if not finding.ok}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, but for SQLite's shared memory, which holds no data."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith("-shm"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_all_is_well_before_the_first_start(tmp_path: Path) -> None:
    """Where no node has run yet: one line for each check, exit code 0; nothing is made, and no model's process is left."""
    (tmp_path / "loaded.py").write_text(LOADED)
    (tmp_path / "tmp").mkdir()
    model = '[[models]]\nname = "m"\nrun = "python:loaded"\nlabels = "threshold"\nversion = "1"\n'
    ports = f'[node]\ndicom = "127.0.0.1:{free_port()}"\nhttp = "127.0.0.1:{free_port()}"\n'
    (tmp_path / "segnode.toml").write_text(model + ports)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "TMPDIR": str(tmp_path / "tmp"), "PYTHONDONTWRITEBYTECODE": "1"}
    ended = run("doctor", cwd=tmp_path, env=environment)
    assert (ended.returncode, ended.stderr) == (0, "")
    lines = ended.stdout.splitlines()
    assert all(line.startswith("ok ") for line in lines)
    assert [line[9:33].strip() for line in lines] == [
        "data folder",
        "fsync speed",
        "database index",
        "database pipeline",
        "database workflows",
        "port node.dicom",
        "port node.http",
        *(f"codec {name}" for name in CODECS),
        "labels of m",
        "model m",
    ]
    assert not any(map(is_alive, map(int, (tmp_path / "pids").read_text().split())))
    assert {path.name for path in tmp_path.rglob("*")} == {"loaded.py", "segnode.toml", "pids", "tmp"}


def test_all_is_well_with_a_node_that_runs_and_has_run(tmp_path: Path, phantom: Phantom) -> None:
    """While a node runs, its ports answer; after it was stopped, they are free; looking changes nothing in its data."""
    with segnode(tmp_path / "node", NO_MODELS) as node:
        config = node_config(node)
        before = contents(config.data)
        ended = run("doctor", "--config", str(tmp_path / "node" / "segnode.toml"), "--json")
        assert ended.returncode == 0, ended.stdout
        running = {found["check"]: found["detail"] for found in json.loads(ended.stdout)}
        after = contents(config.data)
        assert after.keys() == before.keys()
        changed = {name for name in after if after[name] != before[name]}
        assert changed <= {"index.sqlite", "index.sqlite-wal"}, "where the node that runs writes its heartbeats"
    assert running["port node.dicom"].endswith("a segnode answers C-ECHO there")
    assert running["port node.http"].endswith("DICOMweb is served there")
    assert all("quick check" in running[f"database {name}"] for name in ("index", "pipeline", "workflows"))
    before = contents(config.data)
    stopped = findings(config)
    assert all(finding.ok for finding in stopped.values())
    assert "is free" in stopped["port node.dicom"].detail
    assert contents(config.data) == before


@pytest.fixture
def web_server() -> Iterator[int]:
    """The port of a web server that knows no DICOMweb."""
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    server.RequestHandlerClass.log_message = lambda *_: None  # type: ignore[method-assign]
    with answering(server):
        yield server.server_port


def test_port_of_another_program_is_trouble(tmp_path: Path, archive: Server, web_server: int) -> None:
    """A port on which an Orthanc or a web server listens is not taken for the node's own."""
    config = config_of(tmp_path, dicom=f"127.0.0.1:{archive.dicom_port}", http=f"127.0.0.1:{web_server}")
    found = troubles(config)
    assert set(found) == {"port node.dicom", "port node.http"}
    assert "Address already in use" in found["port node.dicom"]
    assert "is no segnode" in found["port node.dicom"]
    assert "HTTP 501" in found["port node.http"]
    assert "change node.http" in found["port node.http"]


def test_port_that_is_silent_or_not_ours_is_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that takes connections and says nothing is waited for a few seconds; a foreign address is named."""
    monkeypatch.setattr(doctor, "_ANSWER_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        where = f"127.0.0.1:{silent.getsockname()[1]}"
        found = troubles(config_of(tmp_path, dicom=where, http=where))
    assert "cannot be reached, or broke off" in found["port node.dicom"]
    assert "does not answer by HTTP (TimeoutError)" in found["port node.http"]
    web = '[web]\nplain_http = true\noidc = { issuer = "http://127.0.0.1:1", audience = "a" }\n'
    found = troubles(config_of(tmp_path, NO_MODELS + web, http="192.0.2.1:8080"))
    assert "Cannot assign requested address" in found["port node.http"]


def test_program_that_does_not_say_its_version_is_trouble(tmp_path: Path) -> None:
    """A node does not start then."""
    model = 'name = "m"\nrun = "command:true {input} {output}"\nlabels = "threshold"\nversion_command = "false"\n'
    assert "version_command" in troubles(config_of(tmp_path, f"rules = []\n[[models]]\n{model}"))["model m"]


def test_server_of_a_model_that_is_away_is_said_and_is_no_trouble(tmp_path: Path) -> None:
    """A node starts without it."""
    run = f"kserve:http://127.0.0.1:{free_port()}/v2/models/m"
    model = f'[[models]]\nname = "m"\nrun = "{run}"\nlabels = "threshold"\nversion = "1"\n'
    found = findings(config_of(tmp_path, f"rules = []\n{model}"))["model m"]
    assert found.ok
    assert found.detail.startswith("cannot be reached now, and its jobs fail until it can")


def test_model_that_does_not_load_is_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that breaks, is not there, or has no dictionary is named with the reason."""
    (tmp_path / "broken.py").write_text("raise ValueError('no weights')")
    table = '[[models]]\nname = "{}"\nrun = "python:{}"\nlabels = "{}"\nversion = "1"\n'
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    config = config_of(tmp_path, table.format("a", "broken", "threshold") + table.format("b", "no.such", "nowhere.toml"))
    found = troubles(config)
    assert set(found) == {"model a", "model b", "labels of b"}
    assert found["model a"] == "model 'a': broken cannot be imported: ValueError: no weights"
    assert "no.such cannot be imported" in found["model b"]
    assert "nowhere.toml" in found["labels of b"]


def test_destinations_are_asked(tmp_path: Path, archive: Server, web_server: int) -> None:
    """An archive that answers is well, by DICOMweb and by DIMSE; one that is down, unknown or something else is not."""
    down = free_port()
    addresses = {
        "stow": archive.dicomweb,
        "dimse": archive.dimse,
        "stow-down": f"http://127.0.0.1:{down}/dicom-web",
        "dimse-down": f"ORTHANC@127.0.0.1:{down}",
        "dimse-unknown": "ORTHANC@no.such.host.invalid:104",
        "wrong-root": f"http://127.0.0.1:{archive.http_port}/nowhere",
        "web-server": f"http://127.0.0.1:{web_server}",
    }
    tables = "".join(f'[[destinations]]\nname = "{name}"\nto = "{to}"\n' for name, to in addresses.items())
    found = findings(config_of(tmp_path, NO_MODELS + tables))
    assert [name for name in addresses if found[f"destination {name}"].ok] == ["stow", "dimse"]
    assert "HTTP 200" in found["destination stow"].detail
    assert "answers C-ECHO" in found["destination dimse"].detail
    assert "Connection refused" in found["destination stow-down"].detail
    assert "cannot be reached" in found["destination dimse-down"].detail
    assert "no.such.host.invalid:104 cannot be reached: " in found["destination dimse-unknown"].detail
    assert "HTTP 404" in found["destination wrong-root"].detail
    assert "HTTP 501" in found["destination web-server"].detail


def test_host_without_an_address_is_tried_again() -> None:
    """While a destination's name is not known, a delivery to it waits: the name's server may be down."""
    destination = DimseDestination(DimsePeer(DimseAddress("ARCHIVE", "no.such.host.invalid", 104), "TEST"))
    cannot_be_reached = pytest.raises(DeliveryDeferred, match="ARCHIVE@no.such.host.invalid:104 cannot be reached")
    with cannot_be_reached, destination.reach(["labelmap:native"]):
        pass


def test_damaged_database_is_trouble(tmp_path: Path) -> None:
    """A database with a damaged page, one that is none and one that cannot be opened are told apart from good ones."""
    config = config_of(tmp_path, data="data")
    config.data.mkdir()
    pipeline = config.data / "pipeline.sqlite"
    with closing(sqlite3.connect(pipeline)) as connection:
        connection.execute("CREATE TABLE job (id)")
        connection.executemany("INSERT INTO job VALUES (?)", [("x" * 1000,)] * 50)
        connection.commit()
    assert troubles(config) == {}
    with pipeline.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 4096)
    (config.data / "index.sqlite").write_bytes(b"garbage" * 1000)
    (config.data / "workflows.sqlite").mkdir()
    found = troubles(config)
    assert set(found) == {"database index", "database pipeline", "database workflows"}
    assert "file is not a database: stop the node" in found["database index"]
    assert "pipeline.sqlite" in found["database pipeline"]
    assert "cannot be read" in found["database workflows"]


def test_data_folder_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data folder that is a file, on a full or slow disk, or on a network file system is trouble."""
    (tmp_path / "file").touch()
    assert "is no folder" in troubles(config_of(tmp_path, data="file/data"))["data folder"]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 99, 1 << 29))
    monkeypatch.setattr(doctor, "_SLOWEST_MS", 0)
    found = troubles(config_of(tmp_path))
    assert "only 0.5 GiB free" in found["data folder"]
    assert "see what else writes to the disk" in found["fsync speed"]
    (tmp_path / "mountinfo").write_text("1 2 0:3 / / rw - nfs4 nas:/ rw\n")
    monkeypatch.setattr(filesystem, "_MOUNTS", tmp_path / "mountinfo")
    assert "is on nfs4, a network file system" in troubles(config_of(tmp_path))["data folder"]


def test_check_that_breaks_hides_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that no check foresees is that check's trouble, with its type; a codec that changes a frame is one too."""
    good = pixels.pixel_data

    def broken(frames, codec) -> bytes:
        if codec.name == "rle":
            raise KeyError("no\nplug-in")
        return good(frames[:, ::-1] if codec.name == "native" else frames, codec)

    monkeypatch.setattr(pixels, "pixel_data", broken)
    found = findings(config_of(tmp_path))
    assert found["codec jpeg-ls"].ok
    assert found["codec rle"].detail == "unforeseen KeyError: 'no\\nplug-in'"
    assert "is not read back as it was written" in found["codec native"].detail


def test_exit_code_and_json_say_what_is_wrong(tmp_path: Path) -> None:
    """Trouble ends with 1, a configuration that cannot be read with 2; --json is a list of check, ok and detail."""
    file = tmp_path / "segnode.toml"
    file.write_text(f'{NO_MODELS}[[destinations]]\nname = "down"\nto = "http://127.0.0.1:{free_port()}"\n')
    ended = run("doctor", "--config", str(file), "--json")
    assert ended.returncode == 1
    found = json.loads(ended.stdout)
    assert all(set(finding) == {"check", "ok", "detail"} for finding in found)
    assert "destination down" in [finding["check"] for finding in found if not finding["ok"]]
    file.write_text("[nod]")
    ended = run("doctor", "--config", str(file))
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "nod: unknown key" in ended.stderr
