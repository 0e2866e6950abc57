#!/bin/bash
# Writes what the programs consist of into FOLDER, as CycloneDX.
#
# usage: sbom.sh FOLDER ARCHITECTURE
set -euo pipefail
cd "$(dirname "$0")/.."
output=$(realpath "$1") architecture=$2
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
host=$(rustc -vV | sed -n 's/^host: //p')
tools=${CARGO_TARGET_DIR:-$PWD/target}/tools
scripts/install-package-tools.sh "$tools" cargo-cyclonedx
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
# It writes beside each manifest; only the programs' are kept.
trap 'find crates benches tests -name "*.sbom.cdx.json" -delete' EXIT
"$tools/bin/cargo-cyclonedx" cyclonedx --format json --spec-version 1.5 --target "$host" \
    --no-build-deps --override-filename "package.sbom.cdx" >/dev/null
for program in soci soci-snapshotter-grpc; do
    file=$program-$version-linux-$architecture.cdx.json
    # Neither where this folder is nor a random number is part of it.
    python3 -c '
import json, sys
text = sys.stdin.read().replace("file://" + sys.argv[1], "file:///soci")
bom = json.loads(text)
bom.pop("serialNumber", None)
if not bom.get("components"):
    sys.exit("sbom: it names no component")
json.dump(bom, sys.stdout, indent=1, sort_keys=True)
print()
' "$PWD" <"crates/$program/package.sbom.cdx.json" >"$output/$file"
    (cd "$output" && sha256sum "$file" >"$file.sha256sum")
    echo "sbom: $file"
done
