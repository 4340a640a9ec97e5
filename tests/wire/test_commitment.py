"""Storage commitment over real associations: asked of archives before a delivery counts, and answered to those who ask."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import httpx
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage
from pynetdicom import AE, build_role, evt
from pynetdicom.association import Association
from pynetdicom.sop_class import StorageCommitmentPushModel

from segnode.config import parse_dimse_address
from segnode.dimse.scu import send_files
from segnode.pipeline.report_commitment import Reporter
from segnode.store.commitments import Reference, Report, Request, Transaction
from segnode.store.jobs import Job
from segnode.testing.part10 import encode_part10
from segnode.testing.phantom import Phantom
from segnode.testing.servers import Server, await_jobs, free_port, node_config, orthanc, orthanc_program, segnode, until
from tests.conftest import absent
from tests.outbox import RESULT, outbox
from tests.rows import commitments_of, index_of, jobs_of, stop_between_writes
from tests.wire.test_delivery_matrix import BOTH, LABELMAP, Archive, command, go_on, held_by, scp
from tests.wire.test_kills import await_starts, kill_role, role_of
from tests.wire.test_serve import events
from tests.wire.test_service import reload
from tests.wire.test_storage import small

WELL_KNOWN = "1.2.840.10008.1.20.1.1"
DAY = 86400
RULE = '[[rules]]\nwhen = {{ Modality = "CT" }}\nmodel = "threshold"\nsend_to = ["pacs"]\nquiet = 0.5\n'
DESTINATION = '[[destinations]]\nname = "pacs"\nto = "{}"\nconfirm = "commitment"\n'


def an_item(sop_class: str, sop_instance: str, reason: int | None = None) -> Dataset:
    """An item of a request or report."""
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, sop_instance
    if reason is not None:
        item.FailureReason = reason
    return item


@dataclass
class Witness:
    """How an archive stands by what it keeps; `reports_at_once` in the association it is asked in."""

    archive: Archive
    reports_at_once: bool = True
    asked: list[Dataset] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)

    def on_request(self, event: evt.Event) -> tuple[int, None]:
        """Answer N-ACTION."""
        self.asked.append(event.action_information)
        if self.reports_at_once:
            event.assoc.bind(evt.EVT_PDU_SENT, self.on_answer_sent)
        return 0, None

    def on_answer_sent(self, event: evt.Event) -> None:
        """Report once the answer to the request has left."""
        event.assoc.unbind(evt.EVT_PDU_SENT, self.on_answer_sent)
        threading.Thread(target=self.report, args=(event.assoc, self.asked[-1])).start()

    def information(self, asked: Dataset) -> Dataset:
        """What it stands by."""
        report = Dataset()
        report.TransactionUID = asked.TransactionUID
        named = [(item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID) for item in asked.ReferencedSOPSequence]
        report.ReferencedSOPSequence = [an_item(*pair) for pair in named if pair[1] in self.archive.kept]
        report.FailedSOPSequence = [an_item(*pair, 0x0112) for pair in named if pair[1] not in self.archive.kept]
        return report

    def report(self, association, asked: Dataset) -> None:
        """Report in an association."""
        information = self.information(asked)
        event_type = 2 if information.FailedSOPSequence else 1
        status, _ = association.send_n_event_report(information, event_type, StorageCommitmentPushModel, WELL_KNOWN)
        self.answers.append(status.get("Status", -1))

    def report_to(self, node: Server, asked: Dataset) -> int:
        """Report in an association of its own; what the node answered."""
        ae = AE("SINK")
        ae.add_requested_context(StorageCommitmentPushModel)
        roles = [build_role(StorageCommitmentPushModel, scp_role=True)]
        association = ae.associate("127.0.0.1", node.dicom_port, ae_title=node.ae_title, ext_neg=roles)
        assert association.is_established
        assert association.accepted_contexts[0].as_scp
        self.report(association, asked)
        association.release()
        return self.answers[-1]


@contextmanager
def committing(archive: Archive, witness: Witness) -> Iterator[str]:
    """An archive that does storage commitment; its address."""
    with scp(archive, *BOTH, commits=witness.on_request) as address:
        yield address


def test_report_in_the_same_association_is_the_delivery(tmp_path: Path) -> None:
    """Stored is not delivered; a report that names the transaction and the object is, with the job."""
    archive = Archive()
    with committing(archive, witness := Witness(archive)) as address:
        box = outbox(tmp_path, address, confirm="commitment")
        stored = go_on(box)
        assert (stored.state, stored.sent_sop_instance_uid, box.jobs.job("j").state) == ("confirming", RESULT, "delivering")
        delivery = go_on(box)
    assert (delivery.state, box.jobs.job("j").state) == ("delivered", "delivered"), delivery
    assert witness.asked[0].TransactionUID in delivery.last_answer
    assert witness.answers == [0]
    archive.require_one()


def test_object_that_was_lost_is_sent_again(tmp_path: Path) -> None:
    """0112 of an archive that said that it stored the object: it is sent again, and committed."""
    archive = Archive(loses=1)
    with committing(archive, Witness(archive)) as address:
        box = outbox(tmp_path, address, confirm="commitment")
        lost = go_on(box, attempts=2)
        assert (lost.state, lost.sent_again, lost.sent_sop_instance_uid) == ("waiting", 1, "")
        assert "FailureReason 0x0112 (no such object instance)" in lost.last_answer
        assert go_on(box, attempts=2).state == "delivered"
    assert len(archive.received) == 2
    archive.require_one()


def test_object_that_is_lost_twice_is_a_failure(tmp_path: Path) -> None:
    """It is sent again once; then the delivery fails with the archive's reason, and a retry begins anew."""
    archive = Archive(loses=2)
    with committing(archive, Witness(archive)) as address:
        box = outbox(tmp_path, address, confirm="commitment")
        failed = go_on(box, attempts=4)
        assert (failed.state, box.jobs.job("j").state, len(archive.received)) == ("failed", "failed", 2)
        assert "FailureReason 0x0112 (no such object instance), also after it was sent again" in failed.last_answer
        box.jobs.retry("j", box.now)
        assert go_on(box, attempts=2).state == "delivered"
    archive.require_one()


