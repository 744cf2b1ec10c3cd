#!/usr/bin/env bash
# Installs xaps-watch on this machine, or takes it off again. Shows each command that changes something.
# May be run again at any time: to upgrade, to mend, or to build the plugin anew after an upgrade of Dovecot.
set -euo pipefail
export LC_ALL=C.UTF-8

usage() {
    cat <<'END'
Usage: systemd/install.sh [OPTION]...

Installs the daemon (in its own Python environment, /opt/xaps-watch), its systemd unit, user and sample configuration,
man pages, and the Dovecot plugin. Neither starts the service nor changes Dovecot's configuration, unless asked:

  --enable-dovecot     let Dovecot load the plugin: writes conf.d/95-xaps.conf, checks, reloads, and takes it back if
                       Dovecot doesn't accept it
  --disable-dovecot    take that file away again
  --no-plugin          only the daemon, where Dovecot runs elsewhere
  --system-packages    use the distribution's Python packages where they are new enough; pip fetches the rest
  --uninstall          remove all but the configuration, the registry and the user; mail and Dovecot go on
  --purge              remove these, too (with --uninstall)
  --dry-run            show what would be done
  --help
END
}

source=$(cd "$(dirname "$0")/.." && pwd)
name=xaps-watch
venv=/opt/xaps-watch
etc=/etc/xaps-watch
state=/var/lib/xaps-watch
local=/usr/local

# What goes where, by mode. Under /usr/local, so that drop-ins and copies in /etc stay the admin's own.
files() {
    cat <<END
0644 systemd/xaps-watch.service         $local/lib/systemd/system/xaps-watch.service
0644 systemd/xaps-watch.sysusers        $local/lib/sysusers.d/xaps-watch.conf
0644 systemd/xaps-watch.tmpfiles        $local/lib/tmpfiles.d/xaps-watch.conf
0644 systemd/xaps-watch.8               $local/share/man/man8/xaps-watch.8
0644 systemd/xaps-watch.toml.5          $local/share/man/man5/xaps-watch.toml.5
0644 systemd/xaps-watch.bash-completion $local/share/bash-completion/completions/xaps-watch
0644 systemd/xaps-watch.sysctl          $local/share/doc/xaps-watch/60-xaps-watch.conf
0644 systemd/config.toml                $local/share/doc/xaps-watch/config.toml
0644 README.md                          $local/share/doc/xaps-watch/README.md
END
}

# --- telling and doing ------------------------------------------------------------------------------------------------

say() { printf '%s\n' "$*"; }
step() { printf '\n== %s\n' "$*"; }
warn() { printf 'warning: %s\n' "$*" >&2; }
die() { printf 'install.sh: %s\n' "$*" >&2; exit 1; }

# Show a command that changes something, and run it.
run() {
    printf '  %s\n' "$*"
    [ -n "$dry_run" ] || "$@"
}

# Write standard input into a file; shows the file's content.
write() {
    local mode=$1 path=$2 content
    content=$(cat)
    printf '  write %s:\n' "$path"
    printf '%s\n' "$content" | sed 's/^/    | /'
    [ -z "$dry_run" ] || return 0
    install -m "$mode" /dev/null "$path"
    printf '%s\n' "$content" >"$path"
}

have() { command -v "$1" >/dev/null 2>&1; }

# --- what is needed ---------------------------------------------------------------------------------------------------

need_packages() {
    local missing=() package
    for package in "$@"; do
        dpkg-query -W -f '${Status}\n' "$package" 2>/dev/null | grep -q 'ok installed$' || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    run apt-get install -y --no-install-recommends "${missing[@]}" ||
        die "could not install ${missing[*]}; if they were not found: apt-get update, then once more"
}

check_machine() {
    [ "$(id -u)" = 0 ] || die "must be run as root: sudo $0 $*"
    have systemctl || die "no systemd here; in a container run the daemon itself: xaps-watch -c FILE run"
    local packages=(python3 python3-venv)
    if [ -n "$plugin" ]; then
        packages+=(gcc make pkg-config libsqlite3-dev dovecot-dev)
    fi
    if [ -n "$system_packages" ]; then
        packages+=(python3-httpx python3-h2 python3-sniffio python3-jwt python3-cryptography python3-pyinotify
            python3-sdnotify python3-setuptools python3-wheel)
        [ -z "$(metrics_extra)" ] || packages+=(python3-prometheus-client)
    fi
    if have apt-get; then
        need_packages "${packages[@]}"
    else
        say "  not a Debian system: it has to have what Debian calls ${packages[*]}"
    fi
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' || die "Python 3.10 or newer is needed"
}

# --- the daemon -------------------------------------------------------------------------------------------------------

