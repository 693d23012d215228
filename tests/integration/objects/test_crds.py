#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The definitions of packaging/crds against a real API server: good objects are taken, with their defaults; bad ones are refused with a
message that says what to do; nothing in them is without a bound."""
import glob
import os
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../kube"))
from apiserver import ROOT, ApiServer

SERVER = None
HEAD = "apiVersion: tidemark.io/v1alpha1\nkind: "
RECOVERY = HEAD + "Recovery\nmetadata: {name: r, namespace: default}\nspec: {application: shop, "


def apply(text, *more):
    return SERVER.kubectl("apply", "-f", "-", "-o", "json", *more, stdin=text)


class Definitions(unittest.TestCase):
    def refused(self, text, *messages):
        """Refused, whole, with all of these in the message."""
        error = SERVER.kubectl("create", "-f", "-", "--dry-run=server", stdin=text, check=False)
        for message in messages:
            self.assertIn(message, error)

    def taken(self, text):
        out = SERVER.kubectl("create", "-f", "-", "--dry-run=server", "-o", "json", stdin=text)
        return __import__("json").loads(out)

    def test_policy_gets_defaults(self):
        policy = self.taken(HEAD + "ProtectionPolicy\nmetadata: {name: gold}\nspec: {journal: {quota: 8Gi, history: 30d}, "
                            "hooks: [{name: pg, blueprint: postgresql}], onDelete: {}}")
        spec = policy["spec"]
        for field in "ackMode", "failureMode":  # of the policy that it extends, if that says it
            self.assertNotIn(field, spec)
        self.assertEqual(spec["journal"], {"quota": "8Gi", "history": "30d"})
        self.assertEqual(spec["hooks"][0]["timeout"], "30s")
        self.assertEqual(spec["onDelete"]["keep"], "7d")

    def test_policy_refuses(self):
        head = HEAD + "ProtectionPolicy\nmetadata: {name: gold}\nspec: "
        self.refused(head + "{ackMode: never}", "spec.ackMode", "Unsupported value", '"write", "flush"')
        self.refused(head + "{journal: {quota: lots}}", "spec.journal.quota")
        self.refused(head + "{journal: {history: 30 days}}", "spec.journal.history")
        self.refused(head + "{unknown: 1}", 'unknown field "spec.unknown"')
        self.refused(head + "{journal: {thinning: [%s]}}" % ",".join(["{after: 1h, keep: 1s}"] * 9), "must have at most 8 items")

    def test_application_gets_the_default_policy(self):
        spec = self.taken(HEAD + "ProtectedApplication\nmetadata: {name: shop, namespace: default}\nspec: {}")["spec"]
        self.assertEqual(spec, {"policyRef": {"name": "default"}, "paused": False})
        self.refused(HEAD + "ProtectedApplication\nmetadata: {name: shop, namespace: default}", "spec: Required value")

    def test_recovery_is_taken(self):
        for rest in ("mode: rewind, point: -90s}", "mode: rewind, point: latest, dryRun: true}", "mode: restore, point: 'tag:before'}",
                     "mode: restore, point: 2026-11-21T02:04:46.5Z, targetNamespace: x, transforms: [{image: {from: a/, to: b/}}]}",
                     "mode: clone, point: 'lsn:12', targetNamespace: x, isolated: true, transforms: [{target: {kind: Service}, "
                     "patch: [{op: replace, path: /spec/type, value: ClusterIP}, {op: add, path: /spec/x, value: {a: [1]}}]}, {replicas: 0}]}"):
            self.taken(RECOVERY + rest)
        self.assertEqual(self.taken(RECOVERY + "mode: rewind, point: latest}")["spec"],
                         {"application": "shop", "mode": "rewind", "point": "latest", "dryRun": False, "force": False, "isolated": False,
                          "objectsOnly": False})

    def test_recovery_refuses_what_cannot_be(self):
        for rest, *messages in (
                ("mode: rewind, point: yesterday}", "spec.point"),
                ("mode: rewind}", "spec.point: Required"),
                ("mode: undo, point: latest}", "spec.mode", '"rewind", "clone", "restore"'),
                ("mode: rewind, point: latest, targetNamespace: x}", "use mode clone"),
                ("mode: clone, point: latest}", "a clone needs targetNamespace"),
                ("mode: rewind, point: latest, transforms: [{replicas: 1}]}", "takes no transforms"),
                ("mode: restore, point: latest, isolated: true}", "only a clone can be isolated"),
                ("mode: clone, point: latest, targetNamespace: X_y}", "spec.targetNamespace"),
                ("mode: restore, point: latest, transforms: [{}]}", "exactly one of namespace, rename"),
                ("mode: restore, point: latest, transforms: [{replicas: 1, image: {from: a, to: b}}]}", "exactly one of namespace, rename"),
                ("mode: restore, point: latest, transforms: [{rename: {from: a, to: b}}]}", "rename needs target.kind"),
                ("mode: restore, point: latest, transforms: [{patch: [{op: remove, path: /a}]}]}", "patch needs target.kind"),
                ("mode: restore, point: latest, transforms: [{host: {from: a, to: a}}]}", "from and to are the same"),
                ("mode: restore, point: latest, transforms: [{labels: {}}]}", "one of set and remove"),
                ("mode: restore, point: latest, transforms: [{replicas: -1}]}", "should be greater than or equal to 0")):
            self.refused(RECOVERY + rest, *messages)

    def test_recovery_cannot_be_changed(self):
        name = "frozen"
        text = RECOVERY.replace("name: r,", f"name: {name},") + "mode: rewind, point: latest}"
        SERVER.kubectl("create", "-f", "-", stdin=text)
        error = SERVER.kubectl("patch", "recovery", name, "--type=merge", "-p", '{"spec":{"force":true}}', check=False)
        self.assertIn("make another recovery", error)
        SERVER.kubectl("annotate", "recovery", name, "tidemark.io/cancel=true")
        SERVER.kubectl("patch", "recovery", name, "--subresource=status", "--type=merge", "-p",
                       '{"status":{"phase":"Running","conditions":[{"type":"Ready","status":"False","reason":"Running","message":"",'
                       '"lastTransitionTime":"2026-11-21T00:00:00Z"}]}}')
        self.assertIn("False", SERVER.kubectl("get", "recov", name, "-o", "jsonpath={.status.conditions[0].status}"))
        self.assertIn("Running", SERVER.kubectl("get", "tidemark"))
        error = SERVER.kubectl("patch", "recovery", name, "--subresource=status", "--type=merge", "-p", '{"status":{"phase":"Lost"}}', check=False)
        self.assertIn("Unsupported value", error)

    def test_vault(self):
        head = HEAD + "Vault\nmetadata: {name: v}\nspec: {passwordSecretRef: {name: p}"
        s3 = ", s3: {endpoint: 'https://s3.example.com', bucket: abc, credentialsSecretRef: {name: c}}"
        self.taken(head + s3 + ", objectLock: {mode: GOVERNANCE, keep: 30d}}")
        self.taken(head + ", directory: {path: /vault}}")
        self.refused(head + "}", "exactly one of s3 and directory")
        self.refused(head + s3 + ", directory: {path: /v}}", "exactly one of s3 and directory")
        self.refused(head + ", directory: {path: /v}, objectLock: {mode: GOVERNANCE, keep: 3d}}", "objectLock needs s3")
        self.refused(head + s3.replace("https://", "https://user:password@") + "}", "spec.s3.endpoint")

    def test_checkpoint_cannot_be_changed(self):
        SERVER.kubectl("create", "-f", "-", stdin=HEAD + "Checkpoint\nmetadata: {name: before, namespace: default}\nspec: {application: shop}")
        self.assertEqual(SERVER.kubectl("get", "tmcp", "before", "-o", "jsonpath={.spec.point}"), "latest")
        error = SERVER.kubectl("patch", "checkpoint", "before", "--type=merge", "-p", '{"spec":{"application":"other"}}', check=False)
        self.assertIn("make another one", error)

    def test_everything_has_a_bound_and_an_explanation(self):
        for definition in SERVER.json("get", "crds")["items"]:
            if definition["spec"]["group"] != "tidemark.io":
                continue
            self.assertEqual({c["type"]: c["status"] for c in definition["status"]["conditions"]}.get("NonStructuralSchema", "False"), "False")
            for version in definition["spec"]["versions"]:
                self.walk(version["schema"]["openAPIV3Schema"], definition["spec"]["names"]["kind"])

    def walk(self, schema, path):
        if schema.get("type") == "array":
            self.assertIn("maxItems", schema, path)
            self.walk(schema["items"], path + "[]")
        if "additionalProperties" in schema:
            self.assertIn("maxProperties", schema, path)
        for name, below in schema.get("properties", {}).items():
            where = f"{path}.{name}"
            if where.count(".") == 1 and name in ("apiVersion", "kind", "metadata"):
                continue
            if not where.rsplit(".", 2)[1].startswith("keep"):
                self.assertTrue(below.get("description") or name == "spec", f"{where} is not explained")
            self.walk(below, where)

    def test_explain_reads_well(self):
        text = SERVER.kubectl("explain", "recovery.spec.point")
        self.assertIn("Where to: latest, -90s (ago)", " ".join(text.split()))
        self.assertIn("policyRef", SERVER.kubectl("explain", "papp.spec"))


if __name__ == "__main__":
    SERVER = ApiServer()
    try:
        SERVER.kubectl("apply", "-f", os.path.join(ROOT, "packaging/crds"))
        names = [f"crd/{os.path.basename(p)[:-5]}.tidemark.io" for p in glob.glob(os.path.join(ROOT, "packaging/crds/*.yaml"))]
        SERVER.kubectl("wait", "--for=condition=Established", "--timeout=180s", *names)
        result = unittest.main(exit=False, verbosity=1).result
    finally:
        SERVER.close()
    sys.exit(not result.wasSuccessful())
