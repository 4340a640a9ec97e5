"""Objects and rows."""

import sqlite3
import subprocess
import sys
import threading
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import QueuePool
from sqlalchemy.exc import IntegrityError

from segnode.dicom.header import Header
from segnode.dicom.query import Exactly, Query, asked
from segnode.errors import JobEnded, NotFound, OutOfResources
from segnode.pipeline.job_document import job_document, progress_line
from segnode.store.commitments import Commitments, Reference, Report
from segnode.store.database import open_database
from segnode.store.documents import Documents
from segnode.store.index import Index
from segnode.store.jobs import Decision, Jobs, Taken
from segnode.store.leases import Lease
from segnode.store.objects import ObjectStore

HEADER = Header(
    "1.2.840.10008.5.1.4.1.1.2", "1.1", "1.2", "1.3", "1.2.840.10008.1.2.1", 300, {"Modality": "CT", "PatientID": "A"}
)
DECISION = Decision("j", "1.3", "content", "rule", "threshold", "1")


@pytest.fixture
def index(tmp_path: Path) -> Index:
    """An empty index."""
    return Index(open_database(tmp_path / "index.sqlite"))


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    """No jobs."""
    return Jobs(open_database(tmp_path / "pipeline.sqlite"))


def add(index: Index, sop: str, now: float, key: str | None = None, series: str = "1.3", **attributes: str) -> str:
    """Add an object; the key of the one that is held then."""
    header = replace(HEADER, sop_instance_uid=sop, series_instance_uid=series, attributes={**HEADER.attributes, **attributes})
    return index.add(header, key or f"key {sop}", 10, "digest", "received", now).object_key


def test_progress_is_that_of_the_run_which_goes_on(jobs: Jobs, index: Index) -> None:
    """What a model said stays with its job until it runs anew; of a job that is not with its model nothing is kept."""
    jobs.decide(DECISION, 1.0)
    jobs.progress("j", 0.1, "too early")
    assert progress_line(job_document(jobs.job("j"), index)) == ""
    jobs.enter("j", "inferring", 2.0)
    jobs.progress("j", 0.42, "second fold")
    jobs.enter("j", "encoding", 3.0)
    jobs.progress("j", 0.9, "too late")
    assert progress_line(job_document(jobs.job("j"), index)) == "42% second fold"
    jobs.enter("j", "inferring", 4.0)
    assert job_document(jobs.job("j"), index).progress is None


def test_object_is_where_its_key_says_and_the_spool_is_empty(tmp_path: Path) -> None:
    """A kept object lies under its key, readable by its owner only as the umask says, and nothing is left incoming."""
    objects = ObjectStore(tmp_path, Lease("a" * 12, "dimse"))
    with objects.spool() as spool:
        spool.write(b"abc")
        spool.complete()
        key = objects.keep(spool)
    assert objects.path(key).read_bytes() == b"abc"
    assert list(objects.incoming.iterdir()) == []


def test_spool_that_is_not_kept_is_gone(tmp_path: Path) -> None:
    """What was not kept leaves nothing, also after an error."""
    objects = ObjectStore(tmp_path, Lease("a" * 12, "dimse"))
    with pytest.raises(ZeroDivisionError), objects.spool() as spool:
        spool.write(b"abc")
        raise ZeroDivisionError
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_half_written_files_of_one_owner_are_deleted(tmp_path: Path) -> None:
    """A role deletes its own leftovers once they are as old as it says, and nobody else's."""
    dimse, web = ObjectStore(tmp_path, Lease("a" * 12, "dimse")), ObjectStore(tmp_path, Lease("b" * 12, "web"))
    (dimse.incoming / "left").write_bytes(b"x")
    (web.incoming / "open").write_bytes(b"x")
    dimse.delete_half_written(older_than_s=60)
    assert len(list(dimse.incoming.iterdir())) == 1
    dimse.delete_half_written()
    assert list(dimse.incoming.iterdir()) == []
    assert len(list(web.incoming.iterdir())) == 1


