#!/usr/bin/env bash
# Writes go.mod and go.sum anew, after a change of the versions below. Kubernetes requires its own
# libraries at v0.0.0, by replacements that hold in its own tree only; here each of them becomes
# the version that was published with the same release.
set -euo pipefail
cd "$(dirname "$0")"

kubernetes=v1.36.3
etcd=v3.6.8       # what this Kubernetes asks for itself
coredns=v1.12.2   # a newer one wants newer libraries than this Kubernetes has

export GOTOOLCHAIN=local
published=$(cd / && go mod download -json "k8s.io/kubernetes@$kubernetes" | sed -n 's/^\t"GoMod": "\(.*\)",$/\1/p')
{
  echo "module github.com/tailway/tailway/tests/cluster/lab"
  grep -E '^(go|godebug) ' "$published"
  echo "require ("
  printf '\t%s\n' "k8s.io/kubernetes $kubernetes" "go.etcd.io/etcd/server/v3 $etcd" "github.com/coredns/coredns $coredns"
  echo ")"
  echo "replace ("
  awk '$1 == "require" {$1 = ""; $0 = $0} $1 ~ /^k8s\.io\// && $2 == "v0.0.0" {print $1}' "$published" | sort -u |
    while read -r library; do printf '\t%s => %s v0.%s\n' "$library" "$library" "${kubernetes#v1.}"; done
  echo ")"
} >go.mod
rm -f go.sum
go mod tidy
