#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Reads the includes of src/ against the order of the layers: each may use only itself and what stands before it.
Also: a header that ends in _internal.h is included by its own module only."""
import argparse
import os
import re
import sys
import tempfile

# The order of docs/architecture.md; the same as in meson.build.
LAYERS = ["base", "lib", "block", "journal", "view", "signal", "volume", "export", "engine", "store", "vault", "app", "policy",
          "kube", "rpc", "pipeline", "control", "csi", "controller", "cli"]
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"')


def check(root):
    problems = []
    checked = 0
    source = os.path.join(root, "src")
    for directory, _, names in os.walk(source):
        for name in sorted(names):
            if not name.endswith((".c", ".h")):
                continue
            path = os.path.join(directory, name)
            relative = os.path.relpath(path, source)
            layer = relative.split(os.sep)[0]
            if layer not in LAYERS:
                problems.append(f"src/{relative}: '{layer}' is not a layer")
                continue
            checked += 1
            with open(path, encoding="utf-8") as f:
                for number, line in enumerate(f, 1):
                    match = INCLUDE.match(line)
                    if match:
                        problems += arrow(relative, number, layer, match.group(1))
    return problems, checked


def arrow(relative, number, layer, include):
    where = f"src/{relative}:{number}"
    parts = include.split("/")
    if len(parts) < 2:
        return [f'{where}: include from src, as "{layer}/{include}"']
    target = parts[0]
    if target not in LAYERS:
        return [f"{where}: '{include}' is in no layer"]
    if LAYERS.index(target) > LAYERS.index(layer):
        return [f"{where}: {layer} may not use {target} ('{include}'), which stands after it"]
    if target != layer and include.endswith("_internal.h"):
        return [f"{where}: '{include}' is internal to {target}"]
    return []


def self_test():
    """A fabricated tree: each bad arrow is found, the good ones pass."""
    files = {
        "base/good.h": "#include <stdio.h>\n",
        "journal/good.c": '#include "base/good.h"\n#include "journal/journal_internal.h"\n',
        "base/up.c": '#include "journal/journal.h"\n',
        "cli/inside.c": '#include "journal/journal_internal.h"\n',
        "lib/bare.c": '  #  include "json.h"\n',
        "nowhere/x.c": "",
    }
    expected = ["src/base/up.c:1:", "src/cli/inside.c:1:", "src/lib/bare.c:1:", "src/nowhere/x.c:"]
    with tempfile.TemporaryDirectory() as root:
        for name, text in files.items():
            path = os.path.join(root, "src", name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "w", encoding="utf-8") as f:
                f.write(text)
        problems, _ = check(root)
    missed = [e for e in expected if not any(p.startswith(e) for p in problems)]
    if missed or len(problems) != len(expected):
        print(f"self-test failed: missed {missed}, found {problems}")
        return 1
    print(f"self-test: {len(expected)} fabricated faults found")
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", default=os.path.join(os.path.dirname(__file__), "..", ".."))
    parser.add_argument("--self-test", action="store_true")
    options = parser.parse_args()
    if options.self_test:
        return self_test()
    problems, checked = check(options.root)
    for problem in problems:
        print(problem)
    print(f"{checked} files, {len(problems)} problems")
    return 1 if problems or not checked else 0


if __name__ == "__main__":
    sys.exit(main())