@pytest.mark.parametrize("key", ["../../../etc/passwd", "", "g" * 32, "a" * 31])
def test_only_keys_are_paths(tmp_path: Path, key: str) -> None:
    """Nothing but a key of the store's own making becomes a path."""
    with pytest.raises(ValueError, match="not an object key"):
        ObjectStore(tmp_path, Lease("a" * 12, "dimse")).path(key)


def test_disk_that_takes_nothing_is_out_of_resources(tmp_path: Path) -> None:
    """A folder that cannot be written to is said as no room, which a sender may try again."""
    objects = ObjectStore(tmp_path, Lease("a" * 12, "dimse"))
    objects.incoming.rmdir()
    with pytest.raises(OutOfResources):
        objects.spool()


def test_full_disk_under_the_rows_is_no_room(tmp_path: Path) -> None:
    """A row that the disk does not take is said as no room, which whoever writes it may try again; so is a commit."""
    engine = open_database(tmp_path / "pipeline.sqlite")
    jobs = Jobs(engine)
    with engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(OutOfResources, match="full"):
        jobs.decide(Decision("j", "1.3", "content" * 10000, "rule", "m", "1"), 0.0)
    assert jobs.all() == []


def test_same_uid_again_changes_nothing(index: Index) -> None:
    """A second object of a held UID returns the first, and its series is not touched."""
    assert add(index, "1.1", 5.0, "first") == "first"
    assert add(index, "1.1", 9.0, "second") == "first"
    assert [series.last_received_at for series in index.quiet_series()] == [5.0]
    assert len(index.instances("1.2")) == 1


def test_two_writers_of_one_uid_agree(tmp_path: Path) -> None:
    """Of many processes that add one UID at once, all are told of the same one."""
    answers: list[str] = []
    barrier = threading.Barrier(8)

    def write(number: int) -> None:
        index = Index(open_database(tmp_path / "index.sqlite"))
        barrier.wait()
        answers.append(add(index, "1.1", 1.0, f"key {number}"))

    threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 8
    assert len(set(answers)) == 1


MAKERS = """
import multiprocessing, sys
from pathlib import Path
from segnode.store.database import open_database
from segnode.store.index import Index

def make(path, barrier):
    barrier.wait()
    Index(open_database(path)).find("1.1")

fork = multiprocessing.get_context("fork")
for number in range(100):
    barrier = fork.Barrier(4)
    path = Path(sys.argv[1]) / f"{number}.sqlite"
    makers = [fork.Process(target=make, args=(path, barrier)) for _ in range(4)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()
    if any(maker.exitcode for maker in makers):
        sys.exit("a process could not make the database, or find it made")
"""


def test_many_may_make_the_same_database(tmp_path: Path) -> None:
    """Roles that start at once on an empty data folder all find their database: none is told that it is locked."""
    subprocess.run([sys.executable, "-c", MAKERS, str(tmp_path)], check=True)


def test_series_is_quiet_until_considered_and_again_after_an_image(index: Index) -> None:
    """A series is listed from its last image until it was considered; an image that comes later lists it anew."""
    add(index, "1.1", 1.0)
    (series,) = index.quiet_series()
    add(index, "1.5", 2.0)
    index.set_considered(series)
    (series,) = index.quiet_series()
    assert (series.last_received_at, series.attributes["Modality"]) == (2.0, "CT")
    index.set_considered(series)
    assert index.quiet_series() == []


def test_what_the_node_made_is_no_image_and_never_quiet(index: Index) -> None:
    """An object of the node's own starts nothing."""
    index.add(HEADER, "key", 1, "d", "made", 1.0)
    assert index.quiet_series() == []
    assert index.images("1.3") == []
    assert len(index.instances("1.2")) == 1


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        ({}, ["1.3", "1.4"]),
        ({"Modality": "MR"}, ["1.4"]),
        ({"Modality": "?R"}, ["1.4"]),
        ({"SeriesDescription": "T[1]*"}, ["1.4"]),
        ({"SeriesInstanceUID": "1.3,1.9"}, ["1.3"]),
        ({"SeriesDate": "20260101-20260131"}, ["1.4"]),
        ({"SeriesDate": "20260201-"}, []),
        ({"SeriesDate": "-20260131"}, ["1.4"]),
        ({"PatientID": "B"}, []),
    ],
)
def test_search_matches_as_dicom_does(index: Index, keys: dict[str, str], found: list[str]) -> None:
    """Single value, wildcard, list of UIDs and date range."""
    add(index, "1.1", 1.0)
    add(index, "1.5", 1.0, series="1.4", Modality="MR", SeriesDescription="T[1] x", SeriesDate="20260115")
    query = Query("series", keys={keyword: asked(keyword, value) for keyword, value in keys.items()})
    assert [*index.search(query, ["SeriesInstanceUID"], 10).attributes["SeriesInstanceUID"]] == found


