#!/bin/bash
# Builds the programs of the version before from git history into target/previous/, for the tests that upgrade
# from it. Does nothing when they are there. Dependencies are shared with this version.
set -euo pipefail
cd "$(dirname "$0")/.."
# The last commit of the version before (tests/e2e/upgrade_from_previous.rs starts its programs).
commit=9044d63ccbed51bfc3e54b64de0199aa854a9802
folder=target/previous
programs="soci-snapshotter-grpc soci"

if test "$(cat $folder/commit 2>/dev/null)" = $commit; then exit 0; fi
if ! git cat-file -e "$commit^{commit}" 2>/dev/null &&
    ! git fetch --quiet --depth=1 origin $commit 2>/dev/null; then
    cat >&2 <<MESSAGE
build-previous: the commit $commit is not in this source tree (a source archive, or a shallow clone whose
origin does not have it). The tests that upgrade from the version before need its programs. Either test in a full
clone (git fetch --unshallow), or put them ($programs) into $folder and the commit's name into $folder/commit.
MESSAGE
    exit 1
fi
echo "build-previous: building $programs of $commit"
rm -rf $folder
mkdir -p $folder/source
git archive $commit | tar -x -C $folder/source
# The same target folder, so that dependencies are built once. The next cargo build or test puts this version's
# programs back into target/debug.
CARGO_TARGET_DIR=$PWD/target ${CARGO:-cargo} build --locked --manifest-path $folder/source/Cargo.toml \
    $(printf -- '--package %s ' $programs)
for program in $programs; do cp target/debug/$program $folder/; done
rm -rf $folder/source
echo $commit >$folder/commit
