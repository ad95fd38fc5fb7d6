#!/usr/bin/env bash
# Makes manifests/install.yaml, manifests/uninstall.yaml and manifests/envoy-gateway/extension.yaml
# from the chart. Called by `make gen`.
# `gen.sh DIRECTORY` writes them there instead. HELM names another helm than that of `make helm`.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
out=${1:-$root/manifests}
helm=${HELM:-$root/.tools/bin/helm}

[ -x "$helm" ] || make -C "$root" helm

# Without what templates leave behind.
render() {
  "$helm" template tailway "$root/manifests/chart" --namespace tailway-system "$@" 2>/dev/null |
    sed -e '/^# Source: /d' -e 's/ *$//' | sed -e ':all' -e 'N' -e '$!b all' -e 's/\n\n*---/\n---/g'
}

"$helm" lint --strict --quiet "$root/manifests/chart" --namespace tailway-system 2>/dev/null

{
  echo "# tailway in a cluster: kubectl apply --server-side -f install.yaml"
  echo "# Generated from manifests/chart by \`make gen\`."
  render --no-hooks --set namespace.create=true
} >"$out/install.yaml"

{
  echo "# Ends tailway and removes what it made: apply this, wait for the Job, delete install.yaml."
  echo "# Generated from manifests/chart by \`make gen\`."
  render --show-only templates/cleanup.yaml
} >"$out/uninstall.yaml"

mkdir -p "$out/envoy-gateway"
{
  echo "# The extension server of Envoy Gateway, beside install.yaml: docs/envoy-gateway.md."
  echo "# Generated from manifests/chart by \`make gen\`."
  render --show-only templates/extension.yaml --set extension.enabled=true
} >"$out/envoy-gateway/extension.yaml"
