#!/bin/sh
# Removes what install.sh installed; called by `make uninstall`:  uninstall.sh MODULE_DIRECTORY [DESTDIR]
set -eu

moduledir=$1 destdir=${2-}

# A plugin that is configured and not there ends every IMAP login, and 2.4 doesn't start with settings that it doesn't know.
if [ -z "$destdir" ] && named=$(doveconf -n 2>/dev/null | grep -E 'imap_xaps|xaps_registry|xaps_busy_timeout'); then
    echo "nothing removed, since Dovecot's configuration still has:" >&2
    echo "$named" >&2
    exit 1
fi
for file in lib90_imap_xaps_plugin.so libimap_xaps_registry.so settings/libimap_xaps_settings.so; do
    [ ! -e "$destdir$moduledir/$file" ] || { rm "$destdir$moduledir/$file" && echo "removed $destdir$moduledir/$file"; }
done
