#!/usr/bin/env bash
# Builds what the lab runs, and prints the directory it is in: $TAILWAY_CACHE/lab-<hash of the
# sources>, outside of the checkout so that every checkout and every CI run shares it. About ten
# minutes on two cores at first, and nothing when the sources have not changed.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
cache=${TAILWAY_CACHE:-$HOME/.cache/tailway}

# The cluster's Gateway API; its module is only downloaded, nothing of it is built.
gateway_api=sigs.k8s.io/gateway-api@v1.7.0
gateway_api_sum=h1:duVnm7nO6oXfMMUWfcDoBph47CYR/ME3NGxccOVglaY=

sources() {
  cd "$root"
  find tests/cluster/lab/{go.mod,go.sum,pause.c,build.sh} tests/cluster/lab/{kubernetes,coredns,probe} \
    manifests/image/archive.sh -type f | LC_ALL=C sort
}

main() {
  local hash out
  hash=$(sources | (cd "$root" && xargs sha256sum) | sha256sum | cut -c1-12)
  out=$cache/lab-$hash
  if [[ ! -d $out ]]; then
    "$here/require.sh" build
    mkdir -p "$cache"
    # Two checkouts with the same sources would build the same thing twice.
    exec 9>"$cache/lab-$hash.lock"
    flock 9
    [[ -d $out ]] || build "$out" >&2
    # What no checkout has asked for in a month.
    find "$cache" -maxdepth 1 -name 'lab-*' -mtime +30 -exec rm -r {} +
  fi
  touch "$out"
  echo "$out"
}

build() {
  local out=$1 new=$1.new
  export CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS="-trimpath -buildvcs=false"
  rm -rf "$new"
  mkdir -p "$new/bin" "$new/images"
  cd "$here"

  custom_resources >"$new/gateway-api.yaml"
  local version package=k8s.io/component-base/version
  version=$(go list -m -f '{{.Version}}' k8s.io/kubernetes)
  compile "$new/bin/kubernetes" ./kubernetes "-X $package.gitVersion=$version -X $package.gitMajor=1 -X $package.gitMinor=$(cut -d. -f2 <<<"$version")"
  for name in etcd kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet kubectl; do
    ln -s kubernetes "$new/bin/$name"
  done

  mkdir "$new/root"
  compile "$new/root/coredns" ./coredns
  image coredns
  compile "$new/root/probe" ./probe
  image probe --user 65532
  gcc -Os -static -s -o "$new/root/pause" pause.c
  image pause --user 65535
  rmdir "$new/root"
  mv "$new" "$out"
  echo "lab: built $out in $SECONDS s"
}

compile() {
  local begin=$SECONDS
  nice -n 10 go build -ldflags "-s -w ${3:-}" -o "$1" "$2"
  echo "lab: $(basename "$1") in $((SECONDS - begin)) s"
}

# Makes an image of one program that needs nothing else.
image() { # name [option…]
  "$root/manifests/image/archive.sh" --plain "${@:2}" "tailway.test/$1:lab" "$new/images/$1.tar" "$new/root" "/$1"
  rm "$new/root/$1"
}

# The standard channel in one file.
custom_resources() {
  local module archive file
  # Its code asks for a newer Go, which is an error that does not matter here: the archive is there.
  module=$(cd / && go mod download -json "$gateway_api" || true)
  [[ $(field Sum "$module") == "$gateway_api_sum" ]] || { echo "lab: $gateway_api cannot be had, or is not what it was: $module" >&2; return 1; }
  archive=$(field Zip "$module")
  unzip -Z1 "$archive" "$gateway_api/config/crd/standard/gateway.networking.k8s.io_*.yaml" | while read -r file; do
    echo ---
    unzip -p "$archive" "$file"
  done
}

field() { sed -n "s/^\t\"$1\": \"\(.*\)\",\{0,1\}$/\1/p" <<<"$2"; }

main