def test_report_that_never_comes_is_overdue_after_a_day(tmp_path: Path) -> None:
    """For 24 hours it is awaited and nothing else is done; then the object is sent again, and a day later it fails."""
    archive = Archive()
    with committing(archive, witness := Witness(archive, reports_at_once=False)) as address:
        box = outbox(tmp_path, address, confirm="commitment")
        awaited = go_on(box, attempts=2)
        assert (awaited.state, awaited.next_attempt_at) == ("confirming", box.now + DAY)
        assert f"in transaction {witness.asked[0].TransactionUID}: its report is awaited until" in awaited.last_answer
        box.now += DAY - 1
        assert box.attempt() == []
        archive.kept.clear()  # else it would say that it is there already
        overdue = go_on(box)
        assert (overdue.state, overdue.sent_again) == ("waiting", 1)
        failed = go_on(box, attempts=3)
    assert (failed.state, len(archive.received), len(witness.asked)) == ("failed", 2, 2)
    assert "has not reported storage commitment within 24 hours, also after it was sent again" in failed.last_answer


def test_report_is_awaited_by_a_clock_that_was_set_back(tmp_path: Path) -> None:
    """What was asked for at a time that is years away by now is looked at when it is reported, and not all the time."""
    archive = Archive()
    with committing(archive, witness := Witness(archive, reports_at_once=False)) as address:
        box = outbox(tmp_path, address, confirm="commitment")
        assert go_on(box, attempts=2).state == "confirming"
        box.now -= 1e8
        assert len(box.attempt()) == 1
        assert (box.attempt(), box.delivery().state) == ([], "confirming")
        assert box.commitments.answer(Report(witness.asked[0].TransactionUID, [Reference(LABELMAP, RESULT)]))
        assert (len(box.attempt()), box.delivery().state) == (1, "delivered")
    assert len(archive.received) == 1


