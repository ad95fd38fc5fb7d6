#!/usr/bin/env bash
# Packs a directory into an OCI image archive, which `docker load`, `podman load`, `skopeo copy
# oci-archive:…` and `ctr images import` take. The same directory gives the same bytes.
#
#   archive.sh [--plain] [--user UID] NAME ARCHIVE DIRECTORY ENTRYPOINT
#
# --plain leaves the layer uncompressed: larger, and quicker for who only loads it.
set -euo pipefail

plain= user=0
while [[ ${1:-} == --* ]]; do
  case $1 in
    --plain) plain=yes ;;
    --user) user=$2; shift ;;
    *) echo "archive.sh: $1 is unknown" >&2; exit 64 ;;
  esac
  shift
done
name=$1 archive=$2 directory=$3 entrypoint=$4

case $(uname -m) in
  x86_64) architecture=amd64 ;;
  aarch64) architecture=arm64 ;;
  *) architecture=$(uname -m) ;;
esac

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
blobs=$work/blobs/sha256
mkdir -p "$blobs"

# Who packs, and when, must not be seen in the result.
pack() { tar --create --sort=name --format=ustar --mtime=@0 --owner=0 --group=0 --numeric-owner "$@"; }
digest() { sha256sum "$1" | cut -d' ' -f1; }
# Moves a file to its place and prints what others call it.
keep() {
  local sum
  sum=$(digest "$1")
  mv "$1" "$blobs/$sum"
  printf '{"mediaType":"application/vnd.oci.image.%s","digest":"sha256:%s","size":%s%s}' \
    "$2" "$sum" "$(stat -c %s "$blobs/$sum")" "${3:-}"
}

pack --directory "$directory" --file "$work/layer" .
content=$(digest "$work/layer")
if [[ $plain ]]; then
  layer=$(keep "$work/layer" layer.v1.tar)
else
  gzip --no-name -6 "$work/layer"
  layer=$(keep "$work/layer.gz" layer.v1.tar+gzip)
fi
printf '{"architecture":"%s","os":"linux","config":{"User":"%s","Entrypoint":["%s"],"WorkingDir":"/","Env":["PATH=/usr/local/bin:/usr/bin:/bin","SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt"]},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
  "$architecture" "$user" "$entrypoint" "$content" >"$work/config"
config=$(keep "$work/config" config.v1+json)
printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":%s,"layers":[%s]}' \
  "$config" "$layer" >"$work/manifest"
# containerd wants the whole name, docker and podman read the other annotation.
case $name in
  *.*/* | *:*/* | localhost/*) whole=$name ;;
  */*) whole=docker.io/$name ;;
  *) whole=docker.io/library/$name ;;
esac
manifest=$(keep "$work/manifest" manifest.v1+json \
  ",\"annotations\":{\"io.containerd.image.name\":\"$whole\",\"org.opencontainers.image.ref.name\":\"$name\"}")
printf '{"schemaVersion":2,"manifests":[%s]}' "$manifest" >"$work/index.json"
printf '{"imageLayoutVersion":"1.0.0"}' >"$work/oci-layout"

mkdir -p "$(dirname "$archive")"
pack --directory "$work" --file "$archive.new" oci-layout index.json blobs
mv "$archive.new" "$archive"
