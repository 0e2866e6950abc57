#!/usr/bin/env python3
"""Prints the licences of what the two programs contain: their crates, the Rust standard library, and with --static
the C library. Fails if a crate has no licence that deny.toml allows, or none whose text is found.

cargo metadata knows the crates, and their sources, which the build needs anyway, have the texts. A tool such as
cargo-about does the same, but takes longer to build than the programs' dependencies do, and completes missing texts
from a service on the network.
"""
import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = ["soci", "soci-snapshotter-grpc"]
TARGETS = ["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"]
LINE = "-" * 80
# The text for a crate that is under MIT only and has no file with it.
MIT = """Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


def allowed():
    """The licences of deny.toml, in order of preference."""
    text = (ROOT / "deny.toml").read_text()
    block = re.search(r"^allow = \[(.*?)\]", text, re.S | re.M).group(1)
    return re.findall(r'"([^"]+)"', block)


ALLOWED = allowed()


def choose(expression):
    """The licences to comply with, of an SPDX expression; None if it leads to one that is not allowed."""
    tokens = re.findall(r"\(|\)|[\w.+-]+", expression.replace("/", " OR "))

    def term():
        token = tokens.pop(0)
        if token == "(":
            found = either()
            tokens.pop(0)
            return found
        if tokens[:1] == ["WITH"]:
            del tokens[:2]
            # An exception gives more rights; only plain licences are listed in deny.toml.
            return None
        return frozenset([token]) if token in ALLOWED else None

    def all_of():
        found = term()
        while tokens[:1] == ["AND"]:
            tokens.pop(0)
            other = term()
            found = found | other if found is not None and other is not None else None
        return found

    def either():
        choices = [all_of()]
        while tokens[:1] == ["OR"]:
            tokens.pop(0)
            choices.append(all_of())
        choices = [choice for choice in choices if choice is not None]
        # Fewest and most preferred.
        rank = lambda choice: (len(choice), sorted(ALLOWED.index(name) for name in choice))
        return min(choices, key=rank, default=None)

    return either()


def crates():
    """The crates of the programs, on any of the targets, other than ours."""
    found = {}
    for target in TARGETS:
        command = ["cargo", "metadata", "--locked", "--format-version=1", f"--filter-platform={target}"]
        metadata = json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)
        packages = {package["id"]: package for package in metadata["packages"]}
        nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
        members = set(metadata["workspace_members"])
        queue = [id for id in members if packages[id]["name"] in PROGRAMS]
        seen = set(queue)
        while queue:
            id = queue.pop()
            if id not in members:
                found[id] = packages[id]
            for edge in nodes[id]["deps"]:
                # Neither what only builds nor what only tests.
                if any(kind["kind"] is None for kind in edge["dep_kinds"]) and edge["pkg"] not in seen:
                    seen.add(edge["pkg"])
                    queue.append(edge["pkg"])
    return sorted(found.values(), key=lambda package: (package["name"], package["version"]))


def is_apache(text):
    return "Apache License" in text and "Version 2.0" in text and "TERMS AND CONDITIONS" in text


def texts(package, licences):
    """The texts that must accompany the crate, besides the Apache licence's."""
    folder = Path(package["manifest_path"]).parent
    files = {file for file in folder.iterdir() if re.match(r"(?i)(licen[cs]e|copying|copyright|notice)", file.name)}
    if package["license_file"]:
        files.add(folder / package["license_file"])
    found = []
    for file in sorted(files):
        named_notice = file.name.lower().startswith("notice")
        if file.is_file() and (named_notice or licences != {"Apache-2.0"}):
            text = file.read_text(errors="replace").strip()
            if not is_apache(text):
                found.append(text)
    return found


def main():
    static = sys.argv[1:] == ["--static"]
    if sys.argv[1:] and not static:
        sys.exit("usage: third-party-licenses.py [--static]")
    listed, blocks, failures = [], {}, []
    for package in crates():
        name = f"{package['name']} {package['version']}"
        licences = choose(package["license"] or "")
        if licences is None:
            failures.append(f"{name}: no licence that deny.toml allows in {package['license']!r}")
            continue
        listed.append(f"{name}: {' and '.join(sorted(licences))}; {package['repository'] or package['homepage'] or ''}")
        found = texts(package, licences)
        if not found and licences == {"MIT"}:
            found = [f"Copyright (c) {', '.join(package['authors']) or 'the authors of ' + package['name']}\n\n{MIT}".strip()]
        if not found and licences != {"Apache-2.0"}:
            failures.append(f"{name}: its source has no text of {' and '.join(sorted(licences))}")
        for text in found:
            blocks.setdefault(text, []).append(name)
    if failures:
        sys.exit("third-party-licenses: " + "\n".join(failures))
    print("The programs contain the following crates, each under the licence that stands beside it.")
    print("The text of Apache-2.0 is in LICENSE, which is under that licence too; the other texts follow.\n")
    print("\n".join(listed))
    print("\nThe Rust standard library: Apache-2.0 (or MIT); https://github.com/rust-lang/rust")
    if static:
        print("The GNU C library: LGPL-2.1-or-later; https://sourceware.org/glibc. The programs' sources are public,")
        print("and `make package` links them with another version of it.")
    for text, names in sorted(blocks.items(), key=lambda block: block[1]):
        print(f"\n{LINE}\n{', '.join(names)}\n\n{text}")
    if static:
        copyright = Path("/usr/share/doc/libc6/copyright")
        licence = Path("/usr/share/common-licenses/LGPL-2.1")
        for file in (copyright, licence):
            if not file.is_file():
                sys.exit(f"third-party-licenses: cannot read {file}: the static programs are linked on Debian")
            print(f"\n{LINE}\nthe GNU C library\n\n{file.read_text(errors='replace').strip()}")


main()