def test_late_report_on_what_was_sent_before_counts(tmp_path: Path) -> None:
    """It is of the same object: one that comes after a day proves what was sent again, at the next sweep."""
    archive = Archive()
    with committing(archive, witness := Witness(archive, reports_at_once=False)) as address:
        box = outbox(tmp_path, address, confirm="commitment")
        go_on(box, attempts=2)
        archive.kept.clear()
        assert go_on(box, attempts=3).state == "confirming"
    first, second = witness.asked
    assert box.attempt() == []
    (item,) = first.ReferencedSOPSequence
    reference = Reference(item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID)
    assert box.commitments.answer(Report(first.TransactionUID, [reference]))
    box.attempt()
    assert (box.delivery().state, first.TransactionUID in box.delivery().last_answer) == ("delivered", True)
    assert box.commitments.answer(Report(second.TransactionUID, [], {reference: 0x0112}))
    assert (box.attempt(), box.delivery().state) == ([], "delivered")


def test_refusal_of_a_request_that_was_cut_short_counts(tmp_path: Path) -> None:
    """Of two requests about what was stored, the first of a worker that was killed, either may be reported on."""
    archive = Archive()
    with committing(archive, witness := Witness(archive, reports_at_once=False)) as address:
        box = outbox(tmp_path, address, confirm="commitment")
        stored = go_on(box)
        asked = Transaction("2.25.3", "j", "archive", LABELMAP, RESULT, stored.stored_in, box.now - 1)
        box.commitments.ask([asked])
        assert go_on(box).state == "confirming"
        assert len(witness.asked) == 1
        assert box.commitments.answer(Report("2.25.3", [], {Reference(LABELMAP, RESULT): 0x0213}))
        box.attempt()
        assert (box.delivery().state, box.delivery().sent_again) == ("waiting", 1)
        assert "FailureReason 0x0213 (resource limitation)" in box.delivery().last_answer


def test_cancelled_job_waits_for_no_report(tmp_path: Path) -> None:
    """What is reported of it later changes nothing."""
    archive = Archive()
    with committing(archive, witness := Witness(archive, reports_at_once=False)) as address:
        box = outbox(tmp_path, address, confirm="commitment")
        go_on(box, attempts=2)
    assert box.jobs.unsent("1.3") == {}, "an archive has it, as it says"
    box.jobs.cancel("j", box.now)
    (item,) = witness.asked[0].ReferencedSOPSequence
    reference = Reference(item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID)
    assert box.commitments.answer(Report(witness.asked[0].TransactionUID, [reference]))
    assert (box.attempt(), box.delivery().state, box.jobs.job("j").state) == ([], "cancelled", "cancelled")


def test_archive_that_does_no_commitment_is_a_failure_that_says_so(tmp_path: Path) -> None:
    """The class is not accepted: what to set is in the answer, and the object is not sent again."""
    archive = Archive()
    with scp(archive, *BOTH) as address:
        delivery = go_on(outbox(tmp_path, address, confirm="commitment"), attempts=2)
    assert (delivery.state, len(archive.received)) == ("failed", 1)
    assert "set confirm of archive to read-back or status" in delivery.last_answer


def test_archive_that_breaks_off_when_it_is_asked_fails_after_a_while(tmp_path: Path) -> None:
    """As an Orthanc that does not know the node: what to do is said from the first time on, and nothing else is held up."""

    def abort(event: evt.Event) -> tuple[int, None]:
        event.assoc.abort()
        return 0, None

    with scp(archive := Archive(), *BOTH, commits=abort) as address:
        box = outbox(tmp_path, address, confirm="commitment")
        first = go_on(box, attempts=2)
        assert (first.state, "see that it knows TEST, with host and port" in first.last_answer) == ("confirming", True)
        last = go_on(box, attempts=7)
    assert (last.state, len(archive.received)) == ("failed", 1)
    assert "set confirm of archive to read-back or status" in last.last_answer
    assert not box.standings.of("archive").is_down


def test_archive_that_rejects_who_asks_fails_after_a_day(tmp_path: Path) -> None:
    """Rejected for good whenever it is to be asked, it is no more tried than a report is awaited; nothing is sent again."""

    def reject(event: evt.Event) -> None:
        proposed = event.assoc.requestor.primitive.presentation_context_definition_list
        if StorageCommitmentPushModel in {context.abstract_syntax for context in proposed}:
            event.assoc.acse.send_reject(1, 1, 3)
            event.assoc.kill()

    with scp(archive := Archive(), *BOTH, asking=reject) as address:
        box = outbox(tmp_path, address, confirm="commitment")
        assert go_on(box, attempts=3).state == "confirming"
        box.now += DAY
        failed = go_on(box)
    assert (failed.state, len(archive.received)) == ("failed", 1)
    assert "not proved within 24 hours: " in failed.last_answer
    assert "rejected the association" in failed.last_answer


