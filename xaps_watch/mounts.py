"""Which filesystem a directory is on, and whether inotify tells all that happens there."""

from __future__ import annotations

import os
import re
import select
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

# Others than this machine's kernel change what is on these, and inotify isn't told. Names as in /proc/filesystems.
REMOTE = frozenset((
    "9p", "afs", "beegfs", "ceph", "cifs", "coda", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4",
    "ocfs2", "orangefs", "prl_fs", "smb3", "smbfs", "vboxsf", "virtiofs", "vmhgfs",
))  # fmt: skip

DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC  # open(2): to name a directory, whether or not it may be read

_FIELD = re.compile(r"\\([0-7]{3})")


def is_remote(filesystem: str) -> bool:
    """Whether mail may appear unseen by inotify. A FUSE program may fetch it from anywhere; fuseblk is a local disk."""
    return filesystem in REMOTE or filesystem == "fuse" or filesystem.startswith("fuse.")


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of the mount table."""

    id: int
    point: str
    filesystem: str


def parse(text: str) -> dict[int, Mount]:
    """Read /proc/self/mountinfo, proc_pid_mountinfo(5)."""
    mounts = {}
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        point = _FIELD.sub(lambda octal: chr(int(octal[1], 8)), fields[4])
        mounts[int(fields[0])] = Mount(int(fields[0]), point, after.split(" ")[0])
    return mounts


class Filesystems:
    """The types of the filesystems that directories are on, by what parse() has read."""

    def __init__(self, mounts: Mapping[int, Mount]) -> None:
        self._mounts = mounts
        self._by_device: dict[int, str] = {}

    def of(self, directory: int, device: int) -> str:
        """That of the open directory; `device` is its st_dev, each of which is looked up once. For any thread."""
        name = self._by_device.get(device)
        if name is None:
            mount = self._mounts.get(_mount_id(directory))
            name = self._by_device[device] = mount.filesystem if mount is not None else "unknown"
        return name

    def at(self, path: str) -> str:
        """That of the directory with this path. Raises OSError."""
        directory = os.open(path, DIRECTORY)
        try:
            return self.of(directory, os.fstat(directory).st_dev)
        finally:
            os.close(directory)


class MountTable:
    """What is mounted now. `fileno()` becomes readable when that has changed: `changes()` tells where."""

    def __init__(self, path: Path = Path("/proc/self/mountinfo")) -> None:
        self._file = path.open("rb", buffering=0)
        self._epoll = select.epoll()
        # The table is always readable; that it changed comes as POLLPRI. An epoll of its own keeps these apart.
        self._epoll.register(self._file.fileno(), select.EPOLLPRI)
        self._read()

    def _read(self) -> None:
        self._file.seek(0)
        self._mounts = parse(os.fsdecode(self._file.read()))
        self._filesystems = Filesystems(self._mounts)
        remote = {mount.point for mount in self._mounts.values() if is_remote(mount.filesystem)}
        self._remote = sorted(remote, key=len, reverse=True)

    def fileno(self) -> int:
        return self._epoll.fileno()

    def close(self) -> None:
        self._epoll.close()
        self._file.close()

    def changes(self) -> set[str]:
        """Where something was mounted or unmounted since the last call."""
        self._epoll.poll(0)
        before = self._mounts
        self._read()
        return {mount.point for mount in set(before.values()) ^ set(self._mounts.values())}

    def filesystem(self, directory: int, device: int) -> str:
        """The type of the filesystem that the open directory is on; `device` is its st_dev. For any thread."""
        return self._filesystems.of(directory, device)

    def server(self, path: str) -> str:
        """The mount point of the remote filesystem that `path` seems to be on, by its name; "" if it is none."""
        for point in self._remote:
            if path.startswith(point) and path[len(point) : len(point) + 1] in ("", "/"):
                return point
        return ""


def _mount_id(directory: int) -> int:
    for line in Path(f"/proc/self/fdinfo/{directory}").read_text().splitlines():
        if line.startswith("mnt_id:"):
            return int(line[7:])
    return -1
