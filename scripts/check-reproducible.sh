#!/bin/bash
# Builds the release files of HEAD in two folders and compares them.
set -euo pipefail
cd "$(dirname "$0")/.."
# Commits may be added while this runs.
revision=$(git rev-parse HEAD)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for folder in one another/deeper; do
    mkdir -p "$work/$folder"
    git archive "$revision" | tar -x -C "$work/$folder"
    SOURCE_DATE_EPOCH=$(git log -1 --format=%ct "$revision") SOCI_REVISION=$revision \
        CARGO_TARGET_DIR=$work/$folder/target "$work/$folder/scripts/release.sh" "$work/$folder/dist"
done
diff -r "$work/one/dist" "$work/another/deeper/dist"
echo "check-reproducible: the same bytes"
