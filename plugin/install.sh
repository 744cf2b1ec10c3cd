#!/bin/sh
# Puts the plugin where Dovecot looks for it; called by `make install`:
#   install.sh DOVECOT_VERSION BUILD_DIRECTORY MODULE_DIRECTORY LIBEXEC_DIRECTORY [DESTDIR]
#
# A plugin that doesn't load ends every IMAP login. So Dovecot's own imap program has to load it twice: before anything
# is installed, and from where it was installed to; if it doesn't, what was there before is put back.
set -eu

version=$1 build=$2 moduledir=$3 libexecdir=$4 destdir=${5-}
plugin=lib90_imap_xaps_plugin.so
registry=libimap_xaps_registry.so
settings=settings/libimap_xaps_settings.so
imap=$libexecdir/imap

files="$registry $plugin" # the plugin last, since it needs the others
[ ! -e "$build/${settings#*/}" ] || files="$settings $files"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"

# The plugin is there if it answers its command, and it has loaded its other module if it doesn't complain of that; to try
# it takes a registration (which no registry will record) and, in 2.4, the settings in their place.
prove() { # DIRECTORY [REGISTRATION]
    user=$(id -u)
    [ "$user" != 0 ] || user=65534
    {
        case $version in
        2.3*)
            printf '%s\n' "mail_location = maildir:$work/Maildir" 'protocol imap {' ' mail_plugins = imap_xaps' '}' \
                'plugin {' ' xaps_registry = /nonexistent' '}'
            ;;
        *)
            printf '%s\n' 'dovecot_config_version = 2.4.0' 'dovecot_storage_version = 2.4.0' 'mail_driver = maildir' \
                "mail_path = $work/Maildir" 'protocol imap {' ' mail_plugins {' '  imap_xaps = yes' ' }' '}'
            [ -z "${2-}" ] || echo 'xaps_registry = /nonexistent'
            ;;
        esac
        printf '%s\n' "base_dir = $work/run" 'log_path = /dev/stderr' 'ssl = no' "mail_plugin_dir = $1" \
            "mail_uid = $user" "mail_gid = $user" 'first_valid_uid = 1'
    } >"$work/dovecot.conf"
    # Nothing of the caller's environment: Dovecot 2.3 takes $MAIL, which sudo sets, for the location of the mail.
    printf 'a XAPPLEPUSHSERVICE%s\r\nb LOGOUT\r\n' "${2-}" |
        env -i PATH="$PATH" USER=nobody HOME="$work" "$imap" -k -c "$work/dovecot.conf" >"$work/said" 2>"$work/log" || true
    grep -Eq '^a (BAD .*aps-account-id|NO \[UNAVAILABLE\])' "$work/said" && ! grep -q "$registry" "$work/log" && return
    echo "Dovecot $version can't load $1/$plugin:" >&2
    cat "$work/log" "$work/said" >&2
    return 1
}

place() { # FILE: at once, never half of it
    directory=$destdir$moduledir/$(dirname "$1") name=$(basename "$1")
    mkdir -p "$directory"
    [ ! -e "$directory/$name" ] || cp -p "$directory/$name" "$work/"
    install -m 644 "$build/$name" "$directory/.$name.new"
    mv -f "$directory/.$name.new" "$directory/$name"
    echo "installed $destdir$moduledir/$1"
}

put_back() { # FILE
    before=$work/$(basename "$1")
    if [ -e "$before" ]; then mv -f "$before" "$moduledir/$1"; else rm -f "$moduledir/$1"; fi
}

if [ -x "$imap" ]; then
    mkdir "$work/modules"
    for module in "$moduledir"/*.so; do
        case $module in */$plugin | */$registry) ;; *) ln -s "$module" "$work/modules/" ;; esac
    done
    cp "$build/$plugin" "$build/$registry" "$work/modules/"
    prove "$work/modules"
elif [ -z "$destdir" ]; then
    echo "$imap is not there: install Dovecot's IMAP server first (Debian: dovecot-imapd)" >&2
    exit 1
fi

for file in $files; do place "$file"; done

if [ -n "$destdir" ]; then
    [ -x "$imap" ] || echo "not proved to load: $imap is not there"
elif prove "$moduledir" "$(printf ' aps-version 2 aps-account-id 0 aps-device-token %064d mailboxes ()' 0)"; then
    echo "Dovecot $version loads it"
else
    for file in $files; do put_back "$file"; done
    echo "not installed: what was there before is back" >&2
    exit 1
fi
