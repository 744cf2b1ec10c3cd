"""Building and installing: for the Dovecot that is there, and never a plugin that doesn't load."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.dovecot import MODULES, PLUGIN_FILES, PLUGIN_SOURCE, REGISTRY_GROUP, SETTINGS_FILE, Dovecot, is_24

PLUGIN, REGISTRY = PLUGIN_FILES
SETTINGS = f"settings/{SETTINGS_FILE}"
INSTALLED = {PLUGIN, REGISTRY, SETTINGS} if is_24() else {PLUGIN, REGISTRY}


@pytest.fixture
def build(plain_plugin: Path, tmp_path: Path) -> Path:
    """A copy of what was built, to be spoilt."""
    return shutil.copytree(plain_plugin, tmp_path / "build")


@pytest.fixture
def modules(tmp_path: Path) -> Iterator[Path]:
    """Dovecot's modules as installed, without the plugin: mount it over the real ones."""
    tmp_path.chmod(0o755)
    copy = shutil.copytree(MODULES, tmp_path / "modules")
    for name in INSTALLED:
        (copy / name).unlink(missing_ok=True)
    yield copy


def install(
    modules: Path, build: Path, target: str = "install", *, options: str = "exec"
) -> subprocess.CompletedProcess[str]:
    """``make install`` without a build, where `modules` are mounted in the place of the real ones."""
    script = f'mount --bind -o {options} "$0" "$1" && mount -o remount,bind,{options} "$1" && shift && exec "$@"'
    command = ["make", "-s", "-C", str(PLUGIN_SOURCE), target, f"BUILD={build}"]
    command += [f"--old-file={build}/{Path(name).name}" for name in INSTALLED]
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, str(modules), str(MODULES), *command],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def installed(modules: Path) -> dict[str, bytes]:
    return {name: (modules / name).read_bytes() for name in INSTALLED if (modules / name).exists()}


def test_install_proves_that_dovecot_loads_it(modules: Path, build: Path) -> None:
    done = install(modules, build)
    assert done.returncode == 0, done.stderr
    assert "loads it" in done.stdout
    assert set(installed(modules)) == INSTALLED
    assert all((modules / name).stat().st_mode & 0o777 == 0o644 for name in INSTALLED)
    assert install(modules, build).returncode == 0, "again"