def test_segments_go_with_their_object(index: Index) -> None:
    """What was deleted is not found by its segments, and one that comes again is found by those that it has then."""
    seg = replace(HEADER, items={"SegmentSequence": [{"SegmentLabel": "Liver"}]})
    query = Query("instances", keys={"SegmentSequence.SegmentLabel": Exactly(("Liver",))})
    index.add(seg, "key", 1, "d", "made", 1.0)
    assert len(index.search(query, ["SOPInstanceUID"], 10).object_keys) == 1
    index.doom_made("1.1")
    index.add(replace(seg, items={}), "other key", 1, "d", "made", 1.0)
    assert not index.search(query, ["SOPInstanceUID"], 10).object_keys


def test_job_goes_through_its_states(jobs: Jobs) -> None:
    """A decision is one job whatever is repeated; deliveries settle it."""
    jobs.decide(DECISION, 1.0)
    jobs.decide(DECISION, 2.0)
    assert [(job.id, job.attempt) for job in jobs.waiting()] == [("j", 0)]
    jobs.enter("j", "encoding", 3.0)
    jobs.owe("j", "1.9", ["a", "b"], 4.0)
    jobs.owe("j", "1.9", ["a", "b"], 4.5)
    assert jobs.waiting() == []
    a, b = jobs.due(4.0)
    jobs.delivered(a, Taken("labelmap:rle", "1.9"), "ok", 5.0)
    assert jobs.job("j").state == "delivering"
    jobs.deferred(b, "busy", 20.0, 6.0)
    assert jobs.due(19.0) == []
    (b,) = jobs.due(20.0)
    assert (b.attempts, b.last_answer) == (1, "busy")
    jobs.refused(b, "no", 21.0)
    job = jobs.job("j")
    assert (job.state, job.error, job.sop_instance_uid) == ("failed", "b: no", "1.9")
    assert job.transitions == (("waiting", 1.0), ("encoding", 3.0), ("delivering", 4.0), ("failed", 21.0))


def test_result_that_is_owed_to_nobody_is_delivered(jobs: Jobs) -> None:
    """Without destinations a job is done when its result is held."""
    jobs.decide(DECISION, 1.0)
    jobs.owe("j", "1.9", [], 2.0)
    assert jobs.job("j").state == "delivered"


def test_failed_delivery_is_tried_again_on_request(jobs: Jobs) -> None:
    """Retrying a job whose delivery failed owes that delivery anew, and leaves alone what was delivered."""
    jobs.decide(DECISION, 1.0)
    jobs.owe("j", "1.9", ["a", "b"], 2.0)
    a, b = jobs.due(2.0)
    jobs.delivered(a, Taken("labelmap:rle", "1.9"), "ok", 3.0)
    with pytest.raises(JobEnded, match="has not failed"):
        jobs.retry("j", 3.5)
    jobs.refused(b, "no", 4.0)
    jobs.retry("j", 5.0)
    (again,) = jobs.due(5.0)
    assert (again.destination, again.attempts, again.created_at) == ("b", 1, 5.0)
    job = jobs.job("j")
    assert (job.state, job.error, job.attempt) == ("delivering", "", 1)


def test_failed_result_is_tried_again_on_request(jobs: Jobs) -> None:
    """Retrying a job that has no result makes it wait anew, under another attempt."""
    jobs.decide(DECISION, 1.0)
    jobs.fail("j", "no volume", 2.0)
    assert jobs.waiting() == []
    jobs.retry("j", 3.0)
    assert [(job.id, job.attempt) for job in jobs.waiting()] == [("j", 1)]


