#!/usr/bin/env python3
"""Checks how the modules of each crate use each other, and that crates do not export one name for two things.

Fails on an import cycle of more than two files, and on a type whose inherent `impl` blocks are in more than
three files. A cycle is a set of files each of which uses every other one, directly or through others.
Fails also on a type that two crates export under one name, unless SAME_NAME says why.

    scripts/check-modules.py [CRATE...]     checks these crates (default: all)
    scripts/check-modules.py --edges CRATE  also prints every import inside the cycles

What counts as a use: `use` declarations and paths that begin with crate, self, super or the name of a child
module. A name is followed through re-exports to the file that defines it; a re-export (`pub use`) by itself is
not a use. Left out: everything behind `#[cfg(test)]` and `#[cfg(any(test, ...))]`.
"""

import pathlib
import re
import sys

MOST_FILES_IN_A_CYCLE = 2
MOST_FILES_WITH_IMPLS = 3

# Names that several crates export, and why. `config` is left out: its types are the tables of the configuration
# file and have their names. `testkit` is for tests.
SAME_NAME = {
    "BlobWriter": "one notion: what receives the bytes of a blob",
    "Cause": "one notion: the error behind another, shared",
    "Compression": "one notion: ztoc knows the kinds that can have a zTOC, unpack all of them",
    "Entry": "each format's own term: of a bbolt bucket, of FUSE's LOOKUP, of a zTOC",
    "ImpliedDirectories": "one notion: directories that only the names of other entries imply",
}
LEFT_OUT = ("config", "testkit")

LITERALS = re.compile(
    r"""//[^\n]*|/\*.*?\*/|b?r(?P<hashes>\#*)".*?"(?P=hashes)|b?"(?:\\.|[^"\\])*"|b?'(?:\\.[^']*|[^'\\])'""",
    re.S,
)
TEST_ATTRIBUTE = re.compile(r"#\[cfg\((?:test|(?:any|all)\(test\b[^\]]*)\)\]")
ATTRIBUTE = re.compile(r"\s*#!?\[")
VISIBILITY = r"(?P<vis>pub(?:\([^)]*\))?\s+)?"
DECLARED = re.compile(VISIBILITY + r"mod\s+(\w+)\s*;")
USE = re.compile(r"(?<![\w:])" + VISIBILITY + r"use\s+([^;]+);")
PATH = re.compile(r"(?<![\w:])\w+(?:\s*::\s*\w+)+")
IMPL = re.compile(r"^[ \t]*(?:unsafe\s+)?impl\b", re.M)
DEFINED = re.compile(
    r"(?<!\w)(?:struct|enum|union|trait|type|fn|const|static|mod|macro_rules!)\s+(?:mut\s+)?(\w+)"
)


def blank(match):
    """Spaces in place of the text, so that lines stay where they are."""
    return re.sub(r"[^\n]", " ", match.group(0))


