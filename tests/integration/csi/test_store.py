#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Streams of backing class on two nodes: data planes and agents of their own, and block devices that one of them has at a time, as
attachment pods give them. As root. Tests name the invariants of src/control/store.c and src/csi/node_store.c."""
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import unittest
import uuid

if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
    print("needs root and /dev/fuse")
    sys.exit(77)

import grpc  # noqa: E402

from stand import MIB, Stand, csi, until  # noqa: E402
from test_node import CODE, Endpoint, read, write  # noqa: E402

JOURNAL_MIB = 700
SEED_S = 300  # two seconds, when nobody else writes to the disk


def losetup(*arguments):
    return subprocess.run(["losetup", *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


class Disks:
    """Somebody else's storage: an image for the journal and one for each volume, which any node can attach."""

    def __init__(self, directory, handles, size=64 * MIB):
        self.images = {name: os.path.join(directory, f"{name}.img") for name in ["journal", *handles]}
        self.loops = []
        for name, path in self.images.items():
            with open(path, "wb") as f:
                f.truncate(JOURNAL_MIB * MIB if name == "journal" else size)

    def attach(self, kubelet, pod=None):
        """What the kubelet does for an attachment pod (a new one, or `pod` again): UID and `devices` of the publish_context."""
        pod, devices = pod or str(uuid.uuid4()), []
        directory = os.path.join(kubelet, "pods", pod, "volumeDevices", "kubernetes.io~csi")
        os.makedirs(directory)
        for name, image in self.images.items():
            self.loops.append(losetup("-f", "--show", image))
            os.symlink(self.loops[-1], os.path.join(directory, f"pvc-{name}"))
            devices.append(f"{name}=pvc-{name}")
        return pod, ",".join(devices)

    def detach(self):
        for loop in self.loops:  # those that a stand has taken away itself are gone
            subprocess.run(["losetup", "-d", loop], check=False, stderr=subprocess.DEVNULL)
        self.loops.clear()


class Node:
    """A stand's data plane and agent, and calls about one stream's volumes."""

    def __init__(self, stand, stream, handles):
        self.stand, self.stream, self.handles = stand, stream, handles
        self.kubelet = stand.path("kubelet")
        stand.node_options = [*stand.node_options, "--kubelet-directory", self.kubelet]
        self.attachment = None
        self.block = False
        self.context = {}

    def staging(self, handle):
        return self.stand.path("k", handle, "globalmount")

    def target(self, handle):
        return self.stand.path("k", "pod", handle)

    def stage(self, handle, timeout=90, size=64 * MIB):
        pod, devices = self.attachment
        self.stand.node("NodeStageVolume", timeout, volume_id=handle, staging_target_path=self.staging(handle),
                        volume_capability=Stand.capability(self.block), publish_context={
                            "stream": self.stream, "size": str(size), "members": ",".join(f"{h}={64 * MIB}" for h in self.handles),
                            "attachment": pod, "devices": devices}, volume_context=self.context)

    def publish(self, handle):
        self.stand.node("NodePublishVolume", volume_id=handle, staging_target_path=self.staging(handle), target_path=self.target(handle),
                        volume_capability=Stand.capability(self.block))
        return self.target(handle)

    def take(self, disks):
        self.attachment = disks.attach(self.kubelet)
        for h in self.handles:
            self.stage(h)
            self.publish(h)

    def unstage(self, handle):
        self.stand.node("NodeUnpublishVolume", volume_id=handle, target_path=self.target(handle))
        self.stand.node("NodeUnstageVolume", volume_id=handle, staging_target_path=self.staging(handle))

    def status(self):
        found = self.stand.api("GET", "/v1/status")["applications"]
        return next((a for a in found if a["name"] == self.stream), None)

    def directory(self):
        return self.stand.path("d", "apps", self.stream)

    def is_mounted(self):
        return self.directory() in self.stand.mounts()