def test_binary_is_committed_under_its_own_uid(tmp_path: Path) -> None:
    """What is asked for is the object that was sent."""
    archive = Archive()
    with committing(archive, witness := Witness(archive)) as address:
        delivery = go_on(outbox(tmp_path, address, ["binary:native"], confirm="commitment"), attempts=2)
    assert delivery.state == "delivered", delivery
    (item,) = witness.asked[0].ReferencedSOPSequence
    (kept,) = archive.kept.values()
    sent = dcmread(BytesIO(kept))
    named = (item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID)
    assert named == (sent.SOPClassUID, sent.SOPInstanceUID) == (sent.SOPClassUID, delivery.sent_sop_instance_uid)


def a_job(node: Server) -> Job:
    """The job of a node."""
    (job,) = jobs_of(node).all()
    return job


def send_phantom(node: Server, phantom: Phantom) -> None:
    """Have a node make a SEG."""
    list(send_files(sorted(phantom.folder.iterdir()), parse_dimse_address(node.dimse, ""), "TEST"))


def test_report_in_another_association_wakes_the_delivery(tmp_path: Path, phantom: Phantom) -> None:
    """Reports of unknown transactions and other objects are refused; one that comes while the worker is dead is found."""
    archive = Archive()
    witness = Witness(archive, reports_at_once=False)
    with (
        committing(archive, witness) as address,
        segnode(tmp_path, DESTINATION.format(address) + RULE.format()) as node,
    ):
        send_phantom(node, phantom)
        until(lambda: len(witness.asked) == 1)
        until(lambda: "its report is awaited" in a_job(node).deliveries[0].last_answer)
        assert "confirming" in command(node, "jobs", "show", a_job(node).id)
        assert "0 waiting, 1 to be confirmed, 0 failed" in command(node, "destinations")
        asked = witness.asked[0]
        unknown, another = Dataset(), Dataset()
        unknown.update(asked)
        another.update(asked)
        unknown.TransactionUID = "2.25.1"
        another.ReferencedSOPSequence = [an_item(CTImageStorage, "2.25.2")]
        assert witness.report_to(node, unknown) == 0x0115
        assert witness.report_to(node, another) == 0x0115
        (worker,) = role_of(node, "worker")
        stop_between_writes(node, worker)
        assert witness.report_to(node, asked) == 0
        starts = kill_role(node, "worker")
        await_starts(node, starts)
        (job,) = await_jobs(node_config(node))
        assert (job.state, job.deliveries[0].state) == ("delivered", "delivered"), job
        assert [state for state, _ in job.transitions].count("delivered") == 1
    assert (len(archive.received), len(archive.kept), len(witness.asked)) == (1, 1, 1)


def test_nothing_waits_for_a_report_that_is_not_wanted_any_more(tmp_path: Path, phantom: Phantom) -> None:
    """The configuration is read again with another `confirm`: what waits for a report, up to a day, is delivered."""
    archive = Archive()
    witness = Witness(archive, reports_at_once=False)
    with committing(archive, witness) as address, segnode(tmp_path, DESTINATION.format(address) + RULE.format()) as node:
        send_phantom(node, phantom)
        until(lambda: len(jobs_of(node).all()) == 1)
        until(lambda: any("its report is awaited" in delivery.last_answer for delivery in a_job(node).deliveries))
        reload(node, DESTINATION.format(address).replace("commitment", "status") + RULE.format())
        (job,) = await_jobs(node_config(node))
    assert (job.state, len(archive.received), len(witness.asked)) == ("delivered", 1, 1)


