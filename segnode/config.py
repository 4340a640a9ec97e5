"""The configuration: a TOML file read once into one frozen value; whatever is wrong with it stops the start."""

import difflib
import ipaddress
import os
import re
import shlex
import tomllib
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args, get_origin
from urllib.parse import urlsplit

import msgspec

from segnode.dicom.attributes import RULE_ATTRIBUTES, SENDER_KEYS
from segnode.dicom.codes import Code
from segnode.dicom.matching import Condition, When
from segnode.errors import ConfigError

FormName = Literal[
    "labelmap:jpeg-ls",
    "labelmap:jpeg-2000",
    "labelmap:htj2k",
    "labelmap:deflate-frames",
    "labelmap:deflate",
    "labelmap:rle",
    "labelmap:native",
    "labelmap:implicit",
    "binary:jpeg-2000",
    "binary:deflate-frames",
    "binary:deflate",
    "binary:rle",
    "binary:native",
    "binary:implicit",
]
OnConflict = Literal["keep", "refuse", "replace"]
Laterality = Literal["hold", "warn", "off"]
Grid = Literal["source", "own"]
Confirm = Literal["status", "commitment", "read-back"]
Scope = Literal["dicom.read", "dicom.write"]
Right = Literal["store", "query", "retrieve", "commit"]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
DEFAULT_FILE: Final = "segnode.toml"

_Text = Annotated[str, msgspec.Meta(min_length=1)]
_Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
_LongString = Annotated[str, msgspec.Meta(pattern=r"^(?! )[^\\\x00-\x1f\x7f]{1,64}(?<! )$")]
_Url = Annotated[str, msgspec.Meta(pattern=r"^https?://[^\s]+$")]
_Seconds = Annotated[float, msgspec.Meta(ge=0)]
_Millimetres = Annotated[float, msgspec.Meta(gt=0)]
_Processes = Annotated[int, msgspec.Meta(ge=1, le=64)]
_CORES: Final = min(os.cpu_count() or 1, 4)
_Voxels = Annotated[int, msgspec.Meta(ge=1)]
_Associations = Annotated[int, msgspec.Meta(ge=1, le=1000)]
_SIZE_UNITS: Final = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_DURATION_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?(B|KiB|MiB|GiB|TiB)")
_DURATION = re.compile(r"(\d+(?:\.\d+)?) ?([smhd])")
_AE_TITLE = re.compile(r"[ -\[\]-~]{1,16}")
_PRIVATE_UID = re.compile(r"(?!1\.2\.840\.10008\.)(?=.{1,64}$)[0-9]+(\.[0-9]+)*")
# The second arc is below 40 under the first two of all (ISO/IEC 9834-1); 28 digits are left to tell objects apart.
_UID_ROOT = re.compile(
    r"(?=.{1,35}$)(?!1\.2\.840\.10008(\.|$)|2\.25(\.|$))([01]\.([1-3]?[0-9])|2\.(0|[1-9][0-9]*))(\.(0|[1-9][0-9]*))*"
)
_DIMSE_ADDRESS = re.compile(r"(?P<ae_title>[^@]+)@(?P<host>[^@]+):(?P<port>\d+)")
_URL_OF_ANY_KIND = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")
_ORIGIN = re.compile(r"https?://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")
# By the prefix of a model's `run`: what follows it, and how it is written.
_DOORS: Final = {
    "command": (re.compile(r"\s*\S.*", re.DOTALL), "command:program {input} {output}"),
    "python": (
        re.compile(r"[A-Za-z_][\w.-]*(:[A-Za-z_]\w*)?"),
        "python:module or python:module:callable, or python:NAME of an entry point",
    ),
    "kserve": (re.compile(r"https?://[^\s?#]+/v2/models/[^\s/?#]+"), "kserve:http(s)://host:port/v2/models/NAME"),
}
# What is replaced in the words of a command; not what a shell calls ${name}.
PLACEHOLDER: Final = re.compile(r"(?<!\$)\{([a-z_]+)\}")
_PLACES: Final = ("input", "dicom_dir", "output", "output_dir", "scratch", "job")
_PLACES_OF_CLEANUP: Final = ("scratch", "job")
_OF_COMMANDS: Final = ("env", "cleanup", "version_command")
_VARIABLE: Final = re.compile(r"[A-Za-z_]\w*")
_KEY_HASH: Final = re.compile(r"sha256:[0-9a-f]{64}")


