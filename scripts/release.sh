#!/bin/bash
# Builds both programs for use, dynamically and statically linked, and makes the release files of them in dist/.
# Two builds of one commit with one toolchain give the same bytes, whatever folders they are in.
#
# usage: release.sh [OUTPUT]
set -euo pipefail
cd "$(dirname "$0")/.."
output=${1:-dist}
target=${CARGO_TARGET_DIR:-$PWD/target}
cargo=${CARGO:-cargo}
host=$(rustc -vV | sed -n 's/^host: //p')
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export SOCI_REVISION=${SOCI_REVISION:-$(git rev-parse HEAD)}
export CARGO_INCREMENTAL=0

# No folder of this machine ends in the programs: neither in messages of panics, nor in assertions of C sources.
cargo_home=${CARGO_HOME:-$HOME/.cargo}
remap="--remap-path-prefix=$PWD=/soci --remap-path-prefix=$target=/target --remap-path-prefix=$cargo_home=/cargo"
remap+=" --remap-path-prefix=$(rustc --print sysroot)=/rust"
export CFLAGS="-ffile-prefix-map=$PWD=/soci -ffile-prefix-map=$cargo_home=/cargo -ffile-prefix-map=$target=/target"

# --target, also for this machine's own: flags then do not apply to build scripts and procedural macros, which
# cannot be linked statically.
build() { # FLAGS TARGET-FOLDER
    RUSTFLAGS="$remap $1" "$cargo" build --locked --profile dist --target "$host" --target-dir "$2" \
        --package soci --package soci-snapshotter-grpc
}
build "" "$target/dynamic"
# The C library's linker script for static programs needs libc.a: Debian's libc6-dev has it.
# A static program cannot look the C library's getrandom up, and would need /dev/urandom instead: the system call.
build '-C target-feature=+crt-static --cfg getrandom_backend="linux_getrandom"' "$target/static"

static=$target/static/$host/dist
scripts/check-static.py "$static"
scripts/package.sh --programs "$target/dynamic/$host/dist" --static "$static" --output "$output"
case $host in x86_64-*) architecture=amd64 ;; *) architecture=arm64 ;; esac
scripts/sbom.sh "$output" $architecture
