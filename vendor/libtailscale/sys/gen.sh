#!/bin/sh
# Makes src/bindings.rs from tailscale.h. Needs the network the first time: it
# installs bindgen under .tools, and libclang from PyPI where the machine has none.
set -eu

sys=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$sys/../../.." && pwd)
tools=$root/.tools
header=$sys/../tailscale.h
version=0.73.2

if ! "$tools/bin/bindgen" --version 2>/dev/null | grep -qx "bindgen $version"; then
  cargo install bindgen-cli --version "$version" --locked --root "$tools"
fi

# clang-sys looks in the usual places; a wheel of libclang serves where there is none.
if [ -z "${LIBCLANG_PATH:-}" ] && ! ldconfig -p 2>/dev/null | grep -q 'libclang\(-[0-9]*\)\?\.so'; then
  [ -d "$tools/libclang" ] || {
    python3 -m venv "$tools/libclang"
    "$tools/libclang/bin/pip" install --quiet libclang
  }
  LIBCLANG_PATH=$(dirname "$(find "$tools/libclang" -name 'libclang*.so*' | head -n 1)")
  export LIBCLANG_PATH
fi

# The wheel brings no headers of its own, the C compiler has stddef.h.
includes=$(${CC:-cc} -print-file-name=include)

# The checksum lets a test tell stale bindings without libclang.
cksum=$(cksum <"$header")

out=$sys/src/bindings.rs
"$tools/bin/bindgen" "$header" \
  --allowlist-function 'tailscale.*' \
  --allowlist-type 'tailscale.*' \
  --allowlist-var 'TAILSCALE.*' \
  --no-layout-tests \
  --rust-edition 2024 \
  --rust-target 1.85 \
  --raw-line "//! Made by gen.sh from tailscale.h; do not edit." \
  --raw-line "//!" \
  --raw-line "//! cksum of tailscale.h: $cksum" \
  --output "$out.new" \
  -- -I"$includes"
mv "$out.new" "$out"
