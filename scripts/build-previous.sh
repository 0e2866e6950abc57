#!/bin/bash
# Builds the daemon of the version before from git history, for the tests that upgrade from it:
# target/previous/soci-snapshotter-grpc. Does nothing when it is there. Dependencies are shared with this version.
set -euo pipefail
cd "$(dirname "$0")/.."
# The last commit of the version before, and the features of its state: see tests/e2e/upgrade_from_previous.rs.
commit=9044d63ccbed51bfc3e54b64de0199aa854a9802
folder=target/previous
program=$folder/soci-snapshotter-grpc

if test -x $program && test "$(cat $folder/commit 2>/dev/null)" = $commit; then exit 0; fi
if ! git cat-file -e "$commit^{commit}" 2>/dev/null &&
    ! git fetch --quiet --depth=1 origin $commit 2>/dev/null; then
    cat >&2 <<MESSAGE
build-previous: the commit $commit is not in this source tree (a source archive, or a shallow clone whose
origin does not have it). The tests that upgrade from the version before need its daemon. Either test in a full
clone (git fetch --unshallow), or put that daemon at $program and the commit's name into $folder/commit.
MESSAGE
    exit 1
fi
echo "build-previous: building the daemon of $commit"
rm -rf $folder
mkdir -p $folder/source
git archive $commit | tar -x -C $folder/source
# The same target folder, so that dependencies are built once. This version's own program, which
# this one takes the place of in target/debug, is put back by the next cargo build or test.
CARGO_TARGET_DIR=$PWD/target ${CARGO:-cargo} build --locked --manifest-path $folder/source/Cargo.toml \
    --package soci-snapshotter-grpc
cp target/debug/soci-snapshotter-grpc $program
rm -rf $folder/source
echo $commit >$folder/commit
