#!/usr/bin/env bash
# Runs a command inside the lab, with its kubectl and its administrator's kubeconfig.
#
#   LAB=DIRECTORY in.sh COMMAND…
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
export LAB=${LAB:-${TMPDIR:-/tmp}/tailway-lab}
[[ -e $LAB/pid ]] || { echo "in.sh: there is no lab in $LAB" >&2; exit 1; }
pid=$(cat "$LAB/pid")
export KUBECONFIG=$LAB/admin.kubeconfig CONTAINERD_NAMESPACE=k8s.io
export PATH=$LAB/build/bin:$PATH
# A process namespace takes a child to enter it, and the child is to go with who started it.
exec nsenter --target "$pid" --net --mount --pid="/proc/$pid/ns/pid_for_children" --wd="$PWD" -- \
  setpriv --pdeathsig KILL -- "$@"
