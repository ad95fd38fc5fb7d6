#!/usr/bin/env bash
# The main job, from YAML to https, on a tailnet of its own on loopback: starts the local tailnet,
# a web server and `tailway run`, then asks for the page as a tailnet client would.
# Called by `make demo`, which builds what it needs. Goes on until Ctrl-C when on a terminal.
set -euo pipefail

tailway=${TAILWAY:?the tailway binary; run \`make demo\`}
localtailnet=${TAILWAY_LOCALTAILNET:?the localtailnet binary; run \`make demo\`}
samples=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
pids=()

cleanup() {
  local status=$?
  trap - EXIT INT TERM
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
  rm -rf "$work"
  exit "$status"
}
trap cleanup EXIT
trap 'exit 0' INT TERM

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
fail() { printf 'demo: %s\n' "$*" >&2; [ -f "$work/tailway.log" ] && tail -20 "$work/tailway.log" >&2; exit 1; }

# Waits until a file is there; $2 is the process that makes it.
await() {
  for _ in $(seq 1 300); do
    [ -s "$1" ] && return
    kill -0 "$2" 2>/dev/null || fail "$3 ended early"
    sleep 0.1
  done
  fail "$3 did not start within 30 s"
}
field() { sed -n "s/.*\"$2\": *\"\([^\"]*\)\".*/\1/p" "$1" | head -n 1; }

say "1. A local tailnet: control server, DERP, STUN and an ACME server on loopback"
"$localtailnet" -ready-file "$work/tailnet.json" >"$work/localtailnet.log" 2>&1 &
pids+=($!)
await "$work/tailnet.json" $! "the local tailnet"
domain=$(field "$work/tailnet.json" domain)
admin=$(field "$work/tailnet.json" admin_url)
echo "   tailnet $domain, control server $(field "$work/tailnet.json" control_url)"

say "2. A web server on this host"
"$localtailnet" backend -ready-file "$work/backend" >"$work/backend.log" 2>&1 &
pids+=($!)
await "$work/backend" $! "the web server"
port=$(cat "$work/backend")
echo "   http://127.0.0.1:$port"

say "3. tailway run -f nginx.yaml"
sed "s/port: 8080/port: $port/" "$samples/nginx.yaml" >"$work/nginx.yaml"
TS_CONTROL_URL=$(field "$work/tailnet.json" control_url) \
TS_AUTHKEY=$(field "$work/tailnet.json" auth_key) \
TS_DEBUG_ACME_DIRECTORY_URL=$(field "$work/tailnet.json" acme_directory_url) \
  "$tailway" run -f "$work/nginx.yaml" --state-dir "$work/state" --admin-addr 127.0.0.1:0 \
  --log-level warn,tailway::access=debug >"$work/tailway.out" 2>"$work/tailway.log" &
pids+=($!)
tailway_pid=$!
await "$work/tailway.out" $tailway_pid "tailway"
for _ in $(seq 1 600); do
  grep -q ' is up' "$work/tailway.out" && break
  kill -0 $tailway_pid 2>/dev/null || fail "tailway ended early"
  sleep 0.1
done
grep -q ' is up' "$work/tailway.out" || fail "the Gateway did not come up within 60 s"
sed 's/^/   /' "$work/tailway.out"

say "4. A tailnet client asks for https://nginx.$domain/ and verifies the chain"
"$localtailnet" get -admin "$admin" "https://nginx.$domain/" >"$work/answer" 2>&1 \
  || { cat "$work/answer" >&2; fail "the request failed"; }
sed 's/^/   /' "$work/answer"

say "5. Who tailway saw"
for _ in $(seq 1 50); do grep -q 'tailway::access' "$work/tailway.log" && break; sleep 0.1; done
grep 'tailway::access' "$work/tailway.log" | sed 's/^/   /' || fail "tailway logged no connection"

if [ -t 0 ] && [ -t 1 ]; then
  say "It keeps running; ask again, or press Ctrl-C to end it:"
  echo "   $localtailnet get -admin $admin https://nginx.$domain/"
  wait $tailway_pid
fi
