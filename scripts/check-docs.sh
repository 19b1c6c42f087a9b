#!/usr/bin/env bash
# Whether the documents fit together: their links, and the README's length.
set -euo pipefail

usage() {
  cat <<'USAGE'
Usage: scripts/check-docs.sh

Checks every *.md file of the repository. Each relative link has to lead to a file or
folder that exists, and each #anchor to a heading of that file, by GitHub's rules.
README.md may have 180 lines at most. Nothing is built, and no network is needed.
USAGE
}

case ${1-} in
  '') ;;
  -h | --help) usage; exit 0 ;;
  *) echo "check-docs: unknown argument \`$1\`" >&2; usage >&2; exit 2 ;;
esac

cd "$(dirname "${BASH_SOURCE[0]}")/.."

python3 - <<'PYTHON'
import os, pathlib, re, sys, urllib.parse

LONGEST_README = 180
# Folders with files that are not the repository's own, beside those that begin with a dot.
FOREIGN = {"target", "node_modules"}

FENCE = re.compile(r"^\s*(?:[-*+>]\s+)*(`{3,}|~{3,})")
HEADING = re.compile(r"^ {0,3}#{1,6}[ \t]+(.*?)(?:[ \t]+#+)?[ \t]*$")
UNDERLINE = re.compile(r"^ {0,3}(=+|-+)[ \t]*$")
# Within a paragraph: a backtick by itself hides nothing of the next one.
CODE = re.compile(r"(?<!`)(`+)(?!`)((?:(?!\n[ \t]*\n).)+?)(?<!`)\1(?!`)", re.DOTALL)
LINK = re.compile(r"\]\(\s*(?:<([^>\n]*)>|((?:[^\s()]|\([^\s()]*\))*))(?:\s+(?:\"[^\"]*\"|'[^']*'))?\s*\)")
DEFINITION = re.compile(r"^ {0,3}\[([^\]]+)\]:\s*<?([^\s>]+)>?", re.MULTILINE)
REFERENCE = re.compile(r"\[[^\[\]]+\]\[([^\[\]]+)\]")
TAG = re.compile(r"<[a-zA-Z][^<>]*>")
ATTRIBUTE = re.compile(r"\s(href|src|id|name)=[\"']([^\"']*)[\"']")
SCHEME = re.compile(r"^(?:[a-zA-Z][a-zA-Z0-9+.-]*:|//)")

root = pathlib.Path.cwd()


def documents():
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if name[0] != "." and name not in FOREIGN)
        for name in sorted(files):
            if name.endswith(".md"):
                yield pathlib.Path(folder, name)


def blank(text):
    """As many lines, without what is on them."""
    return re.sub(r"[^\n]", " ", text)


def prose(text):
    """The text without blocks of code and comments, each line where it was."""
    lines, fence = [], None
    for line in text.split("\n"):
        found = FENCE.match(line)
        mark = found.group(1) if found else ""
        if fence is None:
            fence = mark or None
            lines.append("" if mark else line)
        else:
            # A fence is closed by one of its kind that is as long, with nothing after it.
            if mark.startswith(fence) and line.rstrip().endswith(mark):
                fence = None
            lines.append("")
    return re.sub(r"<!--.*?-->", lambda comment: blank(comment.group()), "\n".join(lines), flags=re.DOTALL)


def slug(heading):
    """GitHub's anchor of a heading."""
    shown = CODE.sub(r"\2", heading)
    shown = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", shown)
    shown = re.sub(r"<[^>]+>", "", shown)
    return re.sub(r"[^\w\- ]", "", shown.strip().lower()).replace(" ", "-")


class Document:
    def __init__(self, path):
        self.path, self.name = path, path.relative_to(root)
        text = prose(path.read_text(encoding="utf-8"))
        self.anchors = set()
        before = ""
        for line in text.split("\n"):
            if found := HEADING.match(line):
                self.add_heading(found.group(1))
            elif UNDERLINE.match(line) and before.strip() and not before.lstrip().startswith(("|", "-", "#", ">")):
                self.add_heading(before)
            before = line
        # What is in `code` is no link.
        self.text = CODE.sub(lambda code: blank(code.group()), text)
        self.anchors.update(value for _, value in self.attributes("id", "name"))

    def add_heading(self, heading):
        anchor = plain = slug(heading)
        number = 0
        while anchor in self.anchors:
            number += 1
            anchor = f"{plain}-{number}"
        self.anchors.add(anchor)

    def attributes(self, *names):
        """The values of such attributes of HTML tags, each with its place."""
        for tag in TAG.finditer(self.text):
            for match in ATTRIBUTE.finditer(tag.group()):
                if match.group(1) in names:
                    yield tag.start(), match.group(2)

    def links(self):
        """Each link's target and line."""
        found = [(match.start(), match.group(1) or match.group(2) or "") for match in LINK.finditer(self.text)]
        found += [(match.start(), match.group(2)) for match in DEFINITION.finditer(self.text)]
        found += self.attributes("href", "src")
        for start, target in sorted(found):
            yield target, self.line_of(start)

    def undefined(self):
        """Each [text][label] without a definition of the label."""
        known = {label.lower() for label, _ in DEFINITION.findall(self.text)}
        for match in REFERENCE.finditer(self.text):
            if match.group(1).lower() not in known:
                yield match.group(), self.line_of(match.start())

    def line_of(self, start):
        return self.text.count("\n", 0, start) + 1


documents = {path: Document(path) for path in documents()}


def problem(document, target):
    """What is wrong with a relative link, if anything is."""
    place, _, anchor = target.partition("#")
    place, anchor = urllib.parse.unquote(place), urllib.parse.unquote(anchor)
    if not target:
        return "leads nowhere"
    if not place:
        path = document.path
    elif place.startswith("/"):
        path = root / place[1:]
    else:
        path = document.path.parent / place
    path = pathlib.Path(os.path.normpath(path))
    if path != root and root not in path.parents:
        return "leads out of the repository"
    if not path.exists():
        return f"there is no `{path.relative_to(root)}`"
    if not anchor:
        return None
    if path not in documents:
        is_line = path.is_file() and re.fullmatch(r"L\d+(-L\d+)?", anchor)
        return None if is_line else "only headings of a *.md file have anchors"
    if anchor not in documents[path].anchors:
        return f"{documents[path].name} has no heading for `#{anchor}`"
    return None


wrong, checked = [], 0
for document in documents.values():
    for target, line in document.links():
        if SCHEME.match(target):
            continue
        checked += 1
        if reason := problem(document, target):
            wrong.append(f"{document.name}:{line}: ({target}): {reason}")
    for text, line in document.undefined():
        wrong.append(f"{document.name}:{line}: {text}: the label is not defined")

lines = len((root / "README.md").read_text(encoding="utf-8").splitlines())
if lines > LONGEST_README:
    wrong.append(f"README.md has {lines} lines, more than {LONGEST_README}: move details into docs/")

for line in wrong:
    print(line, file=sys.stderr)
if not wrong:
    print(f"{checked} links in {len(documents)} documents lead somewhere; README.md has {lines} lines")
sys.exit(bool(wrong))
PYTHON
