#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""adopt and release against a real API server, whose controllers bind claims to volumes that are there; what a kubelet does to the pod
that copies, the test does. Invariants V1..V3: src/cli/kubectl_move.c. With real volumes: tests/cluster/test_adopt.py."""
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "../kube"))
from apiserver import CACHE, ApiServer, until

TIDEMARK = os.path.abspath(os.environ.get("TIDEMARK", "build/src/cli/tidemark"))
SERVER = BIN = None
OK, FAILED, USAGE, NOT_FOUND, REFUSED = range(5)


def start(*arguments):
    environment = dict(os.environ, KUBECONFIG=SERVER.kubeconfig, TERM="dumb")
    return subprocess.Popen([f"{BIN}/kubectl-tidemark", *arguments], text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            env=environment)


def plugin(*arguments):
    child = start(*arguments)
    out, err = child.communicate(timeout=300)
    return child.returncode, out, err


class Kubelet(threading.Thread):
    """Lets the pods that copy end."""

    def __init__(self, phase="Succeeded"):
        super().__init__(daemon=True)
        self.phase, self.stopped, self.pods = phase, threading.Event(), {}
        self.start()

    def run(self):
        while not self.stopped.wait(0.2):
            for pod in SERVER.json("get", "pods", "-A", "-l", "app.kubernetes.io/managed-by=tidemark")["items"]:
                where, name = pod["metadata"]["namespace"], pod["metadata"]["name"]
                self.pods[where] = pod
                SERVER.kubectl("-n", where, "patch", "pod", name, "--subresource=status", "--type=merge", "-p", json.dumps({"status": {"phase": self.phase}}), check=False)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stopped.set()
        self.join()


class Move(unittest.TestCase):
    def namespace(self, name):
        SERVER.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        until("its service account", lambda: "NotFound" not in SERVER.kubectl("-n", name, "get", "serviceaccount", "default", check=False))
        return name

    def volume(self, name, driver, storage_class, policy="Delete"):
        SERVER.apply({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": {
            "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "persistentVolumeReclaimPolicy": policy, "storageClassName": storage_class,
            "csi": {"driver": driver, "volumeHandle": name}}})

    def claim(self, namespace, name, storage_class, **metadata):
        SERVER.apply({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name, "namespace": namespace, **metadata}, "spec": {
            "accessModes": ["ReadWriteOnce"], "storageClassName": storage_class, "resources": {"requests": {"storage": "1Gi"}}}})
        return until("it is bound", lambda: (lambda c: c if c["status"].get("phase") == "Bound" else None)(self.get(namespace, name)))

    def get(self, namespace, name):
        return SERVER.json("-n", namespace, "get", "pvc", name)

    def pv(self, name):
        return SERVER.json("get", "pv", name)

    def driver(self, namespace, name):
        return self.pv(self.get(namespace, name)["spec"]["volumeName"])["spec"]["csi"]["driver"]

    def foreign(self, ns, *names):
        """Claims of a class of somebody else's, and a volume of ours for each."""
        for name in names:
            self.volume(f"{ns}-{name}-theirs", "foreign.example.com", "foreign")
            self.claim(ns, name, "foreign", labels={"app": "db"}, annotations={"people": "said"})
            self.volume(f"{ns}-{name}-ours", "csi.tidemark.io", "tidemark")

    def test_claims_keep_name_and_class_and_have_captured_volumes_and_back(self):
        ns = self.namespace("there")
        self.foreign(ns, "data", "wal")
        with Kubelet() as kubelet:
            code, out, err = plugin("adopt", f"{ns}/data", f"{ns}/wal", "--image", "tools:1", "--yes")
        self.assertEqual(code, OK, err)
        self.assertIn("Start the workload again", out)
        mounted = {v["persistentVolumeClaim"]["claimName"] for v in kubelet.pods[ns]["spec"]["volumes"]}
        self.assertEqual(mounted, {"data", "data-tidemark-move", "wal", "wal-tidemark-move"}, "one pod, so that both share a stream")
        for name in ("data", "wal"):
            claim = self.get(ns, name)
            self.assertEqual((claim["spec"]["storageClassName"], claim["metadata"]["labels"], claim["status"]["phase"]), ("foreign", {"app": "db"}, "Bound"))
            self.assertEqual(claim["metadata"]["annotations"]["people"], "said")
            volume = self.pv(claim["spec"]["volumeName"])
            self.assertEqual((volume["spec"]["csi"]["driver"], volume["spec"]["persistentVolumeReclaimPolicy"]), ("csi.tidemark.io", "Delete"))
            former = volume["metadata"]["annotations"]["tidemark.io/moved-from"]
            self.assertNotIn("tidemark.io/moving", volume["metadata"]["annotations"])
            self.assertEqual((former, self.pv(former)["spec"]["persistentVolumeReclaimPolicy"]), (f"{ns}-{name}-theirs", "Retain"), "V1")
        self.assertEqual(SERVER.json("-n", ns, "get", "pods")["items"], [])
        self.assertEqual(len(SERVER.json("-n", ns, "get", "pvc")["items"]), 2)
        code, _, err = plugin("adopt", f"{ns}/data", "--image", "tools:1", "--yes")
        self.assertEqual((code, "one of Tidemark's already" in err), (REFUSED, True), err)
        # and back, into the class that the claim names
        self.volume(f"{ns}-data-back", "foreign.example.com", "foreign")
        with Kubelet():
            code, out, err = plugin("release", f"{ns}/data", "--image", "tools:1", "--yes")
        self.assertEqual(code, OK, err)
        self.assertEqual((self.driver(ns, "data"), self.get(ns, "data")["spec"]["storageClassName"]), ("foreign.example.com", "foreign"))
        self.assertEqual(self.driver(ns, "wal"), "csi.tidemark.io")

    def test_v2_what_is_in_use_or_cannot_be_copied_is_refused_and_nothing_is_changed(self):
        ns = self.namespace("refused")
        self.foreign(ns, "used", "free")
        SERVER.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "db-0", "namespace": ns}, "spec": {
            "containers": [{"name": "c", "image": "none"}], "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "used"}}]}})
        for arguments, said in ((("adopt", f"{ns}/free", f"{ns}/used"), "the pod db-0 uses the claim used"), (("adopt", f"{ns}/nosuch"), "there is no claim nosuch"),
                                (("release", f"{ns}/free"), "a plain one already"), (("adopt", f"{ns}/free", "--storage-class", "foreign"), "wrong driver"),
                                (("adopt", f"{ns}/free", "elsewhere/free"), "several namespaces")):
            before = SERVER.json("-n", ns, "get", "pvc,pods")["items"]
            code, out, err = plugin(*arguments, "--image", "tools:1", "--yes")
            self.assertIn(code, (REFUSED, NOT_FOUND), err)
            self.assertEqual(out, "")
            self.assertIn(said, err)
            self.assertEqual([o["metadata"]["uid"] for o in SERVER.json("-n", ns, "get", "pvc,pods")["items"]], [o["metadata"]["uid"] for o in before])
        code, out, _ = plugin("adopt", f"{ns}/free", "--dry-run")
        self.assertEqual(code, OK)
        self.assertIn("would be copied to a volume of class tidemark", out)
        self.assertEqual(len(SERVER.json("-n", ns, "get", "pvc")["items"]), 2)
        # a copy that fails changes nothing, and can be made again
        with Kubelet("Failed"):
            code, _, err = plugin("adopt", f"{ns}/free", "--image", "tools:1", "--yes")
        self.assertEqual(code, FAILED)
        self.assertIn("nothing was changed", err)
        self.assertEqual(self.driver(ns, "free"), "foreign.example.com")
        with Kubelet():
            code, _, err = plugin("adopt", f"{ns}/free", "--image", "tools:1", "--yes")
        self.assertEqual((code, self.driver(ns, "free")), (OK, "csi.tidemark.io"), err)

    def test_v3_a_command_that_is_killed_in_the_middle_is_finished_by_the_next(self):
        ns = self.namespace("killed")
        self.foreign(ns, "data")
        SERVER.kubectl("-n", ns, "patch", "pvc", "data", "--type=merge", "-p", '{"metadata":{"finalizers":["test.example.com/hold","kubernetes.io/pvc-protection"]}}')
        with Kubelet():
            child = start("adopt", f"{ns}/data", "--image", "tools:1", "--yes")
            until("it is being deleted", lambda: self.get(ns, "data")["metadata"].get("deletionTimestamp"))
            child.kill()
            child.communicate()
        self.assertEqual(self.pv(f"{ns}-data-theirs")["spec"]["persistentVolumeReclaimPolicy"], "Retain", "V1")
        SERVER.kubectl("-n", ns, "patch", "pvc", "data", "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
        until("it is gone", lambda: "NotFound" in SERVER.kubectl("-n", ns, "get", "pvc", "data", check=False))
        code, out, err = plugin("adopt", f"{ns}/data", "--yes")
        self.assertEqual(code, OK, err)
        self.assertEqual((self.driver(ns, "data"), self.get(ns, "data")["metadata"]["labels"]), ("csi.tidemark.io", {"app": "db"}))
        self.assertEqual(len(SERVER.json("-n", ns, "get", "pvc")["items"]), 1)


if __name__ == "__main__":
    SERVER = ApiServer()
    BIN = tempfile.mkdtemp(prefix="tidemark-move-")
    try:
        os.symlink(TIDEMARK, f"{BIN}/kubectl-tidemark")
        for name, driver in (("foreign", "foreign.example.com"), ("tidemark", "csi.tidemark.io")):
            SERVER.apply({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": name}, "provisioner": driver})
        result = unittest.main(exit=False, verbosity=2).result
    finally:
        SERVER.close()
        shutil.rmtree(BIN)
    sys.exit(not result.wasSuccessful())
