#!/usr/bin/env bash
# The first process inside a lab, started by run.sh: when it ends, all that runs in there ends. It
# makes the network and the keys, starts Kubernetes, says `ready` on descriptor 4 and waits for the
# end of descriptor 3.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
export PATH=$LAB/build/bin:$PATH KUBECONFIG=$LAB/admin.kubeconfig
cd "$LAB"

node=10.99.0.1              # the API server's address also, and the network of test hosts
services=10.96.0.0/16
api=https://$node:6443

main() {
  private_machine
  network
  identities
  start_api_server
  # Busy with its images while the API server starts.
  [[ $LAB_TIER == control ]] || container_runtime
  control_plane
  [[ $LAB_TIER == control ]] || worker
  touch ready
  echo ready >&4
  exec 4>&-
  # Reaps what lost its parent while it waits, as bash does.
  read -r <&3 || true
}

lap() { echo "$1 after $SECONDS s"; }

run() {
  "$here/service.sh" define "$@"
  "$here/service.sh" start "$1"
}

# Waits for a condition, 100 ms between looks.
until_true() {
  local what=$1
  shift
  for _ in {1..600}; do
    ! "$@" >/dev/null 2>&1 || { lap "$what"; return; }
    sleep 0.1
  done
  echo "not within a minute: $what" >&2
  return 1
}

# Puts our own files where programs insist on paths of the machine.
private_machine() {
  mount --make-rprivate /
  mount -t tmpfs -o mode=755 run /run
  mount -t tmpfs -o mode=755 log /var/log
  mkdir -p /var/lib/cni
  mount -t tmpfs -o mode=755 cni /var/lib/cni
  # kubelet wants these of the machine, and would set them; the machine keeps its own.
  local setting file
  for setting in vm/overcommit_memory=1 kernel/panic=10 kernel/panic_on_oops=1; do
    file=$LAB/sysctl-$(basename "${setting%=*}")
    echo "${setting#*=}" >"$file"
    mount --bind "$file" "/proc/sys/${setting%=*}"
  done
  # Names resolve inside of the cluster or not at all.
  echo "nameserver 10.96.0.10" >resolv.conf
  file=$(readlink -m /etc/resolv.conf)
  mkdir -p "$(dirname "$file")"
  [[ -e $file ]] || touch "$file"
  mount --bind resolv.conf "$file"
}

network() {
  ip link set lo up
  # A bridge, as kernels without dummy devices have that.
  ip link add node0 type bridge
  ip address add $node/24 dev node0
  ip link set node0 up
  # A packet needs a route before it meets the rule that rewrites a Service's address.
  ip route add $services dev node0 src $node
  echo 1 >/proc/sys/net/ipv4/ip_forward
}

identities() {
  mkdir pki
  for name in ca api kubelet-client service-accounts; do
    openssl ecparam -name prime256v1 -genkey -noout -out pki/$name.key
  done
  openssl req -x509 -new -key pki/ca.key -subj /CN=lab -days 30 -out pki/ca.crt \
    -addext keyUsage=critical,keyCertSign,digitalSignature
  # 127.0.0.1 is for who comes through a forwarded port.
  certificate api /CN=kube-apiserver "extendedKeyUsage=serverAuth
subjectAltName=IP:$node,IP:127.0.0.1,IP:10.96.0.1,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local"
  certificate kubelet-client /O=system:masters/CN=kubelet-client extendedKeyUsage=clientAuth
  kubeconfig admin admin system:masters
  kubeconfig kube-controller-manager system:kube-controller-manager
  kubeconfig kube-scheduler system:kube-scheduler
  kubeconfig kube-proxy system:kube-proxy
  kubeconfig kubelet system:node:node0 system:nodes
  lap "namespaces and keys"
}

certificate() { # name subject extensions
  openssl req -new -key "pki/$1.key" -subj "$2" |
    openssl x509 -req -CA pki/ca.crt -CAkey pki/ca.key -CAcreateserial -days 30 -extfile <(echo "$3") -out "pki/$1.crt"
}

kubeconfig() { # name user [group]
  local token
  token=$(openssl rand -hex 16)
  echo "$token,$2,$2,\"${3:-}\"" >>tokens.csv
  cat >"$1.kubeconfig" <<K
apiVersion: v1
kind: Config
clusters: [{name: lab, cluster: {server: "$api", certificate-authority-data: "$(base64 -w0 pki/ca.crt)"}}]
users: [{name: $1, user: {token: "$token"}}]
contexts: [{name: lab, context: {cluster: lab, user: $1}}]
current-context: lab
K
}

