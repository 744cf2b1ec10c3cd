#!/bin/sh
# Puts the plugin where Dovecot looks for it; called by `make install`:
#   install.sh DOVECOT_VERSION BUILD_DIRECTORY MODULE_DIRECTORY LIBEXEC_DIRECTORY [DESTDIR]
#
# A plugin that doesn't load ends every IMAP login. So Dovecot's own imap program has to load it twice: before anything
# is installed, and from where it was installed to; if it doesn't, what was there before is put back.
set -eu

version=$1 build=$2 moduledir=$3 libexecdir=$4 destdir=${5-}
plugin=lib90_imap_xaps_plugin.so
settings=libimap_xaps_settings.so
imap=$libexecdir/imap

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"

# Loads the plugin from a directory of modules, with settings $2; says what is wrong if the command isn't known after it.
prove() {
    user=$(id -u)
    [ "$user" != 0 ] || user=65534
    {
        case $version in
        2.3*)
            printf '%s\n' "mail_location = maildir:$work/Maildir" 'protocol imap {' ' mail_plugins = imap_xaps' '}'
            ;;
        *)
            printf '%s\n' 'dovecot_config_version = 2.4.0' 'dovecot_storage_version = 2.4.0' 'mail_driver = maildir' \
                "mail_path = $work/Maildir" 'protocol imap {' ' mail_plugins {' '  imap_xaps = yes' ' }' '}' "$2"
            ;;
        esac
        printf '%s\n' "base_dir = $work/run" 'log_path = /dev/stderr' 'ssl = no' "mail_plugin_dir = $1" \
            "mail_uid = $user" "mail_gid = $user" 'first_valid_uid = 1'
    } >"$work/dovecot.conf"
    # Nothing of the caller's environment: Dovecot 2.3 takes $MAIL, which sudo sets, for the location of the mail.
    printf 'a XAPPLEPUSHSERVICE\r\nb LOGOUT\r\n' |
        env -i PATH="$PATH" USER=nobody HOME="$work" "$imap" -k -c "$work/dovecot.conf" >"$work/said" 2>"$work/log" || true
    grep -q '^a BAD .*aps-account-id' "$work/said" && return
    echo "Dovecot $version can't load $1/$plugin:" >&2
    cat "$work/log" "$work/said" >&2
    return 1
}

place() { # FILE DIRECTORY: at once, never half of it
    mkdir -p "$2"
    [ ! -e "$2/$1" ] || cp -p "$2/$1" "$work/"
    install -m 644 "$build/$1" "$2/.$1.new"
    mv -f "$2/.$1.new" "$2/$1"
    echo "installed $2/$1"
}

put_back() { # FILE DIRECTORY
    if [ -e "$work/$1" ]; then mv -f "$work/$1" "$2/$1"; else rm -f "$2/$1"; fi
}

if [ -x "$imap" ]; then
    mkdir "$work/modules"
    for module in "$moduledir"/*.so; do
        case $module in */$plugin) ;; *) ln -s "$module" "$work/modules/" ;; esac
    done
    cp "$build/$plugin" "$work/modules/"
    prove "$work/modules" ''
elif [ -z "$destdir" ]; then
    echo "$imap is not there: install Dovecot's IMAP server first (Debian: dovecot-imapd)" >&2
    exit 1
fi

[ ! -e "$build/$settings" ] || place $settings "$destdir$moduledir/settings"
place $plugin "$destdir$moduledir"

if [ -n "$destdir" ]; then
    [ -x "$imap" ] || echo "not proved to load: $imap is not there"
elif prove "$moduledir" 'xaps_registry = /nonexistent'; then
    echo "Dovecot $version loads it"
else
    put_back $plugin "$moduledir"
    [ ! -e "$build/$settings" ] || put_back $settings "$moduledir/settings"
    echo "not installed: what was there before is back" >&2
    exit 1
fi
