"""The configuration: defaults, and one clear line for everything that can be wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from xaps_watch.config import Config, load, parse
from xaps_watch.model import ConfigError

FILE = Path("/etc/xaps-watch/config.toml")


def test_an_empty_file_is_a_configuration() -> None:
    config = parse("", FILE)
    assert config == Config(source=FILE)
    assert config.apns.push_url == "https://api.push.apple.com"
    assert config.registry.path == Path("/var/lib/xaps-watch/registry.sqlite3")
    assert (config.push.min_interval, config.push.sync_changes, config.push.change_delay) == (3.0, False, 30.0)
    assert config.default_certificate == Path("/etc/xaps-watch/mail.pem")


def test_everything_can_be_set() -> None:
    config = parse(
        """
        [apns]
        environment = "sandbox"
        token_key = "AuthKey_ABC123DEFG.p8"
        key_id = "ABC123DEFG"
        team_id = "DEF123GHIJ"
        topic = "com.apple.mobilemail.push.org.example"
        priority = 5
        [registry]
        expire_after_days = 10
        [push]
        min_interval = 1
        sync_changes = true
        """,
        FILE,
    )
    assert config.apns.push_url == "https://api.sandbox.push.apple.com"
    assert config.apns.token_key == Path("/etc/xaps-watch/AuthKey_ABC123DEFG.p8")
    assert config.push.min_interval == 1.0


def test_a_systemd_credential_can_be_named() -> None:
    text = '[apns]\ncertificate = "$CREDENTIALS_DIRECTORY/mail.pem"'
    config = parse(text, FILE, {"CREDENTIALS_DIRECTORY": "/run/credentials/xaps-watch.service"})
    assert config.apns.certificate == Path("/run/credentials/xaps-watch.service/mail.pem")
    with pytest.raises(ConfigError, match=r"certificate \$CREDENTIALS_DIRECTORY isn't set: start the service"):
        parse(text, FILE, {})


PROVIDER = 'token_key = "a.p8"\nkey_id = "ABC123DEFG"\nteam_id = "DEF123GHIJ"\n'

WRONG = {
    "not TOML": ("[apns", "not TOML: "),
    "unknown section": ("[apn]", "unknown section 'apn'; did you mean 'apns'?"),
    "key outside of a section": ('topic = "x"', "unknown key 'topic'; known: apns, registry"),
    "section as a value": ("apns = 1", "apns must be a section: [apns]"),
    "unknown key": ("[push]\nmin_intervall = 3", "[push] unknown key 'min_intervall'; did you mean 'min_interval'?"),
    "text for a number": ('[push]\nmin_interval = "3"', "[push] min_interval must be a number, not '3'"),
    "truth for a number": ("[push]\nmin_interval = true", "[push] min_interval must be a number, not True"),
    "number for a truth": ("[push]\nsync_changes = 1", "[push] sync_changes must be true or false, not 1"),
    "number for a text": ("[apns]\ntopic = 5", "[apns] topic must be a string, not empty, not 5"),
    "empty file name": ('[registry]\npath = ""', "[registry] path must be a string, not empty, not ''"),
    "negative": ("[push]\nmin_interval = -1", "[push] min_interval must be a number of at least 0.0, not -1.0"),
    "infinite": ("[push]\nmin_interval = inf", "[push] min_interval must be a number of at least 0.0, not inf"),
    "no number": ("[push]\nmin_interval = nan", "[push] min_interval must be a number of at least 0.0, not nan"),
    "environment": (
        '[apns]\nenvironment = "prod"',
        "[apns] environment must be one of 'production', 'sandbox', not 'prod'",
    ),
    "priority": ("[apns]\npriority = 7", "[apns] priority must be one of 5, 10, not 7"),
    "http": ('[apns]\nurl = "http://127.0.0.1:2197"', "[apns] url must be of the form https://host:port"),
    "path in the url": ('[apns]\nurl = "https://h/3/device"', "[apns] url must be of the form https://host:port"),
    "port of the url": ('[apns]\nurl = "https://h:99999"', "[apns] url must be of the form https://host:port"),
    "key id": ('[apns]\nkey_id = "abc"', "[apns] key_id must be the 10 capital letters and digits of the key's ID"),
    "both": (
        f'[apns]\ncertificate = "a.pem"\n{PROVIDER}topic = "com.apple.mobilemail.push.a"',
        "[apns] token_key and certificate exclude each other",
    ),
    "token without topic": (f"[apns]\n{PROVIDER}", "[apns] topic is missing: token_key needs it"),
    "token without team": ('[apns]\ntoken_key = "a.p8"\nkey_id = "ABC123DEFG"', "[apns] team_id is missing"),
    "key id alone": ('[apns]\nkey_id = "ABC123DEFG"', "[apns] key_id goes with token_key, which is missing"),
    "key alone": ('[apns]\nkey = "a.key"', "[apns] key goes with certificate, which is missing"),
    "topic of another app": (
        f'[apns]\n{PROVIDER}topic = "org.example.app"',
        "[apns] topic: topic 'org.example.app' would be refused by iOS Mail: it must begin with com.apple.mail. or",
    ),
    "topic with a line break": (f'[apns]\n{PROVIDER}topic = "com.apple.mail.a\\nb"', "would be refused by iOS Mail"),
    "metrics": ('[metrics]\nlisten = "9617"', "[metrics] listen must be an address and a port, such as 127.0.0.1:9617"),
}


@pytest.mark.parametrize(("text", "message"), WRONG.values(), ids=WRONG)
def test_wrong(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse(text, FILE)
    assert str(raised.value).startswith(f"{FILE}: ")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file or directory; name the file with -c FILE"):
        load(tmp_path / "config.toml")


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_bytes(b"[apns]\n\xff")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        load(tmp_path / "config.toml")


def test_the_sample_configuration_is_right_as_it_is_and_with_its_examples() -> None:
    sample = (Path(__file__).parents[2] / "systemd" / "config.toml").read_text()
    assert parse(sample, FILE) == Config(source=FILE)
    examples = re.sub("^# (?=[a-z_]+ = )", "", sample, flags=re.MULTILINE)
    one_of_two = re.sub("^(token_key|key_id|team_id) .*", "", examples, flags=re.MULTILINE)
    assert parse(one_of_two, FILE).apns.certificate == Path("/etc/xaps-watch/mail.pem")
