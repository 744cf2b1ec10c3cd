#!/usr/bin/env bash
# All tests. As root it installs what they need; otherwise it runs what it can, says what it could not run, and fails.
#
#   tests/run.sh            everything, on this machine's Dovecot and on a fresh Debian 13
#   tests/run.sh --fast     lint, types, unit and integration tests: less than a minute once it is set up
#   tests/run.sh --list     the stages; tests/run.sh STAGE... runs some of them
set -u
cd "$(dirname "$0")/.." || exit 1

packages=(
    python3-venv python3-dev gcc make pkg-config                 # Python, C
    dovecot-imapd dovecot-lmtpd dovecot-dev libsqlite3-dev       # the plugin, and a Dovecot to run it in
    dovecot-sieve                                                # the agents; theirs are unpacked, not installed
    sqlite3 nghttp2-client
)

failed=()
not_run=()

# --- stages, in order -------------------------------------------------------------------------------------------------

stage_lint() { ruff check . && mypy; }
stage_unit() { pytest tests/unit; }
stage_integration() { pytest tests/integration; }
stage_plugin_check() { make -s -C plugin all && make -s -C plugin check; }
stage_plugin() { pytest tests/plugin; }
stage_e2e() { pytest tests/e2e; }
stage_agents() { pytest tests/agents; }
stage_faults() { pytest -s tests/faults; }
stage_demo() { xaps-watch demo; }

fast=(lint unit integration)
all=(lint unit integration plugin_check plugin e2e agents faults demo)
needs_root=" plugin_check plugin e2e agents "

# --- how they are run -------------------------------------------------------------------------------------------------

set_up() {
    if [ "$(id -u)" = 0 ]; then
        local missing=()
        for package in "${packages[@]}"; do
            dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
        done
        if [ ${#missing[@]} -gt 0 ]; then
            echo "installing ${missing[*]}"
            apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}" \
                >/dev/null || return
        fi
    fi
    [ -x .venv-tests/bin/python ] || python3 -m venv .venv-tests || return
    .venv-tests/bin/python -m pip install -q -e '.[test]' || return
    PATH=$PWD/.venv-tests/bin:$PATH
}

run_stage() {
    echo "== $1"
    local started=$SECONDS
    if "stage_$1"; then
        echo "== $1: passed in $((SECONDS - started)) s"
    else
        echo "== $1: FAILED after $((SECONDS - started)) s"
        failed+=("$1")
    fi
}

case "${1-}" in
    --list) printf '%s\n' "${all[@]}"; exit 0 ;;
    --fast) stages=("${fast[@]}") ;;
    '') stages=("${all[@]}") ;;
    *) stages=("$@") ;;
esac

set_up || { echo "the tests could not be set up" >&2; exit 1; }
for stage in "${stages[@]}"; do
    if [ "$(id -u)" != 0 ] && [[ $needs_root == *" $stage "* ]]; then
        not_run+=("$stage")
    else
        run_stage "$stage"
    fi
done

[ ${#not_run[@]} -eq 0 ] || echo "NOT RUN, since they need root: ${not_run[*]}"
[ ${#failed[@]} -eq 0 ] || echo "FAILED: ${failed[*]}"
[ ${#not_run[@]} -eq 0 ] && [ ${#failed[@]} -eq 0 ]