def test_worker_killed_while_it_asks_asks_again(tmp_path: Path, phantom: Phantom) -> None:
    """Killed between the store and the answer to N-ACTION: the object is not sent again, and what is reported counts."""
    archive = Archive()
    witness = Witness(archive, reports_at_once=False)
    asked, go_on_answering = threading.Event(), threading.Event()

    def slowly(event: evt.Event) -> tuple[int, None]:
        answer = witness.on_request(event)
        asked.set()
        go_on_answering.wait(60)
        return answer

    with scp(archive, *BOTH, commits=slowly) as address, segnode(tmp_path, DESTINATION.format(address) + RULE.format()) as node:
        send_phantom(node, phantom)
        assert asked.wait(60)
        starts = kill_role(node, "worker")
        go_on_answering.set()
        await_starts(node, starts)
        until(lambda: len(witness.asked) == 2)
        until(lambda: "its report is awaited" in a_job(node).deliveries[0].last_answer)
        assert witness.report_to(node, witness.asked[0]) == 0
        (job,) = await_jobs(node_config(node))
        assert job.deliveries[0].state == "delivered", job
    assert (len(archive.received), len(archive.kept)) == (1, 1)


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Server]]:
    """An Orthanc and a node that know each other."""
    if orthanc_program() is None:
        absent("Orthanc with its DICOMweb plug-in", "install orthanc and orthanc-dicomweb (scripts/peers does)")
    folder = tmp_path_factory.mktemp("peers")
    with (
        orthanc(folder / "orthanc") as archive,
        segnode(folder / "node", DESTINATION.format(archive.dimse) + RULE.format()) as node,
    ):
        known = {"AET": node.ae_title, "Host": "127.0.0.1", "Port": node.dicom_port, "AllowStorageCommitment": True}
        httpx.put(f"http://127.0.0.1:{archive.http_port}/modalities/node", json=known).raise_for_status()
        yield archive, node


def test_orthanc_commits_what_it_was_sent(peers: tuple[Server, Server], phantom: Phantom) -> None:
    """Orthanc as the SCP: it reports in an association of its own, and the job is delivered then."""
    archive, node = peers
    send_phantom(node, phantom)
    (job,) = await_jobs(node_config(node))
    (delivery,) = job.deliveries
    assert (job.state, delivery.form) == ("delivered", "binary:native"), job
    assert delivery.last_answer.startswith("storage commitment in transaction ")
    (held,) = held_by(archive)
    assert held.SOPInstanceUID == delivery.sent_sop_instance_uid


def ask_by_orthanc(archive: Server, referenced: Sequence[tuple[str, str]]) -> dict:
    """Have Orthanc ask the node to stand by objects; the report that it got."""
    root = f"http://127.0.0.1:{archive.http_port}"
    named = [{"SOPClassUID": sop_class, "SOPInstanceUID": instance} for sop_class, instance in referenced]
    asked = httpx.post(f"{root}/modalities/node/storage-commitment", json={"DicomInstances": named})
    asked.raise_for_status()
    report: dict = {}

    def is_reported() -> bool:
        report.update(httpx.get(f"{root}{asked.json()['Path']}").json())
        return report["Status"] != "Pending"

    until(is_reported)
    return report


def test_orthanc_is_told_what_the_node_holds(tmp_path: Path, peers: tuple[Server, Server]) -> None:
    """Orthanc as the SCU, which takes reports in an association of the node's: success, or why not."""
    archive, node = peers
    image = tmp_path / "image.dcm"
    image.write_bytes(encode_part10(small("1.2.19.1"), ExplicitVRLittleEndian))
    list(send_files([image], parse_dimse_address(node.dimse, ""), "TEST"))
    row = index_of(node).find("1.2.19.1")
    assert row is not None
    report = ask_by_orthanc(archive, [(row.sop_class_uid, "1.2.19.1")])
    assert (report["Status"], report["Success"][0]["SOPInstanceUID"]) == ("Success", "1.2.19.1")
    report = ask_by_orthanc(
        archive, [(row.sop_class_uid, "1.2.19.1"), (CTImageStorage, "1.2.19.2"), (MRImageStorage, "1.2.19.1")]
    )
    assert report["Status"] == "Failure"
    reasons = {(failed["SOPClassUID"], failed["SOPInstanceUID"]): failed["FailureReason"] for failed in report["Failures"]}
    assert reasons == {(CTImageStorage, "1.2.19.2"): 0x0112, (MRImageStorage, "1.2.19.1"): 0x0119}


