#!/usr/bin/env bash
# Packs a tailway binary of this machine into an OCI image archive, without a builder and without
# a registry. It is laid out as gcr.io/distroless/cc-debian12:nonroot is: the binary, the shared
# libraries it was linked with, the machine's CA bundle, a user without rights, and nothing else.
#
#   tailway.sh [--plain] BINARY ARCHIVE [NAME]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

compression=
if [[ $1 == --plain ]]; then compression=--plain; shift; fi
binary=$1 archive=$2 name=${3:-tailway/tailway:dev}
authorities=/etc/ssl/certs/ca-certificates.crt
[[ -r $authorities ]] || { echo "tailway.sh: no $authorities: install ca-certificates" >&2; exit 69; }

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
chmod 755 "$root"

place() { install -D --mode="$1" "$2" "$root$3"; }
text() {
  mkdir -p "$(dirname "$root$1")"
  cat >"$root$1"
}

place 755 "$binary" /usr/local/bin/tailway
# Backtraces need the symbols, nobody needs the debug information of a development build.
strip --strip-debug "$root/usr/local/bin/tailway"
# By the names that the loader looks them up by, wherever the links of this machine lead.
ldd "$binary" | grep -o '/[^ ]*' | while read -r library; do place 755 "$library" "$library"; done
place 644 "$authorities" "$authorities"
mkdir -m 1777 "$root/tmp"
text /etc/passwd <<'P'
root:x:0:0:root:/root:/sbin/nologin
nonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin
P
text /etc/group <<'G'
root:x:0:
nonroot:x:65532:
G
text /etc/nsswitch.conf <<<'hosts: files dns'
find "$root" -type d ! -path "$root/tmp" -exec chmod 755 {} +
find "$root/etc" -type f -exec chmod 644 {} +

"$here/archive.sh" $compression --user 65532 "$name" "$archive" "$root" /usr/local/bin/tailway
echo "$archive: $name, $(stat -c %s "$archive" | numfmt --to=iec)"
