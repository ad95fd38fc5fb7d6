#!/usr/bin/env bash
# What these tests need from the machine, beyond Go. Installs missing Debian packages when it may,
# and says what is missing otherwise; then it ends with status 69.
#
#   require.sh build|run
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

# command, and the Debian package that has it
for_build="go:golang curl:curl flock:util-linux unzip:unzip"
for_run="ip:iproute2 nsenter:util-linux unshare:util-linux setpriv:util-linux"

fail() {
  echo "Envoy Gateway cannot be $what here: $*" >&2
  exit 69
}

case $1 in
  build) needs=$for_build what=built ;;
  run) needs=$for_run what=run ;;
  *) echo "usage: require.sh build|run" >&2; exit 64 ;;
esac

# shellcheck disable=SC2086 # one word each
packages=$("$here/../../packages.sh" $needs)
[[ -z $packages ]] || fail "missing: ${packages//$'\n'/, } (the names are Debian's packages; as root they are installed by themselves)"
[[ $(uname -sm) =~ ^Linux\ (x86_64|aarch64)$ ]] || fail "Envoy is packaged for Linux on x86_64 and aarch64"
[[ $what == run ]] || exit 0
[[ $EUID -eq 0 ]] || fail "it takes root: each test gets namespaces and mounts"
unshare --net --mount --pid --fork mount -t tmpfs lab /mnt 2>/dev/null ||
  fail "no new network, mount and process namespaces with mounts of their own; in a container that takes --privileged"
