"""The configuration file."""

import re
import tomllib
from pathlib import Path

import pytest

from segnode.config import (
    Config,
    DestinationConfig,
    DimseConfig,
    ModelConfig,
    NodeConfig,
    OutputConfig,
    PeerConfig,
    RetentionConfig,
    RuleConfig,
    StorageConfig,
    WebConfig,
    WebhookConfig,
    parse_config,
    read_config,
)
from segnode.errors import ConfigError

KEY = f'{{ name = "viewer", hash = "sha256:{"0" * 64}", scopes = ["dicom.read"] }}'
SHIPPED = Path(__file__).parents[2] / "conf" / "segnode.toml"
KSERVE = '[[models]]\nname = "m"\nlabels = "threshold"\nversion = "1"\n'
ARCHIVE = '[[destinations]]\nname = "archive"\nto = "http://archive/dicom-web"\n'
DIMSE = '[[destinations]]\nname = "archive"\nto = "A@host:104"\n'
SECRET = '{ env = "A" }'
FORWARD = '[[rules]]\nwhen = { Modality = "CT" }\nsend_to = ["archive"]\n'
PEER = '[[peers]]\nae_title = "CT1"\n'
BY_TLS = '[node]\ndicom_tls = "127.0.0.1:2762"\n[dimse]\ncertificate = { file = "a" }\nclient_ca = "b"\n'
MODEL = '[[models]]\nname = "m"\nrun = "python:m"\nlabels = "threshold"\nversion = "1"\n'
RULE = '[[rules]]\nwhen = { Modality = "CT" }\nmodel = "threshold"\n'


