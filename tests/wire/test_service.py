"""The node as a service: how it says how it is, reads its configuration again, and shares its ports."""

import fcntl
import json
import os
import pty
import re
import signal
import subprocess
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from dicomweb_client.api import DICOMwebClient
from prometheus_client.parser import text_string_to_metric_families
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE, build_context

from segnode.config import parse_dimse_address
from segnode.dimse.scu import send_files
from segnode.node import open_index, open_jobs
from segnode.testing.part10 import encode_part10
from segnode.testing.phantom import Phantom
from segnode.testing.processes import descendants, post_of
from segnode.testing.servers import Server, await_jobs, free_port, launch_segnode, node_config, segnode, until
from tests.wire.test_serve import await_gone, command, events
from tests.wire.test_storage import small, stow

RULE = '[[rules]]\nwhen = { Modality = "CT" }\nmodel = "threshold"\nquiet = 1.0\n'
STORAGE_CT = build_context("1.2.840.10008.5.1.4.1.1.2", ExplicitVRLittleEndian)


def send(node: Server, phantom: Phantom) -> None:
    """Send the phantom by C-STORE."""
    list(send_files(sorted(phantom.folder.iterdir()), parse_dimse_address(node.dimse, ""), "TEST"))


def root(node: Server) -> str:
    """The URL of a node."""
    return node.dicomweb.removesuffix("/dicom-web")


def metrics(node: Server) -> dict[tuple[str, tuple[str, ...]], float]:
    """Every sample of a node by its name and the values of its labels, read as Prometheus reads them."""
    families = text_string_to_metric_families(httpx.get(f"{root(node)}/metrics").text)
    return {(s.name, tuple(v for _, v in sorted(s.labels.items()))): s.value for f in families for s in f.samples}


@pytest.fixture(scope="module")
def worked(tmp_path_factory: pytest.TempPathFactory, phantom: Phantom) -> Iterator[Server]:
    """A node that has segmented a series with a name in it, refused an object, and has an archive that is down."""
    tables = f'[[destinations]]\nname = "down"\nto = "http://127.0.0.1:{free_port()}/dicom-web"\n' + RULE.replace(
        "quiet", 'send_to = ["down"]\nquiet'
    )
    folder = tmp_path_factory.mktemp("service")
    with segnode(folder / "node", tables) as node:
        for number, file in enumerate(sorted(phantom.folder.iterdir())):
            image = dcmread(file)
            image.PatientName, image.PatientID = "Marker^Zebedee", "ZEB4711"
            image.StudyDescription = image.SeriesDescription = "MARKER of ZEBEDEE"
            image.save_as(folder / f"{number:04}.dcm")
        list(send_files(sorted(folder.glob("*.dcm")), parse_dimse_address(node.dimse, ""), "TEST"))
        broken = small("MARKER^ZEBEDEE", PatientName="Marker^Zebedee")
        assert stow(node, encode_part10(broken, ExplicitVRLittleEndian)).status_code == 409
        assert stow(node, b"Marker^Zebedee").status_code == 409
        jobs = open_jobs(node_config(node))
        until(lambda: any(delivery.attempts for job in jobs.all() for delivery in job.deliveries))
        until(lambda: metrics(node).get(("segnode_delivery_attempts_total", ("down", "deferred")), 0) >= 1)
        yield node


def test_node_that_works_is_live_and_ready(worked: Server) -> None:
    """/health/live and /health/ready answer 200."""
    assert httpx.get(f"{root(worked)}/health/live").status_code == 200
    ready = httpx.get(f"{root(worked)}/health/ready")
    assert (ready.status_code, ready.json()) == (200, {"ready": True, "database": "ok", "disk": "ok", "worker": "ok"})


def test_metrics_count_what_happened(worked: Server) -> None:
    """What was received through both doors, refused by status, made, and tried to deliver: each once, over all processes."""
    until(lambda: metrics(worked).get(("segnode_objects_received_total", ("dimse",))) == 24)
    until(lambda: metrics(worked).get(("segnode_objects_refused_total", ("web", "C000"))) == 1)
    until(lambda: metrics(worked).get(("segnode_objects_refused_total", ("web", "0117"))) == 1)
    found = metrics(worked)
    assert found["segnode_received_bytes_total", ("dimse",)] > 24 * 128 * 128 * 2
    assert found["segnode_jobs", ("delivering",)] == 1
    assert found["segnode_deliveries", ("down", "waiting")] == 1
    assert found["segnode_stage_seconds_count", ("infer",)] == found["segnode_stage_seconds_count", ("encode",)] == 1
    assert 0 < found["segnode_stage_seconds_sum", ("infer",)] < 60
    assert {v for (name, _), v in found.items() if name == "segnode_process_alive"} == {1.0}
    assert found["segnode_disk_free_bytes", ()] > 0


