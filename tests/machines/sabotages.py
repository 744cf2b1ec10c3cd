"""What may be wrong on a mail server: each is named by ``xaps-watch check``, with a command that mends it."""

from __future__ import annotations

from dataclasses import dataclass

_CONFIG = "/etc/xaps-watch/config.toml"
_STATE = "/var/lib/xaps-watch"
_REGISTRY = f"{_STATE}/registry.sqlite3"
_MODULES = "/usr/lib/dovecot/modules"
_DOVECOT = "/etc/dovecot/conf.d/95-xaps.conf"
_LIMIT = "/proc/sys/fs/inotify/max_user_watches"
_VERSION = "/opt/xaps-watch/lib/python3*/site-packages/xaps_watch/__init__.py"
_CA = "/usr/local/share/ca-certificates/apns.crt"

_CERTIFICATE = "/etc/xaps-watch/mail.pem"
_NEW = "/home/admin/xaps-watch/NEW.pem"  # as check calls it, where the admin works
_EXPIRED = """/opt/xaps-watch/bin/python -c "
from datetime import timedelta
from pathlib import Path
from xaps_watch.authority import LocalAuthority
topic, ends = 'com.apple.mobilemail.push.org.example', timedelta(days=-2)
LocalAuthority(Path('/root')).push_certificate(topic, name='expired', starts=timedelta(days=-9), ends=ends)"
"""

# The registrations are needed again.
_KEEP = f"systemctl stop xaps-watch && cp -a {_STATE} /root/kept"
_GIVE_BACK = f"systemctl stop xaps-watch && rm -r {_STATE} && mv /root/kept {_STATE} && systemctl start xaps-watch"
_NO_TOPIC = """/opt/xaps-watch/bin/python -c "
import sqlite3
registry = sqlite3.connect('/var/lib/xaps-watch/registry.sqlite3', isolation_level=None)
registry.execute('DELETE FROM setting WHERE name = ?', ['topic'])"
"""


@dataclass(frozen=True, slots=True)
class Sabotage:
    """What root does, and what check has to say of it."""

    subject: str
    said: str
    do: str
    editor: str = "false"  # for the admin who is told to edit a file
    apart_from: str = "nothing else"  # a subject of which more is wrong than this mend is for
    afterwards: str = "true"  # what the mend has left to do, or has left behind


def _edit(said: str, wrong: str, right: str, subject: str = "credentials") -> Sabotage:
    """A mistake in the configuration, and what the admin makes of it in an editor: sed's commands."""
    return Sabotage(subject, said, f"sed -i '{wrong}' {_CONFIG}", f"sed -i {right}")


