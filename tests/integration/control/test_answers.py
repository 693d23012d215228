#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What every command gives with `-o json` is what api/openapi.yaml describes, field by field and none besides, and `-o yaml` is the same
value: scripts build on it. Needs root, /dev/fuse and loop devices."""
import json
import os
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.dirname(__file__))
from openapi import Api, yaml  # noqa: E402
from stand import TIDEMARK, Stand, until  # noqa: E402

API = Api()
# Written by the command line itself, not by the API.
OWN = {"version": {"version", "server"}, "key": {"key_file", "key_id"}}


def undescribed(value, schema, where):
    """Fields that no schema has: a schema without additionalProperties does not forbid them."""
    found, schema = [], API.resolve(schema)
    if isinstance(value, dict):
        properties, more = schema.get("properties", {}), schema.get("additionalProperties")
        for name, field in value.items():
            if name in properties:
                found += undescribed(field, properties[name], f"{where}.{name}")
            elif not isinstance(more, dict):
                found.append(f"{where}.{name}")
    if isinstance(value, list):
        for i, item in enumerate(value):
            found += undescribed(item, schema.get("items", {}), f"{where}[{i}]")
    return found


@unittest.skipUnless(API.document, "python3-yaml is not installed")
class Answers(unittest.TestCase):
    def setUp(self):
        self.s = Stand()
        self.addCleanup(self.s.destroy)
        self.s.start()

    def tidemark(self, *args):
        done = subprocess.run([TIDEMARK, "--state", self.s.state, *args], capture_output=True, text=True, timeout=180, check=False)
        self.assertEqual(done.returncode, 0, (args, done.stderr))
        return done.stdout

    def answer(self, schema, *args):
        """As JSON; `schema` is its name or itself."""
        value = json.loads(self.tidemark(*args, "-o", "json"))
        schema = {"$ref": f"#/components/schemas/{schema}"} if isinstance(schema, str) else schema
        API.check(value, schema, args[0])
        self.assertEqual(undescribed(value, schema, args[0]), [])
        return value

    def test_every_command(self):
        s = self.s
        s.write("manifests/a.yaml", "a: 1\n")
        s.write("app.yaml", s.yaml(volumes=("data",), extra=f"  manifests: {s.path('manifests')}\n  lifecycle: {{stop: [true], start: [true]}}\n"))
        s.write("policy.yaml", "apiVersion: tidemark.io/v1alpha1\nkind: ProtectionPolicy\nmetadata: {name: default}\nspec: {journal: {quota: 300Mi}}\n")
        self.answer("ApplyResults", "apply", "-f", s.path("app.yaml"))
        self.answer("ApplyResults", "apply", "-f", s.path("policy.yaml"), "--dry-run")
        s.write("mnt/shop/data/f", "one")
        lsn = self.answer("Tagged", "tag", "shop", "one", "--label", "build=1")["lsn"]
        s.write("mnt/shop/data/f", "two")
        s.write("manifests/a.yaml", "a: 2\n")
        self.answer("Status", "status")
        self.answer("Status", "status", "shop")
        kinds = {point["kind"] for point in self.answer("Points", "points", "shop")["points"]}
        self.assertTrue({"tag", "volume"} <= kinds, kinds)
        self.assertEqual(self.answer("Diff", "diff", "shop@tag:one", "shop@latest")["from_lsn"], lsn)
        view = self.answer("View", "open", "shop@tag:one")
        self.answer("Views", "views")
        self.answer("Closed", "close", view["id"])
        self.assertEqual(self.answer("Plan", "rewind", "shop", "--to", "tag:one", "--dry-run")["target_lsn"], lsn)
        self.answer("RewindResult", "rewind", "shop", "--to", "tag:one")
        self.answer("Plan", "undo", "shop", "--dry-run")
        self.answer("RewindResult", "undo", "shop")
        self.answer("VerifyResult", "verify", "shop")
        self.assertEqual({point["kind"] for point in self.answer("Points", "points", "shop")["points"]} & {"rewind"}, {"rewind"})
        self.answer("Deleted", "delete", "shop")
        self.answer("ApplyResults", "apply", "-f", s.path("app.yaml"))
        until(lambda: s.status()["rewind"] is None, "the rewind is copied back")
        self.answer("Detached", "detach", "shop")

    def test_own_answers(self):
        key = self.s.path("key")
        for args in (["key", "generate", key], ["key", "show", key], ["version"]):
            self.assertEqual(set(json.loads(self.tidemark(*args, "-o", "json"))), OWN[args[0]])
        server = json.loads(self.tidemark("version", "-o", "json"))["server"]
        API.named("Version", server)

    def test_yaml_is_the_same_value(self):
        self.s.apply(self.s.yaml(volumes=("data",)))
        for args in (["views"], ["diff", "shop@lsn:0", "shop@lsn:1"]):
            self.assertEqual(yaml.safe_load(self.tidemark(*args, "-o", "yaml")), json.loads(self.tidemark(*args, "-o", "json")))


if __name__ == "__main__":
    if os.geteuid() or not os.path.exists("/dev/fuse"):
        print("skipped: needs root and /dev/fuse")
        sys.exit(77)
    unittest.main(verbosity=2)