# Keys of rules that mean nothing without a model, and with one.
_OF_MODELS: Final = ("laterality", "allow_tilt", "late", "iocm", "priority")
_OF_FORWARDING: Final = ("reencode",)
_UNMATCHED_VRS: Final = frozenset(("SQ", "OB", "OD", "OF", "OL", "OV", "OW", "OB or OW", "UN"))
_CONDITIONS: Final = (
    "text with * and ?, a list of such texts, { min = 1, max = 2 } (one of them suffices), { present = true } or { not = … }"
)


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the file; every key is known."""


class NodeConfig(_Table, frozen=True):
    """`[node]`: how the node is called, where it listens, where it keeps everything."""

    ae_title: _Text = "SEGNODE"
    dicom: _Text = "127.0.0.1:11112"
    dicom_tls: _Text | None = None
    http: _Text = "127.0.0.1:8080"
    data: _Text = "./segnode-data"
    dimse_processes: _Processes = _CORES
    web_workers: _Processes = _CORES


class ApiKeyConfig(_Table, frozen=True):
    """`[[web.api_keys]]`: a key by its hash, and what it opens; `segnode key` makes one."""

    name: _Name
    hash: _Text
    scopes: Annotated[tuple[Scope, ...], msgspec.Meta(min_length=1)]


class IssuerConfig(_Table, frozen=True):
    """`oidc` of `[web]`: whose tokens are taken, and for whom they must be made out; `ca` names authorities of its TLS."""

    issuer: _Url
    audience: _Text
    ca: _Text | None = None


class CertificateConfig(_Table, frozen=True):
    """`certificate`: what shows by TLS who the node is; without `key` the key is in the same file."""

    file: _Text
    key: _Text | None = None


class DimseConfig(_Table, frozen=True):
    """`[dimse]`: who may open associations, as which titles the node is called, how its port is protected, what it takes."""

    ae_titles: tuple[_Text, ...] = ()
    any_called_ae: bool = False
    accept_any: bool = False
    certificate: CertificateConfig | None = None
    client_ca: _Text | None = None
    max_associations: _Associations = 256
    artim: Annotated[float, msgspec.Meta(gt=0)] = 30.0
    idle: Annotated[float, msgspec.Meta(gt=0)] = 60.0
    private_sop_classes: tuple[_Text, ...] = ()


class PeerConfig(_Table, frozen=True):
    """`[[peers]]`: an application entity that is let in by DIMSE, from where, by which certificate, and to what."""

    ae_title: _Text
    hosts: Annotated[tuple[_Text, ...], msgspec.Meta(min_length=1)]
    certificate_subject: _Text | None = None
    may: tuple[Right, ...] = get_args(Right)
    max_associations: _Associations = 32

    @property
    def networks(self) -> tuple[Network, ...]:
        """Where it may come from. Raises ConfigError."""
        return tuple(_network(host, f"peer {self.ae_title}: hosts") for host in self.hosts)


class WebConfig(_Table, frozen=True):
    """`[web]`: who is let in by HTTP, how the port is protected, and what is done there beyond reading and storing."""

    api_keys: tuple[ApiKeyConfig, ...] = ()
    oidc: IssuerConfig | None = None
    certificate: CertificateConfig | None = None
    client_ca: _Text | None = None
    plain_http: bool = False
    origins: tuple[_Text, ...] = ()
    delete: bool = False
    strict_accept: bool = False

    @property
    def asks_for_tokens(self) -> bool:
        """Whether every request must show a key, or a token of the issuer."""
        return bool(self.api_keys or self.oidc)


class StorageConfig(_Table, frozen=True):
    """`[storage]`: how much disk stays free, how long an object may be, and what becomes of another of a UID that is held."""

    low_watermark: _Text = "1 GiB"
    largest_object: _Text = "16 GiB"
    on_conflict: OnConflict = "keep"

    @property
    def low_watermark_bytes(self) -> int:
        """The watermark in bytes."""
        return parse_size(self.low_watermark, "storage.low_watermark")

    @property
    def largest_object_bytes(self) -> int:
        """How many bytes an object may have."""
        return parse_size(self.largest_object, "storage.largest_object")


class RetentionConfig(_Table, frozen=True):
    """`[retention]`: how long what is delivered stays here; without a value for ever."""

    images_after_delivery: _Text | None = None
    segmentations_after_delivery: _Text | None = None

    @property
    def images_s(self) -> float | None:
        """How long images stay, in seconds."""
        return _optional_duration(self.images_after_delivery, "retention.images_after_delivery")

    @property
    def segmentations_s(self) -> float | None:
        """How long SEGs that the node has made stay, in seconds."""
        return _optional_duration(self.segmentations_after_delivery, "retention.segmentations_after_delivery")


class OutputConfig(_Table, frozen=True):
    """`[output]`: what the SEGs of models say of who made them, and how they and their series are called."""

    manufacturer: _LongString = "segnode"
    model_name: _LongString = "segnode"
    serial_number: _LongString | None = None
    series_number: Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)] | None = None
    series_description: _LongString = "Segmentation by {model}"
    uid_root: _Text | None = None


class SecretConfig(_Table, frozen=True):
    """`{ env = "NAME" }` or `{ file = "path" }`: where a secret is; the configuration itself holds none."""

    env: _Text | None = None
    file: _Text | None = None

    def placed(self, folder: Path) -> "SecretConfig":
        """The same, with the whole path of its file."""
        return msgspec.structs.replace(self, file=self.file and str((folder / self.file).absolute()))

    def read(self, folder: Path, path: str) -> str:
        """The secret. Raises ConfigError with the path of the key where there is none."""
        if (self.env is None) == (self.file is None):
            raise ConfigError(f'{path}: a secret is {{ env = "NAME" }} or {{ file = "path" }}')
        try:
            found = os.environ.get(self.env, "") if self.env else (folder / str(self.file)).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}.file: {self.file} cannot be read: {error}") from error
        if not found:
            raise ConfigError(f"{path}: {f'environment variable {self.env}' if self.env else self.file} is empty or not there")
        return found


class ModelConfig(_Table, frozen=True):
    """`[[models]]`: something that turns a volume, or each planar image of a series, into labels.

    `orientation` and `spacing` are those that it is given volumes in.
    """

    name: _Name
    run: _Text
    labels: _Text
    version: str = ""
    family: Code = Code("DCM", "123110", "Artificial Intelligence")
    input: Literal["volume", "planar"] = "volume"
    timeout: Annotated[float, msgspec.Meta(gt=0)] = 3600.0
    memory: Annotated[float, msgspec.Meta(gt=0)] = 16.0
    orientation: str | None = None
    spacing: tuple[_Millimetres, _Millimetres, _Millimetres] | None = None
    grid: Grid = "source"
    threshold: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    env: dict[str, str | SecretConfig] = {}
    cleanup: _Text | None = None
    version_command: _Text | None = None
    window: tuple[_Voxels, _Voxels, _Voxels] | None = None
    overlap: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.25
    concurrency: Annotated[int, msgspec.Meta(ge=1, le=64)] | None = None
    devices: tuple[_Text, ...] = ()
    user: _Text | None = None
    network: bool = True

    @property
    def places(self) -> tuple[str, ...]:
        """For each volume that it works on at once the device, which has no name where none is configured."""
        return self.devices or ("",) * (self.concurrency or 1)


def hidden_from(model: ModelConfig, config: "Config") -> frozenset[str]:
    """The variables of the environment that hold secrets of a configuration, and are not meant for the model."""
    return frozenset(_named(config)) - frozenset(_named(model))


def _named(value: Any) -> Iterator[str]:
    """The variables that hold secrets."""
    if isinstance(value, SecretConfig):
        yield from filter(None, [value.env])
    elif isinstance(value, _Table):
        for name in value.__struct_fields__:
            yield from _named(getattr(value, name))
    elif isinstance(value, tuple | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _named(each)


class BasicConfig(_Table, frozen=True):
    """`basic` of `auth`: a user and where the password is (RFC 7617)."""

    user: Annotated[str, msgspec.Meta(pattern=r"^[^:\x00-\x1f\x7f]+$")]
    password: SecretConfig


class OidcConfig(_Table, frozen=True):
    """`oidc` of `auth`: where tokens are had for the client's own credentials (RFC 6749 4.4), by address or by issuer."""

    client_id: _Text
    client_secret: SecretConfig
    token_url: _Url | None = None
    issuer: _Url | None = None
    scope: _Text | None = None
    audience: _Text | None = None


