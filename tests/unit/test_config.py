"""The configuration file."""

import re
import tomllib
from pathlib import Path

import pytest

from segnode.config import (
    Config,
    DestinationConfig,
    ModelConfig,
    NodeConfig,
    RetentionConfig,
    RuleConfig,
    StorageConfig,
    WebhookConfig,
    parse_config,
    read_config,
)
from segnode.errors import ConfigError

SHIPPED = Path(__file__).parents[2] / "conf" / "segnode.toml"
ARCHIVE = '[[destinations]]\nname = "archive"\nto = "http://archive/dicom-web"\n'
DIMSE = '[[destinations]]\nname = "archive"\nto = "A@host:104"\n'
SECRET = '{ env = "A" }'
FORWARD = '[[rules]]\nwhen = { Modality = "CT" }\nsend_to = ["archive"]\n'
RULE = '[[rules]]\nwhen = { Modality = "CT" }\nmodel = "threshold"\n'


@pytest.mark.parametrize(
    ("text", "path", "allowed"),
    [
        ('[nod]\nae_title = "A"', "nod", "node, models, destinations, rules, storage, retention, webhooks"),
        ('[node]\nae_titel = "A"', "node.ae_titel", "ae_title, dicom, http, data"),
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
        ("destinations", DestinationConfig),
        ("rules", RuleConfig),
        ("storage", StorageConfig),
        ("retention", RetentionConfig),
        ("webhooks", WebhookConfig),
    ):
        assert set(shown[table]) == set(kind.__struct_fields__)
    keys = [line for line in SHIPPED.read_text().splitlines() if " = " in line and not line.startswith("#")]
    assert all("#" in line for line in keys)
