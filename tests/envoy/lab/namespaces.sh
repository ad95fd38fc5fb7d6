#!/usr/bin/env bash
# The first process in network, mount and process namespaces of a test: when its stdin ends, all
# that runs in there ends, and DIRECTORY goes. Says `ready` when there is a loopback.
#
#   namespaces.sh DIRECTORY      with `hosts` and `resolv.conf`, which programs find in /etc
set -euo pipefail
ip link set lo up
# Another machine's, for who takes no loopback.
ip address add 192.0.2.1/24 dev lo
mount --bind "$1/hosts" /etc/hosts
mount --bind "$1/resolv.conf" "$(readlink -f /etc/resolv.conf)"
echo ready
# Reaps what lost its parent while it waits, as bash does.
read -r || true
# All but the first process, if there are any.
kill -KILL -1 2>/dev/null || true
rm -rf "$1"
