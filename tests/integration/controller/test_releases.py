#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The chart against a real API server, of whatever release: every object of it is taken, by Helm and as plain manifests, twice, and there is
a door for namespaces that require a policy. What the objects do needs nodes: tests/cluster/test_chart.sh."""
import json
import os
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../kube"))
from apiserver import CACHE, ROOT, ApiServer, release_manifests, skip, until

SERVER = None
HELM = f"{CACHE}/bin/helm"
CHART = f"{ROOT}/packaging/helm/tidemark"
SYSTEM = "tidemark-system"
# An API server whose look for objects of a deleted definition fails may forget it until its informer tells it all definitions again, every 300 s: its next try
# meets a conflict with its own last update, and counts on an event that it passes over as its own (crd_finalizer.go, and NewSharedInformerFactory beside it).
DEFINITIONS_GONE = 300 + 180
CONDITIONS = "jsonpath={range .items[*]}{.metadata.name} {.metadata.deletionTimestamp} {.metadata.finalizers} {.status.conditions}{'\\n'}{end}"


def helm(*arguments, check=True):
    done = subprocess.run([HELM, *arguments], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "KUBECONFIG": SERVER.kubeconfig})
    if check and done.returncode != 0:
        raise AssertionError(f"helm {' '.join(arguments)}: {done.stderr}")
    return done.stdout if done.returncode == 0 else done.stderr


class Chart(unittest.TestCase):
    def minor(self):
        return int(json.loads(SERVER.kubectl("get", "--raw", "/version"))["minor"].rstrip("+"))

    def hooks(self):
        found = SERVER.json("get", "validatingwebhookconfiguration", "tidemark")
        return {h["name"]: h for h in found["webhooks"]}

    def check_door(self):
        policies = SERVER.kubectl("get", "validatingadmissionpolicy", "tidemark-require-policy", check=False)
        if self.minor() >= 30:
            self.assertIn("tidemark-require-policy", policies.splitlines()[-1])
            self.assertNotIn("require-policy.tidemark.io", self.hooks())
            return
        self.assertIn("doesn't have a resource type", policies)
        hook = self.hooks()["require-policy.tidemark.io"]
        self.assertEqual((hook["failurePolicy"], hook["clientConfig"]["service"]["path"]), ("Ignore", "/validate"))

    def test_helm_installs_upgrades_and_uninstalls(self):
        install = ("tidemark", CHART, "--namespace", SYSTEM, "--set", "backingClasses[0].class=fast")
        notes = helm("install", *install, "--create-namespace", "--no-hooks")
        self.assertEqual("no ValidatingAdmissionPolicy" in notes, self.minor() < 30, notes)
        self.check_door()
        SERVER.kubectl("wait", "--for=condition=Established", "--timeout=180s", "crd/recoveries.tidemark.io")
        for kind in "deployment/tidemark-controller", "daemonset/tidemark-node", "storageclass/tidemark-fast", "csidriver/csi.tidemark.io":
            SERVER.kubectl("-n", SYSTEM, "get", kind)
        helm("upgrade", *install, "--no-hooks", "--set", "metrics.enabled=false")
        self.assertIn("NotFound", SERVER.kubectl("-n", SYSTEM, "get", "service", "tidemark-metrics", check=False))
        helm("uninstall", "tidemark", "--namespace", SYSTEM, "--no-hooks")
        self.assertIn("NotFound", SERVER.kubectl("get", "validatingwebhookconfiguration", "tidemark", check=False))
        SERVER.kubectl("delete", "namespace", SYSTEM, "--wait=false")
        until("the namespace is gone", lambda: "NotFound" in SERVER.kubectl("get", "namespace", SYSTEM, check=False))

    def test_plain_manifests_are_taken_twice(self):
        SERVER.kubectl("create", "namespace", SYSTEM)
        for _ in range(2):
            SERVER.kubectl("apply", "--server-side", "-f", "-", stdin=release_manifests())
        self.check_door()
        SERVER.kubectl("delete", "-f", "-", "--wait=false", stdin=release_manifests())
        SERVER.kubectl("delete", "namespace", SYSTEM, "--wait=false", "--ignore-not-found")
        until("the namespace is gone", lambda: "NotFound" in SERVER.kubectl("get", "namespace", SYSTEM, check=False))
        until("so are the definitions", lambda: "tidemark.io" not in SERVER.kubectl("get", "crd", "-o", "name"), seconds=DEFINITIONS_GONE,
              tell=lambda: "\n" + SERVER.kubectl("get", "crd", "-o", CONDITIONS, check=False) + SERVER.last_lines())

    def test_what_is_too_old_is_refused_with_the_release_that_is_needed(self):
        said = helm("template", "tidemark", CHART, "--kube-version", "1.27.16", check=False)
        self.assertIn("requires kubeVersion: >=1.28.0-0", said)
        self.assertIn("1.27.16", said)


if __name__ == "__main__":
    if not os.access(HELM, os.X_OK):
        skip("helm is not in the cache")
    SERVER = ApiServer()
    try:
        result = unittest.main(exit=False, verbosity=2).result
    finally:
        SERVER.close()
    sys.exit(not result.wasSuccessful())
