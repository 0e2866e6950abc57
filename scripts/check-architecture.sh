#!/bin/bash
# Checks docs/architecture.md against the crates: the table lists every crate and exactly the crates
# that it uses ([dependencies] of its Cargo.toml), and unsafe code is forbidden where it says so.
set -euo pipefail
cd "$(dirname "$0")/.."
page=docs/architecture.md
failed=0

complain() {
    echo "check-architecture: $*" >&2
    failed=1
}

# The folder of a crate: all are in crates/, except the two that the top level shows.
folder_of() {
    case $1 in
    e2e) echo tests ;;
    benches) echo benches ;;
    *) echo "crates/$1" ;;
    esac
}

crates=$({
    for folder in crates/*/; do basename "$folder"; done
    printf 'e2e\nbenches\n'
} | sort)

# "crate: used used …" for each row of the table whose head is "| crate | purpose | uses |".
drawn() {
    awk -F '|' '
        /^\| crate \| purpose \| uses \|$/ { table = 1; next }
        !/^\|/ { table = 0 }
        table && $2 !~ /---/ {
            sub(/\(unpublished[^)]*\)/, "", $2); gsub(/[`,]/, " ", $2)
            gsub(/[`,–]/, " ", $4)
            count = split($2, names, " ")
            for (i = 1; i <= count; i++) print names[i] ": " $4
        }
    ' $page
}

# The crates of ours among the dependencies of a crate (not those of its tests).
used() {
    awk '
        /^\[/ { ours = ($0 == "[dependencies]") }
        ours && match($0, /^soci-[a-z0-9_-]+/) { print substr($0, RSTART + 5, RLENGTH - 5) }
    ' "$(folder_of "$1")/Cargo.toml" | sort -u | grep -xF "$crates" || true
}

words() { tr -s ' \n' '\n\n' | sed '/^$/d' | sort -u; }

for crate in $crates; do
    if ! row=$(drawn | grep "^$crate:"); then
        complain "$page has no row for the crate $crate"
        continue
    fi
    said=$(words <<<"${row#*:}")
    is=$(used "$crate")
    for name in $(comm -23 <(echo "$said") <(echo "$is")); do
        complain "$page says that $crate uses $name; $(folder_of "$crate")/Cargo.toml does not"
    done
    for name in $(comm -13 <(echo "$said") <(echo "$is")); do
        complain "$crate uses $name ($(folder_of "$crate")/Cargo.toml); $page has no such arrow"
    done
done
for crate in $(drawn | cut -d: -f1); do
    test -d "$(folder_of "$crate")" || complain "$page has a row for $crate, which does not exist"
done

# Setting the time of day must not change what is fetched, filled, stored or evicted.
if uses=$(grep -rnE --exclude=tests.rs 'SystemTime::now|UNIX_EPOCH\.elapsed' crates/{store,fetch}/src); then
    complain "store and fetch use the monotonic clock only: $uses"
fi

# A test that pauses the clock pauses all of it.
if uses=$(grep -rnE 'std::time::(\{.*)?Instant' crates/{registry,fetch,eager}/src); then
    complain "registry, fetch and eager use tokio's clock: $uses"
fi

# The crates that may: each allows unsafe in the one module that the page names.
declare -A unsafe_module=([fuse]=shared_memory [ztoc]=inflate [soci-snapshotter-grpc]=memory)
for root in crates/*/src/lib.rs crates/*/src/main.rs crates/*/src/bin/*.rs benches/src/lib.rs benches/src/bin/*.rs tests/e2e/main.rs; do
    test -f "$root" || continue
    crate=$(cut -d/ -f2 <<<"$root")
    if [[ -n ${unsafe_module[$crate]:-} ]]; then
        grep -q '^#!\[deny(unsafe_code)\]' "$root" || complain "$root does not deny unsafe code"
    else
        grep -q '^#!\[forbid(unsafe_code)\]' "$root" || complain "$root does not forbid unsafe code"
    fi
done
for file in $(grep -rlE '^#!?\[(allow|expect)\(.*unsafe_code|^\s*unsafe_code,' crates/*/src benches tests/e2e || true); do
    crate=$(cut -d/ -f2 <<<"$file")
    test "$file" = "crates/$crate/src/${unsafe_module[$crate]:-none}.rs" ||
        complain "$file allows unsafe code, which $page does not"
done
for crate in "${!unsafe_module[@]}"; do
    grep -q "\`$crate::${unsafe_module[$crate]}\`" $page ||
        complain "$page does not name the unsafe code in $crate"
done

if ((failed == 0)); then
    echo "check-architecture: $(wc -w <<<"$crates") crates as drawn"
fi
exit $failed
