#!/bin/bash
# Installs the tools that make packages into FOLDER, in the versions that are known to work. Does nothing when they
# are there.
#
# usage: install-package-tools.sh FOLDER TOOL…
set -euo pipefail
# Without its own xz, cargo-deb takes the system's (package.sh: --compress-system).
versions='
cargo-deb           3.8.0   --no-default-features
cargo-generate-rpm  0.21.1
cargo-cyclonedx     0.5.9
'
folder=$1
shift
for tool in "$@"; do
    read -r version options <<<"$(awk -v tool="$tool" '$1 == tool { print $2, $3 }' <<<"$versions")"
    test -n "$version" || { echo "install-package-tools: unknown tool: $tool" >&2 && exit 2; }
    if grep -qs "^\"$tool $version " "$folder/.crates.toml"; then continue; fi
    echo "install-package-tools: installing $tool $version" >&2
    CARGO_TARGET_DIR=$folder/build cargo install --quiet --locked --root "$folder" --version "$version" $options "$tool"
    rm -rf "$folder/build"
done