class AuthConfig(_Table, frozen=True):
    """`auth` of a destination: one of the ways to show by HTTP who asks."""

    bearer: SecretConfig | None = None
    basic: BasicConfig | None = None
    oidc: OidcConfig | None = None


class DestinationConfig(_Table, frozen=True):
    """`[[destinations]]`: an archive, the forms of a SEG it is offered, best first, and how it is spared when it is ill."""

    name: _Name
    to: _Text
    seg: Annotated[tuple[FormName, ...], msgspec.Meta(min_length=1)] = (
        "labelmap:rle",
        "labelmap:native",
        "labelmap:implicit",
        "binary:native",
    )
    give_up_after: _Text = "7d"
    max_associations: Annotated[int, msgspec.Meta(ge=1, le=16)] = 4
    confirm: Confirm = "status"
    auth: AuthConfig | None = None
    certificate: CertificateConfig | None = None
    ca: _Text | None = None
    proxy: _Url | None = None
    calling_ae: _Text | None = None
    tls: bool = False
    timeout: Annotated[float, msgspec.Meta(gt=0)] = 120.0

    @property
    def give_up_after_s(self) -> float:
        """How long a delivery is tried, in seconds."""
        return parse_duration(self.give_up_after, f"destination {self.name}: give_up_after")


class WebhookConfig(_Table, frozen=True):
    """`[[webhooks]]`: who is told of jobs that have come to an end, or wait for a person; without `patient` no patient data."""

    name: _Name
    url: _Url
    secret: SecretConfig
    on: Annotated[tuple[Literal["delivered", "failed", "held"], ...], msgspec.Meta(min_length=1)] = (
        "delivered",
        "failed",
        "held",
    )
    patient: bool = False


class RuleConfig(_Table, frozen=True):
    """`[[rules]]`: which series go to which model, where the result goes, when a series is complete, and what comes late.

    Without a model the series itself is sent on; with `reencode` SEGs of it in the forms of the destination.
    """

    when: dict[str, When]
    model: str | None = None
    reencode: bool = False
    send_to: tuple[str, ...] = ()
    quiet: _Seconds = 60.0
    expect: Literal["find", "request"] | None = None
    ask: str | None = None
    late: Literal["supersede", "keep"] = "supersede"
    iocm: bool = False
    laterality: Laterality = "hold"
    allow_tilt: bool = False
    priority: Annotated[int, msgspec.Meta(ge=-100, le=100)] = 0


class Config(_Table, frozen=True):
    """The whole configuration; `folder` is where relative paths start."""

    node: NodeConfig = NodeConfig()
    models: tuple[ModelConfig, ...] = (
        ModelConfig(
            name="threshold",
            run="python:segnode.models.threshold",
            labels="threshold",
            version="1",
            family=Code("DCM", "123104", "Morphological Operations"),
        ),
    )
    output: OutputConfig = OutputConfig()
    destinations: tuple[DestinationConfig, ...] = ()
    rules: tuple[RuleConfig, ...] = (RuleConfig(when={"Modality": "CT"}, model="threshold"),)
    storage: StorageConfig = StorageConfig()
    retention: RetentionConfig = RetentionConfig()
    web: WebConfig = WebConfig()
    dimse: DimseConfig = DimseConfig()
    peers: tuple[PeerConfig, ...] = ()
    webhooks: tuple[WebhookConfig, ...] = ()
    folder: Path = Path()

    @property
    def data(self) -> Path:
        """The data folder."""
        return self.folder / self.node.data

    @property
    def ae_titles(self) -> tuple[str, ...]:
        """Every title that the node answers to by DIMSE, those that destinations know it by too; the first is its own."""
        of_destinations = (destination.calling_ae for destination in self.destinations)
        return tuple(dict.fromkeys((self.node.ae_title, *self.dimse.ae_titles, *filter(None, of_destinations))))

    def model(self, name: str) -> ModelConfig:
        """The model of that name; it exists in every configuration that was read."""
        return next(model for model in self.models if model.name == name)


