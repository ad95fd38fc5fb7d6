#!/usr/bin/env bash
# Runs a Kubernetes cluster in network, mount and process namespaces of its own until stdin ends
# or SIGTERM comes, and leaves nothing behind. Says `ready` on stdout when it is.
#
#   LAB=DIRECTORY run.sh control|node
#
# control: etcd, API server, controller manager. node: all of Kubernetes, a node that runs pods,
# cluster DNS. LAB holds the cluster's state and its logs, and goes with it. Several labs run
# beside each other.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
export LAB=${LAB:-${TMPDIR:-/tmp}/tailway-lab} LAB_TIER=$1 LAB_GROUP=tailway-lab-$$

main() {
  if [[ -e $LAB/runner ]] && kill -0 "$(cat "$LAB/runner")" 2>/dev/null; then
    echo "run.sh: there is a lab in $LAB already: down.sh ends it" >&2
    exit 1
  fi
  "$here/require.sh" run
  local build
  build=$("$here/build.sh")
  rm -rf "$LAB/log"
  mkdir -p "$LAB/log"
  LAB=$(cd "$LAB" && pwd)
  ln -sfn "$build" "$LAB/build"
  trap cleanup EXIT
  # A terminal's Ctrl-C ends who holds our stdin, and that ends us in order.
  trap '' INT HUP
  start
}

start() {
  exec 3<&0 4>&1
  unshare --net --mount --pid --fork --kill-child --mount-proc "$here/init.sh" </dev/null >"$LAB/log/init.log" 2>&1 &
  local namespaces=$!
  # shellcheck disable=SC2064 # the number is known now
  trap "kill -KILL $namespaces 2>/dev/null || true" TERM
  echo $$ >"$LAB/runner"
  echo "$namespaces" >"$LAB/pid"
  # Who reads and writes at the other end is to see when init.sh ends.
  exec 3<&- 4>&- </dev/null >/dev/null

  # A signal interrupts the wait.
  { until wait "$namespaces" || ! kill -0 "$namespaces"; do :; done; } 2>/dev/null
  [[ ! -e $LAB/ready ]] || return 0
  echo "the lab did not come up; the end of its logs:" >&2
  tail -n 5 "$LAB"/log/*.log >&2
  return 1
}

cleanup() {
  # The kernel takes a moment to bury the last process of a group.
  for _ in {1..100}; do
    control_groups | xargs --no-run-if-empty -I{} find {} -depth -type d -delete 2>/dev/null || true
    [[ -n $(control_groups) ]] || break
    sleep 0.05
  done
  rm -rf "$LAB"
}

control_groups() { find /sys/fs/cgroup -maxdepth 2 -type d -name "$LAB_GROUP" 2>/dev/null || true; }

# In one piece, as an edit of this file must not reach a lab that runs.
{ main; exit; }