@pytest.mark.parametrize(
    ("text", "path", "allowed"),
    [
        (
            '[nod]\nae_title = "A"',
            "nod",
            "node, models, output, destinations, rules, storage, retention, web, dimse, peers, webhooks",
        ),
        ('[node]\nae_titel = "A"', "node.ae_titel", "ae_title, dicom, dicom_tls, http, data"),
        ('[storage]\nlow_watermark = "10"', "storage.low_watermark", "10 GiB"),
        ('[storage]\non_conflict = "overwrite"', "storage.on_conflict", "keep, refuse, replace"),
        ('[retention]\nimages_after_delivery = "30 days"', "retention.images_after_delivery", "30d"),
        ("[node]\ndimse_processes = 0", "node.dimse_processes", ">= 1"),
        ("[node]\ndicom = 11112", "node.dicom", "str"),
        ('[node]\ndicom = "11112"', "node.dicom", "host:port"),
        ('[node]\nhttp = "localhost:99999"', "node.http", "host:port"),
        ('[node]\nae_title = "SEVENTEENLETTERSS"', "node.ae_title", "1 to 16"),
        ("node = 3", "node", "object"),
        ("rules = 5", "rules", "array"),
        (ARCHIVE + 'seg = ["labelmap:zip"]', "destinations[0].seg[0]", "labelmap:rle, labelmap:native"),
        (ARCHIVE + 'seg = ["labelmap:rle", "labelmap:rle"]', "destinations[0].seg[1]", "once"),
        (ARCHIVE + 'seg = ["binary:jpeg-ls"]', "destinations[0].seg[0]", "binary:native"),
        (ARCHIVE + 'give_up_after = "a week"', "destinations[0].give_up_after", "30d"),
        (ARCHIVE + "max_associations = 0", "destinations[0].max_associations", ">= 1"),
        (ARCHIVE + 'confirm = "commitment"', "destinations[0].confirm", "status, read-back"),
        (ARCHIVE + 'confirm = "yes"', "destinations[0].confirm", "status, commitment, read-back"),
        (ARCHIVE + "seg = []", "destinations[0].seg", ">= 1"),
        (ARCHIVE + ARCHIVE, "destinations[1]", "once"),
        ('[[destinations]]\nname = "a"\nto = "ftp://x"', "destinations[0].to", "AETITLE@host:port"),
        ('[[destinations]]\nname = "a"\nto = "A@host:port"', "destinations[0].to", "AETITLE@host:port"),
        ('[[destinations]]\nname = "a"', "destinations[0]", "to"),
        (DIMSE + 'proxy = "http://p:3128"', "destinations[0].proxy", "is for DICOMweb alone"),
        (DIMSE + 'auth = { bearer = { env = "A" } }', "destinations[0].auth", "is for DICOMweb alone"),
        (DIMSE + 'ca = "ca.pem"', "destinations[0].ca", "tls = true"),
        (DIMSE + 'calling_ae = "SEVENTEENLETTERSS"', "destinations[0].calling_ae", "1 to 16"),
        (ARCHIVE + 'calling_ae = "A"', "destinations[0].calling_ae", "is for DIMSE alone"),
        (ARCHIVE + "tls = true", "destinations[0].tls", "https://"),
        (ARCHIVE + 'certificate = { file = "node.pem" }', "destinations[0].certificate", "https://"),
        (ARCHIVE + "timeout = 0", "destinations[0].timeout", "> 0"),
        (ARCHIVE + 'proxy = "socks5://p"', "destinations[0].proxy", "https?"),
        (ARCHIVE + 'proxy = "http://"', "destinations[0].proxy", "https?"),
        (ARCHIVE + 'proxy = "http://p:http"', "destinations[0].proxy", "http(s)://host"),
        (ARCHIVE + 'auth = { bearer = "hidden" }', "destinations[0].auth.bearer", "object"),
        (ARCHIVE + 'auth = { baerer = { env = "A" } }', "destinations[0].auth.baerer", "bearer, basic, oidc"),
        (ARCHIVE + "auth = {}", "destinations[0].auth", "bearer, basic or oidc"),
        (
            ARCHIVE + f"auth = {{ bearer = {SECRET}, basic = {{ user = 'u', password = {SECRET} }} }}",
            "destinations[0].auth",
            "one way",
        ),
        (ARCHIVE + f"auth = {{ basic = {{ user = 'a:b', password = {SECRET} }} }}", "destinations[0].auth.basic.user", "regex"),
        (
            ARCHIVE + f"auth = {{ oidc = {{ client_id = 'c', client_secret = {SECRET} }} }}",
            "destinations[0].auth.oidc",
            "token_url",
        ),
        ('[[models]]\nname = "m"\nrun = "rm -rf"\nlabels = "threshold"\nversion = "1"', "models[0].run", "python:module"),
        ('[[models]]\nname = "m"\nrun = "python:m"\nlabels = "threshold"', "models[0]", "version"),
        (KSERVE + 'run = "kserve:http://host:8000/models/m"', "models[0].run", "kserve:http(s)://host:port/v2/models/NAME"),
        (KSERVE + 'run = "kserve:http://user:hidden@host/v2/models/m"', "models[0].run", "seen in logs"),
        (KSERVE + 'run = "kserve:http://:8000/v2/models/m"', "models[0].run", "is no URL"),
        (KSERVE + 'run = "kserve:http://host/v2/models/m"\nwindow = [0, 1, 1]', "models[0].window[0]", ">= 1"),
        (KSERVE + 'run = "kserve:http://host/v2/models/m"\noverlap = 1', "models[0].overlap", "< 1"),
        (KSERVE + 'run = "kserve:http://host/v2/models/m"\nthreshold = 0.5', "models[0].threshold", "greatest score"),
        (KSERVE + 'run = "kserve:http://host/v2/models/m"\nnetwork = false', "models[0].network", "by the network"),
        (KSERVE + 'run = "python:m"\nwindow = [64, 64, 64]', "models[0].window", "for kserve: alone"),
        ('[output]\nmanufacturer = "A\\\\B"', "output.manufacturer", "regex"),
        ("[output]\nseries_number = -1", "output.series_number", ">= 0"),
        ('[output]\nuid_root = "1.2.840.10008.5"', "output.uid_root", "1.2.826.0.1.3680043.10.1"),
        ('[output]\nuid_root = "2.25"', "output.uid_root", "2.25"),
        ('[output]\nuid_root = "2.25.123"', "output.uid_root", "2.25"),
        ('[output]\nuid_root = "1.2.03"', "output.uid_root", "leading zeros"),
        ('[output]\nuid_root = "1.40.3"', "output.uid_root", "allowed"),
        ('[output]\nuid_root = "1.2.3."', "output.uid_root", "dots"),
        ('[output]\nuid_root = "1.2.34567890123456789012345678901234"', "output.uid_root", "35 characters"),
        (MODEL + 'orientation = "RAP"', "models[0].orientation", "one of R or L, of A or P and of S or I"),
        (MODEL + 'orientation = "ras"', "models[0].orientation", "as RAS"),
        (MODEL + "spacing = [1.5, 1.5]", "models[0].spacing", "length 3"),
        (MODEL + "spacing = [1.5, 1.5, 0]", "models[0].spacing", "> 0"),
        (MODEL + "spacing = [1.5, 1.5, inf]", "models[0].spacing", "millimetres"),
        (MODEL + 'grid = "mine"', "models[0].grid", "source, own"),
        (MODEL + 'input = "planar"\norientation = "RAS"', "models[0].orientation", "planar images have no place"),
        (MODEL + "threshold = 2.0", "models[0].threshold", "<= 1"),
        ('[[rules]]\nwhen = { Modalty = "CT" }\nmodel = "threshold"', "rules[0].when.Modalty", "Modality"),
        ('[[rules]]\nwhen = { Rows = 3 }\nmodel = "threshold"', "rules[0].when.Rows", "{ min = 1, max = 2 }"),
        ('[[rules]]\nwhen = { Rows = { min = 1, present = true } }\nmodel = "threshold"', "rules[0].when.Rows", "{ not = "),
        ('[[rules]]\nwhen = { Modality = [] }\nmodel = "threshold"', "rules[0].when.Modality", "a list of such texts"),
        ('[[rules]]\nwhen = { SegmentSequence = "x" }\nmodel = "threshold"', "rules[0].when.SegmentSequence", "sequences"),
        ('[[rules]]\nwhen = { caling_ae = "x" }\nmodel = "threshold"', "rules[0].when.caling_ae", "calling_ae"),
        ('[[rules]]\nwhen = {}\nmodel = "treshold"', "rules[0].model", "threshold"),
        (RULE + 'send_to = ["archive"]', "rules[0].send_to[0]", "there are no [[destinations]]"),
        (ARCHIVE + RULE + 'send_to = ["archiv"]', "rules[0].send_to[0]", "archive"),
        ("[[rules]]\nwhen = {}", "rules[0].send_to", "name a destination, or a model"),
        (ARCHIVE + FORWARD + 'late = "keep"', "rules[0].late", "a rule without a model sends on what comes in"),
        (ARCHIVE + FORWARD + "iocm = false", "rules[0].iocm", "leave it out"),
        (ARCHIVE + FORWARD + 'laterality = "off"', "rules[0].laterality", "leave it out"),
        (ARCHIVE + FORWARD + "allow_tilt = false", "rules[0].allow_tilt", "leave it out"),
        (ARCHIVE + FORWARD + "re_encode = true", "rules[0].re_encode", "reencode"),
        ("[[rules]]\nwhen = {}\nsend_to = ['archiv']", "rules[0].send_to[0]", "there are no [[destinations]]"),
        ("[[rules]]\nwhen = { Modalty = 'CT' }\nsend_to = ['a']", "rules[0].when.Modalty", "Modality"),
        (RULE + "reencode = true", "rules[0].reencode", "goes with a rule without a model"),
        (RULE + "quiet = -1", "rules[0].quiet", ">= 0"),
        (RULE + 'laterality = "maybe"', "rules[0].laterality: 'maybe' is not known", "allowed: hold, warn, off"),
        (RULE + 'allow_tilt = "yes"', "rules[0].allow_tilt", "bool"),
        (RULE + 'expect = "all"', "rules[0].expect", "find, request"),
        (RULE + "expect = 3", "rules[0].expect", "str"),
        (RULE + 'late = "never"', "rules[0].late", "supersede, keep"),
        (RULE + 'late = "keep"\niocm = true', "rules[0].iocm", "nothing is replaced"),
        (RULE + 'expect = "find"', "rules[0].ask", "the name of the destination"),
        (RULE + 'ask = "archive"', "rules[0].ask", 'expect = "find"'),
        (RULE + 'expect = "find"\nask = "archive"', "rules[0].ask", "there are no [[destinations]]"),
        (ARCHIVE + RULE + 'expect = "find"\nask = "archiv"', "rules[0].ask", "allowed: archive"),
        ('[node]\ndicom = "0.0.0.0:104"', "node.dicom", "[[peers]]"),
        ('[node]\ndicom_tls = "[::]:2762"\n[dimse]\ncertificate = { file = "a" }', "node.dicom_tls", "accept_any"),
        ('[node]\ndicom_tls = "127.0.0.1:2762"', "node.dicom_tls", "dimse.certificate"),
        ('[dimse]\ncertificate = { file = "a" }', "node.dicom_tls", "dimse.certificate"),
        ('[dimse]\nclient_ca = "a"', "dimse.client_ca", "dimse.certificate"),
        ('[dimse]\nae_titles = ["SEG", "SEGNODE"]', "dimse.ae_titles[1]", "node.ae_title"),
        ('[dimse]\nae_titles = ["SEVENTEENLETTERSS"]', "dimse.ae_titles[0]", "1 to 16"),
        ('[dimse]\nprivate_sop_classes = ["1.2.x"]', "dimse.private_sop_classes[0]", "digits and dots"),
        ('[dimse]\nprivate_sop_classes = ["1.2.840.10008.1.1"]', "dimse.private_sop_classes[0]", "DICOM's own"),
        ("[dimse]\nmax_associations = 0", "dimse.max_associations", ">= 1"),
        ("[dimse]\nartim = 0", "dimse.artim", "> 0"),
        (PEER + "hosts = []", "peers[0].hosts", ">= 1"),
        (PEER + 'hosts = ["ct1.example"]', "peers[0].hosts[0]", "10.1.2.0/24"),
        (PEER + 'hosts = ["10.1.2.3/8"]', "peers[0].hosts[0]", "host bits set"),
        (PEER + 'hosts = ["::1"]\nmay = ["fly"]', "peers[0].may[0]", "store, query, retrieve, commit"),
        (PEER + 'hosts = ["::1"]\ncertificate_subject = "CN=a"', "peers[0].certificate_subject", "dimse.client_ca"),
        (PEER + 'hosts = ["::1"]\n' + PEER + 'hosts = ["::1"]', "peers[1]", "once"),
        (BY_TLS + PEER + 'hosts = ["::1"]\ncertificate_subject = "a"', "peers[0].certificate_subject", "CN=CT1,O=Hospital"),
        ('[node]\nhttp = "0.0.0.0:80"', "node.http", "segnode key"),
        ('[node]\nhttp = "[::]:80"', "node.http", "listen on 127.0.0.1"),
        ('[node]\nhttp = "node.example:80"', "node.http", "segnode key"),
        ('[node]\nhttp = "0.0.0.0:80"\n[web]\nplain_http = true', "node.http", "segnode key"),
        ('[node]\nhttp = "0.0.0.0:80"\n[web]\ncertificate = { file = "a" }', "node.http", "client_ca"),
        (f'[node]\nhttp = "0.0.0.0:80"\n[web]\napi_keys = [{KEY}]', "node.http", "web.plain_http = true"),
        (f"[web]\napi_keys = [{KEY}, {KEY}]", "web.api_keys[1]", "once"),
        (f"[web]\napi_keys = [{KEY.replace('dicom.read', 'read')}]", "web.api_keys[0].scopes[0]", "dicom.read, dicom.write"),
        ("[web]\napi_keys = [" + KEY.replace('"dicom.read"', "") + "]", "web.api_keys[0].scopes", ">= 1"),
        (f"[web]\napi_keys = [{KEY.replace('scopes', 'scope')}]", "web.api_keys[0].scope", "name, hash, scopes"),
        (f"[web]\napi_keys = [{KEY.replace('sha256:', 'md5:')}]", "web.api_keys[0].hash", "segnode key viewer"),
        ('[web]\noidc = { issuer = "http://login.example", audience = "a" }', "web.oidc.issuer", "https://"),
        ('[web]\noidc = { issuer = "https://login.example" }', "web.oidc", "audience"),
        ('[web]\noidc = { issuer = "http://[::1]:8", audience = "a", ca = "b" }', "web.oidc.ca", "TLS"),
        ('[web]\nclient_ca = "ca.pem"', "web.client_ca", "web.certificate"),
        ('[web]\nplain_http = true\ncertificate = { file = "a" }', "web.plain_http", "leave one"),
        ('[web]\norigins = ["*"]', "web.origins[0]", "http(s)://host"),
        ('[web]\norigins = ["https://viewer.example/"]', "web.origins[0]", "without a path"),
        ('[web]\norigin = "https://viewer.example"', "web.origin", "origins"),
        ("[node", "not TOML", ""),
    ],
)
def test_wrong_configuration_names_path_and_allowed_values(text: str, path: str, allowed: str) -> None:
    """What is wrong is named by its path, with what is allowed there."""
    with pytest.raises(ConfigError) as error:
        parse_config(text, Path())
    assert str(error.value).startswith(path)
    assert allowed in str(error.value)


