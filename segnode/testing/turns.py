"""Work that servers do in turn in one run, so that the machine's noise is everybody's: time, CPU and memory of each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from segnode.store.database import open_database
from segnode.store.documents import Documents
from segnode.store.index import Index
from segnode.testing.processes import cpu_seconds, descendants, forget_peak, peak
from segnode.testing.servers import Server, node_config, until


@dataclass(frozen=True)
class Used:
    """A request: the median of its seconds, the mean of the server's CPU seconds, and the most bytes of its processes."""

    seconds: float
    cpu: float
    peak: int


def in_turn(
    requests: Sequence[Callable[[], float]],
    runs: int,
    servers: Sequence[Server] = (),
    between: Callable[[], None] = lambda: None,
    counted: Callable[[int], bool] = lambda _: True,
) -> list[Used]:
    """Make requests in turn, which say their seconds; CPU and memory are those of processes of the servers that are counted."""
    families = [{server.process.pid, *descendants(server.process.pid)} for server in servers] or [set() for _ in requests]
    processes = [{process for process in family if counted(process)} for family in families]
    for process in set().union(*processes):
        forget_peak(process)
    took: list[list[float]] = [[] for _ in requests]
    cpu = [0.0 for _ in requests]
    for _ in range(runs):
        for number, request in enumerate(requests):
            before = cpu_seconds(processes[number])
            took[number].append(request())
            cpu[number] += cpu_seconds(processes[number]) - before
            between()
    peaks = [sum(map(peak, some)) for some in processes]
    return [Used(median(times), total / runs, most) for times, total, most in zip(took, cpu, peaks, strict=True)]


def await_documents(node: Server) -> None:
    """Wait until the node has made the metadata of what it holds: what it does meanwhile would be in the others' times."""
    data = node_config(node).data
    index, documents = Index(open_database(data / "index.sqlite")), Documents(open_database(data / "documents.sqlite"))
    until(lambda: not index.held_after(documents.progress(), 1))
