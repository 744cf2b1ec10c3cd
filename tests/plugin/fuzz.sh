#!/bin/sh
# Fuzzes the parser of the command's arguments, with AddressSanitizer and UBSan: fuzz.sh [RUNS], by default a million
# (20 s on one core). Needs clang and libclang-rt-dev.
set -eu
cd "$(dirname "$0")/../.."
runs=${1:-1000000}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
make -s -C plugin BUILD="$work" "$work/fuzz-xaps-request"

mkdir "$work/corpus"
token=2918390218931890821908309283098109381029309829018310983092892829
printf 'aps-version 2 aps-account-id 0715A26B-CA09 aps-device-token %s aps-subtopic com.apple.mobilemail mailboxes (INBOX Notes "My Folder")' \
    $token >"$work/corpus/atoms"
printf '"aps-version" {1}1 "aps-account-id" {2}0A aps-device-token "%s" sender (x (y)) mailboxes ({5}INBOX NIL)' \
    $token >"$work/corpus/strings"
for word in aps-version aps-account-id aps-device-token aps-subtopic mailboxes $token NIL '{3}' '\"' '(' ')' ' ' '\x00'; do
    echo "\"$word\""
done >"$work/words"

if ! timeout 600 "$work/fuzz-xaps-request" -runs="$runs" -max_len=2048 -dict="$work/words" \
    -artifact_prefix="$work/" -print_final_stats=1 "$work/corpus" >"$work/log" 2>&1; then
    cat "$work/log"
    for found in "$work"/crash-* "$work"/leak-* "$work"/timeout-* "$work"/oom-*; do
        [ -f "$found" ] && od -c "$found"
    done
    exit 1
fi
grep -E 'accepted|number_of_executed_units|average_exec_per_sec' "$work/log"
# a fuzzer that never gets through the front door proves nothing
accepted=$(sed -n 's/ accepted,.*//p' "$work/log")
[ "$accepted" -ge $((runs / 1000)) ] || { echo "only $accepted of $runs inputs were accepted"; exit 1; }
