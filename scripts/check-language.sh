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

words='\b(whoever|somebody|nobody|anew|meanwhile|besides|thus|(is|are|was|were) told|tells? (of|about)|gives? (it )?back|given back|takes? up|taken up|took up|lets? go( of)?|go(es)? on|went on|(is|are) here|what is no|that is none|ask(s|ed|ing)? for)\b'
# The page that lists the words, a generated page, the history, and this script.
mapfile -t found < <(
    git grep -nIiE "$words" -- '*.rs' '*.md' '*.toml' '*.sh' Makefile \
        ':!docs/style.md' ':!docs/cli.md' ':!CHANGELOG.md' ':!scripts/check-language.sh' ':!tests/golden' ||
        true
)
for line in "${found[@]}"; do
    complain "docs/style.md replaces a word: ${line:0:160}"
done

# A doc comment states what the item is or does.
while IFS= read -r line; do
    complain "a doc comment begins with a verb of another actor, or is a question: ${line:0:160}"
done < <(
    git grep -nIE '^[[:space:]]*//[/!] ((Has|Lets|Gives|Tells|Says) |(Is|Are|Was|Were|Does|Do|Did|Can|Could|May|Must|Has) [^.]*\?)' -- '*.rs' || true
)

# Help texts have sentences of their own.
while IFS= read -r line; do
    complain "a doc comment begins with a genitive or a place: ${line:0:160}"
done < <(
    git grep -nIE '^[[:space:]]*//[/!] (Of|In|By) ' -- '*.rs' ':!crates/soci/src/commands' ':!crates/soci/src/global.rs' || true
)

while IFS= read -r line; do
    complain "docs/style.md forbids the name of a type: $line"
done < <(git grep -nIoE '\b(struct|enum|union|trait|type) (Place|Ask|Line|What|Shared|Inner)\b' -- '*.rs' || true)

# `make test` runs no examples of doc comments: a test shows the same and may do I/O.
while IFS= read -r line; do
    complain "an example in a doc comment is not run; write a test, or \`\`\`text for a drawing: $line"
done < <(
    git grep -lIE '^[[:space:]]*//[/!] ```' -- '*.rs' | while IFS= read -r file; do
        awk '/^[[:space:]]*\/\/[\/!] ```/ {
            if (!inside && !/```text$/) print FILENAME ":" FNR
            inside = !inside
        }' "$file"
    done
)

# A test's name is a sentence.
in_names='_(told|tells?_of|said|whoever|nobodys?|somebody|everybody|anew|meanwhile|besides|thus|here|lets?_go|go(es)?_on|tak(en|es)_up|ask(s|ed|ing)?_for)(_|\()|\bfn what_is_no_[a-km-z]'
while IFS= read -r line; do
    complain "docs/style.md replaces a word in a name: $line"
done < <(git grep -nIoE "fn [a-z0-9_]+\(" -- '*.rs' | grep -E "$in_names" || true)

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
