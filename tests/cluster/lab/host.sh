#!/usr/bin/env bash
# Runs a command on a host beside the node: a network namespace of its own on the node's network,
# from where the API server, pods and Services are reached, and which pods reach.
#
#   LAB=DIRECTORY host.sh NAME 10.99.0.N COMMAND…
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
exec "$here/in.sh" bash -euc '
  name=$1 address=$2
  shift 2
  if [[ ! -e /run/netns/$name ]]; then
    ip netns add "$name"
    ip link add "host-$name" type veth peer name eth0 netns "$name"
    ip link set "host-$name" master node0 up
    ip -n "$name" link set lo up
    ip -n "$name" address add "$address/24" dev eth0
    ip -n "$name" link set eth0 up
    ip -n "$name" route add default via 10.99.0.1
  fi
  exec nsenter --net="/run/netns/$name" -- "$@"
' host.sh "$@"