SABOTAGES = {
    # The configuration, and what it names
    "a key misspelt": _edit("did you mean 'path'?", r'/^\[registry/a pth = "x"', "/^pth/d", "configuration"),
    "a section misspelt": _edit("did you mean 'watch'?", "s/^.watch/[wacth/", "s/^.wacth/[watch/", "configuration"),
    "a key ID without a key": _edit(
        "key_id goes with token_key", r'/^\[apns/a key_id = "ABC123DEFG"', "/^key_id/d", "configuration"
    ),
    "no configuration": Sabotage(
        "configuration", "cannot be read", f"mv {_CONFIG} /root/kept",
        apart_from="push host",  # Apple's, by the sample
        afterwards=f"mv /root/kept {_CONFIG}",
    ),
    "another topic than the certificate's": _edit(
        "the certificate /etc", r'/^\[apns/a topic = "com.apple.mobilemail.push.org.other"', "/^topic/d"
    ),
    "a certificate that is not there": _edit("No such file", r'/^\[apns/a certificate = "mial.pem"', "/^certificate/d"),
    "a certificate without its key": _edit(
        "holds no PEM private key", r'/^\[apns/a certificate = "ca.pem"', "/^certificate/d"
    ),
    "no certificate": Sabotage(
        "credentials", "no push credentials yet", f"mv {_CERTIFICATE} {_NEW}", afterwards=f"rm {_NEW}"
    ),
    "the certificate has expired": Sabotage(
        "credentials", "expired on", f"mv {_CERTIFICATE} {_NEW} && {_EXPIRED} mv /root/expired.pem {_CERTIFICATE}",
        afterwards=f"rm {_NEW}",
    ),
    "the certificate may be read by all": Sabotage(
        "credentials", "mail.pem may be read by everybody", f"chmod o+r {_CERTIFICATE}"
    ),
    # The push host
    "a wrong push host": _edit("Connection refused", "/^url/s/2197/2196/", "/^url/s/2196/2197/", "push host"),
    "the push host's CA is another": _edit(
        "VERIFY_FAILED", "/^ca_file/s/ca.pem/mail.pem/", "/^ca_file/s/mail.pem/ca.pem/", "push host"
    ),
    "the system doesn't know the push host's CA": Sabotage(
        "push host", "VERIFY_FAILED", f"sed -i 's,^ca_file,# &,' {_CONFIG} && cp /etc/xaps-watch/ca.pem {_CA}",
        afterwards=f"sed -i 's,^# ca_file,ca_file,' {_CONFIG} && rm {_CA} && update-ca-certificates --fresh",
    ),
    # The registry
    "the directory lost its setgid bit": Sabotage("registry", f"{_STATE} has mode 0770", f"chmod g-s {_STATE}"),
    "the directory is open to all": Sabotage("registry", f"{_STATE} is open to everybody", f"chmod o+rx {_STATE}"),
    "the registry is its owner's": Sabotage("registry", f"{_REGISTRY} has mode 0600", f"chmod 0600 {_REGISTRY}"),
    "the registry is open to all": Sabotage("registry", f"{_REGISTRY} is open to everybody", f"chmod o+rw {_REGISTRY}"),
    "the registry is of another group": Sabotage(
        "registry", "has not the group of its directory", f"chgrp mail {_REGISTRY}"
    ),
    "the registry is gone": Sabotage("registry", "not there", f"{_KEEP} && rm {_REGISTRY}*", afterwards=_GIVE_BACK),
    "the registry is damaged": Sabotage(
        "registry", "not a database", f"{_KEEP} && rm -f {_REGISTRY}-* && head -c 20000 /dev/urandom >{_REGISTRY}",
        afterwards=_GIVE_BACK,
    ),
    "no topic in the registry": Sabotage("registry", "is told no topic", _NO_TOPIC),
    "no topic for the plugin": Sabotage("registry", f"{_REGISTRY}-topic doesn't hold", f"rm {_REGISTRY}-topic"),
    # The machine
    "too few watches": Sabotage(
        "inotify", "max_user_watches is 5", f"echo 5 >/root/limit && mount --bind /root/limit {_LIMIT}",
        afterwards=f"umount {_LIMIT} && rm /etc/sysctl.d/61-xaps-watch.conf",
    ),
    # Dovecot
    "the plugin is not configured": Sabotage(
        "plugin", "imap_xaps is not in mail_plugins", f"rm {_DOVECOT} && doveadm reload"
    ),
    "imap processes lack the group": Sabotage(
        "plugin", "lacks mail_access_groups", f"sed -i '/access_groups/,/}}/s/xaps-watch/mail/' {_DOVECOT}",
        afterwards=f"rm {_DOVECOT}.old",
    ),
    "Dovecot has another registry": Sabotage(
        "plugin", "xaps_registry is /tmp/other", f"sed -i 's,#xaps_registry.*,xaps_registry = /tmp/other,' {_DOVECOT}",
        afterwards=f"rm /etc/dovecot/conf.d/96-xaps-registry.conf && sed -i '/= .tmp.other/d' {_DOVECOT}",
    ),
    "a module is gone": Sabotage("plugin", "registry.so: No such file", f"rm {_MODULES}/libimap_xaps_registry.so"),
    "the plugin is for another Dovecot": Sabotage(
        "plugin", "was built for Dovecot 2.",
        f"sed -i 's/2.4.ABIv/2.5.ABIv/; s/(2.3.19/(2.3.18/' {_MODULES}/lib90_imap_xaps_plugin.so",
    ),
    # The service
    "the service is stopped": Sabotage("service", "status.sock: No such file", "systemctl disable --now xaps-watch"),
    "the service can't be asked": Sabotage("service", "status.sock: No such file", "rm /run/xaps-watch/status.sock"),
    "another version still runs": Sabotage(
        "service", "99.2 is installed",
        f"cp -a {_VERSION} /root/kept && sed -i 's/^__version__ = .*/__version__ = \"99.2\"/' {_VERSION}",
        afterwards=f"mv /root/kept {_VERSION} && systemctl restart xaps-watch",
    ),
}  # fmt: skip
