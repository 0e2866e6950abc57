#!/bin/bash
# Checks prose against docs/style.md: no word that its table replaces, in sources and documents, and no
# line of a document over 100 columns (tables, code and links excepted).
set -euo pipefail
cd "$(dirname "$0")/.."
export LC_ALL=C.UTF-8
failed=0

complain() {
    echo "check-language: $*" >&2
    failed=1
}

words='\b(whoever|somebody|nobody|anew|meanwhile|besides|thus|(is|are|was|were) told|tells? (of|about)|gives? (it )?back|given back|takes? up|taken up|took up|lets? go( of)?|goes on|went on|(is|are) here|what is no|that is none)\b'
# The page that lists the words, a generated page, the history, and this script.
mapfile -t found < <(
    git grep -nIiE "$words" -- '*.rs' '*.md' '*.toml' '*.sh' Makefile \
        ':!docs/style.md' ':!docs/cli.md' ':!CHANGELOG.md' ':!scripts/check-language.sh' ':!tests/golden' ||
        true
)
for line in "${found[@]}"; do
    complain "docs/style.md replaces a word: ${line:0:160}"
done

while IFS= read -r line; do
    complain "longer than 100 columns: $line"
done < <(
    git ls-files '*.md' ':!docs/cli.md' ':!tests/golden' | while IFS= read -r page; do
        # Blanks what cannot be wrapped, so that the numbers of lines stay.
        awk '
            /^```/ { code = !code }
            code || /^    / || /^\|/ || /\]\(/ || /^ *[^ ]*$/ { print ""; next }
            { print }
        ' "$page" | grep -noE '^.{101,}' | sed "s|^\([0-9]*\):.*|$page:\1|" || true
    done
)

if ((failed == 0)); then
    echo "check-language: $(git ls-files '*.md' | wc -l) pages and $(git ls-files '*.rs' | wc -l) sources read"
fi
exit $failed
