#!/usr/bin/env bash
# Brings a lab up that stays until down.sh, to work in by hand. See run.sh.
#
#   LAB=DIRECTORY up.sh [control|node]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
export LAB=${LAB:-${TMPDIR:-/tmp}/tailway-lab}

# Here, so that a build is seen.
"$here/require.sh" run
"$here/build.sh" >/dev/null
pipes=$(mktemp -d)
trap 'rm -r "$pipes"' EXIT
mkfifo "$pipes/stdin" "$pipes/stdout"
# Opened for both ways, stdin never ends.
setsid "$here/run.sh" "${1:-node}" <>"$pipes/stdin" >"$pipes/stdout" &
read -r _ <"$pipes/stdout" || { wait $!; exit 1; }
grep ' after ' "$LAB/log/init.log"
