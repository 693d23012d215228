#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""adopt and release against a real API server, whose controllers bind claims to volumes that are there; what a kubelet does to the pod
that copies, or looks, the test does. Invariants V1..V3: src/cli/kubectl_move.c, C1..C4: src/cli/kubectl_carry.c. With real volumes, and releasing
without a copy, for which a node has to answer: tests/cluster/test_adopt.py."""
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
SYSTEM = "tidemark-system"


def start(*arguments):
    environment = dict(os.environ, KUBECONFIG=SERVER.kubeconfig, TERM="dumb")
    return subprocess.Popen([f"{BIN}/kubectl-tidemark", *arguments], text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            env=environment)


def plugin(*arguments):
    child = start(*arguments)
    out, err = child.communicate(timeout=300)
    return child.returncode, out, err


class Kubelet(threading.Thread):
    """Lets the pods that copy end. `found`: what those tell that look at a device (of the volume of the other driver, when it is a function); None: its
    driver does not give it."""

    def __init__(self, phase="Succeeded", found=None):
        super().__init__(daemon=True)
        self.phase, self.found, self.stopped, self.pods, self.told = phase, found, threading.Event(), {}, set()
        self.start()

    def say(self, where, name, **status):
        SERVER.kubectl("-n", where, "patch", "pod", name, "--subresource=status", "--type=merge", "-p", json.dumps({"status": status}), check=False)

    def refuse(self, pod):
        """What a kubelet and csi-driver-host-path say together."""
        uid = pod["metadata"]["uid"]
        if uid not in self.told:
            self.told.add(uid)
            of = {"apiVersion": "v1", "kind": "Pod", "namespace": SYSTEM, "name": pod["metadata"]["name"], "uid": uid}
            SERVER.apply({"apiVersion": "v1", "kind": "Event", "metadata": {"name": f"refused-{uid}", "namespace": SYSTEM}, "involvedObject": of, "type": "Warning",
                          "reason": "FailedMapVolume", "message": "MapVolume.SetUpDevice failed: rpc error: code = InvalidArgument desc = cannot publish a "
                          "non-block volume as block volume"})

    def run(self):
        while not self.stopped.wait(0.2):
            for pod in SERVER.json("get", "pods", "-A", "-l", "app.kubernetes.io/managed-by=tidemark")["items"]:
                where, name = pod["metadata"]["namespace"], pod["metadata"]["name"]
                self.pods[where] = pod
                if not name.endswith("-look"):
                    self.say(where, name, phase=self.phase)
                    continue
                found = self.found
                if callable(found):
                    found = found(next((v["spec"]["csi"]["volumeHandle"] for v in SERVER.json("get", "pv")["items"]
                                        if v["metadata"]["name"] == name.removesuffix("-look") + "-backing"), None))
                if found is None:
                    self.refuse(pod)
                else:
                    self.say(where, name, phase="Succeeded", containerStatuses=[{
                        "name": "look", "ready": False, "restartCount": 0, "image": "", "imageID": "",
                        "state": {"terminated": {"exitCode": 0, "message": found}}}])

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

    def volume(self, name, driver, storage_class, policy="Delete", mode="Filesystem"):
        SERVER.apply({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": {
            "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "persistentVolumeReclaimPolicy": policy, "storageClassName": storage_class,
            "volumeMode": mode, "csi": {"driver": driver, "volumeHandle": name, "fsType": "ext4", "volumeAttributes": {"pool": "a"}}}})

    def claim(self, namespace, name, storage_class, mode="Filesystem", **metadata):
        SERVER.apply({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name, "namespace": namespace, **metadata}, "spec": {
            "accessModes": ["ReadWriteOnce"], "storageClassName": storage_class, "volumeMode": mode, "resources": {"requests": {"storage": "1Gi"}}}})
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
                                (("release", f"{ns}/free"), "a plain one already"), (("adopt", f"{ns}/free", "--storage-class", "foreign"), "the volumes of the storage class foreign are made by"),
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
        child = start("adopt", f"{ns}/data", "--image", "tools:1", "--yes")
        until("it copies", lambda: SERVER.json("-n", ns, "get", "pods")["items"])
        child.kill()
        child.communicate()
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

    # ---- without a copy ----

    def carrier(self):
        """A class of backing class; the namespace of the driver."""
        self.namespace(SYSTEM)
        SERVER.apply({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "tidemark-foreign"}, "provisioner": "csi.tidemark.io",
                      "parameters": {"backing": "class", "backingClass": "foreign", "journalSize": "2Gi", "ackMode": "flush"}})
        self.addCleanup(SERVER.kubectl, "delete", "storageclass", "tidemark-foreign")
        self.before = self.made()

    def theirs(self, ns, name, mode="Filesystem"):
        self.volume(f"{ns}-{name}-theirs", "foreign.example.com", "foreign", mode=mode)
        self.claim(ns, name, "foreign", mode, labels={"app": "db"}, annotations={"people": "said"})
        return f"{ns}-{name}-theirs"

    def made(self):
        """Everything that was made for volumes without a copy."""
        return {f"{kind}/{o['metadata']['name']}" for kind in ("pvc", "pods", "configmaps", "pv") for o in SERVER.json("-n", SYSTEM, "get", kind)["items"]
                if o["metadata"]["name"].startswith("tm-")}

    def left(self):
        return sorted(self.made() - self.before)

    def check_adopted(self, ns, name, former, fs_type="ext4"):
        claim = self.get(ns, name)
        volume = self.pv(claim["spec"]["volumeName"])
        handle = volume["spec"]["csi"]["volumeHandle"]
        self.assertEqual((claim["spec"]["storageClassName"], claim["metadata"]["labels"], claim["metadata"]["annotations"]["people"], claim["status"]["phase"]),
                         ("foreign", {"app": "db"}, "said", "Bound"))
        self.assertEqual((volume["spec"]["csi"].get("fsType"), volume["spec"]["csi"]["driver"], volume["spec"]["persistentVolumeReclaimPolicy"]),
                         (fs_type, "csi.tidemark.io", "Delete"))
        self.assertEqual(volume["spec"]["csi"]["volumeAttributes"], {"adopted": "true", "ackMode": "flush"})
        self.assertEqual((volume["metadata"]["name"], volume["metadata"]["annotations"]["tidemark.io/moved-from"]), (handle, former))
        self.assertNotIn("tidemark.io/moving", volume["metadata"]["annotations"])
        kept = self.pv(former)
        self.assertEqual((kept["spec"]["persistentVolumeReclaimPolicy"], kept["metadata"]["annotations"]["tidemark.io/carries"]), ("Retain", handle), "C1")
        below = until("what carries it is bound", lambda: (lambda c: c if c["status"].get("phase") == "Bound" else None)(self.get(SYSTEM, handle)))
        self.assertEqual((below["spec"]["volumeMode"], below["spec"]["volumeName"]), ("Block", f"{handle}-backing"))
        backing = self.pv(f"{handle}-backing")["spec"]
        self.assertEqual((backing["persistentVolumeReclaimPolicy"], backing["csi"]),
                         ("Retain", {"driver": "foreign.example.com", "volumeHandle": former, "volumeAttributes": {"pool": "a"}}))
        record = json.loads(SERVER.json("-n", SYSTEM, "get", "configmap", handle)["data"]["record"])
        self.assertEqual([record[k] for k in ("handle", "name", "size_bytes", "backing", "backing_class", "journal_bytes", "claim_namespace", "claim_name")],
                         [handle, handle, 1 << 30, "class", "foreign", 2 << 30, ns, name])
        self.assertEqual([o["metadata"]["name"] for o in SERVER.json("get", "pods", "-A")["items"] if o["metadata"]["namespace"] in (ns, SYSTEM)], [])
        self.assertEqual([o["metadata"]["name"] for o in SERVER.json("-n", ns, "get", "pvc")["items"]], [name])
        return handle

    def test_what_its_driver_gives_as_a_device_is_adopted_without_a_copy(self):
        self.carrier()
        for mode, found, fs_type in (("Filesystem", "1073741824 ext4", "ext4"), ("Block", "1073741824 ", None)):
            ns = self.namespace(f"carried-{mode.lower()}")
            self.before = self.made()
            former = self.theirs(ns, "data", mode)
            code, out, err = plugin("adopt", f"{ns}/data", "--dry-run")
            self.assertEqual((code, "without a copy, if its driver (foreign.example.com) gives" in out, self.left()), (OK, True, []), out + err)
            with Kubelet(found=found):
                code, out, err = plugin("adopt", f"{ns}/data", "--image", "tools:1", "--yes")
            self.assertEqual((code, "nothing was copied" in out), (OK, True), out + err)
            self.check_adopted(ns, "data", former, fs_type)
            self.assertEqual(self.get(ns, "data")["spec"]["volumeMode"], mode)

    def test_what_its_driver_does_not_give_as_a_device_is_copied_or_refused(self):
        self.carrier()
        ns = self.namespace("directory")
        self.foreign(ns, "data")
        former = f"{ns}-data-theirs"
        raw = self.theirs(ns, "raw", "Block")
        before = self.get(ns, "data")["metadata"]["uid"]
        for name, options, said in (("data", ["--no-copy"], "cannot be moved without a copy"), ("raw", [], "is a raw device")):
            with Kubelet():
                code, out, err = plugin("adopt", f"{ns}/{name}", "--image", "tools:1", "--yes", *options)
            self.assertEqual((code, out), (REFUSED, ""), err)
            self.assertIn(said, err)
            self.assertIn("cannot publish a non-block volume as block volume", err)
            self.assertEqual(self.left(), [])
        self.assertEqual(self.get(ns, "data")["metadata"]["uid"], before)
        for name in (former, raw):
            self.assertEqual(self.pv(name)["spec"]["persistentVolumeReclaimPolicy"], "Delete", "as it was")
            self.assertNotIn("tidemark.io/carries", self.pv(name)["metadata"].get("annotations") or {})
        for found, said in ((None, "cannot publish a non-block volume"), ("1073741824 btrfs", "btrfs")):
            with Kubelet("Failed", found=found):
                code, _, err = plugin("adopt", f"{ns}/data", "--image", "tools:1", "--yes")
            self.assertEqual((code, "is copied: " in err, said in err, "nothing was changed" in err), (FAILED, True, True, True), err)
            self.assertEqual(self.left(), [])
        with Kubelet():
            code, out, err = plugin("adopt", f"{ns}/data", "--image", "tools:1", "--yes")
        self.assertEqual((code, self.driver(ns, "data")), (OK, "csi.tidemark.io"), err)
        self.assertEqual(self.pv(former)["spec"]["persistentVolumeReclaimPolicy"], "Retain", "V1")
        events = [e for e in SERVER.json("-n", ns, "get", "events")["items"] if e["reason"] == "AdoptedByCopy"]
        self.assertTrue(any("cannot publish a non-block volume" in e["message"] and e["involvedObject"]["name"] == "data" for e in events), events)

    def test_of_several_claims_all_are_refused_or_each_goes_its_way(self):
        self.carrier()
        ns = self.namespace("several")
        self.foreign(ns, "data", "wal")

        def found(handle):
            return "1073741824 ext4" if handle == f"{ns}-data-theirs" else None
        before = [self.get(ns, name)["metadata"]["uid"] for name in ("data", "wal")]
        with Kubelet(found=found):
            code, out, err = plugin("adopt", f"{ns}/data", f"{ns}/wal", "--no-copy", "--image", "tools:1", "--yes")
        self.assertEqual((code, out, self.left()), (REFUSED, "", []), err)
        self.assertIn("the claim wal cannot be moved without a copy", err)
        self.assertEqual([self.get(ns, name)["metadata"]["uid"] for name in ("data", "wal")], before)
        self.assertEqual([self.pv(f"{ns}-{name}-theirs")["spec"]["persistentVolumeReclaimPolicy"] for name in ("data", "wal")], ["Delete"] * 2)
        self.volume(f"{ns}-wal-beside", "csi.tidemark.io", "tidemark-foreign")
        with Kubelet(found=found):
            code, out, err = plugin("adopt", f"{ns}/data", f"{ns}/wal", "--image", "tools:1", "--yes", "-o", "json")
        self.assertEqual(code, OK, err)
        self.assertEqual([(p["claim"], p["copied"], p["storageClass"]) for p in json.loads(out)],
                         [("data", False, "tidemark-foreign"), ("wal", True, "tidemark-foreign")], "so that they are one stream")
        self.assertIn("non-block volume", json.loads(out)[1]["reason"])
        self.assertEqual([self.driver(ns, name) for name in ("data", "wal")], ["csi.tidemark.io"] * 2)

    def test_who_asks_for_a_copy_gets_one_and_who_asks_for_none_is_told_why_not(self):
        ns = self.namespace("asked")
        self.foreign(ns, "data")
        code, _, err = plugin("adopt", f"{ns}/data", "--copy", "--no-copy")
        self.assertEqual(code, USAGE, err)
        code, _, err = plugin("adopt", f"{ns}/data", "--no-copy", "--yes")
        self.assertEqual((code, "no storage class of csi.tidemark.io with backing class" in err), (REFUSED, True), err)
        self.carrier()
        code, _, err = plugin("adopt", f"{ns}/data", "--no-copy", "--storage-class", "tidemark", "--yes")
        self.assertEqual((code, "the storage class tidemark does not have backing class" in err), (REFUSED, True), err)
        code, out, err = plugin("adopt", f"{ns}/data", "--copy", "--dry-run")
        self.assertEqual((code, "would be copied to a volume of class tidemark," in out), (OK, True), out + err)
        with Kubelet(found="1073741824 ext4"):
            code, _, err = plugin("adopt", f"{ns}/data", "--copy", "--image", "tools:1", "--yes")
        self.assertEqual((code, self.left()), (OK, []), err)
        code, _, err = plugin("release", f"{ns}/data", "--no-copy", "--yes")
        self.assertEqual((code, "was not adopted without one" in err), (REFUSED, True), err)

    def test_c1_c2_v3_what_is_killed_anywhere_is_finished_or_undone_by_the_next(self):
        self.carrier()
        ns = self.namespace("stopped")

        def attachment(former, *verb):
            SERVER.kubectl(*verb, stdin=None if verb[0] == "delete" else json.dumps({
                "apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttachment", "metadata": {"name": f"va-{former}"},
                "spec": {"attacher": "foreign.example.com", "nodeName": "n1", "source": {"persistentVolumeName": former}}}))

        def stop(name, condition):
            child = start("adopt", f"{ns}/{name}", "--image", "tools:1", "--yes")
            try:
                until("it has come so far", lambda: condition())
            finally:
                child.kill()
                child.communicate()

        def carries(former):
            return (self.pv(former)["metadata"].get("annotations") or {}).get("tidemark.io/carries")

        def names(kind):
            return [o["metadata"]["name"] for o in SERVER.json("-n", SYSTEM, "get", kind)["items"]]
        # While a node has it, nothing is made but the note that it stays.
        former = self.theirs(ns, "kept")
        attachment(former, "create", "-f", "-")
        stop("kept", lambda: carries(former))
        handle = carries(former)
        self.assertEqual((self.pv(former)["spec"]["persistentVolumeReclaimPolicy"], self.left()), ("Retain", []), "C1, C2")
        attachment(former, "delete", "volumeattachment", f"va-{former}")
        # In the middle of the try.
        stop("kept", lambda: f"{handle}-look" in names("pods"))
        self.assertEqual(self.pv(self.get(ns, "kept")["spec"]["volumeName"])["metadata"]["name"], former)
        # After the claim's new volume was made: the old claim cannot go yet.
        SERVER.kubectl("-n", ns, "patch", "pvc", "kept", "--type=merge", "-p", '{"metadata":{"finalizers":["test.example.com/hold"]}}')
        with Kubelet(found="1073741824 ext4"):
            stop("kept", lambda: self.get(ns, "kept")["metadata"].get("deletionTimestamp"))
        SERVER.kubectl("-n", ns, "patch", "pvc", "kept", "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
        until("it is gone", lambda: "NotFound" in SERVER.kubectl("-n", ns, "get", "pvc", "kept", check=False))
        code, _, err = plugin("adopt", f"{ns}/kept", "--image", "tools:1", "--yes")
        self.assertEqual(code, OK, err)
        self.assertEqual(self.check_adopted(ns, "kept", former), handle, "and it is the one that was begun")
        # One that was killed in the try, and then is to be copied.
        SERVER.kubectl("-n", ns, "delete", "pvc", "kept")
        former = self.theirs(ns, "other")
        self.volume(f"{ns}-other-ours", "csi.tidemark.io", "tidemark")
        stop("other", lambda: carries(former) and f"{carries(former)}-look" in names("pods"))
        handle = carries(former)
        with Kubelet():
            code, _, err = plugin("adopt", f"{ns}/other", "--copy", "--image", "tools:1", "--yes")
        self.assertEqual((code, self.get(ns, "other")["spec"]["volumeName"], carries(former)), (OK, f"{ns}-other-ours", None), err)
        self.assertEqual([n for kind in ("pods", "pvc", "configmaps", "pv") for n in names(kind) if n.startswith(handle)], [])


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
