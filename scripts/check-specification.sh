#!/bin/bash
# Checks that every promise of SPECIFICATION.md names a test or says that it is pending, and that
# every test named there or in docs/threat-model.md exists.
#
# A test is named `crate::file::test`: file is a path below crates/<crate>/tests, crates/<crate>/tests/it
# or crates/<crate>/src, with "::" between folders. The crate e2e is in tests/e2e, benches in benches/tests.
set -euo pipefail
cd "$(dirname "$0")/.."
specification=SPECIFICATION.md
threats=docs/threat-model.md
failed=0

complain() {
    echo "check-specification: $*" >&2
    failed=1
}

# The tests in a source file, one name a line: functions whose attributes have a "test" among them, and those
# that a macro makes a test of for each release of containerd.
tests_in() {
    awk '
        /^on_each_containerd! \{/ { listed = 1; next }
        listed && match($0, /[a-z0-9_]+/) { print substr($0, RSTART, RLENGTH); next }
        listed { listed = 0 }
        /^[[:space:]]*#\[([a-z_]+::)?test[](]/ { marked = 1; next }
        /^[[:space:]]*(#\[|\/\/|[a-z_]+ *=|\)\]|$)/ { next }
        marked && match($0, /fn [a-z0-9_]+/) { print substr($0, RSTART + 3, RLENGTH - 3) }
        { marked = 0 }
    ' "$@"
}

exists() {
    local crate=${1%%::*} rest=${1#*::} file test place places
    test=${rest##*::}
    test "$test" != "$rest" || return 1
    file=${rest%::*}
    case $crate in
    e2e) places="tests/e2e" ;;
    benches) places="benches/tests benches/src" ;;
    *) places="crates/$crate/tests/it crates/$crate/tests crates/$crate/src" ;;
    esac
    for place in $places; do
        for place in "$place/${file//:://}.rs" "$place/${file//:://}/mod.rs"; do
            if test -f "$place" && tests_in "$place" | grep -x "$test" >/dev/null; then return 0; fi
        done
    done
    return 1
}

named=$(grep -ohE '`[a-z0-9_-]+(::[a-z0-9_]+)+`' $specification $threats | tr -d '`' | sort -u)
test -n "$named" || complain "$specification names no test at all"
for name in $named; do
    exists "$name" || complain "$specification or $threats names the test $name, which does not exist"
done

# A promise is an item of a list, with the indented lines behind it.
while IFS= read -r promise; do
    if ! [[ $promise =~ \`[a-z0-9_-]+(::[a-z0-9_]+)+\` || $promise == *'*pending'* ]]; then
        complain "neither a test nor the word pending: ${promise:0:100}"
    fi
done < <(awk '
    /^- / { if (item) print item; item = $0; next }
    /^  +[^ ]/ && item { sub(/^ +/, " "); item = item $0; next }
    { if (item) print item; item = "" }
    END { if (item) print item }
' $specification)

if ((failed == 0)); then
    echo "check-specification: $(wc -w <<<"$named") tests named, all there"
fi
exit $failed