@dataclass
class Asker:
    """A peer that asks the node to stand by objects, and what it is told."""

    ae_title: str = "NOBODY"
    reports: list[tuple[int, Dataset]] = field(default_factory=list)

    def on_report(self, event: evt.Event) -> tuple[int, None]:
        """Take a report."""
        self.reports.append((event.event_type, event.event_information))
        return 0, None

    @contextmanager
    def association(self, node: Server) -> Iterator[Association]:
        """An association with a node."""
        ae = AE(self.ae_title)
        ae.add_requested_context(StorageCommitmentPushModel)
        handlers = [(evt.EVT_N_EVENT_REPORT, self.on_report)]
        association = ae.associate("127.0.0.1", node.dicom_port, ae_title=node.ae_title, evt_handlers=handlers)
        assert association.is_established
        try:
            yield association
        finally:
            association.release()


def a_request(transaction_uid: str, *referenced: tuple[str, str]) -> Dataset:
    """What a peer asks for."""
    information = Dataset()
    information.TransactionUID = transaction_uid
    information.ReferencedSOPSequence = [an_item(*pair) for pair in referenced]
    return information


def ask(association: Association, information: Dataset, action: int = 1, instance: str = WELL_KNOWN) -> int:
    """Ask; the status of the answer."""
    status, _ = association.send_n_action(information, action, StorageCommitmentPushModel, instance)
    return int(status.Status)


