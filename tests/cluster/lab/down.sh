#!/usr/bin/env bash
# Ends a lab that up.sh brought up.
#
#   LAB=DIRECTORY down.sh
set -euo pipefail
LAB=${LAB:-${TMPDIR:-/tmp}/tailway-lab}
[[ -e $LAB/runner ]] || { echo "down.sh: there is no lab in $LAB" >&2; exit 1; }
runner=$(cat "$LAB/runner")
kill -TERM "$runner"
while kill -0 "$runner" 2>/dev/null; do sleep 0.05; done