def test_cancelled_job_goes_no_further(jobs: Jobs) -> None:
    """A cancelled job enters no state, owes nothing and cannot fail; what it had sent is known of its delivery only."""
    jobs.decide(DECISION, 1.0)
    jobs.cancel("j", 2.0)
    for step in (
        lambda: jobs.enter("j", "inferring", 3.0),
        lambda: jobs.owe("j", "1.9", ["a"], 3.0),
        lambda: jobs.cancel("j", 3.0),
    ):
        with pytest.raises(JobEnded, match="it is cancelled"):
            step()
    jobs.fail("j", "late", 4.0)
    assert (jobs.job("j").state, jobs.job("j").error) == ("cancelled", "")
    jobs.retry("j", 5.0)
    jobs.owe("j", "1.9", ["a"], 6.0)
    (delivery,) = jobs.due(6.0)
    jobs.cancel("j", 7.0)
    assert jobs.due(8.0) == []
    jobs.delivered(delivery, Taken("labelmap:rle", "1.9"), "ok", 8.0)
    assert (jobs.job("j").state, jobs.delivery("j", "a").state) == ("cancelled", "delivered")


@pytest.mark.parametrize("outcome", ["stored", "send_again"])
def test_what_comes_of_an_attempt_brings_no_cancelled_job_back(jobs: Jobs, outcome: str) -> None:
    """Cancelled while its object was on the way: what was said of it is kept, and nothing is owed any more."""
    jobs.decide(DECISION, 1.0)
    jobs.owe("j", "1.9", ["a"], 2.0)
    (delivery,) = jobs.due(2.0)
    jobs.cancel("j", 3.0)
    if outcome == "stored":
        jobs.stored(delivery, Taken("labelmap:rle", "1.9"), "ok", 4.0)
    else:
        jobs.send_again(delivery, "lost", 4.0, 4.0)
    (after,) = jobs.job("j").deliveries
    assert (after.state, after.attempts, jobs.due(9.0), jobs.job("j").state) == ("cancelled", 1, [], "cancelled")


def test_retry_of_what_was_all_delivered_makes_nothing_anew(jobs: Jobs) -> None:
    """A job that was cancelled while its last object was on the way, which arrived: it is delivered, and not done again."""
    jobs.decide(DECISION, 1.0)
    jobs.owe("j", "1.9", ["a"], 2.0)
    (delivery,) = jobs.due(2.0)
    jobs.cancel("j", 3.0)
    jobs.delivered(delivery, Taken("labelmap:rle", "1.9"), "ok", 4.0)
    jobs.retry("j", 5.0)
    assert (jobs.job("j").state, jobs.waiting()) == ("delivered", [])


def test_job_is_found_by_the_beginning_of_its_id(jobs: Jobs) -> None:
    """The beginning of an id names one job, or is an error; it is no pattern."""
    jobs.decide(DECISION, 1.0)
    jobs.decide(replace(DECISION, id="jk"), 1.0)
    assert jobs.beginning("jk").id == "jk"
    for prefix in ("j", "x", "%", "_"):
        with pytest.raises(NotFound):
            jobs.beginning(prefix)


def test_rule_keeps_the_time_it_was_first_loaded(jobs: Jobs) -> None:
    """A rule that is loaded again is as old as it was."""
    assert jobs.load_rules({"r": "{}"}, 1.0) == {"r": 1.0}
    assert jobs.load_rules({"r": "{}", "s": "{}"}, 2.0) == {"r": 1.0, "s": 2.0}


