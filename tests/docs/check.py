#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The documentation holds together: each relative link leads to a file that is there, each anchor to a heading; every page is linked
to from somewhere; what the pages tell to type exists: commands and options of tidemark and kubectl tidemark, targets of make, scripts.
TIDEMARK is the program; without it its commands are left out."""
import os
import re
import subprocess
import sys

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
TIDEMARK = os.environ.get("TIDEMARK")
SKIPPED = {".git", "build"}


def pages():
    found = []
    for directory, names, files in os.walk(ROOT):
        names[:] = [n for n in names if n not in SKIPPED and not n.startswith("build")]
        found += [os.path.join(directory, f) for f in files if f.endswith(".md")]
    return sorted(found)


def read(path):
    with open(path, encoding="utf-8") as f:
        return f.read()


def without_code(text):
    """The same lines; code is blank."""
    def blank(match):
        return re.sub(r"[^\n]", " ", match[0])
    text = re.sub(r"(?ms)^ *```.*?^ *```", blank, text)
    return re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", blank, text)


def anchors(text):
    """As GitHub makes them of headings."""
    found, blocks = set(), re.sub(r"(?ms)^ *```.*?^ *```", "", text)
    for heading in re.findall(r"(?m)^#+ +(.*?) *#*$", blocks):
        heading = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        unique, number = slug, 0
        while unique in found:
            number += 1
            unique = f"{slug}-{number}"
        found.add(unique)
    return found


def links(path, linked):
    wrong, text = [], without_code(read(path))
    for match in re.finditer(r"\]\(([^()\s]+)\)", text):
        target, _, anchor = match[1].partition("#")
        where = f"{os.path.relpath(path, ROOT)}:{text.count(chr(10), 0, match.start()) + 1}"
        if re.match(r"[a-z]+:", target):
            continue
        file = os.path.normpath(os.path.join(os.path.dirname(path), target)) if target else path
        linked.add(file)
        if not os.path.exists(file):
            wrong.append(f"{where}: there is no {match[1]}")
        elif anchor and file.endswith(".md") and anchor not in anchors(read(file)):
            wrong.append(f"{where}: {os.path.relpath(file, ROOT)} has no heading for #{anchor}")
    return wrong


def commands_of(program):
    """{command: its options}, {} when there is no program."""
    if not TIDEMARK:
        return {}
    def run(*args):
        return subprocess.run([program, *args], executable=TIDEMARK, capture_output=True, text=True, check=True).stdout
    found = {}
    for name in re.findall(r"(?m)^  ([\w-]+) +\S", run("help").split("Commands:")[1].split("\n\n")[0]):
        found[name] = {"--version"} | {o for pair in re.findall(r"(?m)^  (?:(-\w), )?(--[\w-]+)", run("help", name)) for o in pair if o}
    return found


def typed(path, programs):
    """What is written as code."""
    wrong, text = [], read(path)
    code = re.findall(r"(?ms)^ *```[^\n]*\n(.*?)^ *```", text) + re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)
    where = os.path.relpath(path, ROOT)
    for line in "\n".join(code).replace("\\\n", " ").splitlines():
        line = re.sub(r"\$\([^()]*\)", "", line.split("#")[0])
        for target in re.findall(r"^\s*make ([a-z][\w-]*)", line):
            if not re.search(rf"(?m)^{target}:", read(os.path.join(ROOT, "Makefile"))):
                wrong.append(f"{where}: there is no `make {target}`")
        for script in re.findall(r"^\s*((?:scripts|packaging|demo)/[\w./-]+)(?=\s|$)", line):
            if not os.path.exists(os.path.join(ROOT, script)):
                wrong.append(f"{where}: there is no {script}")
        for program, commands in programs.items():
            match = re.match(rf"\s*{program} ([a-z][\w-]*)((?: [^|;&]*)?)", line)
            if not match or not commands:
                continue
            if match[1] not in commands:
                wrong.append(f"{where}: `{match[0].strip()}`: {program} has no command {match[1]}")
                continue
            for option in re.findall(r"(?<=\s)(--?[a-z][\w-]*)", match[2]):
                if option not in commands[match[1]] and not re.fullmatch(r"-(\d.*|[a-z]=?\d.*)", option):
                    wrong.append(f"{where}: `{line.strip()}`: {program} {match[1]} has no option {option}")
    return wrong


def main():
    wrong, linked, all_pages = [], set(), pages()
    programs = {"kubectl tidemark": commands_of("kubectl-tidemark"), "tidemark": commands_of("tidemark")}
    for path in all_pages:
        wrong += links(path, linked) + typed(path, programs)
    for path in all_pages:
        if path not in linked and os.path.dirname(path) not in linked and os.path.basename(path) not in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md"):
            wrong.append(f"{os.path.relpath(path, ROOT)}: no page links to it")
    print("\n".join(wrong) or f"{len(all_pages)} pages are in order")
    return 1 if wrong else 0


sys.exit(main())
