#!/bin/bash
# Checks that the two programs compile for every target that deny.toml names and that is installed.
set -euo pipefail
cd "$(dirname "$0")/.."
targets=${*:-$(sed -n 's/^targets = //p' deny.toml | grep -oE '[a-z0-9_]+-[a-z0-9_-]+')}
here=$(rustup target list --installed)
left=0
for target in $targets; do
    if ! grep -qx "$target" <<<"$here"; then
        echo "check-targets: $target is not installed: NOT CHECKED (rustup target add $target)" >&2
        left=1
        continue
    fi
    echo "check-targets: $target"
    cargo check --locked --target "$target" --package soci --package soci-snapshotter-grpc
done
# Where all must be there, one that is left out is a failure.
test $left = 0 || test -z "${REQUIRE_TARGETS:-}"