JOBS_OF_THEN = """
CREATE TABLE job (id VARCHAR NOT NULL, series_instance_uid VARCHAR NOT NULL, content_digest VARCHAR NOT NULL,
 rule_digest VARCHAR NOT NULL, model VARCHAR NOT NULL, model_version VARCHAR NOT NULL, state VARCHAR NOT NULL,
 attempt INTEGER NOT NULL, note VARCHAR NOT NULL, error VARCHAR NOT NULL, sop_instance_uid VARCHAR NOT NULL,
 created_at FLOAT NOT NULL, updated_at FLOAT NOT NULL, PRIMARY KEY (id));
CREATE TABLE delivery (job_id VARCHAR NOT NULL, destination VARCHAR NOT NULL, sop_instance_uid VARCHAR NOT NULL,
 state VARCHAR NOT NULL, form VARCHAR NOT NULL, attempts INTEGER NOT NULL, next_attempt_at FLOAT NOT NULL,
 created_at FLOAT NOT NULL, last_answer VARCHAR NOT NULL, PRIMARY KEY (job_id, destination),
 FOREIGN KEY(job_id) REFERENCES job (id));
CREATE INDEX ix_delivery_state ON delivery (state);
INSERT INTO job VALUES ('j', '1.3', 'c', 'r', 'm', '1', 'delivering', 0, '', '', '1.9', 1.0, 1.0);
INSERT INTO delivery VALUES ('j', 'a', '1.9', 'waiting', '', 3, 5.0, 1.0, 'busy');
INSERT INTO delivery VALUES ('j', 'b', '1.9', 'delivered', 'labelmap:rle', 1, 1.0, 1.0, 'ok');
"""


def test_folder_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    """Columns that a table did not have then are added, and another key is given to it, with the rows that are there."""
    with closing(sqlite3.connect(tmp_path / "pipeline.sqlite")) as connection:
        connection.executescript(JOBS_OF_THEN)
    for _ in range(2):
        jobs = Jobs(open_database(tmp_path / "pipeline.sqlite"))
        (delivery,) = jobs.due(6.0)
        assert (delivery.attempts, delivery.tried, delivery.unanswered, delivery.segment_numbers) == (3, (), "", {})
        assert [(d.destination, d.state) for d in jobs.job("j").deliveries] == [("b", "delivered"), ("a", "waiting")]
    forwards = replace(DECISION, id="f", model="", model_version="")
    assert jobs.decide_forward(forwards, [("1.1", "a"), ("1.5", "a")], "", 7.0)
    assert [(d.job_id, d.sop_instance_uid) for d in jobs.due(8.0)] == [("j", "1.9"), ("f", "1.1"), ("f", "1.5")]


def test_requests_for_commitment_of_an_earlier_version_are_awaited(tmp_path: Path) -> None:
    """A transaction was of one object then; what was asked is still known, and its report wakes the delivery."""
    jobs = Jobs(open_database(tmp_path / "pipeline.sqlite"))
    jobs.decide(DECISION, 1.0)
    jobs.owe("j", "1.9", ["a"], 2.0)
    jobs.stored(jobs.due(2.0)[0], Taken("labelmap:rle", "1.9"), "ok", 2.0)
    jobs.awaited(jobs.due(2.0)[0], "awaited", 86400.0, 3.0)
    with closing(sqlite3.connect(tmp_path / "pipeline.sqlite")) as connection:
        connection.executescript("""
CREATE TABLE commitment (transaction_uid VARCHAR NOT NULL, job_id VARCHAR NOT NULL, destination VARCHAR NOT NULL,
 sop_class_uid VARCHAR NOT NULL, sop_instance_uid VARCHAR NOT NULL, stored_in INTEGER NOT NULL, asked_at FLOAT NOT NULL,
 is_accepted BOOLEAN NOT NULL, outcome VARCHAR NOT NULL, reason INTEGER NOT NULL, answered_at FLOAT NOT NULL,
 settled BOOLEAN NOT NULL, PRIMARY KEY (transaction_uid));
CREATE INDEX ix_commitment_settled ON commitment (settled);
INSERT INTO commitment VALUES ('2.25.1', 'j', 'a', '1.1', '1.9', 0, 3.0, 1, '', 0, 0.0, 0);
""")
    commitments = Commitments(open_database(tmp_path / "pipeline.sqlite"))
    assert commitments.answer(Report("2.25.1", [Reference("1.1", "1.9")]))
    commitments.wake(["a"], 4.0)
    (delivery,) = jobs.due(4.0)
    (asked,) = commitments.of("j", "a", Reference("1.1", "1.9"))
    assert (delivery.state, asked.is_accepted, asked.outcome) == ("confirming", True, "committed")