@pytest.fixture(scope="module")
def holder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A node that holds one CT image, and has no destinations."""
    folder = tmp_path_factory.mktemp("holder")
    with segnode(folder, "models = []\nrules = []") as node:
        image = folder / "image.dcm"
        image.write_bytes(encode_part10(small("1.2.19.1"), ExplicitVRLittleEndian))
        list(send_files([image], parse_dimse_address(node.dimse, ""), "TEST"))
        yield node


def test_who_leaves_the_association_open_is_told_in_it(holder: Server) -> None:
    """A report on everything that was named: what is held, what is not, and what is of another class."""
    asker = Asker()
    with asker.association(holder) as association:
        held, missing, conflict = (CTImageStorage, "1.2.19.1"), (CTImageStorage, "1.2.19.2"), (MRImageStorage, "1.2.19.1")
        assert ask(association, a_request("2.25.101", held)) == 0
        assert ask(association, a_request("2.25.102", held, missing, conflict)) == 0
        until(lambda: len(asker.reports) == 2)
        until(lambda: unreported(holder) == [])
    (first_type, first), (second_type, second) = asker.reports
    assert (first_type, first.TransactionUID, "FailedSOPSequence" in first) == (1, "2.25.101", False)
    assert (second_type, second.TransactionUID) == (2, "2.25.102")
    assert [item.ReferencedSOPInstanceUID for item in second.ReferencedSOPSequence] == ["1.2.19.1"]
    assert [(i.ReferencedSOPInstanceUID, i.FailureReason) for i in second.FailedSOPSequence] == [
        ("1.2.19.2", 0x0112),
        ("1.2.19.1", 0x0119),
    ]


def unreported(node: Server) -> list[Request]:
    """What a node owes a report of."""
    return list(commitments_of(node).unreported(float("inf")))


def test_transaction_uid_that_was_used_before_fails(holder: Server) -> None:
    """A second request under the same transaction UID is answered by a report of 0131, whatever is held."""
    asker = Asker()
    with asker.association(holder) as association:
        for number in (1, 2):
            assert ask(association, a_request("2.25.103", (CTImageStorage, "1.2.19.1"))) == 0
            until(lambda number=number: len(asker.reports) == number)
            # The answer to a report goes out after it is noted here; who asks or ends in between breaks the association.
            until(lambda: unreported(holder) == [])
    assert [event_type for event_type, _ in asker.reports] == [1, 2]
    assert asker.reports[1][1].FailedSOPSequence[0].FailureReason == 0x0131


@pytest.mark.parametrize(
    ("information", "action", "instance", "status"),
    [
        (a_request("2.25.104", (CTImageStorage, "1.2.19.1")), 1, "1.2.3", 0x0112),
        (a_request("2.25.104", (CTImageStorage, "1.2.19.1")), 2, WELL_KNOWN, 0x0123),
        (a_request("2.25.104"), 1, WELL_KNOWN, 0x0115),
        (a_request("", (CTImageStorage, "1.2.19.1")), 1, WELL_KNOWN, 0x0115),
        (a_request("2.25.104", (CTImageStorage, "")), 1, WELL_KNOWN, 0x0115),
    ],
)
def test_request_that_makes_no_sense_is_refused(
    holder: Server, information: Dataset, action: int, instance: str, status: int
) -> None:
    """With the status that says what is wrong, and no report follows."""
    with Asker().association(holder) as association:
        assert ask(association, information, action, instance) == status
    assert unreported(holder) == []


def test_report_is_owed_to_a_peer_that_is_not_known(holder: Server) -> None:
    """Where the requester ends its association and no destination has its AE title, the log says what to do."""
    with Asker().association(holder) as association:
        assert ask(association, a_request("2.25.105", (CTImageStorage, "1.2.19.1"))) == 0
    until(lambda: "add it to [[destinations]]" in holder.log.read_text())
    assert any(event["peer"] == "NOBODY" for event in events(holder, "a report of storage commitment cannot be sent"))


def test_report_that_a_killed_process_owed_is_sent(tmp_path: Path) -> None:
    """Killed after it has said that it would report: the worker does it a minute later, to the address it knows."""
    told: list[Dataset] = []
    ae = AE("ASKER")
    ae.add_supported_context(StorageCommitmentPushModel, scu_role=True, scp_role=True)
    handlers = [(evt.EVT_N_EVENT_REPORT, lambda event: (told.append(event.event_information), (0, None))[1])]
    server = ae.start_server(("127.0.0.1", free_port()), block=False, evt_handlers=handlers)
    box = outbox(tmp_path, f"ASKER@127.0.0.1:{server.server_address[1]}")
    objects, index = box.deliverer.objects, box.deliverer.index
    reporter = Reporter(box.commitments, index, objects, {"ASKER": box.committers["archive"]}, lambda: box.now)
    box.commitments.add_request("2.25.106", "ASKER", [Reference(LABELMAP, RESULT)], box.now, box.now + 60)
    try:
        reporter.report_all()
        assert told == []
        box.now += 60
        reporter.report_all()
        reporter.report_all()
    finally:
        server.shutdown()
    assert [report.TransactionUID for report in told] == ["2.25.106"]
    assert told[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID == RESULT


def test_peer_that_is_gone_is_tried_once_a_turn(tmp_path: Path) -> None:
    """Three reports are owed to it: one is tried, and the others wait with it; next time it is another."""
    box = outbox(tmp_path, f"ASKER@127.0.0.1:{free_port()}")
    peers = {"ASKER": box.committers["archive"]}
    reporter = Reporter(box.commitments, box.deliverer.index, box.deliverer.objects, peers, lambda: box.now)
    for number in range(3):
        box.commitments.add_request(f"2.25.11{number}", "ASKER", [Reference(LABELMAP, RESULT)], box.now, box.now)
    for tried in ([0, 0, 1], [0, 1, 1]):
        reporter.report_all()
        assert box.commitments.unreported(box.now) == []
        box.now += 900
        assert [request.attempts for request in box.commitments.unreported(box.now)] == tried


def test_report_is_given_up_after_a_day(tmp_path: Path) -> None:
    """A peer that cannot be reached is tried with back-off, and no longer than it would wait."""
    box = outbox(tmp_path, f"ASKER@127.0.0.1:{free_port()}")
    peers = {"ASKER": box.committers["archive"]}
    reporter = Reporter(box.commitments, box.deliverer.index, box.deliverer.objects, peers, lambda: box.now)
    box.commitments.add_request("2.25.107", "ASKER", [Reference(LABELMAP, RESULT)], box.now, box.now)
    reporter.report_all()
    assert box.commitments.unreported(box.now) == []
    box.now += 5
    assert [request.attempts for request in box.commitments.unreported(box.now)] == [1]
    box.now += DAY
    reporter.report_all()
    assert box.commitments.unreported(float("inf")) == []