def test_nothing_that_is_written_beside_the_index_names_the_patient(worked: Server) -> None:
    """Log, metrics, jobs, the rows of pipeline and workflows, what models print: no patient's data, not even in refusals."""
    data = node_config(worked).data
    written = [worked.log, *data.glob("pipeline.sqlite*"), *data.glob("workflows.sqlite*"), *data.rglob("prints.log")]
    texts = {str(path): path.read_bytes() for path in written}
    for path in ("/metrics", "/api/jobs", "/health/ready"):
        texts[path] = httpx.get(root(worked) + path).content
    assert all(texts[name] for name in (str(worked.log), "/api/jobs", str(data / "workflows.sqlite")))
    assert [name for name, text in texts.items() if re.search(rb"(?i)marker|zebedee|zeb4711", text)] == []


def test_log_names_associations_series_and_jobs(worked: Server) -> None:
    """A line says to which association, series and job it belongs, and which process wrote it."""
    received = events(worked, "received")
    assert {event["association"] for event in received if event["process"].startswith("dimse")} == {
        event["association"] for event in events(worked, "association opened")
    }
    (job,) = open_jobs(node_config(worked)).all()
    (infer, encode) = events(worked, "stage done")
    assert (infer["stage"], encode["stage"], infer["process"]) == ("infer", "encode", "worker-1")
    assert {e["job"] for e in (infer, encode)} == {job.id}
    assert {e["series_instance_uid"] for e in (infer, encode)} == {job.series_instance_uid}
    assert {(e["job"], e["destination"]) for e in events(worked, "delivery attempted")} == {(job.id, "down")}


def test_node_without_a_worker_is_not_ready(tmp_path: Path) -> None:
    """The web role alone is live, and says that no worker runs."""
    with segnode(tmp_path / "node", "models = []\nrules = []", roles=("web",)) as node:
        assert httpx.get(f"{root(node)}/health/live").status_code == 200
        ready = httpx.get(f"{root(node)}/health/ready")
    assert (ready.status_code, ready.json()["worker"]) == (503, "no worker has run")


def test_low_watermark_refuses_and_recovers(tmp_path: Path) -> None:
    """With less free disk than the watermark new objects get A700 and 503; what is held is acknowledged; no restart needed."""
    with segnode(tmp_path / "node", 'models = []\nrules = []\n[storage]\nlow_watermark = "1 B"\n') as node:
        data = encode_part10(small("1.2.17.1"), ExplicitVRLittleEndian)
        assert stow(node, data).status_code == 200
    with segnode(tmp_path / "node", 'models = []\nrules = []\n[storage]\nlow_watermark = "1000 TiB"\n') as node:
        assert stow(node, data).status_code == 200
        other = tmp_path / "other.dcm"
        other.write_bytes(encode_part10(small("1.2.17.2"), ExplicitVRLittleEndian))
        assert stow(node, other.read_bytes()).status_code == 503
        association = AE("TEST").associate("127.0.0.1", node.dicom_port, [STORAGE_CT], node.ae_title)
        assert association.send_c_store(other).Status == 0xA700
        association.release()
        ready = httpx.get(f"{root(node)}/health/ready")
        assert (ready.status_code, "new objects are refused" in ready.json()["disk"]) == (503, True)


def test_several_processes_share_the_dicom_port(tmp_path: Path) -> None:
    """Associations go to every process; the port answers while one of them is dead."""
    with segnode(tmp_path / "node", "models = []\nrules = []", dimse_processes=3) as node:
        ae = AE("TEST")
        contexts = [STORAGE_CT]

        def associate() -> None:
            association = ae.associate("127.0.0.1", node.dicom_port, contexts, node.ae_title)
            assert association.is_established
            association.release()

        def by_process() -> set[str]:
            return {event["process"] for event in events(node, "association opened")}

        until(lambda: associate() is None and by_process() == {"dimse-1", "dimse-2", "dimse-3"})
        (process,) = (p for p in descendants(node.process.pid) if post_of(p) == "dimse-2")
        os.kill(process, signal.SIGKILL)
        for _ in range(10):
            associate()
        until(lambda: len(events(node, "a role is started again")) == 1)
        children = descendants(node.process.pid)
        node.process.terminate()
        assert node.process.wait(10) == 0
        await_gone(children, (node.dicom_port, node.http_port))