@pytest.mark.parametrize(
    ("table", "key"),
    [
        ('to = "https://user:hidden@host/dicom-web"', "to"),
        ('to = "https://hidden@host"', "to"),
        ('to = "https://user:hid/hidden@host"', "to"),
        ('to = "https:/user:hidden@host"', "to"),
        ('to = "HTTP://u:hidden@host:80"', "to"),
        ('to = "ftp://user:hidden@host"', "to"),
        ('to = "http://host"\nproxy = "http://user:hidden@proxy:3128"', "proxy"),
        (
            f'to = "http://a"\nauth.oidc = {{ client_id = "c", client_secret = {SECRET}, issuer = "https://a:hidden@b" }}',
            "auth.oidc.issuer",
        ),
        ('to = "http://host"\nauth = { bearer = "hidden" }', "auth.bearer"),
        ('to = "http://host"\nauth = { bearer = { value = "hidden" } }', "auth.bearer.value"),
    ],
)
def test_secret_in_the_file_is_refused_and_not_repeated(table: str, key: str) -> None:
    """A password in a URL, and a secret where only its place belongs, stop the start; the error names the key alone."""
    with pytest.raises(ConfigError, match=f"^{re.escape(f'destinations[0].{key}')}: ") as error:
        parse_config(f'[[destinations]]\nname = "archive"\n{table}\n', Path())
    assert "hidden" not in str(error.value)


