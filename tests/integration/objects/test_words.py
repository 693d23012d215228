#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The rules of packaging/crds are for every supported API server: older ones refuse a definition whose rule has a field by a word that the
language keeps for itself, which has to be written __word__."""
import glob
import os
import re
import unittest

CRDS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../../packaging/crds")
RESERVED = "true false null in as break const continue else for function if import let loop package namespace return var void while".split()
FIELD = re.compile(r"\b(?:self|oldSelf)(?:\.\w+)*\.(%s)\b" % "|".join(RESERVED))


def rules(text):
    """What stands behind `rule:`, with the lines of a block."""
    for match in re.finditer(r"(?m)^( *)(?:- )?\{?(?:- )?\{?rule: (.*(?:\n\1 {2,}.*)*)", text):
        yield match.group(2).split(", message:")[0].split("\n" + match.group(1) + "  message:")[0]


class Words(unittest.TestCase):
    def test_no_field_is_named_by_a_word_of_the_language(self):
        found = 0
        for path in sorted(glob.glob(f"{CRDS}/*.yaml")):
            with open(path, encoding="utf-8") as f:
                for rule in rules(f.read()):
                    found += 1
                    self.assertIsNone(FIELD.search(rule), f"{os.path.basename(path)}: {rule}")
        self.assertGreater(found, 15)

    def test_such_a_field_is_found(self):
        self.assertTrue(FIELD.search("has(self.spec.namespace)"))
        self.assertFalse(FIELD.search("has(self.__namespace__) && self.targetNamespace == 'in'"))
        self.assertTrue(any("has(self.namespace)" in r for r in rules("  x:\n  - rule: >-\n      [has(self.a),\n      has(self.namespace)]\n    message: m\n")))


if __name__ == "__main__":
    unittest.main()