def test_several_processes_share_the_http_port(tmp_path: Path) -> None:
    """Requests are answered by the others while a web process is dead."""
    with segnode(tmp_path / "node", "models = []\nrules = []", web_workers=2) as node:
        (process,) = (p for p in descendants(node.process.pid) if post_of(p) == "web-1")
        os.kill(process, signal.SIGKILL)
        for _ in range(20):
            with httpx.Client() as client:
                assert client.get(f"{root(node)}/health/live").status_code == 200


def reload(node: Server, tables: str) -> None:
    """Write a configuration and have the node read it."""
    file = node.log.parent / "segnode.toml"
    (own,) = re.findall(r"\[node\]\n(?:\w+ = .*\n)+", file.read_text())
    file.write_text(f"{tables}\n{own}")
    node.process.send_signal(signal.SIGHUP)


def test_configuration_is_read_again(tmp_path: Path, phantom: Phantom) -> None:
    """SIGHUP: a new rule acts, without a process started anew; a bad file is named and changes nothing, also after a death."""
    with segnode(tmp_path / "node", "models = []\nrules = []") as node:
        before = {p for p in descendants(node.process.pid) if "-" in post_of(p)}
        reload(node, RULE)
        until(lambda: len(events(node, "the configuration is read again")) == 1)
        assert {p for p in descendants(node.process.pid) if "-" in post_of(p)} == before, "but for that of its model"
        reload(node, '[[rules]]\nwhen = {}\nmodel = "nobody"\n')
        until(lambda: len(events(node, "the configuration cannot be used: the old one stays")) == 1)
        (refused,) = events(node, "the configuration cannot be used: the old one stays")
        assert "there is no model 'nobody'" in refused["reason"]
        (worker,) = (p for p in before if post_of(p) == "worker-1")
        os.kill(worker, signal.SIGKILL)
        until(lambda: len(events(node, "a role is started again")) == 1)
        send(node, phantom)
        jobs = open_jobs(read_again(node))
        until(lambda: [job.state for job in jobs.all()] == ["delivered"])
        assert len(events(node, "a role has died")) == 1


def test_hangup_at_the_start_is_not_its_end(tmp_path: Path) -> None:
    """A SIGHUP that comes while the worker starts waits for it; the node serves, and has read its file again."""
    with launch_segnode(tmp_path / "node", "models = []\nrules = []") as node:
        until(lambda: any(post_of(p) == "worker-1" for p in descendants(node.process.pid)))
        node.process.send_signal(signal.SIGHUP)
        node.await_ready()
        until(lambda: len(events(node, "the configuration is read again")) == 1)
        assert events(node, "a role has died") == []


def test_closed_terminal_ends_the_node(tmp_path: Path) -> None:
    """A node that was started in a terminal ends with it, and leaves nothing; only elsewhere does SIGHUP mean to read again."""
    config = f'models = []\nrules = []\n[node]\ndicom = "127.0.0.1:{free_port()}"\nhttp = "127.0.0.1:{free_port()}"\n'
    (tmp_path / "segnode.toml").write_text(config)
    terminal, side = pty.openpty()

    def own_terminal() -> None:
        os.setsid()
        fcntl.ioctl(side, termios.TIOCSCTTY, 0)

    with subprocess.Popen(command("serve"), cwd=tmp_path, stderr=side, preexec_fn=own_terminal) as process:  # noqa: PLW1509
        os.close(side)
        said = b""
        while b'"ready"' not in said:
            said += os.read(terminal, 4096)
        children = descendants(process.pid)
        os.close(terminal)
        assert process.wait(15) == 0
    await_gone(children, ())


def read_again(node: Server):
    """The configuration of a node whose file cannot be used any more."""
    file = node.log.parent / "segnode.toml"
    file.write_text(file.read_text().replace('"nobody"', '"threshold"'))
    return node_config(node)