def end_of_brackets(text, start):
    """The place behind the bracket that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        if text[place] in "([{":
            depth += 1
        elif text[place] in ")]}":
            depth -= 1
            if depth == 0:
                return place + 1
    return len(text)


def end_of_item(text, start):
    """The place behind the item at `start`: behind its `;`, `,` or block."""
    while attribute := ATTRIBUTE.match(text, start):
        start = end_of_brackets(text, attribute.end() - 1)
    place = start
    while place < len(text):
        character = text[place]
        if character in ";,":
            return place + 1
        if character == "}":
            return place
        if character == "{":
            return end_of_brackets(text, place)
        if character in "([":
            place = end_of_brackets(text, place)
        else:
            place += 1
    return len(text)


def without_tests(text):
    """The code without what is compiled for tests only."""
    while attribute := TEST_ATTRIBUTE.search(text):
        end = end_of_item(text, attribute.end())
        gone = re.sub(r"[^\n]", " ", text[attribute.start() : end])
        text = text[: attribute.start()] + gone + text[end:]
    return text


def names_in_use(tree, prefix=()):
    """(path, name) for each name that a use tree brings in; the name is "*" for a glob."""
    tree = tree.strip()
    brace = tree.find("{")
    if brace < 0:
        path, _, alias = (part.strip() for part in tree.partition(" as "))
        segments = [part.strip() for part in path.split("::") if part.strip()]
        if segments[-1:] == ["self"] and (prefix or len(segments) > 1):
            segments.pop()
        whole = (*prefix, *segments)
        yield (whole[:-1], "*") if whole[-1] == "*" else (whole, alias or whole[-1])
        return
    head = [part.strip() for part in tree[:brace].split("::") if part.strip()]
    inside, depth, start = tree[brace + 1 : end_of_brackets(tree, brace) - 1], 0, 0
    for place, character in enumerate(inside + ","):
        depth += (character == "{") - (character == "}")
        if character == "," and depth == 0:
            if inside[start:place].strip():
                yield from names_in_use(inside[start:place], (*prefix, *head))
            start = place + 1


class Module:
    """A file: what it declares, defines and uses."""

    def __init__(self, path, name, parent):
        self.path, self.name, self.parent = path, name, parent
        self.text = without_tests(LITERALS.sub(blank, path.read_text()))
        self.children = {}
        self.uses = []  # (place, re-exported, path, name)
        for found in USE.finditer(self.text):
            for target, name in names_in_use(found[2]):
                self.uses.append((found.start(), bool(found["vis"]), target, name))
        self.imported = {name: target for _, _, target, name in self.uses if name not in "*_"}
        self.globs = [target for _, _, target, name in self.uses if name == "*"]
        self.defined = set(DEFINED.findall(self.text))
        folder = path.parent
        if path.name not in ("lib.rs", "main.rs", "mod.rs") and parent is not None:
            folder /= path.stem
        for found in DECLARED.finditer(self.text):
            for file in (folder / f"{found[2]}.rs", folder / found[2] / "mod.rs"):
                if file.exists():
                    self.children[found[2]] = Module(file, (*self.name, found[2]), self)

    def root(self):
        return self if self.parent is None else self.parent.root()

    def all(self):
        yield self
        for child in self.children.values():
            yield from child.all()

    def line(self, place):
        return self.text.count("\n", 0, place) + 1

    def resolve(self, path, seen=frozenset()):
        """The module whose file defines what the path names, and the name there; None for other crates."""
        if not path or (self, path) in seen:
            return None
        seen = seen | {(self, path)}
        at, rest = self, path
        if path[0] in ("crate", "self"):
            at, rest = (self.root() if path[0] == "crate" else self), path[1:]
        elif path[0] == "super":
            while rest and rest[0] == "super" and at is not None:
                at, rest = at.parent, rest[1:]
            if at is None:
                return None
        elif path[0] in self.imported:
            target = self.imported[path[0]]
            if target[0] == path[0] and path[0] not in self.children:
                return None  # a crate that is called as what is taken from it
            if target[0] != path[0]:
                return self.resolve((*target, *rest[1:]), seen)
        elif path[0] not in self.children and path[0] not in self.defined:
            return self.through_globs(path, seen)
        while rest and rest[0] in at.children:
            at, rest = at.children[rest[0]], rest[1:]
        if rest and rest[0] not in at.defined:
            if rest[0] in at.imported:
                return at.resolve((*at.imported[rest[0]], *rest[1:]), seen)
            if found := at.through_globs(rest, seen):
                return found
        return at, (rest[0] if rest else None)

    def through_globs(self, path, seen):
        for target in self.globs:
            found = self.resolve((*target, *path), seen)
            if found and found[1] in found[0].defined:
                return found
        return None

    def edges(self):
        """{file used: (line, path)}: the first use of each."""
        used = {}

        def add(place, path):
            found = self.resolve(path)
            if found and found[0] is not self:
                used.setdefault(found[0], (self.line(place), "::".join(path)))

        in_uses = []
        modules = {}
        for found in USE.finditer(self.text):
            in_uses.append((found.start(), found.end()))
        for place, reexported, target, name in self.uses:
            found = self.resolve(target)
            if found and found[1] is None and found[0] is not self and name != "*":
                modules[name] = (place, target)  # a module: what counts is what is used of it
            elif not reexported:
                add(place, target)
        code = self.text
        for start, end in in_uses:
            code = code[:start] + re.sub(r"[^\n]", " ", code[start:end]) + code[end:]
        for found in PATH.finditer(code):
            path = tuple(re.split(r"\s*::\s*", found[0]))
            if path[0] in ("crate", "self", "super") or path[0] in self.children or path[0] in modules:
                add(found.start(), path)
        return used

    def impls(self):
        """(type's module, type's name) of each inherent impl block."""
        for found in IMPL.finditer(self.text):
            head = self.text[found.end() : self.text.find("{", found.end())]
            flat, depth = "", 0
            for place, character in enumerate(head):
                arrow = character == ">" and head[place - 1] == "-"
                if character == "<":
                    depth += 1
                elif character == ">" and not arrow:
                    depth -= 1
                elif depth == 0:
                    flat += character
            flat = re.split(r"\bwhere\b", flat)[0]
            if not re.search(r"\bfor\b", flat) and (name := re.match(r"\s*([\w:]+)", flat)):
                path = tuple(name[1].split("::"))
                module, _ = self.resolve(path) or (self, None)
                yield module, path[-1]


def knots(modules, edges):
    """The sets of modules that use each other (Tarjan's strongly connected components)."""
    index, low, stack, result = {}, {}, [], []

    def visit(module):
        index[module] = low[module] = len(index)
        stack.append(module)
        for other in edges[module]:
            if other not in index:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], index[other])
        if low[module] == index[module]:
            knot = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            result.append(knot)

    for module in modules:
        if module not in index:
            visit(module)
    return result


