#!/usr/bin/env bash
# What the lab needs from the machine, beyond Go and a C compiler. Installs missing Debian packages
# when it may, and says what is missing otherwise; then it ends with status 69.
#
#   require.sh build|run
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

# command or file, and the Debian package that has it
for_build="go:golang gcc:gcc openssl:openssl curl:curl flock:util-linux unzip:unzip"
for_run="containerd:containerd ctr:containerd runc:runc /usr/lib/cni/bridge:containernetworking-plugins nft:nftables
  ip:iproute2 nsenter:util-linux unshare:util-linux setpriv:util-linux openssl:openssl curl:curl"

fail() {
  echo "the lab cannot $what here: $*" >&2
  exit 69
}

what=$1
case $what in
  build) needs=$for_build ;;
  run) needs=$for_run ;;
  *) echo "usage: require.sh build|run" >&2; exit 64 ;;
esac

# shellcheck disable=SC2086 # one word each
packages=$("$here/../../packages.sh" $needs)
[[ -z $packages ]] || fail "missing: ${packages//$'\n'/, } (the names are Debian's packages; as root they are installed by themselves)"
[[ $what == run ]] || exit 0
[[ $EUID -eq 0 ]] || fail "it takes root: pods get namespaces, mounts and cgroups"
unshare --net --mount --pid --fork mount -t tmpfs lab /mnt 2>/dev/null ||
  fail "no new network, mount and process namespaces with mounts of their own; in a container that takes --privileged"
unshare --net ip link add lab0 type bridge 2>/dev/null || fail "the kernel has no bridge devices"
unshare --net nft add table ip lab 2>/dev/null || fail "the kernel has no nf_tables"
