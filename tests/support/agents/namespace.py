"""A private view of the machine: the packages are installed and the mail users exist, but for the agents alone."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.agents.packages import UnavailableError

# Runs as process 1 of the namespaces. $1: scratch directory, $2: the trees joined by ":", $3: the stage's own etc,
# $4: "private" or "shared" network. What the agents write to /usr, /etc, /var and /run stays in memory. Everything
# ends when standard input does, which is when the test process ends, however it ends.
SETUP = """
mount -t tmpfs -o mode=0755 scratch "$1"
for name in usr etc var; do
    mkdir "$1/$name" "$1/$name/upper" "$1/$name/work"
    lower=$(echo "$2" | sed "s|:|/$name:|g; s|\\$|/$name:/$name|")
    [ $name != etc ] || lower=$3:$lower
    mount -t overlay -o "lowerdir=$lower,upperdir=$1/$name/upper,workdir=$1/$name/work" overlay /$name
done
mount -t tmpfs -o mode=0755 run /run
[ "$4" = shared ] || ip link set lo up
echo ready
exec cat
"""


FOLDER = "Work"  # the one folder that each agent delivers to, beside INBOX

_NOT_FOUND = 127  # env(1)'s exit status


class CommandError(Exception):
    """A command ended with another exit status than 0; the text has all that it wrote."""


@dataclass(frozen=True, slots=True)
class MailUser:
    """Somebody who gets mail: a system user inside the namespaces, and a virtual one for Dovecot."""

    name: str
    uid: int  # and gid
    home: Path

    @property
    def maildir(self) -> Path:
        return self.home / "Maildir"

    def directory(self, mailbox: str) -> Path:
        """The directory that holds the mailbox's new/ and cur/, Maildir++."""
        return self.maildir if mailbox == "INBOX" else self.maildir / f".{mailbox}"


class Namespace:
    """Mount and process namespaces (and with `private_network` one with nothing but its own loopback)."""

    def __init__(self, trees: Sequence[Path], etc: Path, scratch: Path, *, private_network: bool) -> None:
        scratch.mkdir()
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._holder = subprocess.Popen(
            (
                *("unshare", "--mount", "--propagation=private", "--pid", "--fork", "--kill-child", "--mount-proc"),
                *(("--net",) if private_network else ()),
                *("sh", "-euc", SETUP, "setup", scratch, ":".join(map(str, trees)), etc),
                "private" if private_network else "shared",
            ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self._holder.stdout and self._holder.stderr
        if self._holder.stdout.readline() != b"ready\n":
            raise RuntimeError(f"no namespace of its own: {self._holder.stderr.read().decode()}")
        children = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children").read_text().split()
        self._enter = ["nsenter", f"--target={children[0]}", "--mount", "--pid"]
        if private_network:
            self._enter.append("--net")

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        user: MailUser | None = None,
        stdin: bytes = b"",
        timeout: float = 30,
    ) -> str:
        """The command's standard output; by default as root. Raises CommandError, UnavailableError."""
        as_user = () if user is None else ("setpriv", f"--reuid={user.uid}", f"--regid={user.uid}", "--clear-groups")
        home, name = (Path("/root"), "root") if user is None else (user.home, user.name)
        done = subprocess.run(
            (*self._enter, "--", *as_user, "env", f"--chdir={home}", *argv),
            input=stdin,
            env={"PATH": "/usr/sbin:/usr/bin", "HOME": str(home), "USER": name, "LOGNAME": name, "LC_ALL": "C.UTF-8"},
            capture_output=True,
            timeout=timeout,
            check=False,
        )
        if done.returncode == _NOT_FOUND:
            raise UnavailableError(f"{argv[0]} is not in this Debian's archive")
        if done.returncode:
            wrote = (done.stdout + done.stderr).decode(errors="replace")
            raise CommandError(f"{' '.join(map(str, argv))}: exit status {done.returncode}\n{wrote}")
        return done.stdout.decode(errors="replace")

    def start(self, argv: Sequence[str | Path], log: Path) -> None:
        """Starts a daemon, as root, that stays in the foreground; it ends with the namespaces."""
        with log.open("ab") as output:
            daemon = subprocess.Popen(
                (*self._enter, "--", *argv), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
        self._daemons.append(daemon)

    def close(self) -> None:
        """Ends everything that runs inside."""
        self._holder.communicate()
        for daemon in self._daemons:
            daemon.wait()
