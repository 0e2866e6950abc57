#!/bin/bash
# Checks that everything builds with the oldest Rust that Cargo.toml promises (rust-version).
set -euo pipefail
cd "$(dirname "$0")/.."
oldest=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
toolchain=$(rustup toolchain list 2>/dev/null | grep -oE "^$oldest(\.[0-9]+)?-[a-z0-9_-]+" | head -n1 || true)
grep -qx "msrv = \"$oldest\"" clippy.toml || { echo "check-msrv: clippy.toml does not name $oldest" >&2; exit 1; }
grep -qx "oldest_rust=$oldest" scripts/install-deps.sh || { echo "check-msrv: install-deps.sh does not name $oldest" >&2; exit 1; }
if test -z "$toolchain"; then
    echo "check-msrv: Rust $oldest is not installed: NOT BUILT WITH IT (rustup toolchain install $oldest)" >&2
    # Where it must be there, this is a failure.
    test -z "${REQUIRE_MSRV:-}"
    exit
fi
cargo "+$toolchain" check --locked --workspace --all-targets