class Moves(Endpoint):
    """Endpoint's stand is the second node, which has an HTTPS endpoint; `self.first` is another."""

    def prepare(self):
        super().prepare()
        ids = sorted(f"tm-{uuid.uuid4()}" for _ in range(2))
        self.disks = Disks(self.stand.root, ids)
        self.addCleanup(self.disks.detach)
        self.first = Node(Stand(), ids[0], ids)
        self.addCleanup(self.first.stand.destroy)
        self.second = Node(self.stand, ids[0], ids)
        self.first.stand.start_data()
        self.first.stand.start_node()
        self.handles = ids
        self.addCleanup(lambda: subprocess.run(["rm", "-rf", f"/dev/tidemark/{ids[0]}"], check=False))
        self.addCleanup(lambda: [s.processes and s.destroy() for s in (self.stand, self.first.stand)])

    def leave(self, node):
        for h in self.handles:
            node.unstage(h)
        self.disks.detach()

    def write_good_and_bad(self, node):
        """The volumes on the node hold "bad", and a tag "good" knows what they held before."""
        node.take(self.disks)
        for h in self.handles:
            write(f"{node.target(h)}/file", "good")
        until(lambda: node.status()["state"] == "protected", "what the volumes held is in the history", SEED_S)
        node.stand.api("POST", f"/v1/applications/{node.stream}/tag", {"name": "good"})
        for h in self.handles:
            write(f"{node.target(h)}/file", "bad")

    def test_what_is_adopted_is_used_as_it_is_and_never_formatted(self):  # N2 of src/csi/node_internal.h
        a, (blank, full) = self.first, self.handles
        os.mkdir(self.stand.path("tree"))
        write(self.stand.path("tree", "file"), "theirs")
        subprocess.run(["mke2fs", "-q", "-t", "ext4", "-F", "-d", self.stand.path("tree"), self.disks.images[full]], check=True)
        a.context = {"adopted": "true"}
        a.attachment = self.disks.attach(a.kubelet)
        a.stage(full)
        self.assertEqual(read(f"{a.publish(full)}/file"), "theirs")
        for _ in range(2):
            with self.assertRaises(grpc.RpcError) as caught:
                a.stage(blank)
            self.assertIn("what is adopted is never formatted", caught.exception.details())
        self.leave(a)
        with open(self.disks.images[blank], "rb") as f:
            self.assertFalse(any(f.read()), "nothing was written to it")

    def test_volumes_and_history_move_along(self):  # S1, S3
        a, b = self.first, self.second
        self.write_good_and_bad(a)
        self.assertTrue(a.is_mounted())
        a.unstage(self.handles[0])
        self.assertTrue(a.is_mounted(), "the other volume is still used")
        a.unstage(self.handles[1])
        self.assertIsNone(a.status())
        self.assertFalse(a.is_mounted())
        self.assertFalse(os.path.exists(f"/dev/tidemark/{a.stream}"))
        self.disks.detach()
        b.take(self.disks)
        for h in self.handles:
            self.assertEqual(read(f"{b.target(h)}/file"), "bad")
        status, answer = self.https("POST", f"/v1/streams/{b.stream}/rewind", {"to": "tag:good", "id": "r1"})
        self.assertEqual(status, 202, answer)
        for h in self.handles:
            self.stand.node("NodeUnpublishVolume", volume_id=h, target_path=b.target(h))
        for h in self.handles:
            self.assertEqual(read(f"{b.publish(h)}/file"), "good")
        self.leave(b)
        a.take(self.disks)
        for h in self.handles:
            self.assertEqual(read(f"{a.target(h)}/file"), "good")
        self.leave(a)

    def test_a_policy_goes_along(self):
        a, b = self.first, self.second
        b.take(self.disks)
        spec = {"journal": {"quota": "300Mi", "history": "30d", "thinning": []}, "ackMode": "flush"}
        self.assertEqual(self.https("POST", f"/v1/streams/{b.stream}/policy", {"spec": spec})[0], 200)
        self.leave(b)
        a.take(self.disks)
        now = a.status()
        self.assertEqual((now["policy"], now["quota_bytes"], now["ack"]), (a.stream, 300 << 20, "flush"))
        self.leave(a)

    def test_released_is_closed(self):  # S3
        b = self.second
        b.take(self.disks)
        path = f"/v1/streams/{b.stream}"
        status, answer = self.https("POST", f"{path}/release", {})
        self.assertEqual(status, 409, answer)
        self.assertIn("still staged", answer["error"]["message"])
        status, answer = self.https("POST", f"{path}/gate", {"closed": True})
        self.assertEqual(status, 200, answer)
        for h in self.handles:
            b.unstage(h)
        self.assertTrue(b.is_mounted(), "a recovery needs it")
        status, answer = self.https("POST", f"{path}/release", {})
        self.assertEqual(status, 409, answer)
        self.assertIn("gate", answer["error"]["message"])
        self.https("POST", f"{path}/gate", {"closed": False})
        for _ in range(2):
            self.assertEqual(self.https("POST", f"{path}/release", {}), (200, {"name": b.stream, "released": True}))
        self.assertFalse(b.is_mounted())
        self.assertFalse(os.path.exists(f"/dev/tidemark/{b.stream}"))

    def test_a_stream_without_pods_is_opened_put_back_and_closed(self):
        """What a recovery does with volumes that were deleted, or whose pods are stopped; and a pod gets them on the other node."""
        a, b = self.first, self.second
        self.write_good_and_bad(a)
        self.leave(a)
        pod, devices = self.disks.attach(b.kubelet)
        path = f"/v1/streams/{b.stream}"
        for body, code in (({"attachment": pod}, 400), ({"attachment": "../..", "devices": devices}, 400)):
            self.assertEqual(self.https("POST", f"{path}/open", body)[0], code)
        self.assertFalse(b.is_mounted())
        for _ in range(2):
            self.assertEqual(self.https("POST", f"{path}/open", {"attachment": pod, "devices": devices}), (200, {"name": b.stream, "open": True}))
        until(lambda: b.status()["state"] == "protected", "it runs", SEED_S)
        self.assertEqual(self.https("POST", f"{path}/gate", {"closed": True})[0], 200)
        ask = {"to": "tag:good", "id": "r1", "keep_closed": True}

        def done():
            status, answer = self.https("POST", f"{path}/rewind", ask)
            self.assertEqual(status, 202, answer)
            self.assertNotEqual(answer["rewind"]["state"], "failed", answer)
            return answer["rewind"]["state"] == "succeeded"
        until(done, "it is put back", 60)
        self.assertEqual(self.https("POST", f"{path}/gate", {"closed": False})[0], 200)
        self.assertEqual(self.https("POST", f"{path}/release", {}), (200, {"name": b.stream, "released": True}))
        self.assertFalse(b.is_mounted())
        # Whoever died after that opens the gate once more.
        self.assertEqual(self.https("POST", f"{path}/gate", {"closed": False})[0], 200)
        self.assertEqual(self.https("POST", f"{path}/gate", {"closed": True})[0], 404)
        self.disks.detach()
        a.take(self.disks)
        for h in self.handles:
            self.assertEqual(read(f"{a.target(h)}/file"), "good")
        self.leave(a)

    def test_what_another_node_has_open_is_not_opened(self):  # S2
        a, b = self.first, self.second
        a.take(self.disks)
        write(f"{a.target(self.handles[0])}/file", "mine")
        b.attachment = self.disks.attach(b.kubelet)
        self.assertFails(CODE.UNAVAILABLE, "open on another node", b.stage, self.handles[0])
        self.assertFalse(b.is_mounted())
        self.assertEqual(read(f"{a.target(self.handles[0])}/file"), "mine")
        # The device nodes are one node's in a cluster; here both made them.
        self.https("POST", f"/v1/streams/{b.stream}/release", {})
        self.leave(a)

    @staticmethod
    def lose_processes(node):
        """The node's containers are gone, with engines and mounts."""
        node.stand.stop("node", signal.SIGKILL)
        node.stand.stop("data", signal.SIGKILL)
        for pid in node.stand.strays():
            with contextlib.suppress(ProcessLookupError):  # with its parent
                os.kill(pid, signal.SIGKILL)
        until(lambda: not node.stand.strays(), "all of its processes have ended")
        for mount in sorted((m for m in node.stand.mounts() if m.startswith(node.stand.root)), reverse=True):
            subprocess.run(["umount", "-l", mount], check=True)

    def boot(self, node):
        """What lost its processes has no devices either, what is on its disk is there. The kubelet's pods are still to come."""
        self.disks.detach()
        for path in (f"/dev/tidemark/{node.stream}", node.stand.path("kubelet", "pods")):
            shutil.rmtree(path)
        node.stand.start_data()
        node.stand.start_node()

    def test_a_node_that_reboots_in_a_rewind_carries_it_on(self):
        a = self.second
        self.write_good_and_bad(a)
        pod = a.attachment[0]
        for h in self.handles:
            a.stand.node("NodeUnpublishVolume", volume_id=h, target_path=a.target(h))
        lsn = a.stand.api("POST", f"/v1/applications/{a.stream}/rewind", {"to": "tag:good", "dry_run": True})["plan"]["target_lsn"]
        path = a.stand.path("n", "node", "gates", f"{a.stream}.json")

        def rewind():
            return json.loads(read(path))["rewind"]
        for state, target in (("resolving", None), ("rewinding", lsn), ("mounting", lsn)):
            with self.subTest(state):
                self.lose_processes(a)
                write(path, json.dumps({"closed": True, "rewind": {"id": state, "to": "tag:good", "state": state, "keep_closed": False, "target_lsn": target,
                                                                   "message": None, "result": None}}))
                self.boot(a)
                until(lambda: "the kubelet has mapped no device" in (rewind()["message"] or ""), "what it waits for is told")
                self.assertEqual(rewind()["state"], state)
                if state == "rewinding":  # what is mapped may be another device at first
                    os.mkdir(a.stand.path("other"))
                    other = Disks(a.stand.path("other"), self.handles)
                    self.addCleanup(other.detach)
                    other.attach(a.kubelet, pod)
                    until(lambda: "holds nothing" in (rewind()["message"] or ""), "that is told")
                    other.detach()
                    shutil.rmtree(a.stand.path("kubelet", "pods"))
                    self.assertNotEqual(subprocess.run(["blkid", "-p", other.images["journal"]], check=False, stdout=subprocess.DEVNULL).returncode, 0)
                self.disks.attach(a.kubelet, pod)
                until(lambda: rewind()["state"] in ("succeeded", "failed"), "it ends", SEED_S)
                self.assertEqual((rewind()["state"], rewind()["message"]), ("succeeded", None))
                for h in self.handles:
                    self.assertEqual(read(f"{a.publish(h)}/file"), "good")
                    a.stand.node("NodeUnpublishVolume", volume_id=h, target_path=a.target(h))
        self.leave(a)

    def test_a_data_plane_that_was_killed_has_it_again(self):
        a = self.first
        a.take(self.disks)
        write(f"{a.target(self.handles[0])}/file", "kept")
        before = a.status()["lsn"]
        self.lose_processes(a)
        a.stand.start_data()
        a.stand.start_node()
        until(lambda: (a.status() or {}).get("state") == "protected", "the stream runs again", SEED_S)
        self.assertGreaterEqual(a.status()["lsn"], before)
        for h in self.handles:
            a.unstage(h)
            a.stage(h)
            a.publish(h)
        self.assertEqual(read(f"{a.target(self.handles[0])}/file"), "kept")
        self.leave(a)

    def test_nothing_is_made_on_what_holds_something(self):  # S1
        a = self.first
        with open(self.disks.images["journal"], "r+b") as f:
            f.truncate(JOURNAL_MIB * MIB)
        subprocess.run(["mkfs.xfs", "-q", self.disks.images["journal"]], check=True)
        a.attachment = self.disks.attach(a.kubelet)
        self.assertFails(CODE.ALREADY_EXISTS, "xfs", a.stage, self.handles[0])
        self.disks.detach()
        os.mkdir(a.stand.path("files"))
        write(a.stand.path("files", "theirs"), "precious")
        subprocess.run(["mkfs.ext4", "-q", "-F", "-d", a.stand.path("files"), self.disks.images["journal"]], check=True)
        a.attachment = self.disks.attach(a.kubelet)
        self.assertFails(CODE.ALREADY_EXISTS, "somebody else", a.stage, self.handles[0])
        self.assertFalse(a.is_mounted())
        self.disks.detach()

    def test_devices_that_are_not_there_yet_are_waited_for(self):
        a = self.first
        pod, devices = self.disks.attach(a.kubelet)
        a.attachment = (str(uuid.uuid4()), devices)
        self.assertFails(CODE.UNAVAILABLE, "no device of volume pvc-journal", a.stage, self.handles[0])
        a.attachment = ("../..", devices)
        self.assertFails(CODE.INVALID_ARGUMENT, "no name", a.stage, self.handles[0])
        a.attachment = (pod, devices.replace("journal=", "tm-x="))
        self.assertFails(CODE.INVALID_ARGUMENT, "no journal", a.stage, self.handles[0])
        a.attachment = (pod, devices)
        a.stage(self.handles[0])
        a.unstage(self.handles[0])

    def test_it_grows_with_its_device(self):
        a = self.first
        a.block = True
        a.take(self.disks)
        h = self.handles[0]
        until(lambda: a.status()["state"] == "protected", "what it held is in the history", SEED_S)
        os.truncate(self.disks.images[h], 96 * MIB)
        losetup("-c", self.disks.loops[1])
        for _ in range(2):
            reply = a.stand.node("NodeExpandVolume", volume_id=h, volume_path=a.target(h), staging_target_path=a.staging(h),
                                 capacity_range=csi.CapacityRange(required_bytes=96 * MIB))
            self.assertEqual(reply.capacity_bytes, 96 * MIB)
        self.assertEqual(next(v for v in a.status()["volumes"] if v["name"] == h)["size_bytes"], 96 * MIB)
        self.leave(a)


# The tests of Endpoint run where it stands.
for name in [n for n in dir(Endpoint) if n.startswith("test_")]:
    setattr(Moves, name, None)

if __name__ == "__main__":
    suite = unittest.TestLoader().loadTestsFromNames(sys.argv[1:] or ["Moves"], sys.modules[__name__])
    sys.exit(not unittest.TextTestRunner(verbosity=2).run(suite).wasSuccessful())