def test_old_rows_are_all_there_or_the_table_is_as_it_was(tmp_path: Path) -> None:
    """A row that cannot be carried over leaves the table of before, whole."""
    with closing(sqlite3.connect(tmp_path / "pipeline.sqlite")) as connection:
        connection.executescript(JOBS_OF_THEN)
        connection.execute("PRAGMA foreign_keys = OFF")
        connection.execute("INSERT INTO delivery VALUES ('gone', 'a', '1.9', 'waiting', '', 0, 5.0, 1.0, '')")
        connection.commit()
    with pytest.raises(IntegrityError):
        Jobs(open_database(tmp_path / "pipeline.sqlite"))
    with closing(sqlite3.connect(tmp_path / "pipeline.sqlite")) as connection:
        assert connection.execute("SELECT count(*) FROM delivery").fetchone() == (3,)
        assert connection.execute("SELECT count(*) FROM sqlite_master WHERE name LIKE '%before%'").fetchone() == (0,)


def test_what_was_taken_is_in_the_row(jobs: Jobs) -> None:
    """Which object a destination took, in which form, and how its segments were renumbered; and what was sent before that."""
    jobs.decide(DECISION, 1.0)
    jobs.owe("j", "1.9", ["a"], 2.0)
    for form in ("labelmap:rle", "binary:native", "labelmap:rle"):
        jobs.sending(jobs.delivery("j", "a"), form)
    assert (jobs.delivery("j", "a").tried, jobs.delivery("j", "a").unanswered) == (
        ("labelmap:rle", "binary:native"),
        "labelmap:rle",
    )
    jobs.delivered(jobs.delivery("j", "a"), Taken("binary:native", "1.10", {2: 1, 7: 2}), "ok", 3.0)
    delivery = jobs.delivery("j", "a")
    assert (delivery.sent_sop_instance_uid, delivery.segment_numbers) == ("1.10", {2: 1, 7: 2})
    assert (delivery.sop_instance_uid, delivery.unanswered) == ("1.9", "")


def test_index_of_an_earlier_version_is_opened(tmp_path: Path) -> None:
    """Files that were doomed before it was known when are still deleted."""
    Index(open_database(tmp_path / "index.sqlite"))
    with closing(sqlite3.connect(tmp_path / "index.sqlite")) as connection, connection:
        connection.execute("DROP TABLE doomed")
        connection.execute("CREATE TABLE doomed (object_key VARCHAR NOT NULL PRIMARY KEY)")
        connection.execute("INSERT INTO doomed VALUES ('key')")
    assert Index(open_database(tmp_path / "index.sqlite")).doomed(0.0) == ["key"]


def test_documents_in_the_order_they_are_asked_for_until_there_is_much(tmp_path: Path) -> None:
    """The first of those that are asked for, at least one; one that is missing is empty in its place."""
    documents = Documents(open_database(tmp_path / "documents.sqlite"))
    short, long = b'{"a": 1}', b'{"a": "' + bytes(range(32, 127)) * 400 + b'"}'
    documents.add({"a": short, "b": long})
    assert documents.first(["b", "x", "a"], len(long) + 1) == [long, b"", short]
    assert documents.first(["b", "x", "a"], len(long)) == [long]


def test_documents_that_are_lacking(tmp_path: Path) -> None:
    """Of some keys those of objects without a document."""
    documents = Documents(open_database(tmp_path / "documents.sqlite"))
    documents.add({"a": b"{}"})
    assert documents.lacking(["b", "a", "c"]) == {"b", "c"}


@pytest.mark.parametrize("model", ["threshold", ""])
def test_jobs_are_read_by_one_connection(tmp_path: Path, model: str) -> None:
    """Each reader needs one of those that there are, and no second while it has that: else many would wait for each other."""
    engine = open_database(tmp_path / "pipeline.sqlite")
    jobs = Jobs(engine)
    jobs.decide(replace(DECISION, model=model), 1.0)
    pool = engine.pool
    assert isinstance(pool, QueuePool)
    pool._timeout = 0
    with ExitStack() as others:
        for _ in range(pool.size() + pool._max_overflow - 1):
            others.enter_context(closing(engine.raw_connection()))
        assert [job.id for job in jobs.newest(None, 10, 0)] == ["j"]
