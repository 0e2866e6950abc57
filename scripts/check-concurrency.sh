#!/bin/bash
# Runs the tests about concurrency and unsafe code with tools that see more than a plain run does: shuttle over many
# schedules (the modules named `concurrency`), and Miri over the code that has `unsafe`.
# SHUTTLE_ITERATIONS is how many schedules each test runs (10000).
set -euo pipefail
cd "$(dirname "$0")/.."
export SHUTTLE_ITERATIONS=${SHUTTLE_ITERATIONS:-10000}

echo "check-concurrency: $SHUTTLE_ITERATIONS schedules of each test"
"${CARGO:-cargo}" test --locked --quiet --workspace --lib concurrency::

if ! cargo +nightly miri --version >/dev/null 2>&1; then
    echo "check-concurrency: Miri is not installed: UNSAFE CODE WAS NOT CHECKED" \
        "(rustup toolchain install nightly --component miri --component rust-src)" >&2
    # Where it must be there, this is a failure.
    test -z "${REQUIRE_MIRI:-}"
    exit
fi
echo "check-concurrency: $(cargo +nightly miri --version)"
export MIRIFLAGS="${MIRIFLAGS:--Zmiri-disable-isolation}"
cargo +nightly miri test --locked --package soci-fuse --lib shared_memory
cargo +nightly miri test --locked --package soci-ztoc --lib inflate::
