#!/usr/bin/env bash
# Installs what the labs of the tests need from Debian when it may, and prints the packages that are
# missing all the same.
#
#   packages.sh COMMAND:PACKAGE…      a command, or the path of a file, and the package that has it
set -euo pipefail

missing() {
  for need in "$@"; do
    case ${need%:*} in
      /*) [[ -e ${need%:*} ]] ;;
      *) command -v "${need%:*}" >/dev/null ;;
    esac || echo "${need#*:}"
  done | sort -u
}

packages=$(missing "$@")
if [[ -n $packages && $EUID -eq 0 ]] && command -v apt-get >/dev/null; then
  export DEBIAN_FRONTEND=noninteractive
  # shellcheck disable=SC2086 # one word each
  { apt-get install -y --no-install-recommends $packages ||
    { apt-get update && apt-get install -y --no-install-recommends $packages; }; } >&2 || true
  packages=$(missing "$@")
fi
echo "$packages"
