#!/bin/bash
# Checks the licences, origins and known vulnerabilities of the crates that are built in (deny.toml).
set -euo pipefail

if ! cargo deny --version >/dev/null 2>&1; then
    echo "check-dependencies: installing cargo-deny"
    cargo install --locked cargo-deny
fi
cargo deny --locked check licenses bans sources
# The advisories live in a git repository of their own, which a machine without access to it cannot
# check; everything else is checked above without a network.
if cargo deny --locked fetch db; then
    cargo deny --locked check advisories
else
    echo "check-dependencies: the advisory database cannot be fetched from here: ADVISORIES WERE NOT CHECKED" >&2
fi