def test_job_goes_on_by_its_rule_after_a_reload(tmp_path: Path, phantom: Phantom) -> None:
    """A delivery that is owed is made when a reload mends the address; its rule need not be there any more."""
    port = free_port()
    broken = f'[[destinations]]\nname = "archive"\nto = "http://127.0.0.1:{port}/dicom-web"\n'
    with (
        segnode(tmp_path / "archive", "models = []\nrules = []", ae_title="ARCHIVE") as archive,
        segnode(tmp_path / "node", broken + RULE.replace("quiet", 'send_to = ["archive"]\nquiet')) as node,
    ):
        send(node, phantom)
        jobs = open_jobs(node_config(node))
        until(lambda: any(delivery.attempts for job in jobs.all() for delivery in job.deliveries))
        reload(node, f'models = []\nrules = []\n[[destinations]]\nname = "archive"\nto = "{archive.dicomweb}"\n')
        (job,) = await_jobs(node_config(node))
        assert job.state == "delivered"
        assert DICOMwebClient(archive.dicomweb).search_for_instances(search_filters={"SOPInstanceUID": job.sop_instance_uid})


def test_what_the_node_made_starts_nothing_when_it_comes_back(tmp_path: Path, phantom: Phantom) -> None:
    """An archive that sends a SEG back starts no job: not while its row is there, and not when it is gone."""
    rules = RULE + '[[rules]]\nwhen = {}\nmodel = "threshold"\nquiet = 0.0\n'
    with segnode(tmp_path / "node", rules) as node:
        send(node, phantom)
        first = await_jobs(node_config(node), 2)
        index = open_index(node_config(node))
        made = index.find(first[0].sop_instance_uid)
        assert made is not None
        part10 = tmp_path / "returned.dcm"
        (returned,) = DICOMwebClient(node.dicomweb).retrieve_series(made.study_instance_uid, made.series_instance_uid)
        returned.Manufacturer = "An archive that names itself"
        returned.save_as(part10)
        assert stow(node, part10.read_bytes()).status_code == 200
        index.doom_made(made.sop_instance_uid)
        assert stow(node, part10.read_bytes()).status_code == 200
        again = index.find(made.sop_instance_uid)
        assert again is not None
        assert again.origin == "made"
        other = returned
        other.SOPInstanceUID = other.file_meta.MediaStorageSOPInstanceUID = "1.2.18.1"
        other.SeriesInstanceUID = "1.2.18"
        del other.ContributingEquipmentSequence
        other.save_as(part10)
        assert stow(node, part10.read_bytes()).status_code == 200
        jobs = open_jobs(node_config(node))
        until(lambda: len(jobs.all()) == 3)
        assert {job.series_instance_uid for job in jobs.all()} == {first[0].series_instance_uid, "1.2.18"}


def test_association_that_is_open_holds_its_series_back(tmp_path: Path) -> None:
    """A series is not taken as complete while its sender is still connected; it is when the sender has gone, or was killed."""
    with segnode(tmp_path / "node", '[[rules]]\nwhen = {}\nmodel = "threshold"\nquiet = 0.0\n') as node:
        jobs = open_jobs(node_config(node))
        files = {name: tmp_path / f"{name}.dcm" for name in ("1.2.19.1", "1.2.19.2")}
        for number, (sop, file) in enumerate(files.items()):
            dataset = small(sop, SeriesInstanceUID=f"1.2.19.{number}9")
            file.write_bytes(encode_part10(dataset, ExplicitVRLittleEndian))
        association = AE("TEST").associate("127.0.0.1", node.dicom_port, [STORAGE_CT], node.ae_title)
        assert association.send_c_store(files["1.2.19.1"]).Status == 0
        assert stow(node, files["1.2.19.2"].read_bytes()).status_code == 200
        until(lambda: len(jobs.all()) == 1)
        assert jobs.all()[0].series_instance_uid == "1.2.19.19"
        threading.Thread(target=association.release).start()
        until(lambda: len(jobs.all()) == 2)


def test_openapi_and_jobs_are_served_beside(worked: Server) -> None:
    """The API, health and DICOMweb are one server."""
    assert json.loads(httpx.get(f"{root(worked)}/api/openapi.json").text)["openapi"].startswith("3.1")
    assert httpx.get(f"{root(worked)}/health/nothing").status_code == 404
