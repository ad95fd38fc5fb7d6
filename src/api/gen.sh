#!/usr/bin/env bash
# Makes src/api/gateway_api from the CRDs of the Gateway API. Called by `make gen`.
set -euo pipefail

version=v1.7.0
root=$(cd "$(dirname "$0")/../.." && pwd)
out=$root/src/api/gateway_api
tools=$root/.tools

[ -x "$tools/bin/kopium" ] || cargo install --locked --root "$tools" kopium@0.24.1

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# The module carries the CRDs; it is only downloaded, nothing of it is built.
(cd "$work" && go mod init crds >/dev/null 2>&1)
crds=$(cd "$work" && GOTOOLCHAIN=auto GOFLAGS=-mod=mod go mod download -json "sigs.k8s.io/gateway-api@$version" | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')/config/crd/standard

mkdir -p "$out"
printf '//! Generated from the CRDs of the Gateway API %s by src/api/gen.sh.\n' "$version" >"$out/mod.rs"
for kind in backendtlspolicies gatewayclasses gateways grpcroutes httproutes listenersets referencegrants tcproutes tlsroutes udproutes; do
  # Where a field that must be there is one of several words, there is no default.
  case $kind in
    backendtlspolicies | grpcroutes | httproutes) derive=() ;;
    *) derive=(--derive Default) ;;
  esac
  "$tools/bin/kopium" --api-version v1 "${derive[@]}" --derive PartialEq --docs --filename "$crds/gateway.networking.k8s.io_$kind.yaml" | sed '/^\/\/ kopium command/d' >"$out/$kind.rs"
  printf 'pub mod %s;\n' "$kind" >>"$out/mod.rs"
done