start_api_server() {
  run etcd etcd --data-dir "$LAB/etcd" --unsafe-no-fsync --log-level warn --quota-backend-bytes 1073741824 \
    --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
    --listen-peer-urls http://127.0.0.1:2380
  run kube-apiserver kube-apiserver --etcd-servers=http://127.0.0.1:2379 \
    --advertise-address=$node --bind-address=0.0.0.0 --secure-port=6443 \
    --tls-cert-file="$LAB/pki/api.crt" --tls-private-key-file="$LAB/pki/api.key" \
    --client-ca-file="$LAB/pki/ca.crt" --token-auth-file="$LAB/tokens.csv" \
    --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --allow-privileged=true \
    --service-account-issuer=https://kubernetes.default.svc --service-cluster-ip-range=$services \
    --service-account-key-file="$LAB/pki/service-accounts.key" \
    --service-account-signing-key-file="$LAB/pki/service-accounts.key" \
    --kubelet-preferred-address-types=InternalIP \
    --kubelet-client-certificate="$LAB/pki/kubelet-client.crt" --kubelet-client-key="$LAB/pki/kubelet-client.key"
}

control_plane() {
  until_true "API server ready" api_ready
  run kube-controller-manager kube-controller-manager --kubeconfig="$LAB/kube-controller-manager.kubeconfig" \
    --leader-elect=false --bind-address=127.0.0.1 --use-service-account-credentials=true \
    --kube-api-qps=500 --kube-api-burst=1000 \
    --service-account-private-key-file="$LAB/pki/service-accounts.key" --root-ca-file="$LAB/pki/ca.crt" \
    --cluster-signing-cert-file="$LAB/pki/ca.crt" --cluster-signing-key-file="$LAB/pki/ca.key"
  # A pod or a test is refused in a namespace that has no ServiceAccount yet.
  until_true "control plane ready" kubectl get serviceaccount default
}

api_ready() {
  curl -sf --cacert pki/ca.crt -H "Authorization: Bearer $(sed -n 's/,admin,.*//p' tokens.csv)" $api/readyz
}

container_runtime() {
  cgroups
  mkdir -p cni log/pods
  render containerd.toml containerd.toml
  render cni.conflist cni/lab.conflist
  run containerd containerd --config "$LAB/containerd.toml" --log-level warn
  until_true "containerd ready" ctr version
  local archive
  for archive in "$LAB"/build/images/*.tar; do
    ctr --namespace k8s.io images import --all-platforms --no-unpack "$archive"
  done
  lap "images imported"
}

worker() {
  run kube-scheduler kube-scheduler --kubeconfig="$LAB/kube-scheduler.kubeconfig" --leader-elect=false --bind-address=127.0.0.1
  kubectl apply -f "$here/config/coredns.yaml"
  render kubelet.yaml kubelet.yaml
  render kube-proxy.yaml kube-proxy.yaml
  run kubelet kubelet --config="$LAB/kubelet.yaml" --kubeconfig="$LAB/kubelet.kubeconfig" \
    --root-dir="$LAB/kubelet" --cert-dir="$LAB/kubelet/pki" --hostname-override=node0 --node-ip=$node
  # It looks for its node every 30 s only, so the node comes first.
  until_true "node there" kubectl get node node0
  run kube-proxy kube-proxy --config="$LAB/kube-proxy.yaml"
  kubectl wait --for=condition=Ready node/node0 --timeout=60s
  lap "node ready"
  kubectl --namespace kube-system rollout status deployment/coredns --timeout=60s
  lap "cluster DNS ready"
}

render() { sed -e "s|@LAB@|$LAB|g" -e "s|@GROUP@|$LAB_GROUP|g" "$here/config/$1" >"$2"; }

# One control group for all pods; with version 1, one in each hierarchy.
cgroups() {
  local hierarchy group
  for hierarchy in /sys/fs/cgroup /sys/fs/cgroup/*/; do
    [[ -e $hierarchy/cgroup.procs ]] || continue
    # Below version 2's root are groups, not hierarchies.
    [[ $hierarchy == /sys/fs/cgroup || ! -e /sys/fs/cgroup/cgroup.procs ]] || continue
    group=$hierarchy/$LAB_GROUP
    mkdir -p "$group"
    # A fresh cpuset of version 1 takes no process until it is filled.
    if [[ -f $group/cpuset.cpus && -f $hierarchy/cpuset.cpus ]]; then
      cat "$hierarchy/cpuset.cpus" >"$group/cpuset.cpus"
      cat "$hierarchy/cpuset.mems" >"$group/cpuset.mems"
    fi
  done
}

# In one piece, as an edit of this file must not reach a lab that runs.
{ main; exit; }