def check(folder, show_edges):
    """The complaints about one crate."""
    complaints = []
    source = folder / "src"
    roots = [source / "lib.rs", source / "main.rs", *sorted((source / "bin").glob("*.rs"))]
    for root in filter(pathlib.Path.exists, roots):
        modules = list(Module(root, (), None).all())
        edges = {module: module.edges() for module in modules}

        def short(module):
            return str(module.path.relative_to(source)).removesuffix(".rs")

        for knot in knots(modules, edges):
            if len(knot) > MOST_FILES_IN_A_CYCLE:
                names = ", ".join(sorted(map(short, knot)))
                complaints.append((len(knot), f"cycle of {len(knot)} files: {names}"))
                for module in sorted(knot, key=short) if show_edges else ():
                    for other, (line, path) in edges[module].items():
                        if other in knot:
                            text = f"    {module.path}:{line} uses {short(other)} ({path})"
                            complaints.append((0, text))
        files = {}
        for module in modules:
            for where, name in module.impls():
                files.setdefault((where, name), set()).add(short(module))
        for (_, name), places in files.items():
            if len(places) > MOST_FILES_WITH_IMPLS:
                names = ", ".join(sorted(places))
                complaints.append((len(places), f"impl {name} in {len(places)} files: {names}"))
    return complaints


def shared_names(crates):
    """The complaints about types that several library crates export under one name."""
    exported = {}
    for crate, folder in crates.items():
        root = folder / "src" / "lib.rs"
        if crate in LEFT_OUT or not root.exists():
            continue
        text = without_tests(LITERALS.sub(blank, root.read_text()))
        for found in USE.finditer(text):
            if (found["vis"] or "").strip() != "pub":
                continue
            for path, name in names_in_use(found[2]):
                if re.match(r"[A-Z]\w*[a-z]", name) and not path[0].startswith("soci_"):
                    exported.setdefault(name, []).append(crate)
    for name in sorted(SAME_NAME.keys() - {name for name, by in exported.items() if len(by) > 1}):
        yield f"{name} is exported once: remove it from SAME_NAME"
    for name, by in sorted(exported.items()):
        if len(by) > 1 and name not in SAME_NAME:
            yield f"{name} is exported by {', '.join(by)}: rename one, or say in SAME_NAME why not"


def main():
    sys.setrecursionlimit(10_000)
    top = pathlib.Path(__file__).resolve().parent.parent
    arguments = [argument for argument in sys.argv[1:] if argument != "--edges"]
    show_edges = "--edges" in sys.argv
    crates = {folder.name: folder for folder in sorted((top / "crates").iterdir())}
    crates["benches"] = top / "benches"
    failed = False
    for name in arguments or crates:
        if name not in crates:
            sys.exit(f"check-modules: there is no crate {name}")
        for size, complaint in check(crates[name], show_edges):
            failed = True
            print(f"check-modules: {name}: {complaint}" if size else complaint.replace(f"{top}/", ""))
    for complaint in () if arguments else shared_names(crates):
        failed = True
        print(f"check-modules: {complaint}")
    if not failed:
        print(f"check-modules: {len(arguments or crates)} crates, no other cycle of more than "
              f"{MOST_FILES_IN_A_CYCLE} files, no other type in more than {MOST_FILES_WITH_IMPLS}, "
              "no name for two things")
    sys.exit(failed)


main()