def test_key_in_place_of_its_hash_is_not_repeated() -> None:
    """Whoever puts the key itself into the file does not find it in an error as well."""
    with pytest.raises(ConfigError, match=re.escape("web.api_keys[0].hash")) as error:
        parse_config('[web]\napi_keys = [{ name = "a", hash = "segnode_hidden", scopes = ["dicom.read"] }]', Path())
    assert "hidden" not in str(error.value)


@pytest.mark.parametrize(
    ("http", "web"),
    [
        ("127.0.0.1:80", ""),
        ("127.9.9.9:80", ""),
        ("localhost:80", ""),
        ("[::1]:80", ""),
        ("0.0.0.0:80", f"api_keys = [{KEY}]\nplain_http = true"),
        ("node.example:80", f'api_keys = [{KEY}]\ncertificate = {{ file = "a" }}'),
        ("[::]:80", 'oidc = { issuer = "https://a", audience = "b" }\ncertificate = { file = "a" }'),
        ("0.0.0.0:80", 'client_ca = "ca.pem"\ncertificate = { file = "a" }'),
    ],
)
def test_ways_to_let_others_in(http: str, web: str) -> None:
    """Loopback needs nothing; elsewhere a key, an issuer or certificates, and TLS or the permission to do without."""
    assert parse_config(f'[node]\nhttp = "{http}"\n[web]\n{web}', Path()).node.http == http


