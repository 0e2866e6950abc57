#!/bin/bash
# Checks the licences, origins and known vulnerabilities of the crates that are built in (deny.toml).
# Advisories that cannot be checked fail, unless --allow-unchecked-advisories says otherwise.
set -euo pipefail

case ${1-} in
'') unchecked_is_allowed= ;;
--allow-unchecked-advisories) unchecked_is_allowed=1 ;;
*)
    echo "usage: check-dependencies.sh [--allow-unchecked-advisories]" >&2
    exit 2
    ;;
esac

version=0.20.2
if ! cargo deny --version >/dev/null 2>&1; then
    echo "check-dependencies: installing cargo-deny $version"
    cargo install --locked --version "$version" cargo-deny
fi
cargo deny --locked check licenses bans sources
# The advisories live in a git repository of their own, which a machine without access to it cannot
# check; everything else is checked above without a network.
if cargo deny --locked fetch db; then
    cargo deny --locked check advisories
    exit 0
fi
echo "check-dependencies: the advisory database cannot be fetched: ADVISORIES WERE NOT CHECKED" >&2
if test -z "$unchecked_is_allowed"; then
    echo "check-dependencies: failing; --allow-unchecked-advisories (make lint ADVISORIES=…) accepts that" >&2
    exit 1
fi
