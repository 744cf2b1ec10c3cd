#!/usr/bin/env bash
# All tests. As root it installs what they need; otherwise it runs what it can, says what it could not run, and fails.
#
#   tests/run.sh            everything, on this machine's Dovecot and in fresh Debian systems: about ten minutes
#   tests/run.sh --fast     lint, types and unit tests: seconds, once it is set up
#   tests/run.sh --list     the stages; tests/run.sh STAGE... runs some of them
set -u
cd "$(dirname "$0")/.." || exit 1

packages=(
    python3-venv python3-dev gcc make pkg-config clang           # Python, C, the fuzzer
    dovecot-imapd dovecot-lmtpd dovecot-dev dovecot-sieve        # the plugin's Dovecot, and one to deliver with
    libclang-rt-dev libsqlite3-dev debootstrap systemd-container locales
)

# --- stages ----------------------------------------------------------------------------------------------------------

stage_lint() { ruff check . && mypy; }
stage_unit() { pytest tests/unit; }
stage_integration() { pytest tests/integration; }
stage_e2e() { pytest tests/e2e; }
stage_demo() { xaps-watch demo; }
stage_plugin_check() { make -s -C plugin all && make -s -C plugin check; }
stage_plugin_fuzz() { tests/plugin/fuzz.sh; }
stage_plugin() { SANITIZE=1 pytest tests/plugin; }              # AddressSanitizer and UBSan watch each imap process
stage_plugin_24() { python -m tests.plugin trixie tests/plugin tests/agents/test_maildirs.py; }
stage_agents() { pytest -s tests/agents; }
stage_machines() { pytest tests/machines; }
stage_faults() { pytest -s tests/faults; }

# Two at a time, each in its own order: most of them wait more than they work.
first=(lint unit integration e2e demo machines)
second=(plugin_check plugin plugin_24 agents faults plugin_fuzz)
fast=(lint unit)
needs_root=" e2e machines plugin_check plugin_fuzz plugin plugin_24 agents faults "

# --- how they are run ------------------------------------------------------------------------------------------------

set_up() {
    if [ "$(id -u)" = 0 ]; then
        local missing=() package
        for package in "${packages[@]}"; do
            dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
        done
        if [ ${#missing[@]} -gt 0 ]; then
            echo "installing ${missing[*]}"
            { apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
                apt-get install -qq -y --no-install-recommends "${missing[@]}"; } >"$results/apt" 2>&1 ||
                { cat "$results/apt"; return 1; }
        fi
    fi
    [ -x .venv-tests/bin/python ] || python3 -m venv .venv-tests || return
    .venv-tests/bin/python -m pip install -q -e '.[test]' || return
    PATH=$PWD/.venv-tests/bin:$PATH
}

run_stages() {
    local stage started
    for stage in "$@"; do
        if [ "$(id -u)" != 0 ] && [[ $needs_root == *" $stage "* ]]; then
            echo "$stage" >>"$results/not-run"
            continue
        fi
        started=$SECONDS
        if "stage_$stage" >"$results/$stage" 2>&1 </dev/null; then
            printf '\n===== %s: passed in %d s\n' "$stage" $((SECONDS - started)) >>"$results/$stage"
        else
            printf '\n===== %s: FAILED after %d s\n' "$stage" $((SECONDS - started)) >>"$results/$stage"
            echo "$stage" >>"$results/failed"
        fi
        cat "$results/$stage"
    done
}

case "${1-}" in
    --list) printf '%s\n' "${first[@]}" "${second[@]}"; exit 0 ;;
    --fast) first=("${fast[@]}") second=() ;;
    '') ;;
    *) first=("$@") second=() ;;
esac

results=$(mktemp -d) || exit 1
trap 'rm -rf "$results"' EXIT
set_up || { echo "the tests could not be set up" >&2; exit 1; }
run_stages "${second[@]}" &
run_stages "${first[@]}"
wait

[ ! -e "$results/not-run" ] || echo "NOT RUN, since they need root: $(xargs <"$results/not-run")"
[ ! -e "$results/failed" ] || echo "FAILED: $(xargs <"$results/failed")"
[ ! -e "$results/not-run" ] && [ ! -e "$results/failed" ]
