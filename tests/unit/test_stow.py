"""A sender that says nothing more."""

import asyncio
from pathlib import Path
from typing import Any

from pydicom.uid import ExplicitVRLittleEndian
from starlette.applications import Starlette

from segnode.dicomweb.routes import DicomWeb
from segnode.pipeline.associations import Associations
from segnode.pipeline.receive import Receiver
from segnode.store.database import open_database
from segnode.store.documents import Documents
from segnode.store.index import Index
from segnode.store.leases import Lease
from segnode.store.measures import Meter
from segnode.store.objects import ObjectStore
from segnode.testing.part10 import encode_part10
from tests.wire.test_storage import small


def test_sender_that_falls_silent_is_not_waited_for(tmp_path: Path) -> None:
    """408; what came whole stays, the half is gone, and its series is no longer being sent."""
    objects, index = ObjectStore(tmp_path, Lease("a" * 12, "web-1")), Index(open_database(tmp_path / "index.sqlite"))
    receiver = Receiver(objects, index, Meter("web"), "SEGNODE", 0, lambda: 1.0)
    documents = Documents(open_database(tmp_path / "documents.sqlite"))
    web = DicomWeb(receiver, Associations(index, Lease("a" * 12, "web-1")), documents, patience_s=0.05)
    data = encode_part10(small("1.2.90.1", EncapsulatedDocument=bytes(1 << 18)), ExplicitVRLittleEndian)
    came = [b"--b\r\n\r\n" + data + b"\r\n--b\r\n\r\n" + data[:200]]
    answers: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if not came:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": came.pop(), "more_body": True}

    async def send(answer: Any) -> None:
        answers.append(answer)

    headers = [(b"content-type", b"multipart/related; boundary=b")]
    scope = {"type": "http", "method": "POST", "path": "/studies", "headers": headers, "query_string": b""}
    asyncio.run(Starlette(routes=web.routes())(scope, receive, send))
    assert answers[0]["status"] == 408
    assert list(objects.incoming.iterdir()) == []
    assert [instance.sop_instance_uid for instance in index.instances("1.2.3")] == ["1.2.90.1"]
    assert [series.is_being_sent for series in index.quiet_series()] == [False]
