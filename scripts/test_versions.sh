#!/bin/sh
# The tests under every Python that the README names, with the newest packages and with the oldest that
# requirements.txt states, one environment at a time (each is deleted afterwards). Prints a table.
#
#   sh scripts/test_versions.sh                     all of them: about ten minutes each on two cores
#   sh scripts/test_versions.sh 3.13 oldest         one of them; further arguments go to pytest
#
# Pythons are looked for as python3.N and in pyenv's folder. Logs and environments: out/versions (VERSIONS_OUT=folder).
. "$(dirname -- "$0")/common.sh"
help_of "-m pytest" "$@"

pythons="3.10 3.11 3.12 3.13"
which="newest oldest"
case ${1:-} in 3.*) pythons=$1 && shift ;; esac
case ${1:-} in newest | oldest) which=$1 && shift ;; esac
out=${VERSIONS_OUT:-$ROOT/out/versions}

python_of() { # $1: version; prints an interpreter of it
    for python in "$(command -v "python$1" || true)" "$HOME/.pyenv/versions/$1".*/bin/python; do
        # a shim of pyenv is there for every version, and fails for those that are not chosen
        if [ -x "$python" ] && "$python" -c pass 2>/dev/null; then echo "$python" && return; fi
    done
    return 1
}

line() { # $1: Python, $2: newest or oldest, $3: environment, $4: log; prints a row of the table
    versions=$("$3/bin/python" "$ROOT/scripts/floors.py" --versions)
    quick=$(cat "$4.quickstart" 2>/dev/null || echo -)
    result=$(grep -E '[0-9]+ (passed|failed)' "$4" | tail -n 1 | tr -d '=')
    echo "| Python $1, $2 | $versions | ${result:-did not run} | $quick |"
}

failed=0
if [ "${DRY_RUN:-0}" = 1 ]; then
    run sh scripts/test.sh "$@"
    exit 0
fi
mkdir -p "$out"
for version in $pythons; do
    python=$(python_of "$version") || fail "no Python $version here"
    for packages in $which; do
        environment=$out/env-$version-$packages
        log=$out/$version-$packages.log
        rm -rf "$environment"
        "$python" -m venv "$environment"
        floors=$out/floors-$version.txt
        "$environment/bin/python" "$ROOT/scripts/floors.py" >"$floors"
        [ "$packages" = oldest ] && PIP_CONSTRAINT=$floors || PIP_CONSTRAINT=
        code=0
        (
            [ -z "$PIP_CONSTRAINT" ] && unset PIP_CONSTRAINT || export PIP_CONSTRAINT
            VIRTUAL_ENV=$environment sh "$ROOT/scripts/test.sh" "$@"
        ) >"$log" 2>&1 || code=$?
        [ $code = 0 ] || failed=1
        if [ "$packages" = newest ]; then # the main job, in a folder of its own
            started=$(date +%s)
            (cd "$out" && rm -rf out && VIRTUAL_ENV=$environment sh "$ROOT/scripts/quickstart.sh") \
                >"$log.demo" 2>&1 || failed=1
            echo "$(($(date +%s) - started)) s" >"$log.quickstart"
        fi
        line "$version" "$packages" "$environment" "$log"
        rm -rf "$environment"
    done
done
exit $failed