def test_install_by_sudo(modules: Path, build: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """sudo sets $MAIL, which Dovecot 2.3's imap takes for the mail's location when no login process started it."""
    monkeypatch.setenv("MAIL", "/var/mail/root")
    done = install(modules, build)
    assert done.returncode == 0, done.stderr


UNLINKED = {
    PLUGIN: """
        int missing(void);
        void imap_xaps_plugin_init(void) { missing(); }
        void imap_xaps_plugin_deinit(void) {}
    """,
    REGISTRY: """
        int missing(void);
        struct { int (*record)(void); } xaps_registry_module = { missing };
    """,
}


@pytest.mark.parametrize("before", [None, "older"])
@pytest.mark.parametrize("name", UNLINKED)
def test_a_module_that_does_not_load_is_not_installed(
    modules: Path, build: Path, name: str, before: str | None
) -> None:
    if before is not None:
        assert install(modules, build).returncode == 0
    was = installed(modules)
    compile_module(build / name, UNLINKED[name])
    done = install(modules, build)
    assert done.returncode != 0
    assert "can't load" in done.stderr
    assert "undefined symbol: missing" in done.stderr
    assert installed(modules) == was


def test_a_registry_module_of_another_release_is_not_installed(modules: Path, build: Path) -> None:
    compile_module(build / REGISTRY, 'struct { const char *version; } xaps_registry_module = { "0 for 2.3.ABIv19" };')
    done = install(modules, build)
    assert done.returncode != 0
    assert f"{REGISTRY} is of another release" in done.stderr
    assert installed(modules) == {}


def test_a_plugin_for_another_dovecot_is_not_installed(modules: Path, build: Path) -> None:
    compile_module(build / PLUGIN, 'const char *imap_xaps_plugin_version = "2.3.ABIv999(2.3.999)";')
    done = install(modules, build)
    assert done.returncode != 0
    assert "Module is for different ABI version 2.3.ABIv999" in done.stderr
    assert installed(modules) == {}


@pytest.mark.parametrize("before", [None, "older"])
def test_what_fails_only_in_its_place_is_taken_back(modules: Path, build: Path, before: str | None) -> None:
    """As under a policy of the system that lets nobody load it from there."""
    for other in (modules / "settings").glob("*.so"):
        other.unlink()  # it could not be loaded either
    if before is not None:
        assert install(modules, build).returncode == 0
    was = installed(modules)
    with (build / PLUGIN).open("ab") as file:
        file.write(b"newer")
    done = install(modules, build, options="noexec")
    assert done.returncode != 0
    assert f"can't load {MODULES}/{PLUGIN}" in done.stderr
    assert "not installed" in done.stderr
    assert installed(modules) == was


def compile_module(file: Path, source: str) -> None:
    subprocess.run(["gcc", "-shared", "-fPIC", "-x", "c", "-o", file, "-"], input=source, text=True, check=True)


def test_destdir(build: Path, tmp_path: Path) -> None:
    options = ["-s", "-C", str(PLUGIN_SOURCE), f"BUILD={build}", f"DESTDIR={tmp_path}/package"]
    there = tmp_path / f"package{MODULES}"
    subprocess.run(["make", "install", *options], check=True)
    other = there / "lib90_other_plugin.so"
    other.touch()
    assert {path.relative_to(there).as_posix() for path in there.rglob("*.so")} == {*INSTALLED, other.name}
    subprocess.run(["make", "uninstall", *options], check=True)
    assert list(there.rglob("*.so")) == [other]


@pytest.mark.parametrize(
    "configured",
    ["protocol imap {\n  mail_plugins = imap_xaps\n}", "plugin {\n  xaps_registry = /x\n}", "xaps_busy_timeout = 1s"],
)
def test_uninstall_only_what_is_not_configured(
    modules: Path, build: Path, configured: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or nobody could log in any more."""
    others = {file.relative_to(modules) for file in modules.rglob("*.so")}
    assert install(modules, build).returncode == 0
    doveconf = tmp_path / "bin" / "doveconf"
    doveconf.parent.mkdir()
    doveconf.write_text(f"#!/bin/sh\ncat <<END\n{configured}\nEND\n")
    doveconf.chmod(0o755)
    monkeypatch.setenv("PATH", f"{doveconf.parent}:{os.environ['PATH']}")
    done = install(modules, build, "uninstall")
    assert done.returncode != 0
    assert "nothing removed, since Dovecot's configuration still has:" in done.stderr
    assert set(installed(modules)) == INSTALLED
    doveconf.write_text("#!/bin/sh\necho protocols = imap\n")
    for _ in range(2):
        assert install(modules, build, "uninstall").returncode == 0
        assert {file.relative_to(modules) for file in modules.rglob("*.so")} == others


def make(*arguments: str) -> str:
    """What make says when it refuses."""
    done = subprocess.run(["make", "-C", PLUGIN_SOURCE, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    return done.stderr


def test_without_dovecots_headers_make_names_the_package(tmp_path: Path) -> None:
    assert "install dovecot-dev" in make(f"DOVECOT_CONFIG={tmp_path}/none").lower()


def test_a_dovecot_that_is_too_old(tmp_path: Path) -> None:
    (tmp_path / "config.h").write_text('#define DOVECOT_VERSION "2.2.36"\n')
    (tmp_path / "dovecot-config").write_text(f"dovecot_pkgincludedir={tmp_path}\n")
    assert "Dovecot 2.2.36 is too old for this plugin: 2.3.13 is needed" in make(
        f"DOVECOT_CONFIG={tmp_path}/dovecot-config"
    )


def test_the_sample_configuration(plugin: Path) -> None:
    sample = (PLUGIN_SOURCE / ("95-xaps-2.4.conf" if is_24() else "95-xaps.conf")).read_text()
    for line in ("#xaps_registry = /var/lib/xaps-watch/registry.sqlite3", "#xaps_busy_timeout = 5s"):
        assert line in sample
    sample = sample.replace("#xaps_registry = /var/lib/xaps-watch", "xaps_registry = DIRECTORY/registry")
    sample = sample.replace("#xaps_busy_timeout", "xaps_busy_timeout").replace("xaps-watch", str(REGISTRY_GROUP))
    if not is_24():  # as in conf.d/20-imap.conf of those who have quotas
        sample = "protocol imap {\n  mail_plugins = $mail_plugins imap_quota\n}\n" + sample
    with Dovecot(plugin, enabled=False, plugins=["quota"], config=sample) as dovecot, dovecot.phone() as phone:
        assert phone.register().mailboxes == ("INBOX",)
        assert set(dovecot.recorded()) == {phone.device_token}


def test_without_the_plugin_nothing_is_offered(plugin: Path) -> None:
    with Dovecot(plugin, enabled=False) as dovecot, dovecot.phone() as phone:
        assert not phone.is_offered_push
        assert phone.command(phone.request()).status == "BAD"
