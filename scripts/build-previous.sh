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
# The same target folder, so that dependencies are built once: with the features that they have in this version's
# tests, which this package adds. Without it the tests' build repeats 77 of them. Versions stay those of the old
# lock file; what it lacks is added to it. The next cargo build or test puts this version's programs back.
mkdir -p $folder/source/crates/same-features/src
: >$folder/source/crates/same-features/src/lib.rs
cat >$folder/source/crates/same-features/Cargo.toml <<MANIFEST
[package]
name = "same-features"
edition = "2024"

[dependencies]
getrandom = { version = "0.4", features = ["std", "sys_rng"] }
indicatif = { version = "0.18", features = ["in_memory"] }
ipnet = { version = "2", features = ["serde"] }
once_cell = { version = "1", features = ["critical-section"] }
rand_core = { version = "0.6", features = ["std"] }
serde = { version = "1", features = ["rc"] }
shlex = "2"
subtle = { version = "2", default-features = false, features = ["i128"] }
tokio = { version = "1", features = ["test-util"] }
tokio-rustls = { version = "0.26", default-features = false, features = ["ring"] }
tokio-util = { version = "0.7", features = ["io-util"] }
toml_edit = "0.25"
tracing = { version = "0.1", features = ["log"] }
zerocopy = { version = "0.8", features = ["simd"] }
MANIFEST
CARGO_TARGET_DIR=$PWD/target ${CARGO:-cargo} build --manifest-path $folder/source/Cargo.toml \
    --config 'profile.dev.package."*".debug = false' $(printf -- '--package %s ' $programs same-features)
for program in $programs; do cp target/debug/$program $folder/; done
rm -rf $folder/source
echo $commit >$folder/commit