def api_key(name: str, hashed: str, scopes: typing.Sequence[Scope]) -> ApiKeyConfig:
    """A key as the configuration has it. Raises ConfigError."""
    try:
        return msgspec.convert({"name": name, "hash": hashed, "scopes": list(dict.fromkeys(scopes))}, ApiKeyConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(readable_problem(error)) from error


def destination_at(to: str) -> DestinationConfig:
    """A destination that no configuration names, by its address. Raises ConfigError."""
    destination = DestinationConfig(name=to, to=to)
    _require_destination(destination, "destination")
    return destination


class Address(typing.NamedTuple):
    """A host and a port."""

    host: str
    port: int


class DimseAddress(typing.NamedTuple):
    """An application entity at a host and port."""

    ae_title: str
    host: str
    port: int


def read_config(path: Path | None) -> Config:
    """The configuration in a file; without one `./segnode.toml` where it exists, else the defaults. Raises ConfigError."""
    if path is None and not Path(DEFAULT_FILE).exists():
        return Config(folder=Path.cwd())
    path = (path or Path(DEFAULT_FILE)).absolute()
    try:
        return parse_config(path.read_text(encoding="utf-8"), path.parent)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def parse_config(text: str, folder: Path) -> Config:
    """The configuration that a TOML text holds. Raises ConfigError, naming the path of the key and what is allowed."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"not TOML: {error}") from error
    if "folder" in raw:
        raise ConfigError(f"folder: unknown key; allowed: {', '.join(_keys(Config))}")
    _require_known_keys(raw, Config, "")
    if "models" in raw:
        raw.setdefault("rules", [])  # the default rule is for the default model
    _require_readable_conditions(raw.get("rules"))
    _require_meaningful_keys(raw.get("rules"))
    try:
        config = msgspec.convert({**raw, "folder": folder}, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(readable_problem(error)) from error
    config = msgspec.structs.replace(config, models=tuple(_placed(model, folder) for model in config.models))
    _require_coherent(config)
    return config


def _placed(model: ModelConfig, folder: Path) -> ModelConfig:
    """A model with whole paths where it names files: its own process does not know where the configuration stands."""
    labels = str((folder / model.labels).absolute()) if (folder / model.labels).is_file() else model.labels
    env = {name: value if isinstance(value, str) else value.placed(folder) for name, value in model.env.items()}
    return msgspec.structs.replace(model, labels=labels, env=env)


def pack_config(config: Config) -> bytes:
    """A configuration as it is handed to the processes of a node."""
    return msgspec.json.encode(config, enc_hook=str)


def unpack_config(packed: bytes) -> Config:
    """A configuration that was packed."""
    return msgspec.json.decode(packed, type=Config, dec_hook=lambda kind, value: kind(value))


def parse_size(value: str, path: str) -> int:
    """Bytes of a size like `10 GiB`. Raises ConfigError with the path of the key."""
    match = _SIZE.fullmatch(value)
    if match is None:
        raise ConfigError(
            f"{path}: {value!r} is not a size; allowed: a number and {', '.join(_SIZE_UNITS)}, for example 10 GiB"
        )
    return int(float(match[1]) * _SIZE_UNITS[match[2]])


def parse_duration(value: str, path: str) -> float:
    """Seconds of a duration like `30d`. Raises ConfigError with the path of the key."""
    match = _DURATION.fullmatch(value)
    if match is None:
        raise ConfigError(f"{path}: {value!r} is not a duration; allowed: a number and s, m, h or d, for example 30d")
    return float(match[1]) * _DURATION_UNITS[match[2]]


def _optional_duration(value: str | None, path: str) -> float | None:
    return None if value is None else parse_duration(value, path)


def _network(value: str, path: str) -> Network:
    try:
        return ipaddress.ip_network(value)
    except ValueError as error:
        raise ConfigError(
            f"{path}: {value!r} is neither an address nor a network ({error}); allowed: for example 10.1.2.3 or 10.1.2.0/24"
        ) from error


def parse_address(value: str, path: str) -> Address:
    """`host:port`. Raises ConfigError with the path of the key."""
    host, _, port = value.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"{path}: {value!r} is not an address; allowed: host:port, for example 127.0.0.1:11112")
    return Address(host.strip("[]"), int(port))


def parse_dimse_address(value: str, path: str) -> DimseAddress:
    """`AETITLE@host:port`. Raises ConfigError with the path of the key."""
    match = _DIMSE_ADDRESS.fullmatch(value)
    if match is None:
        raise ConfigError(f"{path}: {value!r} is no destination; allowed: http(s)://host/dicom-web or AETITLE@host:port")
    _require_ae_title(match["ae_title"], path)
    return DimseAddress(match["ae_title"], *parse_address(f"{match['host']}:{match['port']}", path))


def is_loopback(host: str) -> bool:
    """Whether a host, by address or as localhost, can be reached from this machine alone; of other names nobody knows."""
    name = host.removesuffix(".").lower()
    if name == "localhost" or name.endswith(".localhost"):  # RFC 6761 6.3
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_http(to: str) -> bool:
    """Whether a destination is reached over DICOMweb."""
    return to.startswith(("http://", "https://"))


def readable_problem(error: msgspec.ValidationError) -> str:
    """A validation error as `path: problem`."""
    problem, _, path = str(error).partition(" - at `$")
    return f"{path.strip('`.') or 'file'}: {problem}"


def _keys(table: type[_Table]) -> list[str]:
    return [field for field in table.__struct_fields__ if field != "folder"]


def _require_known_keys(raw: dict[str, Any], table: type[_Table], path: str) -> None:
    kinds = typing.get_type_hints(table)
    for key, value in raw.items():
        if key not in _keys(table):
            raise ConfigError(f"{path}{key}: unknown key; allowed: {', '.join(_keys(table))}")
        inner = _table_in(kinds[key])
        if inner is None:
            _require_allowed_words(value, kinds[key], f"{path}{key}")
        elif isinstance(value, dict):
            _require_known_keys(value, inner, f"{path}{key}.")
        elif isinstance(value, list):
            for index, item in enumerate(value):
                if isinstance(item, dict):
                    _require_known_keys(item, inner, f"{path}{key}[{index}].")


def _table_in(kind: Any) -> type[_Table] | None:
    candidates = get_args(kind) or (kind,)
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, _Table)), None)


def _require_allowed_words(value: Any, kind: Any, path: str) -> None:
    """Where the type is a word or a list of words: msgspec says which word is wrong, but not which are right."""
    words = next((k for k in (kind, *get_args(kind)) if get_origin(k) is Literal), None)
    if get_origin(kind) is not tuple and words is not None and isinstance(value, str) and value not in get_args(words):
        raise ConfigError(f"{path}: {value!r} is not known; allowed: {', '.join(get_args(words))}")
    if get_origin(kind) is tuple and isinstance(value, list):
        for index, item in enumerate(value):
            _require_allowed_words(item, get_args(kind)[0], f"{path}[{index}]")


def _require_coherent(config: Config) -> None:
    _require_ae_title(config.node.ae_title, "node.ae_title")
    parse_address(config.node.dicom, "node.dicom")
    parse_address(config.node.http, "node.http")
    _require_dimse(config)
    require_peers(config)
    _ = config.storage.low_watermark_bytes, config.retention.images_s, config.retention.segmentations_s
    _require_web(config.web)
    require_access(config)
    _require_unique([model.name for model in config.models], "models")
    _require_unique([destination.name for destination in config.destinations], "destinations")
    _require_unique([webhook.name for webhook in config.webhooks], "webhooks")
    for index, model in enumerate(config.models):
        _require_model(model, f"models[{index}]")
    _require_output(config.output)
    for index, destination in enumerate(config.destinations):
        _require_destination(destination, f"destinations[{index}]")
    for index, rule in enumerate(config.rules):
        _require_rule(rule, config, f"rules[{index}]")


def require_access(config: Config) -> None:
    """Raise ConfigError where others reach the HTTP port and nobody is asked who they are, or where they are overheard."""
    where, web = config.node.http, config.web
    if is_loopback(parse_address(where, "node.http").host):
        return
    if not (web.asks_for_tokens or web.client_ca):
        raise ConfigError(
            f"node.http: {where} is reached from elsewhere, where everybody could read and store: give [web] api_keys"
            " (`segnode key NAME` makes one), oidc, or certificate and client_ca; or listen on 127.0.0.1"
        )
    if not (web.certificate or web.plain_http):
        raise ConfigError(
            f"node.http: {where} is reached from elsewhere, and nothing is encrypted: give web.certificate; where something"
            " before the node does TLS, or the network is trusted with patients and keys, say web.plain_http = true"
        )


def require_peers(config: Config) -> None:
    """Raise ConfigError where others reach a DICOM port and nobody is told from anybody."""
    for key, where in (("node.dicom", config.node.dicom), ("node.dicom_tls", config.node.dicom_tls)):
        if where is None or is_loopback(parse_address(where, key).host) or config.peers or config.dimse.accept_any:
            continue
        raise ConfigError(
            f"{key}: {where} is reached from elsewhere, where everybody could store and query: name who may in [[peers]]"
            " (ae_title, hosts); or say dimse.accept_any = true; or listen on 127.0.0.1"
        )


def _require_dimse(config: Config) -> None:
    dimse = config.dimse
    for index, title in enumerate(dimse.ae_titles):
        _require_ae_title(title, f"dimse.ae_titles[{index}]")
        if title in (config.node.ae_title, *dimse.ae_titles[:index]):
            raise ConfigError(f"dimse.ae_titles[{index}]: {title!r} is there already; node.ae_title is the first of them")
    for index, uid in enumerate(dimse.private_sop_classes):
        if not _PRIVATE_UID.fullmatch(uid):
            raise ConfigError(
                f"dimse.private_sop_classes[{index}]: {uid!r} is no private UID; allowed: digits and dots, 64 characters at"
                " most, not of DICOM's own root 1.2.840.10008, of which all storage classes are taken as it is"
            )
    _require_unique(dimse.private_sop_classes, "dimse.private_sop_classes")
    if config.node.dicom_tls:
        parse_address(config.node.dicom_tls, "node.dicom_tls")
    if bool(config.node.dicom_tls) != bool(dimse.certificate):
        raise ConfigError("node.dicom_tls: TLS needs both: node.dicom_tls is where it listens, dimse.certificate what it shows")
    if dimse.client_ca and not dimse.certificate:
        raise ConfigError("dimse.client_ca: peers show certificates by TLS only: give node.dicom_tls and dimse.certificate too")
    _require_unique([peer.ae_title for peer in config.peers], "peers")
    for index, peer in enumerate(config.peers):
        _require_peer(peer, dimse, f"peers[{index}]")


def _require_peer(peer: PeerConfig, dimse: DimseConfig, path: str) -> None:
    _require_ae_title(peer.ae_title, f"{path}.ae_title")
    for index, host in enumerate(peer.hosts):
        _network(host, f"{path}.hosts[{index}]")
    _require_unique(peer.may, f"{path}.may")
    if peer.certificate_subject and not dimse.client_ca:
        raise ConfigError(f"{path}.certificate_subject: no certificate is asked for without dimse.client_ca: give that too")
    if peer.certificate_subject:
        _require_subject(peer.certificate_subject, f"{path}.certificate_subject")


def _require_subject(value: str, path: str) -> None:
    from cryptography.x509 import Name  # noqa: PLC0415  few configurations need it

    try:
        Name.from_rfc4514_string(value)
    except ValueError as error:
        raise ConfigError(
            f"{path}: {value!r} is no subject; allowed: for example CN=ct1.hospital.example or CN=CT1,O=Hospital (RFC 4514)"
        ) from error


def _require_web(web: WebConfig) -> None:
    _require_unique([key.name for key in web.api_keys], "web.api_keys")
    for index, key in enumerate(web.api_keys):
        path = f"web.api_keys[{index}]"
        if not _KEY_HASH.fullmatch(key.hash):  # which is not repeated: it may be the key itself
            raise ConfigError(f"{path}.hash: is no hash of a key, sha256: and 64 digits: `segnode key {key.name}` makes both")
        _require_unique(key.scopes, f"{path}.scopes")
    _require_unique([key.hash for key in web.api_keys], "web.api_keys")
    if web.oidc:
        _require_issuer(web.oidc)
    if web.client_ca and not web.certificate:
        raise ConfigError("web.client_ca: clients show certificates by TLS only: give web.certificate too")
    if web.plain_http and web.certificate:
        raise ConfigError("web.plain_http: with web.certificate there is no plain HTTP: leave one of them out")
    for index, origin in enumerate(web.origins):
        if not _ORIGIN.fullmatch(origin):
            raise ConfigError(
                f"web.origins[{index}]: {origin!r} is no origin; allowed: http(s)://host or http(s)://host:port,"
                " in small letters and without a path, as browsers send it"
            )
    _require_unique(web.origins, "web.origins")


def _require_issuer(oidc: IssuerConfig) -> None:
    _require_url(oidc.issuer, "web.oidc.issuer")
    parts = urlsplit(oidc.issuer)
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        raise ConfigError("web.oidc.issuer: its keys would come unencrypted, and could be anybody's: it must be https://")
    if oidc.ca and parts.scheme == "http":
        raise ConfigError("web.oidc.ca: the issuer is not reached by TLS")


def _require_destination(destination: DestinationConfig, path: str) -> None:
    if _URL_OF_ANY_KIND.match(destination.to):
        _require_url(destination.to, f"{path}.to")
    if not is_http(destination.to):
        parse_dimse_address(destination.to, f"{path}.to")
    _require_unique(destination.seg, f"{path}.seg")
    parse_duration(destination.give_up_after, f"{path}.give_up_after")
    _require_fitting_keys(destination, path)
    if destination.calling_ae:
        _require_ae_title(destination.calling_ae, f"{path}.calling_ae")
    if destination.proxy:
        _require_url(destination.proxy, f"{path}.proxy")
    if destination.auth:
        _require_auth(destination.auth, f"{path}.auth")


def _require_fitting_keys(destination: DestinationConfig, path: str) -> None:
    """Raise ConfigError for a key that means nothing to a destination of that kind."""
    keys: tuple[str, ...]
    if destination.confirm == "commitment" and is_http(destination.to):
        allowed = "allowed for a DICOMweb root: status, read-back"
        raise ConfigError(f"{path}.confirm: storage commitment is asked for by DIMSE only; {allowed}")
    if is_http(destination.to):
        keys, why = ("calling_ae", "tls"), "is for DIMSE alone; a DICOMweb root that begins with https:// is reached by TLS"
    else:
        keys, why = ("auth", "proxy"), "is for DICOMweb alone; DIMSE shows calling_ae, and with tls = true a certificate"
    for key in keys:
        if getattr(destination, key):
            raise ConfigError(f"{path}.{key}: {why}")
    for key in ("ca", "certificate"):
        if getattr(destination, key) and not _uses_tls(destination):
            raise ConfigError(f"{path}.{key}: nothing here is reached by TLS: that is https://, or tls = true for DIMSE")


def _uses_tls(destination: DestinationConfig) -> bool:
    oidc = destination.auth.oidc if destination.auth else None
    urls = (destination.to, destination.proxy, oidc and oidc.token_url, oidc and oidc.issuer)
    return destination.tls or any(url and url.startswith("https://") for url in urls)


def _require_auth(auth: AuthConfig, path: str) -> None:
    if sum(way is not None for way in (auth.bearer, auth.basic, auth.oidc)) != 1:
        raise ConfigError(f"{path}: one way is needed; allowed: bearer, basic or oidc")
    if auth.oidc is None:
        return
    if (auth.oidc.token_url is None) == (auth.oidc.issuer is None):
        raise ConfigError(f"{path}.oidc: where tokens are had is either token_url, or the issuer that says so")
    for key in ("token_url", "issuer"):
        if url := getattr(auth.oidc, key):
            _require_url(url, f"{path}.oidc.{key}")


def _require_url(url: str, path: str) -> None:
    """The message does not repeat the URL: if there is a password in it, logs would have that."""
    if "@" in url:  # also where it stands by mistake: a password may hold what ends the name of a host
        raise ConfigError(
            f"{path}: a user or password in a URL would be seen in logs: a destination's belong to `auth`;"
            " a proxy that wants them can be named in the environment only, as HTTPS_PROXY"
        )
    try:
        parts = urlsplit(url)
        is_good = parts.hostname is not None and parts.port != 0
    except ValueError:
        is_good = False
    if not is_good:
        raise ConfigError(f"{path}: is no URL; allowed: http(s)://host, with a port and a path where they are needed")


def _require_model(model: ModelConfig, path: str) -> None:
    _require_door(model.run, f"{path}.run")
    prefix = model.run.partition(":")[0]
    if prefix == "command":
        _require_command(model, path)
    for key in _OF_COMMANDS:
        if prefix != "command" and getattr(model, key):
            raise ConfigError(f"{path}.{key}: has a meaning for command: alone; leave it out")
    if bool(model.version) == bool(model.version_command):
        also = ", or, of a command, version_command, which prints it" if prefix == "command" else ""
        raise ConfigError(f"{path}.version: a model has one, so that its results say what made them: give version{also}")
    _require_grid(model, path)
    _require_places(model, path)


def _require_grid(model: ModelConfig, path: str) -> None:
    if model.input == "planar":
        for key in ("orientation", "spacing", "grid"):
            if getattr(model, key) not in (None, "source"):
                raise ConfigError(f"{path}.{key}: planar images have no place in the patient, and go to the model as they are")
    if model.orientation is not None and not _is_orientation(model.orientation):
        raise ConfigError(
            f"{path}.orientation: {model.orientation!r} is no orientation; allowed: for each axis of the array the side of the"
            " patient that it goes to, one of R or L, of A or P and of S or I, as RAS or SPL"
        )
    if model.spacing is not None and max(model.spacing) == float("inf"):
        raise ConfigError(f"{path}.spacing: a spacing is a number of millimetres for each axis of the array")


def _require_places(model: ModelConfig, path: str) -> None:
    if model.devices and model.concurrency is not None:
        raise ConfigError(f"{path}.concurrency: a model with devices works on as many volumes at once: leave it out")
    _require_unique(model.devices, f"{path}.devices")
    if model.user is not None and "{dicom_dir}" in model.run:
        raise ConfigError(
            f"{path}.user: the images in {{dicom_dir}} can be read by the node alone: use {{input}}, or leave it out"
        )
    _require_server(model, path)


def _require_door(run: str, path: str) -> None:
    prefix, _, rest = run.partition(":")
    if prefix == "kserve" and "@" in rest:  # nor is it repeated
        raise ConfigError(f"{path}: a user or password in a URL would be seen in logs: leave it out")
    if prefix not in _DOORS or not _DOORS[prefix][0].fullmatch(rest):
        allowed = ", ".join(text for _, text in _DOORS.values())
        raise ConfigError(f"{path}: {run!r} is no model; allowed: {allowed}")


def _require_server(model: ModelConfig, path: str) -> None:
    prefix, _, url = model.run.partition(":")
    if prefix == "kserve":
        _require_url(url, f"{path}.run")
        if not model.network:
            raise ConfigError(f"{path}.network: a model behind kserve: is reached by the network")
        if model.threshold is not None:
            raise ConfigError(f"{path}.threshold: a model behind kserve: has the label of the greatest score in each voxel")
    elif model.window:
        raise ConfigError(f"{path}.window: it is for kserve: alone; a model of another door sees the whole volume")


def _require_command(model: ModelConfig, path: str) -> None:
    _require_words(model.run.partition(":")[2], _PLACES, f"{path}.run")
    used = PLACEHOLDER.findall(model.run)
    if ("output" in used) == ("output_dir" in used):
        raise ConfigError(f"{path}.run: labels are read from one of {{output}} and {{output_dir}}: name it")
    if not {"input", "dicom_dir"} & set(used):
        raise ConfigError(f"{path}.run: the command is given no images: name {{input}} or {{dicom_dir}}")
    if model.cleanup is not None:
        _require_words(model.cleanup, _PLACES_OF_CLEANUP, f"{path}.cleanup")
    if model.version_command is not None:
        _require_words(model.version_command, (), f"{path}.version_command")
    for name in model.env:
        if not _VARIABLE.fullmatch(name):
            raise ConfigError(f"{path}.env: {name!r} is no name of a variable; allowed: letters, digits and _")


def _require_words(command: str, places: typing.Sequence[str], path: str) -> None:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ConfigError(f"{path}: cannot be split into words as a shell does it: {error}") from error
    if not words or not words[0]:
        raise ConfigError(f"{path}: names no program")
    for place in PLACEHOLDER.findall(command):
        if place not in places:
            allowed = ", ".join(f"{{{each}}}" for each in places) or "none"
            raise ConfigError(f"{path}: {{{place}}} is nothing that is known here; allowed: {allowed}")


def _is_orientation(value: str) -> bool:
    return len(value) == 3 and all(sum(value.count(letter) for letter in pair) == 1 for pair in ("RL", "AP", "SI"))


def _require_output(output: OutputConfig) -> None:
    if output.uid_root is not None and not _UID_ROOT.fullmatch(output.uid_root):
        raise ConfigError(
            f"output.uid_root: {output.uid_root!r} is no root of an organization's own; allowed: numbers without leading zeros"
            " and with dots between them, 35 characters at most, such as 1.2.826.0.1.3680043.10.1, not under 2.25, which is"
            " where UIDs are without it, nor 1.2.840.10008, which is DICOM's"
        )


def _require_readable_conditions(rules: Any) -> None:
    """Msgspec does not say which condition it cannot read."""
    for index, rule in enumerate(rules if isinstance(rules, list) else ()):
        when = rule.get("when") if isinstance(rule, dict) else None
        for keyword, value in when.items() if isinstance(when, dict) else ():
            try:
                readable = _says_something(msgspec.convert(value, When))
            except msgspec.ValidationError:
                readable = False
            if not readable:
                raise ConfigError(f"rules[{index}].when.{keyword}: {value!r} is no condition; allowed: {_CONDITIONS}")


def _require_meaningful_keys(rules: Any) -> None:
    """A key that does nothing in its rule is a mistake, also where it has the value that it has without being there."""
    for index, rule in enumerate(rules if isinstance(rules, list) else ()):
        forwards = isinstance(rule, dict) and "model" not in rule
        for key in _OF_MODELS if forwards else _OF_FORWARDING:
            if isinstance(rule, dict) and key in rule:
                instead = "a rule without a model sends on what comes in" if forwards else "it goes with a rule without a model"
                raise ConfigError(f"rules[{index}].{key}: has no meaning here: {instead}; leave it out")


def _says_something(when: When) -> bool:
    if isinstance(when, Condition):
        return when.kinds == 1 and (when.excluded is None or _says_something(when.excluded))
    return bool(when)


def _require_attribute(keyword: str, path: str) -> None:
    if keyword in RULE_ATTRIBUTES or keyword in SENDER_KEYS:
        return
    from pydicom.datadict import dictionary_VR, tag_for_keyword  # noqa: PLC0415  it takes longer than all the rest

    tag = tag_for_keyword(keyword)
    if tag is None:
        known = [*RULE_ATTRIBUTES, *SENDER_KEYS]
        meant = difflib.get_close_matches(keyword, known, 3) or known
        raise ConfigError(f"{path}: there is no such attribute; allowed: {', '.join(meant)}, or any other keyword of PS3.6")
    if dictionary_VR(tag) in _UNMATCHED_VRS:
        raise ConfigError(f"{path}: sequences and bulk data cannot be matched; name an attribute that holds text or numbers")


def _require_rule(rule: RuleConfig, config: Config, path: str) -> None:
    for keyword in rule.when:
        _require_attribute(keyword, f"{path}.when.{keyword}")
    models = [model.name for model in config.models]
    if rule.model is None and not rule.send_to:
        raise ConfigError(f"{path}.send_to: a rule without a model sends on what comes in: name a destination, or a model")
    if rule.model is not None and rule.model not in models:
        raise ConfigError(f"{path}.model: there is no model {rule.model!r}; allowed: {', '.join(models)}")
    destinations = [destination.name for destination in config.destinations]
    for index, name in enumerate(rule.send_to):
        if name not in destinations:
            allowed = ", ".join(destinations) or "none, there are no [[destinations]]"
            raise ConfigError(f"{path}.send_to[{index}]: there is no destination {name!r}; allowed: {allowed}")
    _require_unique(rule.send_to, f"{path}.send_to")
    if rule.iocm and rule.late == "keep":
        raise ConfigError(f'{path}.iocm: with late = "keep" nothing is replaced, so there is nothing to reject')
    if rule.ask is None and rule.expect == "find":
        raise ConfigError(f'{path}.ask: expect = "find" needs the name of the destination that is asked')
    if rule.ask is not None and rule.expect != "find":
        raise ConfigError(f'{path}.ask: nobody is asked without expect = "find"')
    if rule.ask is not None and rule.ask not in destinations:
        allowed = ", ".join(destinations) or "none, there are no [[destinations]]"
        raise ConfigError(f"{path}.ask: there is no destination {rule.ask!r}; allowed: {allowed}")


def _require_unique(names: typing.Sequence[str], path: str) -> None:
    for index, name in enumerate(names):
        if name in names[:index]:
            raise ConfigError(f"{path}[{index}]: {name!r} is there already; every name may be used once")


def _require_ae_title(value: str, path: str) -> None:
    if not _AE_TITLE.fullmatch(value) or not value.strip():
        raise ConfigError(
            f"{path}: {value!r} is not an AE title; allowed: 1 to 16 printable characters, no backslash (PS3.5 6.2)"
        )
