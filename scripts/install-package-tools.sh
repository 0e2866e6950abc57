#!/bin/bash
# Installs the tools that make packages into FOLDER, in the versions that are known to work. Does nothing when they
# are there.
#
# usage: install-package-tools.sh FOLDER TOOL…
set -euo pipefail
versions='
cargo-deb           3.8.0
cargo-generate-rpm  0.21.1
cargo-cyclonedx     0.5.9
'
folder=$1
shift
# They run for seconds: building them quickly matters more than what they could gain from optimization.
export CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16
for tool in "$@"; do
    version=$(awk -v tool="$tool" '$1 == tool { print $2 }' <<<"$versions")
    test -n "$version" || { echo "install-package-tools: unknown tool: $tool" >&2 && exit 2; }
    if grep -qs "^\"$tool $version " "$folder/.crates.toml"; then continue; fi
    echo "install-package-tools: installing $tool $version" >&2
    # One folder for all: crates that two tools share are built once.
    CARGO_TARGET_DIR=$folder/build cargo install --quiet --locked --root "$folder" --version "$version" "$tool"
    installed=1
done
if test -n "${installed-}"; then rm -rf "$folder/build"; fi
