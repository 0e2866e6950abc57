#!/usr/bin/env python3
"""Checks that the messages that docs/troubleshooting.md lists are those of the sources.

Of each table, every text between backticks in the first column, and behind `log:` in the others, that has three
words or more must occur in a source file, within one string; `…` stands for what is filled in.
"""

import pathlib
import re
import sys

PAGE = "docs/troubleshooting.md"
LISTED = re.compile(r"`([^`]+)`")
LOGGED = re.compile(r"[Ll]og: ((?:[^`|;()]*`[^`]+`)+)")


def main():
    top = pathlib.Path(__file__).resolve().parent.parent
    sources = []
    for file in sorted(top.glob("crates/*/src/**/*.rs")):
        text = re.sub(r"\\\n\s*", "", file.read_text())
        sources.append(" ".join(text.replace('\\"', '"').split()))
    everything = "\n".join(sources)
    failed = False
    read = 0
    for number, line in enumerate((top / PAGE).read_text().splitlines(), 1):
        if not line.startswith("| "):
            continue
        first, _, others = line[2:].partition(" | ")
        found = LISTED.findall(first)
        for logged in LOGGED.findall(others):
            found += LISTED.findall(logged)
        for message in found:
            if len(message.replace("…", " ").split()) < 3:
                continue
            read += 1
            message = re.sub(r'^"msg":"(.*)"$', r"\1", message)
            parts = [re.escape(part.strip()) for part in message.split("…")]
            if not re.search('[^"]*?'.join(parts), everything):
                failed = True
                print(f"check-messages: {PAGE}:{number}: no source has {message!r}", file=sys.stderr)
    if not failed:
        print(f"check-messages: the sources have the {read} messages of {PAGE}")
    sys.exit(failed)


main()