def test_keys_that_a_kind_of_destination_has() -> None:
    """Each where it means something: a certificate is shown by https and by DIMSE over TLS, and where tokens are had."""
    shown = 'ca = "ca.pem"\ncertificate = { file = "node.pem", key = "node.key" }\n'
    for table in (
        DIMSE + 'tls = true\ncalling_ae = "A:B"\n' + shown,
        ARCHIVE.replace("http:", "https:") + 'proxy = "http://proxy:3128"\n' + shown,
        ARCHIVE + f'ca = "ca.pem"\nauth = {{ oidc = {{ client_id = "c", client_secret = {SECRET}, issuer = "https://b" }} }}',
        DIMSE.replace("A@", "A:B@"),
    ):
        (found,) = parse_config(table, Path()).destinations
        assert found.timeout == 120


def test_error_names_the_file(tmp_path: Path) -> None:
    """A wrong file is named in the error."""
    file = tmp_path / "x.toml"
    file.write_text("a = 1")
    with pytest.raises(ConfigError, match=f"^{file}: a: unknown key"):
        read_config(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(tmp_path / "none.toml")


def test_defaults_are_the_contract() -> None:
    """An empty file means loopback, the built-in model on CT, and no destination."""
    config = parse_config("", Path("/etc/segnode"))
    assert config.node == NodeConfig(ae_title="SEGNODE", dicom="127.0.0.1:11112", http="127.0.0.1:8080", data="./segnode-data")
    assert [(m.name, m.run, m.labels, m.version) for m in config.models] == [
        ("threshold", "python:segnode.models.threshold", "threshold", "1")
    ]
    assert config.destinations == ()
    assert config.rules == (RuleConfig(when={"Modality": "CT"}, model="threshold", send_to=(), quiet=60.0),)
    assert DestinationConfig(name="a", to="http://a").seg == (
        "labelmap:rle",
        "labelmap:native",
        "labelmap:implicit",
        "binary:native",
    )


def test_rule_without_a_model_forwards() -> None:
    """It needs a destination, and nothing else; SEGs go as they came unless it says otherwise."""
    (rule,) = parse_config(ARCHIVE + FORWARD, Path()).rules
    assert rule == RuleConfig(when={"Modality": "CT"}, model=None, send_to=("archive",), reencode=False)


def test_models_of_ones_own_bring_no_rule() -> None:
    """The default rule is for the default model: with [[models]] of one's own there is no rule until one is written."""
    model = '[[models]]\nname = "m"\nrun = "python:m"\nlabels = "m.toml"\nversion = "1"\n'
    assert parse_config(model, Path()).rules == ()


def test_relative_paths_start_at_the_file(tmp_path: Path) -> None:
    """The data folder lies beside the configuration file, wherever the command runs."""
    (tmp_path / "segnode.toml").write_text('[node]\ndata = "kept"')
    assert read_config(tmp_path / "segnode.toml").data == tmp_path / "kept"


def test_without_a_file_the_one_in_the_folder_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --config, ./segnode.toml is read where there is one."""
    monkeypatch.chdir(tmp_path)
    assert read_config(None) == Config(folder=tmp_path)
    (tmp_path / "segnode.toml").write_text('[node]\nae_title = "HERE"')
    assert read_config(None).node.ae_title == "HERE"


def test_shipped_file_is_read_and_holds_every_key() -> None:
    """conf/segnode.toml is valid and shows every key of every table, each with a comment."""
    assert read_config(SHIPPED).retention == RetentionConfig()
    raw = tomllib.loads(re.sub(r"(?m)^#(?=\w+ = |\[)", "", SHIPPED.read_text()))
    shown = {table: keys[0] if isinstance(keys, list) else keys for table, keys in raw.items()}
    for table, kind in (
        ("node", NodeConfig),
        ("models", ModelConfig),
        ("output", OutputConfig),
        ("destinations", DestinationConfig),
        ("rules", RuleConfig),
        ("storage", StorageConfig),
        ("retention", RetentionConfig),
        ("webhooks", WebhookConfig),
        ("web", WebConfig),
        ("dimse", DimseConfig),
        ("peers", PeerConfig),
    ):
        assert set(shown[table]) == set(kind.__struct_fields__)
    keys = [line for line in SHIPPED.read_text().splitlines() if " = " in line and not line.startswith("#")]
    assert all("#" in line for line in keys)
