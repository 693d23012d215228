#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The CSI services over the real data plane: idempotence, kills of the node agent, streams of several volumes, growth,
rewinds behind closed gates. As root. Tests name the invariants of src/csi/node_internal.h."""
import json
import os
import random
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import unittest
import uuid

if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
    print("needs root and /dev/fuse")
    sys.exit(77)

import grpc  # noqa: E402

from stand import MIB, NODE, Stand, csi, until  # noqa: E402

CODE = grpc.StatusCode


def write(path, text):
    with open(path, "w", encoding="utf-8") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())


def published(volume):
    try:
        volume.publish()
    except grpc.RpcError as e:
        if e.code() != CODE.ABORTED:
            raise
        return False
    return True


def may_resize():
    """Whether ext4 may grow online here: the kernel asks for CAP_SYS_RESOURCE."""
    with open("/proc/self/status", encoding="ascii") as f:
        effective = int(next(line for line in f if line.startswith("CapEff")).split()[1], 16)
    return effective >> 24 & 1


def read(path):
    with open(path, encoding="utf-8") as f:
        return f.read()


def free_port():
    """Below the range from which outgoing connections get theirs."""
    while True:
        port = random.randrange(20000, 32000)
        with socket.socket() as s:
            try:
                s.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port


class Case(unittest.TestCase):
    def setUp(self):
        self.stand = Stand()
        self.addCleanup(self.stand.destroy)
        self.prepare()
        self.stand.start()

    def prepare(self):
        pass

    def assertFails(self, code, text, function, *arguments, **named):
        with self.assertRaises(grpc.RpcError) as caught:
            function(*arguments, **named)
        self.assertEqual(caught.exception.code(), code, caught.exception.details())
        self.assertIn(text, caught.exception.details())


class Volumes(Case):
    def test_every_call_can_be_repeated(self):
        for fs_type in ("ext4", "xfs"):
            v = self.stand.volume(f"again-{fs_type}", fs_type=fs_type, size=320 * MIB)
            self.assertEqual(self.stand.create(f"again-{fs_type}", 320 * MIB, v.capability).volume_id, v.id)
            for _ in range(2):
                v.attach()
                v.stage()
                target = v.publish()
            write(f"{target}/file", "here")
            for _ in range(2):
                v.unpublish()
                self.assertFalse(os.path.exists(target))
            for _ in range(2):
                v.unstage()
                v.detach()
            v.attach()
            v.stage()
            self.assertEqual(read(f"{v.publish()}/file"), "here")
            v.unpublish()
            v.unstage()
            v.detach()
            for _ in range(2):
                self.stand.controller("DeleteVolume", volume_id=v.id)

    def test_a_clone_of_xfs_is_mounted_beside_its_original(self):
        """Which has the same UUID."""
        for i, flags in enumerate(((), ("noatime",))):
            v = self.stand.volume(f"original-{i}", 320 * MIB, fs_type="xfs", flags=flags)
            v.stage()
            write(f"{v.publish()}/file", "here")
            os.sync()
            new = f"tm-{uuid.uuid4()}"
            begun = self.stand.api("POST", f"/v1/applications/{v.context['stream']}/clone", {"name": new, "point": "latest", "volumes": {v.id: new}})
            path = f"/v1/operations/{begun['operation']['id']}"
            until(lambda: self.stand.api("GET", path)["operation"]["state"] == "succeeded", "the clone is made", 300)
            staging, target = self.stand.path("k", new, "globalmount"), self.stand.path("k", "pods", "pod", new)
            self.stand.node("NodeStageVolume", volume_id=new, staging_target_path=staging, volume_capability=v.capability,
                            publish_context=v.context | {"stream": new, "members": f"{new}={v.context['size']}"})
            self.stand.node("NodePublishVolume", volume_id=new, staging_target_path=staging, target_path=target, volume_capability=v.capability)
            self.assertEqual(read(f"{target}/file"), "here")
            write(f"{target}/file", "there")
            self.assertEqual(read(f"{v.target()}/file"), "here")
            self.stand.node("NodeUnpublishVolume", volume_id=new, target_path=target)
            self.stand.node("NodeUnstageVolume", volume_id=new, staging_target_path=staging)
            v.unpublish()
            v.unstage()

    def test_what_does_not_fit_is_refused_and_told(self):
        v = self.stand.volume("picky")
        self.assertFails(CODE.ALREADY_EXISTS, "another size", self.stand.create, "picky", 256 * MIB)
        self.assertFails(CODE.INVALID_ARGUMENT, "ext4 or xfs", self.stand.create, "btrfs", capability=v.stand.capability(fs_type="btrfs"))
        self.assertFails(CODE.INVALID_ARGUMENT, "one node at a time", self.stand.create, "many",
                         capability=v.stand.capability(mode="MULTI_NODE_MULTI_WRITER"))
        self.assertFails(CODE.INVALID_ARGUMENT, "unknown parameter 'colour'", self.stand.create, "red", parameters={"colour": "red"})
        self.assertFails(CODE.NOT_FOUND, "no node", self.stand.controller, "ControllerPublishVolume", volume_id=v.id, node_id="elsewhere",
                         volume_capability=v.capability)
        self.assertFails(CODE.FAILED_PRECONDITION, "attached to node", self.stand.controller, "DeleteVolume", volume_id=v.id)
        self.assertFails(CODE.NOT_FOUND, "not staged", v.publish)
        v.stage()
        v.publish()
        self.assertFails(CODE.FAILED_PRECONDITION, "still mounted", v.unstage)
        self.assertFails(CODE.ALREADY_EXISTS, "writable", v.publish, readonly=True)
        self.assertFails(CODE.INVALID_ARGUMENT, "without '..'", self.stand.node, "NodeUnpublishVolume", volume_id=v.id,
                         target_path="/tmp/../etc")
        once = v.stand.capability(mode="SINGLE_NODE_SINGLE_WRITER")
        self.assertFails(CODE.FAILED_PRECONDITION, "one pod only", v.publish, pod="second", capability=once)

    def test_a_node_that_has_no_data_plane_says_so_and_goes_on(self):
        v = self.stand.volume("early")
        self.stand.stop("data")
        self.assertFails(CODE.UNAVAILABLE, "tidemark data", v.stage)
        self.stand.start_data()
        v.stage()

    def test_read_only_and_several_pods(self):
        v = self.stand.volume("shared", flags=("nodiratime", "nosuid"))
        v.stage()
        first, second = v.publish("a"), v.publish("b", readonly=True)
        write(f"{first}/file", "seen")
        self.assertEqual(read(f"{second}/file"), "seen")
        with self.assertRaises(OSError):
            write(f"{second}/file", "no")
        with open("/proc/self/mountinfo", encoding="utf-8") as f:
            line = next(line for line in f if line.split()[4] == v.staging)
        self.assertIn("nosuid", line.split()[5])

    def test_a_file_system_is_never_made_over_something_else(self):  # N2
        v = self.stand.volume("precious", block=True)
        v.stage()
        device = v.publish()
        self.assertTrue(stat.S_ISBLK(os.stat(device).st_mode))
        subprocess.run(["mkfs.xfs", "-q", "-K", "-d", "size=64m", device], check=False, stderr=subprocess.DEVNULL)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-L", "mine", device], check=True)
        v.unpublish()
        v.unstage()
        v.capability = self.stand.capability(fs_type="xfs")
        self.assertFails(CODE.ALREADY_EXISTS, "holds ext4", v.stage)
        v.unstage()
        v.capability = self.stand.capability(fs_type="ext4")
        v.stage()
        label = subprocess.run(["findmnt", "-no", "LABEL", v.staging], check=True, stdout=subprocess.PIPE).stdout
        self.assertEqual(label.strip(), b"mine")

    def test_stats_of_both_modes(self):
        v, b = self.stand.volume("files"), self.stand.volume("raw", block=True)
        for volume in (v, b):
            volume.stage()
            volume.publish()
        usage = self.stand.node("NodeGetVolumeStats", volume_id=v.id, volume_path=v.target()).usage
        self.assertEqual([u.unit for u in usage], [csi.VolumeUsage.BYTES, csi.VolumeUsage.INODES])
        self.assertTrue(40 * MIB < usage[0].total <= 64 * MIB)
        self.assertEqual(self.stand.node("NodeGetVolumeStats", volume_id=b.id, volume_path=b.target()).usage[0].total, 64 * MIB)
        self.assertFails(CODE.NOT_FOUND, "not mounted on", self.stand.node, "NodeGetVolumeStats", volume_id=v.id, volume_path="/tmp")

    def test_listing_goes_on_after_a_deletion(self):
        ids = sorted(self.stand.create(f"list-{i}").volume_id for i in range(5))
        page = self.stand.controller("ListVolumes", max_entries=2)
        self.assertEqual([e.volume.volume_id for e in page.entries], ids[:2])
        self.stand.controller("DeleteVolume", volume_id=ids[1])
        rest = self.stand.controller("ListVolumes", starting_token=page.next_token)
        self.assertEqual([e.volume.volume_id for e in rest.entries], ids[2:])
        self.assertEqual(rest.next_token, "")
        self.stand.stop("controller", signal.SIGKILL)
        self.stand.start_controller()
        self.assertEqual(len(self.stand.controller("ListVolumes").entries), 4)


class Kills(Case):
    def test_the_node_agent_killed_anywhere_carries_on(self):  # N1
        v = self.stand.volume("killed")
        result = []

        def insist(step):
            for _ in range(100):
                try:
                    step()
                    return
                except grpc.RpcError as e:
                    if e.code() not in (CODE.UNAVAILABLE, CODE.ABORTED, CODE.CANCELLED):
                        raise
            raise AssertionError("never succeeded")

        def work():
            try:
                for i in range(12):
                    insist(v.stage)
                    insist(v.publish)
                    write(f"{v.target()}/round", str(i))
                    insist(v.unpublish)
                    insist(v.unstage)
                result.append("done")
            except BaseException as e:  # the main thread tells it
                result.append(e)
        thread = threading.Thread(target=work)
        thread.start()
        kills = 0
        while thread.is_alive():
            self.stand.stop("node", signal.SIGKILL)
            self.stand.start_node()
            kills += 1
            thread.join(0.03 * (kills % 7))
        self.assertEqual(result, ["done"])
        self.assertGreater(kills, 5)
        self.assertEqual([m for m in self.stand.mounts() if "/k/" in m], [])
        v.stage()
        self.assertEqual(read(f"{v.publish()}/round"), "11")

    def test_io_goes_on_while_node_agent_and_controller_are_killed(self):
        v = self.stand.volume("busy")
        v.stage()
        target = v.publish()
        fio = subprocess.Popen(["fio", "--name=j", f"--directory={target}", "--size=16m", "--rw=randwrite", "--bs=4k", "--direct=1",
                                "--iodepth=4", "--ioengine=libaio", "--time_based", "--runtime=4", "--verify=crc32c", "--verify_state_save=0",
                                "--output-format=json", f"--output={self.stand.path('fio.json')}"])
        while fio.poll() is None:
            for name, start in (("node", self.stand.start_node), ("controller", self.stand.start_controller)):
                self.stand.stop(name, signal.SIGKILL)
                start()
        self.assertEqual(fio.returncode, 0)
        with open(self.stand.path("fio.json"), encoding="utf-8") as f:
            text = f.read()
        job = json.loads(text[text.index("{"):])["jobs"][0]
        self.assertEqual(job["error"], 0)
        self.assertLess(job["write"]["clat_ns"]["max"], 20e9)
        v.unpublish()
        v.unstage()

    def test_the_data_plane_waits_for_the_last_user(self):
        v = self.stand.volume("held")
        v.stage()
        target = v.publish()
        data = self.stand.processes["data"]
        data.send_signal(signal.SIGTERM)
        until(lambda: "in use, waiting" in self.stand.log("data"), "the data plane waits")
        write(f"{target}/file", "still served")
        self.assertIsNone(data.poll())
        v.unpublish()
        v.unstage()
        self.assertEqual(data.wait(180), 0)
        del self.stand.processes["data"]
        self.assertEqual(self.stand.loops(), [])
        self.stand.start_data()
        v.stage()
        self.assertEqual(read(f"{v.publish()}/file"), "still served")


class Streams(Case):
    def together(self, *volumes):
        """What the controller says of volumes of one pod."""
        for v in volumes:
            v.context["stream"] = volumes[0].id
            v.context["members"] = ",".join(f"{m.id}={m.context['size']}" for m in volumes)

    def test_volumes_of_one_pod_share_one_stream_from_the_start(self):
        a, b = self.stand.volume("data"), self.stand.volume("wal")
        self.together(a, b)
        a.stage()
        b.stage()
        applications = self.stand.api("GET", "/v1/status")["applications"]
        self.assertEqual([x["name"] for x in applications], [a.id])
        self.assertEqual(sorted(x["name"] for x in applications[0]["volumes"]), sorted([a.id, b.id]))
        self.assertEqual(applications[0]["restarts"], 0)

    def test_a_stream_gains_a_volume_when_nothing_of_it_is_in_use(self):
        a = self.stand.volume("first")
        a.stage()
        write(f"{a.publish()}/file", "kept")
        b = self.stand.volume("later")
        self.together(a, b)
        self.assertFails(CODE.FAILED_PRECONDITION, "is in use", b.stage)
        self.assertEqual(read(f"{a.target()}/file"), "kept")
        a.unpublish()
        b.stage()
        b.publish()
        self.assertEqual(read(f"{a.publish()}/file"), "kept")


class Growth(Case):
    def test_a_volume_grows_while_it_is_used(self):
        kinds = [("xfs", 320)]
        if may_resize():
            kinds.append(("ext4", 64))
        for fs_type, size in kinds:
            v = self.stand.volume(f"grow-{fs_type}", size * MIB, fs_type=fs_type)
            v.stage()
            target = v.publish()
            write(f"{target}/file", "before")
            grown = self.stand.controller("ControllerExpandVolume", volume_id=v.id,
                                          capacity_range=csi.CapacityRange(required_bytes=2 * size * MIB))
            self.assertTrue(grown.node_expansion_required)
            for _ in range(2):
                reply = self.stand.node("NodeExpandVolume", volume_id=v.id, volume_path=target, staging_target_path=v.staging,
                                        capacity_range=csi.CapacityRange(required_bytes=grown.capacity_bytes))
                self.assertEqual(reply.capacity_bytes, 2 * size * MIB)
            self.assertGreater(os.statvfs(target).f_blocks * os.statvfs(target).f_frsize, 1.6 * size * MIB)
            self.assertEqual(read(f"{target}/file"), "before")


class Endpoint(Case):
    """The HTTPS endpoint: certificates, the data API handed on, gates and rewinds."""

    def prepare(self):
        s = self.stand
        openssl = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
        for ca in ("ca", "other"):
            self.run_quiet(*openssl, "-subj", f"/CN={ca}", "-keyout", s.path(f"{ca}.key"), "-out", s.path(f"{ca}.crt"))
        for name, ca, usage in (("server", "ca", "serverAuth"), ("client", "ca", "clientAuth"), ("stranger", "other", "clientAuth"),
                                ("node", "ca", "serverAuth,clientAuth")):
            self.run_quiet(*openssl, "-subj", f"/CN={name}", "-CA", s.path(f"{ca}.crt"), "-CAkey", s.path(f"{ca}.key"), "-addext",
                           f"extendedKeyUsage={usage}", "-addext",
                           f"subjectAltName=IP:127.0.0.1,DNS:tidemark-{'node' if name == 'node' else 'controller'}", "-addext",
                           "basicConstraints=critical,CA:FALSE", "-keyout", s.path(f"{name}.key"), "-out", s.path(f"{name}.crt"))
        self.port = free_port()
        s.node_options = ["--listen", f"127.0.0.1:{self.port}", "--tls-cert", s.path("server.crt"), "--tls-key", s.path("server.key"),
                          "--tls-ca", s.path("ca.crt"), "--tls-client", "tidemark-controller"]

    @staticmethod
    def run_quiet(*command):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def https(self, method, path, body=None, client="client"):
        s = self.stand
        command = ["curl", "-sS", "--cacert", s.path("ca.crt"), "-X", method, "-w", "\n%{http_code}",
                   f"https://127.0.0.1:{self.port}{path}"]
        if client:
            command += ["--cert", s.path(f"{client}.crt"), "--key", s.path(f"{client}.key")]
        if body is not None:
            command += ["--data-binary", body if isinstance(body, str) else json.dumps(body)]
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
        if result.returncode:
            return 0, result.stderr.decode()
        text, status = result.stdout.decode().rsplit("\n", 1)
        return int(status), json.loads(text)

    def rewind_state(self, stream):
        return (self.https("GET", f"/v1/streams/{stream}")[1]["rewind"] or {}).get("state")

    def test_only_the_controllers_certificate_opens_it(self):
        self.assertEqual(self.https("GET", "/v1/streams")[0], 200)
        for client in (None, "stranger", "server", "node"):
            status, answer = self.https("GET", "/v1/streams", client=client)
            self.assertIn(status, (0, 403), answer)
        self.assertNotEqual(self.https("POST", "/v1/apply", "kind: x", client=None)[0], 200)

    def test_the_data_api_is_handed_on(self):
        v = self.stand.volume("through")
        v.stage()
        status, answer = self.https("GET", f"/v1/status?app={v.id}")
        self.assertEqual((status, answer["applications"][0]["name"]), (200, v.id))
        status, answer = self.https("POST", f"/v1/applications/{v.id}/tag", {"name": "t1"})
        self.assertEqual((status, answer["name"]), (200, "t1"))
        self.assertEqual(self.https("GET", "/v1/status?app=nobody")[0], 404)
        self.assertEqual(self.https("GET", "/v1/streams/nobody")[0], 404)
        self.assertEqual(self.https("POST", "/v1/streams", {})[0], 405)
        self.assertEqual(self.https("PUT", "/v1/status", {})[0], 405)
        streams = self.https("GET", "/v1/streams")[1]
        self.assertEqual(streams["node"], NODE)
        self.assertEqual(streams["streams"], [{"name": v.id, "closed": False, "rewind": None, "volumes": [
            {"handle": v.id, "staging": v.staging, "block": False, "published": 0}]}])

    def test_a_stream_takes_its_policy_while_it_is_used_and_keeps_it(self):
        v = self.stand.volume("policed")
        v.stage()
        v.publish()

        def status():
            return self.https("GET", f"/v1/status?app={v.id}")[1]["applications"][0]

        path, spec = f"/v1/streams/{v.id}/policy", {"journal": {"quota": "300Mi", "history": "30d", "thinning": []}, "ackMode": "flush"}
        for _ in range(2):
            code, answer = self.https("POST", path, {"spec": spec})
            self.assertEqual(code, 200, answer)
            now = status()
            self.assertEqual((now["policy"], now["quota_bytes"], now["ack"]), (v.id, 300 << 20, "flush"))
        for wrong, word in (({"journal": {"quota": "1Mi"}}, "quota"), ({"hooks": []}, "hooks"), ("gold", "object")):
            code, answer = self.https("POST", path, {"spec": wrong})
            self.assertGreaterEqual(code, 400)
            self.assertIn(word, answer["error"]["message"])
        self.assertEqual(status()["quota_bytes"], 300 << 20)
        self.assertEqual(self.https("POST", "/v1/streams/nobody/policy", {"spec": {}})[0], 404)
        v.unpublish()
        v.unstage()
        v.stage()
        now = status()
        self.assertEqual((now["policy"], now["quota_bytes"], now["ack"]), (v.id, 300 << 20, "flush"))

    def test_a_rewind_waits_for_the_pods_and_they_for_it(self):  # N3
        v = self.stand.volume("back")
        v.stage()
        target = v.publish()
        write(f"{target}/file", "good")
        self.stand.api("POST", f"/v1/applications/{v.id}/tag", {"name": "good"})
        write(f"{target}/file", "bad")
        for _ in range(2):  # the same id is the same rewind
            status, answer = self.https("POST", f"/v1/streams/{v.id}/rewind", {"to": "tag:good", "id": "r1"})
            self.assertEqual(status, 202, answer)
            self.assertTrue(answer["closed"])
        self.assertEqual(self.https("POST", f"/v1/streams/{v.id}/rewind", {"to": "-1s", "id": "r2"})[0], 409)
        self.assertEqual(self.https("POST", f"/v1/streams/{v.id}/gate", {"closed": False})[0], 409)
        # A pod that comes back too early is answered at once: the kubelet unmounts the one before only when no call about the volume runs.
        begun = time.monotonic()
        with self.assertRaises(grpc.RpcError) as refused:
            v.publish(pod="early")
        self.assertEqual(refused.exception.code(), grpc.StatusCode.UNAVAILABLE)
        self.assertIn("gate", refused.exception.details())
        self.assertLess(time.monotonic() - begun, 10)
        self.assertEqual(self.rewind_state(v.id), "waiting")
        self.assertEqual(read(f"{target}/file"), "bad")
        v.unpublish()
        waiting = v.publish(pod="next")  # answers when the gate opens
        self.assertEqual(read(f"{waiting}/file"), "good")
        self.assertEqual(self.rewind_state(v.id), "succeeded")
        v.unpublish("next")
        self.assertEqual(self.https("POST", f"/v1/streams/{v.id}/undo", {"id": "u1"})[0], 202)
        self.assertEqual(read(f"{v.publish()}/file"), "bad")

    def test_a_raw_device_grows_and_is_put_back(self):  # N3
        v = self.stand.volume("raw", block=True)
        v.stage()
        device = v.publish()
        self.assertTrue(stat.S_ISBLK(os.stat(device).st_mode))

        def put(path, offset, data):
            fd = os.open(path, os.O_RDWR)
            os.pwrite(fd, data, offset)
            os.fsync(fd)
            os.close(fd)

        def get(path, offset, length):
            fd = os.open(path, os.O_RDONLY)
            try:
                return os.pread(fd, length, offset)
            finally:
                os.close(fd)

        put(device, 4096, b"good" * 1024)
        self.stand.api("POST", f"/v1/applications/{v.id}/tag", {"name": "good"})
        grown = self.stand.controller("ControllerExpandVolume", volume_id=v.id, capacity_range=csi.CapacityRange(required_bytes=96 * MIB))
        for _ in range(2):
            reply = self.stand.node("NodeExpandVolume", volume_id=v.id, volume_path=device, staging_target_path=v.staging,
                                    capacity_range=csi.CapacityRange(required_bytes=grown.capacity_bytes))
            self.assertEqual(reply.capacity_bytes, 96 * MIB)
        self.assertEqual(self.stand.node("NodeGetVolumeStats", volume_id=v.id, volume_path=device).usage[0].total, 96 * MIB)
        put(device, 4096, b"bad!" * 1024)
        put(device, 80 * MIB, b"new!" * 1024)  # beyond what it was
        self.assertEqual(get(device, 80 * MIB, 4096), b"new!" * 1024)
        self.assertEqual(self.https("POST", f"/v1/streams/{v.id}/rewind", {"to": "tag:good", "id": "r1"})[0], 202)
        self.assertEqual(self.rewind_state(v.id), "waiting")
        self.assertEqual(get(device, 4096, 4096), b"bad!" * 1024)
        v.unpublish()
        device = v.publish(pod="next")  # answers when the gate opens
        self.assertEqual(self.rewind_state(v.id), "succeeded")
        self.assertEqual(get(device, 4096, 4096), b"good" * 1024, "neither the device nor its cache has what came after")
        self.assertEqual(get(device, 80 * MIB, 4096), bytes(4096))
        put(device, 8192, b"more" * 1024)
        v.unpublish("next")
        v.unstage()
        v.stage()
        self.assertEqual(get(v.publish(pod="last"), 8192, 4096), b"more" * 1024)

    def test_a_killed_node_agent_carries_a_rewind_on(self):  # N1
        v = self.stand.volume("carried")
        v.stage()
        target = v.publish()
        write(f"{target}/file", "good")
        self.stand.api("POST", f"/v1/applications/{v.id}/tag", {"name": "good"})
        write(f"{target}/file", "bad")
        self.https("POST", f"/v1/streams/{v.id}/rewind", {"to": "tag:good", "id": "r1"})
        self.stand.stop("node", signal.SIGKILL)
        self.stand.start_node()
        self.assertEqual(self.rewind_state(v.id), "waiting")
        v.unpublish()
        for _ in range(8):
            self.stand.stop("node", signal.SIGKILL)
            self.stand.start_node()
        until(lambda: self.rewind_state(v.id) == "succeeded", "the rewind ends")
        self.assertEqual(read(f"{v.publish()}/file"), "good")

    def test_a_rewind_that_cannot_be_leaves_all_as_it_was(self):
        v = self.stand.volume("refused")
        v.stage()
        write(f"{v.publish()}/file", "here")
        v.unpublish()
        self.https("POST", f"/v1/streams/{v.id}/rewind", {"to": "tag:none", "id": "r1"})
        until(lambda: self.rewind_state(v.id) == "failed", "the rewind fails")
        answer = self.https("GET", f"/v1/streams/{v.id}")[1]
        self.assertIn("none", answer["rewind"]["message"])
        self.assertFalse(answer["closed"])
        self.assertEqual(read(f"{v.publish()}/file"), "here")

    def begun(self, v, lsn, state="rewinding"):
        """The gate's file of a rewind that has come as far as `state`: the node agent was killed there."""
        with open(self.stand.path("n", "node", "gates", f"{v.id}.json"), "w", encoding="utf-8") as f:
            json.dump({"closed": True, "rewind": {"id": "r1", "to": "tag:good", "state": state, "keep_closed": False, "target_lsn": lsn,
                                                  "message": None, "result": None}}, f)

    def rewind_of(self, v):
        """By its file: of a stream that the data plane does not have the endpoint knows nothing."""
        return json.loads(read(self.stand.path("n", "node", "gates", f"{v.id}.json")))["rewind"]

    def test_what_a_rewind_waits_for_is_told(self):
        v = self.stand.volume("told")
        v.stage()
        write(f"{v.publish()}/file", "good")
        self.stand.api("POST", f"/v1/applications/{v.id}/tag", {"name": "good"})
        write(f"{v.target()}/file", "bad")
        v.unpublish()
        v.unstage()
        plan = self.stand.api("POST", f"/v1/applications/{v.id}/rewind", {"to": "tag:good", "dry_run": True})
        self.stand.stop("node", signal.SIGKILL)
        self.stand.stop("data", signal.SIGKILL)
        self.begun(v, plan["plan"]["target_lsn"])
        self.stand.start_node()
        until(lambda: "is the data plane" in (self.rewind_of(v)["message"] or ""), "the reason is told")
        self.assertEqual(self.rewind_of(v)["state"], "rewinding")
        self.stand.start_data()
        until(lambda: self.rewind_of(v)["state"] == "succeeded", "it goes on")
        self.assertIsNone(self.rewind_of(v)["message"])
        v.stage()
        self.assertEqual(read(f"{v.publish()}/file"), "good")

    def test_each_step_of_a_rewind_waits_for_the_data_plane(self):
        v = self.stand.volume("away")
        v.stage()
        write(f"{v.publish()}/file", "good")
        lsn = self.stand.api("POST", f"/v1/applications/{v.id}/tag", {"name": "good"})["lsn"]
        write(f"{v.target()}/file", "bad")
        v.unpublish()
        for state, target in (("resolving", None), ("mounting", lsn)):
            with self.subTest(state):
                self.stand.stop("node", signal.SIGKILL)
                self.stand.stop("data", signal.SIGKILL)
                subprocess.run(["umount", v.staging], check=True)
                self.begun(v, target, state)
                self.stand.start_node()
                until(lambda: "is the data plane" in (self.rewind_of(v)["message"] or ""), "the reason is told")
                self.assertEqual(self.rewind_of(v)["state"], state)
                self.stand.start_data()
                until(lambda: self.rewind_of(v)["state"] == "succeeded", "it goes on")
                self.assertEqual(read(f"{v.publish()}/file"), "good")
                v.unpublish()

    def test_a_rewind_of_what_the_data_plane_does_not_have_ends(self):
        v = self.stand.volume("absent")
        v.stage()
        v.unstage()
        self.stand.stop("node", signal.SIGKILL)
        self.stand.api("DELETE", f"/v1/applications/{v.id}?purge=true")
        self.begun(v, 1)
        self.stand.start_node()
        until(lambda: "there is no application" in (self.rewind_of(v)["message"] or ""), "the reason is told")
        self.assertEqual(self.rewind_of(v)["state"], "rewinding")
        until(lambda: self.rewind_of(v)["state"] == "failed", "it ends", 120)
        self.assertRegex(self.rewind_of(v)["message"], "the data plane of node .* has not had the stream for 60 s: there is no application")
        self.assertEqual(self.https("POST", f"/v1/streams/{v.id}/gate", {"closed": False})[0], 200)  # whoever ends the recovery does

    def test_a_closed_gate_holds_and_opens(self):
        v = self.stand.volume("gate")
        v.stage()
        self.assertTrue(self.https("POST", f"/v1/streams/{v.id}/gate", {"closed": True})[1]["closed"])
        with self.assertRaises(grpc.RpcError):
            v.publish(timeout=1)
        # Tries again: the call that was given up may see the open gate before it sees that it was.
        thread = threading.Thread(target=lambda: until(lambda: published(v), "the volume is published"))
        thread.start()
        time.sleep(0.3)
        self.assertTrue(thread.is_alive())
        self.https("POST", f"/v1/streams/{v.id}/gate", {"closed": False})
        thread.join(120)
        self.assertFalse(thread.is_alive())
        self.assertIn(v.target(), self.stand.mounts())

    def test_what_is_being_put_back_is_not_destroyed(self):
        v = self.stand.volume("kept")
        v.stage()
        v.unstage()
        gate = self.stand.path("n", "node", "gates", f"{v.id}.json")
        self.https("POST", f"/v1/streams/{v.id}/gate", {"closed": True})
        status, answer = self.https("DELETE", f"/v1/applications/{v.id}?purge=true")
        self.assertEqual(status, 409, answer)
        self.assertIn("gate", answer["error"]["message"])
        self.https("POST", f"/v1/streams/{v.id}/gate", {"closed": False})
        self.assertTrue(os.path.exists(gate))
        self.assertEqual(self.https("DELETE", f"/v1/applications/{v.id}?purge=true")[0], 200)
        self.assertFalse(os.path.exists(gate))
        self.assertEqual(self.https("GET", f"/v1/streams/{v.id}")[0], 404)


class Leaks(Case):
    def test_ten_thousand_calls_leak_nothing(self):
        v = self.stand.volume("leak")
        v.stage()
        v.publish()

        def resources(name):
            pid = self.stand.processes[name].pid
            with open(f"/proc/{pid}/status", encoding="ascii") as f:
                rss = next(int(line.split()[1]) for line in f if line.startswith("VmRSS"))
            return rss, len(os.listdir(f"/proc/{pid}/fd"))

        def round_of(count):
            for i in range(count):
                self.stand.node("NodeGetVolumeStats", volume_id=v.id, volume_path=v.target())
                self.stand.controller("ListVolumes")
                if i % 10 == 0:
                    v.publish()
                    with self.assertRaises(grpc.RpcError):
                        self.stand.node("NodeGetVolumeStats", volume_id="none", volume_path="/")
        round_of(300)
        before = {name: resources(name) for name in ("node", "controller")}
        round_of(5000)
        for name, (rss, descriptors) in before.items():
            now_rss, now_descriptors = resources(name)
            self.assertLessEqual(now_rss, rss + 1024, name)
            self.assertLessEqual(now_descriptors, descriptors + 1, name)


if __name__ == "__main__":
    unittest.main(verbosity=2)