install_daemon() {
    step "the daemon, in $venv"
    # Made anew if it was made by another Python, as after an upgrade of the system.
    if ! [ "$("$venv/bin/python" -V 2>/dev/null)" = "$(python3 -V)" ] || [ "$(venv_kind)" != "$(wanted_kind)" ]; then
        run python3 -m venv --clear ${system_packages:+--system-site-packages} "$venv"
    fi
    local isolation=()
    [ -z "$system_packages" ] || isolation=(--no-build-isolation)
    run "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "${isolation[@]}" --upgrade \
        "$work$(metrics_extra)"
    run ln -sfn "$venv/bin/xaps-watch" "$local/bin/xaps-watch"
}

# What the metrics listener needs, where one is configured.
metrics_extra() {
    if grep -qs '^ *listen *=' "$etc/config.toml"; then echo '[metrics]'; fi
}

venv_kind() { sed -n 's/^include-system-site-packages *= *//p' "$venv/pyvenv.cfg" 2>/dev/null; }
wanted_kind() { if [ -n "$system_packages" ]; then echo true; else echo false; fi; }

install_files() {
    step "unit, user, directories, manual"
    local mode from to
    while read -r mode from to; do
        run install -D -m "$mode" "$source/$from" "$to"
    done < <(files)
    run systemd-sysusers "$local/lib/sysusers.d/xaps-watch.conf"
    run systemd-tmpfiles --create "$local/lib/tmpfiles.d/xaps-watch.conf"
    run install -d -m 0750 -g "$name" "$etc"
    if [ -e "$etc/config.toml" ]; then
        say "  $etc/config.toml is kept as it is; the new sample: $local/share/doc/xaps-watch/config.toml"
    else
        run install -m 0640 -g "$name" "$source/systemd/config.toml" "$etc/config.toml"
    fi
    run systemctl daemon-reload
}

restart_if_running() {
    if systemctl is-active --quiet "$name"; then
        step "the service runs already"
        run systemctl restart "$name"
    fi
}

# --- the plugin -------------------------------------------------------------------------------------------------------

install_plugin() {
    step "the plugin, for $(dovecot --version | sed 's/ .*//; s/^/Dovecot /')"
    run make --silent -C "$work/plugin" all
    run make --silent -C "$work/plugin" install
}

module_directory() { sh -c '. /usr/lib/dovecot/dovecot-config && echo "$dovecot_moduledir"' 2>/dev/null; }

remove_plugin() {
    local modules
    modules=$(module_directory) || modules=
    modules=${modules:-/usr/lib/dovecot/modules}
    [ -e "$modules/lib90_imap_xaps_plugin.so" ] || return 0
    step "the plugin"
    # A module that is configured and not there would lock every user out of IMAP.
    if have doveconf && doveconf -n 2>/dev/null | grep -q imap_xaps; then
        die "Dovecot's configuration still names imap_xaps, so the plugin can't be removed: $(
            grep -rlw imap_xaps "$(dovecot_directory)" | tr '\n' ' ')"
    fi
    run rm -f "$modules/lib90_imap_xaps_plugin.so" "$modules/libimap_xaps_registry.so" \
        "$modules/settings/libimap_xaps_settings.so"
}

# --- Dovecot's configuration ------------------------------------------------------------------------------------------

# The first line that doveconf prints names the file that it has read.
dovecot_directory() { dirname "$(doveconf -n 2>/dev/null | sed -n '1s/^# .*: //p')"; }

enable_dovecot() {
    step "Dovecot's configuration"
    local file user former=''
    have doveconf || die "--enable-dovecot: Dovecot isn't installed on this machine"
    file=$(dovecot_directory)/conf.d/95-xaps.conf
    [ -d "$(dirname "$file")" ] || die "--enable-dovecot: there is no $(dirname "$file"); add by hand what plugin/ shows"
    if [ -e "$file" ]; then
        is_ours "$file" || die "--enable-dovecot: $file is another program's (xapsd has one of that name): move it away first"
        if is_enabled; then
            say "  $file is there already"
            return
        fi
        former=$file.old
    fi
    doveconf -n >/dev/null || die "--enable-dovecot: Dovecot's configuration is not in order yet (see above): not touched"

    user=$(working_user)
    [ -z "$former" ] || run mv "$file" "$former"
    dovecot_settings | write 0644 "$file"
    if dovecot_accepts "$user"; then
        [ -n "$dry_run" ] || is_enabled || die "--enable-dovecot: another file undoes $file: see doveconf -n"
        say "  Dovecot runs with it"
        return
    fi
    warn "Dovecot does not come up with $file: taking it back"
    run rm -f "$file"
    [ -z "$former" ] || run mv "$former" "$file"
    run systemctl reload-or-restart dovecot
    die "--enable-dovecot failed, and the configuration is as it was; journalctl -u dovecot says why"
}

# Whether Dovecot, by all its files together, loads the plugin for IMAP and lets it write to the registry.
is_enabled() {
    grep -qw imap_xaps <<<"$(doveconf -f protocol=imap -h mail_plugins)" &&
        grep -qw "$name" <<<"$(doveconf -f protocol=imap -h mail_access_groups)"
}

