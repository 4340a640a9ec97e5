"""The command line. Exit codes: 0 done, 1 the work failed, 2 wrong usage or configuration."""

import gc
import os
import socket
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

import click
import msgspec

from segnode.config import (
    Config,
    DestinationConfig,
    FormName,
    ModelConfig,
    Scope,
    api_key,
    destination_at,
    is_http,
    read_config,
)
from segnode.dataset_cli import dataset
from segnode.errors import ConfigError, DeliveryFailed, LabelError, SegnodeError, Trouble
from segnode.models_cli import models
from segnode.run_cli import run
from segnode.seg_cli import seg

if TYPE_CHECKING:
    from segnode.backup import Watch
    from segnode.pipeline.replay import Replayed
    from segnode.pipeline.send_files import FileSent
    from segnode.pipeline.slim import Slimmed
    from segnode.pipeline.trial import SeriesTrial
    from segnode.store.jobs import Jobs

_ECHO_S: Final = 30.0

_config_option = click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The configuration; without it ./segnode.toml where there is one, else the defaults.",
)


class _Commands(click.Group):
    """Errors of our own end a command with their message: 2 for a configuration, 1 for failed work."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (ConfigError, LabelError) as error:
            click.echo(f"segnode: {error}", err=True)
            ctx.exit(2)
        except SegnodeError as error:
            told = "\n".join((str(error), *getattr(error, "__notes__", ())))
            click.echo(f"segnode: {told}", err=True)
            ctx.exit(1)


@click.group(cls=_Commands)
@click.version_option(package_name="segnode")
def main() -> None:
    """A DICOM node that turns images into LABELMAP segmentations and delivers them."""


@main.command()
@_config_option
@click.option(
    "--role", "roles", multiple=True, type=click.Choice(["dimse", "web", "worker"]), help="Only this role; may be repeated."
)
def serve(config_file: Path | None, roles: Sequence[Any]) -> None:
    """Run the node until SIGTERM or Ctrl-C."""
    from segnode.logs import configure_logs
    from segnode.posts import serve_roles
    from segnode.programs import with_versions
    from segnode.roles import ROLES

    config = with_versions(read_config(config_file))
    # What is loaded here, all its processes share, and is no garbage in any.
    gc.disable()
    from segnode.node import run_role

    gc.freeze()
    gc.enable()
    _announce(config)
    configure_logs("supervisor")
    sys.exit(serve_roles(roles or ROLES, config, config_file, run_role))


@main.command(hidden=True)
@click.argument("config")
@click.option("--requests-fd", type=int, required=True)
@click.option("--life-fd", type=int, required=True)
@click.option("--patience", type=float, required=True)
def model(config: str, requests_fd: int, life_fd: int, patience: float) -> None:
    """Run a model in its own process; a worker starts these."""
    from segnode.confinement import become, leave_network
    from segnode.process_family import end_with

    # First: it keeps the rights, and forks no threads.
    end_with(life_fd, patience)
    known, requests = msgspec.json.decode(config, type=ModelConfig), socket.socket(fileno=requests_fd)
    try:
        if not known.network:
            leave_network()
        # Before it becomes another, who may not be able to read what the node is made of.
        from segnode.models.child import serve_model

        if known.user is not None:
            become(known.user)
    except ConfigError as error:
        requests.sendall(msgspec.json.encode({"error": f"model {known.name!r}: {error}"}) + b"\n")
    else:
        serve_model(known, requests)


@main.command()
@_config_option
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--to", required=True, help="The name of a destination, AETITLE@host:port, or a DICOMweb root.")
@click.option(
    "--as",
    "form",
    metavar="TYPE:CODEC",
    type=click.Choice(("as-is", *get_args(FormName))),
    default="as-is",
    show_default=True,
    help=f"The form that SEGs are sent in: {', '.join(get_args(FormName))}.",
)
@click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")
def send(config_file: Path | None, paths: Sequence[Path], to: str, form: Any, *, as_json: bool) -> None:
    """Send DICOM files, and those in folders, by C-STORE or STOW-RS.

    They go as they are; what is not taken so goes in native encoding, which loses nothing. With --as SEGs go in that form or
    not at all, with the same labels. What in a folder is no DICOM is named and skipped. Exit code 1 when a file failed, or
    nothing was there to be sent; the others are sent, and it can be repeated.
    """
    from segnode.node import destination
    from segnode.pipeline.send_files import FileSender

    config = read_config(config_file)
    reached = destination(_destination(config, to), config.node.ae_title, config.folder)
    sender = FileSender(reached, None if form == "as-is" else form, time.time)
    files = {file: path == file for path in paths for file in _files([path])}
    found: list[FileSent] = []
    start = time.perf_counter()
    with click.progressbar(
        sender.send(files),
        length=len(files),
        label="sending",
        show_pos=True,
        item_show_func=lambda _: _pace(found, time.perf_counter() - start),
        file=sys.stderr,
    ) as sending:
        for sent in sending:
            found.append(sent)  # noqa: PERF402  what the bar shows grows with it
    took = time.perf_counter() - start
    if as_json:
        _echo_json({"to": reached.where, "seconds": round(took, 3), "files": found})
    else:
        _echo_sent(found, reached.where, took)
    failed = any(sent.outcome in ("failed", "not sent") for sent in found)
    sys.exit(1 if failed or not any(sent.outcome in ("sent", "there") for sent in found) else 0)


def _echo_sent(found: "Sequence[FileSent]", where: str, took: float) -> None:
    """A line for each kind of what was sent, how many came to what, and on standard error each file that was not sent."""
    from segnode.dicom.uids import uid_name

    kinds: dict[tuple[str, str], list[FileSent]] = {}
    for sent in found:
        if sent.outcome in ("sent", "there"):
            as_it_is = f"as it is ({uid_name(sent.transfer_syntax_uid)})"
            kinds.setdefault((uid_name(sent.sop_class_uid), sent.form or as_it_is), []).append(sent)
    for (sop_class, how), of_kind in kinds.items():
        click.echo(f"{len(of_kind):>8} {_megabytes(of_kind):>10.1f} MB  {sop_class}, {how}")
    counts: Counter[str] = Counter(sent.outcome for sent in found)
    said = {"sent": "sent", "there": "there already", "failed": "failed", "not sent": "not sent", "skipped": "skipped"}
    told = ", ".join(f"{counts[outcome]} {words}" for outcome, words in said.items() if counts[outcome])
    click.echo(f"{told or 'there are no files'}; to {where}, {_pace(found, took)}")
    for sent in found:
        if sent.outcome in ("failed", "skipped"):
            click.echo(f"segnode: {sent.file} {sent.detail}{': skipped' if sent.outcome == 'skipped' else ''}", err=True)
    if counts["not sent"]:
        reason = next(sent.detail for sent in found if sent.outcome == "not sent")
        click.echo(f"segnode: {counts['not sent']} file(s) not sent: {reason}", err=True)


def _megabytes(found: "Sequence[FileSent]") -> float:
    return sum(sent.bytes for sent in found if sent.outcome in ("sent", "there")) / 1e6


def _pace(found: "Sequence[FileSent]", took: float) -> str:
    """How much was sent, and how fast."""
    megabytes = _megabytes(found)
    return f"{megabytes:.1f} MB in {took:.1f} s, {megabytes / took:.1f} MB/s"


def _files(paths: Sequence[Path]) -> list[Path]:
    """The files as they are given, and all in folders. Raises Trouble for a folder that cannot be read."""

    def refuse(error: OSError) -> None:
        raise Trouble(f"{error.filename} cannot be read: {error.strerror}") from error

    found = [path for path in paths if path.is_file()]
    for folder in (path for path in paths if not path.is_file()):
        inside = (Path(where, name) for where, _, names in os.walk(folder, onerror=refuse) for name in names)
        found += [path for path in inside if path.is_file()]
    return sorted(found)


@main.group(invoke_without_command=True)
@_config_option
@click.option("--state", help="Only jobs in this state, for example failed.")
@click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")
@click.pass_context
def jobs(ctx: click.Context, config_file: Path | None, state: Any, *, as_json: bool) -> None:
    """List what the node has decided to do, and how far it is; show, retry, release or cancel a job, or replay a series."""
    from segnode.node import open_index, open_jobs
    from segnode.pipeline.job_document import job_document, progress_line
    from segnode.store.jobs import STATES

    if state not in (None, *STATES):
        raise click.BadParameter(f"{state!r} is not a state; allowed: {', '.join(STATES)}")
    ctx.obj = read_config(config_file)
    if ctx.invoked_subcommand is not None:
        return
    rows, index = open_jobs(ctx.obj), open_index(ctx.obj)
    found = [job_document(job, index) for job in rows.all(state)]
    if as_json:
        _echo_json(found)
        return
    for job in found:
        click.echo(f"{job.id[:12]}  {job.state:<11} {job.created}  {job.model or 'forward'}  series {job.series}")
        progress = progress_line(job) if job.state == "inferring" else ""
        for line in filter(None, (progress, job.note, job.error)):
            click.echo(f"    {line}")


@jobs.command()
@click.argument("job_id")
@click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")
@click.pass_obj
def show(config: Config, job_id: str, *, as_json: bool) -> None:
    """Show a job: its stages with their times, its deliveries with what was answered. The beginning of an id will do."""
    from segnode.node import open_index, open_jobs
    from segnode.pipeline.job_document import job_document, progress_line
    from segnode.pipeline.labelmaps import Labelmaps

    job = job_document(open_jobs(config).beginning(job_id), open_index(config))
    path = Labelmaps(config.data / "work").prints(job.id)
    prints = str(path) if path.exists() else ""
    if as_json:
        _echo_json({**msgspec.structs.asdict(job), "prints": prints})
        return
    for name in ("id", "state", "model", "series", "segmentation", "segmentation_series", "study", "note", "error"):
        click.echo(f"{name.replace('_', ' '):<20} {getattr(job, name)}")
    click.echo(f"{'progress':<20} {progress_line(job)}")
    click.echo(f"{'prints':<20} {prints}")
    for stage in job.stages:
        click.echo(f"{stage.at}  {stage.state}")
    for count in job.counts if not job.model else ():
        states = {name: getattr(count, name) for name in ("delivered", "confirming", "waiting", "failed", "cancelled")}
        said = ", ".join(f"{number} {name}" for name, number in states.items() if number)
        click.echo(f"to {count.destination}: {sum(states.values())} object(s): {said}")
    for delivery in job.deliveries:
        which = "" if job.model else f"{delivery.object} "
        click.echo(f"{which}to {delivery.destination}: {delivery.state} {delivery.form}, {delivery.attempts} attempt(s)")
        for name in ("last_answer", "next_attempt"):
            if getattr(delivery, name):
                click.echo(f"    {name.replace('_', ' ')}: {getattr(delivery, name)}")
        if delivery.segment_numbers:
            numbers = ", ".join(f"{number} is {new}" for number, new in delivery.segment_numbers.items())
            click.echo(f"    sent as {delivery.segmentation}, where segment {numbers}")


@jobs.command()
@click.argument("job_id")
@click.pass_obj
def retry(config: Config, job_id: str) -> None:
    """Have a failed or cancelled job done again: its result where there is none, else the deliveries that failed."""
    _steer(config, job_id, lambda rows: rows.retry, "is tried again")


@jobs.command()
@click.argument("job_id")
@click.pass_obj
def release(config: Config, job_id: str) -> None:
    """Have the result of a job that is held go its way as it is, once a person has looked at it."""
    _steer(config, job_id, lambda rows: rows.release, "is released")


@jobs.command()
@click.argument("job_id")
@click.pass_obj
def cancel(config: Config, job_id: str) -> None:
    """Have a job that goes on end here: what is not delivered yet is not delivered."""
    _steer(config, job_id, lambda rows: rows.cancel, "is cancelled")


@jobs.command("replay")
@click.argument("series")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and write nothing.")
@click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")
@click.pass_obj
def replay_series(config: Config, series: str, *, dry_run: bool, as_json: bool) -> None:
    """Ask every rule that selects the series of this UID about it now, however long ago its images came."""
    from segnode.node import object_file, open_index, open_jobs
    from segnode.pipeline.assemble import image_values
    from segnode.pipeline.replay import replay
    from segnode.pipeline.rules import resolve_rules
    from segnode.programs import with_versions

    rows, index = open_jobs(config), open_index(config)
    values = image_values(index, partial(object_file, config))
    found = replay(index, rows, resolve_rules(with_versions(config)), values, series, time.time(), dry_run=dry_run)
    if as_json:
        _echo_json(found)
        return
    if not found:
        click.echo(f"no rule of the configuration selects series {series}")
    for replayed in found:
        click.echo(f"{replayed.id}  {replayed.model or 'forward'}  {_outcome(replayed)}")


@main.group()
def rules() -> None:
    """What the rules of the configuration do."""


@rules.command("test")
@_config_option
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--calling-ae", default="", help="Who would send them, where rules ask for that.")
@click.option("--called-ae", help="As which AE title the node would be called; its own by default.")
@click.option("--host", default="", help="The address of the host that would send them.")
@click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")
def test_rules(
    config_file: Path | None,
    paths: Sequence[Path],
    calling_ae: str,
    called_ae: str | None,
    host: str,
    *,
    as_json: bool,
) -> None:
    """Say what the rules would do with DICOM files, and those in folders; nothing is done. Exit code 1 where none acts."""
    from segnode.pipeline.rules import resolve_rules
    from segnode.pipeline.trial import try_rules
    from segnode.programs import with_versions
    from segnode.store.index import Sender

    config = with_versions(read_config(config_file))
    sender = Sender(calling_ae, config.node.ae_title if called_ae is None else called_ae, host)
    trial = try_rules(config, resolve_rules(config), _files(paths), sender)
    if as_json:
        _echo_json(trial)
    else:
        for series in trial.series:
            _echo_trial(series)
        for reason, count in Counter(file.reason for file in trial.refused).items():
            click.echo(f"{count} file(s) would not be received: {reason}", err=True)
    sys.exit(0 if any(rule.selects for series in trial.series for rule in series.rules) else 1)


def _echo_trial(series: "SeriesTrial") -> None:
    click.echo(f"series {series.series}: {series.images} image(s); volume: {series.volume}")
    for rule in series.rules:
        if rule.selects:
            kind = "" if rule.model else ", SEGs"
            taken = {
                name: f"{kind} as {' or '.join(forms)}" if forms else " as it came" for name, forms in rule.send_to.items()
            }
            to = ", ".join(f"{name}{how}" for name, how in taken.items()) or "nobody: it stays here"
            does = f"{rule.model or 'forwards'}, {rule.quiet:g} s after the last image"
            click.echo(f"  rules[{rule.place}] acts: {does}; sent to {to}")
        for lacking in rule.unsatisfied:
            has = " and ".join(map(repr, lacking.found)) or "empty"
            click.echo(f"  rules[{rule.place}] does not act: {lacking.key} is {has}, and it asks for {lacking.asked}")


@main.group(invoke_without_command=True)
@_config_option
@click.option("--relearn", metavar="NAME", help="Have it found out anew what this destination takes.")
@click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")
@click.pass_context
def destinations(ctx: click.Context, config_file: Path | None, relearn: str | None, *, as_json: bool) -> None:
    """List how each destination stands: what it took, what it answered last, and what waits for it; pause or resume one."""
    from segnode.node import open_jobs, open_standings
    from segnode.pipeline.destination_document import destination_documents

    config = ctx.obj = read_config(config_file)
    if ctx.invoked_subcommand is not None:
        return
    rows = open_standings(config)
    if relearn is not None:
        rows.forget(_known_destination(config, relearn))
    found = destination_documents(config.destinations, rows.all(), open_jobs(config).count_deliveries())
    if as_json:
        _echo_json(found)
        return
    for d in found:
        takes = f"takes {d.form} (seen {d.learned})" if d.form else "it is not known yet what it takes"
        counts = f"{d.waiting} waiting, " + (f"{d.confirming} to be confirmed, " if d.confirming else "") + f"{d.failed} failed"
        click.echo(f"{d.name:<20} {d.state:<7} {counts}  {d.to}  {takes}")
        if d.last_answer:
            click.echo(f"    {d.last_answered}  {d.last_answer}")


@destinations.command()
@click.argument("name")
@click.pass_obj
def pause(config: Config, name: str) -> None:
    """Send nothing more to a destination until it is resumed; what is owed to it waits. What is on its way arrives."""
    from segnode.node import open_standings

    open_standings(config).pause(_known_destination(config, name))
    click.echo(f"{name} is paused")


@destinations.command()
@click.argument("name")
@click.pass_obj
def resume(config: Config, name: str) -> None:
    """Send to a destination again; what is owed to it goes at once, also to one that was down."""
    from segnode.node import open_jobs, open_standings

    open_standings(config).resume(_known_destination(config, name))
    open_jobs(config).hasten(name, time.time())
    click.echo(f"{name} is resumed")


@main.command()
@_config_option
@click.option("--from", "name", metavar="NAME", required=True, help="The destination to slim: it is searched, and sent to.")
@click.option("--study", metavar="UID", help="Only this study.")
@click.option(
    "--query",
    "pairs",
    metavar="KEYWORD=VALUE",
    multiple=True,
    help="Only what matches, such as StudyDate=20240101-20241231; may be repeated.",
)
@click.option(
    "--overlap",
    type=click.Choice(("error", "split")),
    default="error",
    show_default=True,
    help="A BINARY whose segments overlap: leave it and name them, or make the fewest LABELMAPs that hold them.",
)
@click.option("--dry-run", is_flag=True, help="Fetch and convert, so that the bytes are true, and send nothing.")
@click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")
def slim(
    config_file: Path | None, name: str, study: str | None, pairs: Sequence[str], overlap: Any, *, dry_run: bool, as_json: bool
) -> None:
    """Put a LABELMAP beside every BINARY segmentation that an archive holds, where that is smaller.

    Each is fetched, converted, proven to have the same labels, and sent back in the best LABELMAP form of the destination that
    the archive takes. Nothing is deleted. What has its LABELMAP already is passed over, so that a run which was broken off is
    repeated to go on. Exit code 1 when an object failed; the others are slimmed.
    """
    from segnode.node import slimmer
    from segnode.pipeline.slim import slim_keys

    config = read_config(config_file)
    keys = slim_keys((*pairs, *([f"StudyInstanceUID={study}"] if study else ())))
    slimming = slimmer(config, _known_destination(config, name), overlap, dry_run=dry_run)
    found: list[Slimmed] = []
    with (
        warnings.catch_warnings(),
        click.progressbar(
            slimming.studies(keys),
            label=f"studies of {name}",
            show_pos=True,
            item_show_func=lambda _: f"{len(found)} object(s)",
            file=sys.stderr,
        ) as studies,
    ):
        warnings.simplefilter("ignore")  # what pydicom warns of, `seg check` tells
        for uid in studies:
            for slimmed in slimming.slim_study(uid, keys):
                if not as_json:
                    _echo_slimmed(slimmed, found[-1] if found else None)
                found.append(slimmed)
                studies.render_progress()
    if as_json:
        _echo_json(found)
    else:
        _echo_slimmed_in_all(found)
    sys.exit(1 if any(slimmed.outcome == "failed" for slimmed in found) else 0)


def _echo_slimmed(slimmed: "Slimmed", before: "Slimmed | None") -> None:
    """A line, under headings where it is the first of all or of its study; another for the reason where nothing was sent."""
    if sys.stderr.isatty():  # the progress bar stands in this line
        click.echo("\r\033[K", nl=False, err=True)
    if before is None:
        click.echo(f"{'bytes before':>14} {'after':>14}")
    if before is None or before.study != slimmed.study:
        click.echo(f"study {slimmed.study}")
    sizes = _sizes(slimmed.bytes_before, slimmed.bytes_after)
    click.echo(f"{sizes}  {slimmed.outcome:<16}  {slimmed.object}  {slimmed.form}".rstrip())
    if slimmed.outcome in ("left", "failed"):
        click.echo(f"    {slimmed.detail}")


def _echo_slimmed_in_all(found: "Sequence[Slimmed]") -> None:
    smaller = [slimmed for slimmed in found if slimmed.bytes_after]
    sizes = _sizes(sum(slimmed.bytes_before for slimmed in smaller), sum(slimmed.bytes_after for slimmed in smaller))
    counts = ", ".join(f"{count} {outcome}" for outcome, count in Counter(slimmed.outcome for slimmed in found).items())
    click.echo(f"{sizes}  {counts or 'no BINARY segmentation was found'}")


def _sizes(before: int, after: int) -> str:
    """Bytes before, after, and how many times smaller; blank where there are none."""
    ratio = f"{before / after:.1f}x" if after else ""
    return f"{f'{before:,}' if before else '':>14} {f'{after:,}' if after else '':>14} {ratio:>7}"


@main.command()
@_config_option
@click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")
def doctor(config_file: Path | None, *, as_json: bool) -> None:
    """Say what keeps the node from its work and what to do, whether it runs or not; exit code 1 when there is trouble."""
    from segnode.doctor import examine

    found = []
    for finding in examine(read_config(config_file)):
        found.append({"check": finding.check, "ok": finding.ok, "detail": finding.detail})
        if not as_json:
            click.echo(f"{'ok' if finding.ok else 'TROUBLE':<8} {finding.check:<24} {finding.detail}")
    if as_json:
        _echo_json(found)
    sys.exit(0 if all(finding["ok"] for finding in found) else 1)


@main.command()
def conformance() -> None:
    """Print the DICOM Conformance Statement (PS3.2), in Markdown."""
    from segnode.conformance import statement

    click.echo(statement(), nl=False)


@main.command()
@_config_option
@click.argument("destination")
@click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")
def echo(config_file: Path | None, destination: str, *, as_json: bool) -> None:
    """Have DESTINATION answer (its name, AETITLE@host:port or a DICOMweb root), as it is reached for anything else.

    By C-ECHO, or by a search for one study; exit code 1 when it does not answer as it should.
    """
    from segnode.doctor import ask_destination

    config = read_config(config_file)
    asked = _destination(config, destination)
    start = time.perf_counter()
    try:
        ok, detail = True, ask_destination(asked, config, _ECHO_S)
    except (DeliveryFailed, Trouble) as error:
        ok, detail = False, str(error)
    took = round(time.perf_counter() - start, 3)
    if as_json:
        _echo_json({"destination": asked.name, "to": asked.to, "ok": ok, "detail": detail, "seconds": took})
    else:
        click.echo(f"{'ok' if ok else 'TROUBLE':<8} {asked.name:<20} {took:.2f} s  {detail}")
    sys.exit(0 if ok else 1)


@main.command()
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(get_args(Scope)),
    default=("dicom.read",),
    show_default=True,
    help="What it opens: to search and fetch, or to store, delete and steer jobs; may be repeated.",
)
@click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")
def key(name: str, scopes: Sequence[Any], *, as_json: bool) -> None:
    """Make an API key for the HTTP port: what is shown, this once, and what the configuration has of it."""
    from segnode.web.api_keys import key_hash, new_key

    shown = new_key()
    made = api_key(name, key_hash(shown), scopes)
    if as_json:
        _echo_json({"key": shown, "name": made.name, "hash": made.hash, "scopes": made.scopes})
        return
    listed = ", ".join(f'"{scope}"' for scope in made.scopes)
    click.echo(
        f"{shown}\n\nIt is shown this once: give it to who is to send it, as Authorization: Bearer. For the configuration:\n"
    )
    click.echo(f'[[web.api_keys]]\nname = "{made.name}"\nhash = "{made.hash}"\nscopes = [{listed}]')


@main.command()
@_config_option
@click.argument("dest", type=click.Path(path_type=Path, file_okay=False))
@click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")
def backup(config_file: Path | None, dest: Path, *, as_json: bool) -> None:
    """Copy the data folder to DEST, while the node runs; to the DEST of an earlier backup only what is new is copied."""
    from segnode.backup import back_up

    os.umask(0o077)
    made = back_up(read_config(config_file).data, dest, time.time(), _watched("backing up"))
    summary = f"{made.objects} objects, {made.bytes} bytes, backed up to {dest}"
    click.echo(msgspec.json.encode(made) if as_json else summary)


@main.command()
@_config_option
@click.argument("src", type=click.Path(path_type=Path, file_okay=False))
@click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")
def restore(config_file: Path | None, src: Path, *, as_json: bool) -> None:
    """Bring the backup in SRC back as the data folder, with every object verified; there must be no data folder."""
    from segnode.backup import restore_backup

    os.umask(0o077)
    data = read_config(config_file).data
    restored = restore_backup(src, data, _watched("restoring"))
    summary = f"{restored.objects} objects, {restored.bytes} bytes, of {restored.made_at} restored to {data}"
    click.echo(msgspec.json.encode(restored) if as_json else summary)


@main.command()
@_config_option
@click.argument("folder", required=False, type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("segnode-demo"),
    show_default=True,
    help="Where the contact sheet goes.",
)
def demo(config_file: Path | None, folder: Path | None, out: Path) -> None:
    """Show the whole path: a CT series in, a LABELMAP SEG in an archive, fetched back and compared.

    With FOLDER the series in it is used instead of a synthetic CT; the model is that of the configuration's first rule.
    """
    from segnode.demo import run_demo

    sys.exit(run_demo(folder, read_config(config_file), out))


main.add_command(seg)
main.add_command(dataset)
main.add_command(run)
main.add_command(models)


def _steer(config: Config, job_id: str, act: "Callable[[Jobs], Callable[[str, float], None]]", done: str) -> None:
    from segnode.node import open_jobs

    rows = open_jobs(config)
    job = rows.beginning(job_id)
    act(rows)(job.id, time.time())
    click.echo(f"{job.id} {done}")


def _outcome(replayed: "Replayed") -> str:
    if replayed.made:
        return "is made: the worker of the node takes it up"
    if replayed.state is None:
        return "would be made"
    again = f"; `segnode jobs retry {replayed.id[:12]}` does it again" if replayed.state in ("failed", "cancelled") else ""
    return f"is {replayed.state}: content already processed makes nothing new{again}"


def _known_destination(config: Config, name: str) -> str:
    names = [destination.name for destination in config.destinations]
    if name not in names:
        raise ConfigError(f"there is no destination {name!r}; allowed: {', '.join(names) or 'none'}")
    return name


def _echo_json(document: object) -> None:
    click.echo(msgspec.json.encode(document))


def _announce(config: Config) -> None:
    node, scheme = config.node, "https" if config.web.certificate else "http"
    by_tls = f" (by TLS {node.dicom_tls})" if node.dicom_tls else ""
    where = f"DICOM {node.dicom}{by_tls}, DICOMweb {scheme}://{node.http}/dicom-web, data in {config.data}"
    click.echo(f"{', '.join(config.ae_titles)}: {where}", err=True)
    if not config.rules:
        click.echo("There are no [[rules]]: what comes in is kept, and no model runs.", err=True)
    elif not config.destinations:
        click.echo("There are no [[destinations]]: results are kept here and sent nowhere.", err=True)


def _watched(label: str) -> "Watch":
    """A progress bar on standard error for what is copied."""
    return lambda objects, count: click.progressbar(objects, length=count, label=label, file=sys.stderr)


def _destination(config: Config, to: str) -> DestinationConfig:
    """The destination of that name, or what is reached at that address."""
    named = next((destination for destination in config.destinations if destination.name == to), None)
    if named is None and "@" not in to and not is_http(to):
        _known_destination(config, to)
    return named or destination_at(to)