is_ours() { grep -qsw imap_xaps "$1"; }

disable_dovecot() {
    local file
    have doveconf || return 0
    file=$(dovecot_directory)/conf.d/95-xaps.conf
    is_ours "$file" || return 0
    step "Dovecot's configuration"
    run rm -f "$file"
    if systemctl is-active --quiet dovecot; then
        run systemctl reload dovecot
    fi
}

dovecot_settings() {
    case $(dovecot --version) in
        2.3.*) cat "$source/plugin/95-xaps.conf" ;;
        *) cat "$source/plugin/95-xaps-2.4.conf" ;;
    esac
}

dovecot_accepts() { # a user whose IMAP session started before
    [ -z "$dry_run" ] || return 0
    doveconf -n >/dev/null || return
    systemctl is-active --quiet dovecot || { say "  Dovecot isn't running: start it to use the plugin"; return 0; }
    run systemctl reload dovecot || return
    sleep 1
    systemctl is-active --quiet dovecot || return
    [ -z "$1" ] || imap_answers "$1" || { warn "an IMAP session of $1 doesn't start any more"; return 1; }
}

# Whether an IMAP session starts: of a user that Dovecot knows, without a password. Without $MAIL, which sudo sets and
# Dovecot 2.3 would take for the location of the mail.
imap_answers() { printf 'a LOGOUT\r\n' | env -u MAIL doveadm exec imap -u "$1" 2>/dev/null | grep -q '^a OK'; }

# A user whose IMAP session starts as things are now; none if Dovecot's user database can't be listed.
working_user() {
    local user
    for user in $(doveadm user '*' 2>/dev/null | tail -3); do
        if imap_answers "$user"; then
            echo "$user"
            return
        fi
    done
}

# --- taking it off ----------------------------------------------------------------------------------------------------

uninstall() {
    [ "$(id -u)" = 0 ] || die "must be run as root: sudo $0 --uninstall"
    disable_dovecot
    remove_plugin
    step "the daemon"
    if [ -e "$local/lib/systemd/system/$name.service" ]; then
        run systemctl disable --now "$name"
    fi
    local mode from to
    while read -r mode from to; do
        run rm -f "$to"
    done < <(files)
    run rmdir --ignore-fail-on-non-empty "$local/share/doc/xaps-watch" 2>/dev/null || true
    run rm -f "$local/bin/xaps-watch"
    run rm -rf "$venv"
    run systemctl daemon-reload
    if [ -n "$purge" ]; then
        step "configuration, registry, user"
        run rm -rf "$etc" "$state"
        if getent passwd "$name" >/dev/null; then run userdel "$name"; fi
        if getent group "$name" >/dev/null; then run groupdel "$name"; fi
    else
        say
        say "Kept: $etc, $state and the user $name (--uninstall --purge removes them)."
    fi
}

# --- the command ------------------------------------------------------------------------------------------------------

next_steps() {
    step "done; what is left to do"
    if [ -n "$plugin" ] && [ -z "$enable" ]; then
        say "  let Dovecot load the plugin:             $0 --enable-dovecot"
    fi
    [ -e "$etc/mail.pem" ] ||
        say "  put Apple's certificate and its key into $etc/mail.pem (or see $etc/config.toml)"
    systemctl is-active --quiet "$name" ||
        say "  start the service:                       systemctl enable --now $name"
    say "  see whether all is well:                 xaps-watch check"
}

dry_run='' plugin=yes enable='' disable='' system_packages='' uninstall='' purge=''
for argument in "$@"; do
    case $argument in
        --enable-dovecot) enable=yes ;;
        --disable-dovecot) disable=yes ;;
        --no-plugin) plugin='' ;;
        --system-packages) system_packages=yes ;;
        --uninstall) uninstall=yes ;;
        --purge) purge=yes ;;
        --dry-run) dry_run=yes ;;
        -h | --help) usage; exit 0 ;;
        *) usage >&2; exit 2 ;;
    esac
done
[ -z "$purge" ] || [ -n "$uninstall" ] || die "--purge goes with --uninstall"

if [ -n "$uninstall" ]; then
    uninstall
elif [ -n "$disable" ]; then
    disable_dovecot
else
    if [ -n "$plugin" ] && ! have dovecot; then
        say "Dovecot isn't installed here: only the daemon is installed."
        plugin=
    fi
    step "what this machine needs"
    check_machine "$@"
    # Built from a copy, so that the clone stays as it is, and its owner's.
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    cp -R "$source"/{pyproject.toml,README.md,LICENSE,xaps_watch} "$work"
    [ -z "$plugin" ] || cp -R "$source/plugin" "$work"
    install_daemon
    install_files
    [ -z "$plugin" ] || install_plugin
    restart_if_running
    [ -z "$enable" ] || enable_dovecot
    next_steps
fi
