#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The client against a real API server: what it lists, sees and survives. Numbers of invariants: kube/informer.h, lease.h."""
import base64
import concurrent.futures
import http.client
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from apiserver import ApiServer, Program, until

BUILD = os.environ.get("TIDEMARK_BUILD", "build")
PROBE = f"{BUILD}/tests/integration/kube/kube_probe"
SERVER = None


def config_map(name, namespace="default", value="1", **more):
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": namespace, **more}, "data": {"value": value}}


def probe(*arguments, **environment):
    done = subprocess.run([PROBE, *arguments], stdout=subprocess.PIPE, text=True, timeout=120,
                          env={**os.environ, "PROBE_KUBECONFIG": SERVER.kubeconfig, **environment})
    return done.stdout.rstrip("\n").split("\n")


def start(*arguments, **environment):
    return Program([PROBE, *arguments], {"PROBE_KUBECONFIG": SERVER.kubeconfig, **environment})


def namespace(name):
    SERVER.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    # What the cluster itself puts into it is there before the test begins.
    until("the namespace's own objects", lambda: SERVER.kubectl("-n", name, "get", "configmap", "kube-root-ca.crt", check=False).startswith("NAME"))
    return name


class Proxy:
    """Between a client and the server, connection by connection. Those that are stalled get nothing more from the server; what they send is taken."""

    def __init__(self):
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.open, self.stalled, self.count = [], set(), 0
        self.kubeconfig = f"{SERVER.directory}/proxied"
        config = SERVER.json("config", "view", "--raw")
        config["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{self.listening.getsockname()[1]}"
        with open(self.kubeconfig, "w") as f:
            json.dump(config, f)
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                client, _ = self.listening.accept()
            except OSError:
                return
            self.count += 1
            self.open.append(client)
            threading.Thread(target=self.connect, args=(client,), daemon=True).start()

    def connect(self, client):
        with client, socket.create_connection(("127.0.0.1", SERVER.port)) as server:
            back = threading.Thread(target=self.copy, args=(server, client, client), daemon=True)
            back.start()
            self.copy(client, server)
            back.join()
            self.open.remove(client)

    def copy(self, one, other, client=None):
        try:
            while (data := one.recv(65536)):
                if client not in self.stalled:
                    other.sendall(data)
        except OSError:
            pass
        for end in (one, other):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def stall(self):
        self.stalled |= set(self.open)

    def close(self):
        self.listening.close()


class Calls(unittest.TestCase):
    def test_discovery_names_each_kind_once_in_its_preferred_version(self):
        lines = [line.split() for line in probe("kinds")]
        kinds = [(line[0].rsplit("/", 1)[0], line[1]) for line in lines]
        self.assertEqual(len(kinds), len(set(kinds)))
        self.assertIn(["apps/v1", "deployments", "Deployment", "1", "7f"], lines)
        self.assertIn(["/v1", "namespaces", "Namespace", "0", "7f"], lines)
        self.assertFalse([line for line in lines if "/" in line[1]], "subresources are left out")

    def test_verbs_patches_and_preconditions(self):
        ns = namespace("verbs")
        call = lambda *a, **e: probe(*a, **e)
        made = json.loads(call("create", "configmaps", ns, "-", "-", json.dumps(config_map("a", ns)))[1].split(" ", 1)[1])
        again = call("create", "configmaps", ns, "-", "-", json.dumps(config_map("a", ns)))
        self.assertEqual(again[0], "status 409 AlreadyExists")
        self.assertTrue(again[1].startswith("error 17 "), again)  # EEXIST
        self.assertEqual(json.loads(call("merge", "configmaps", ns, "a", "-", '{"data":{"value":"2"}}')[1][7:])["data"], {"value": "2"})
        stale = call("update", "configmaps", ns, "a", "-", json.dumps(made))
        self.assertEqual((stale[0], stale[1][:9]), ("status 409 Conflict", "error 16 "))  # EBUSY
        self.assertEqual(json.loads(call("json", "configmaps", ns, "a", "-", '[{"op":"replace","path":"/data/value","value":"3"}]')[1][7:])
                         ["data"], {"value": "3"})
        self.assertEqual(json.loads(call("strategic", "configmaps", ns, "a", "-", '{"data":{"other":"4"}}')[1][7:])["data"],
                         {"value": "3", "other": "4"})
        wrong = call("delete", "configmaps", ns, "a", "-", '{"uid":"00000000-0000-0000-0000-000000000000"}')
        self.assertEqual(wrong[0], "status 409 Conflict")
        self.assertEqual(call("delete", "configmaps", ns, "a", "-", json.dumps({"uid": made["metadata"]["uid"]}))[0], "status 200 -")
        gone = call("get", "configmaps", ns, "a", "-", "-")
        self.assertEqual((gone[0], gone[1][:8]), ("status 404 NotFound", "error 2 "))

    def test_apply_takes_fields_of_others_only_by_force_and_names_the_conflict(self):
        ns = namespace("apply")
        text = lambda value: json.dumps({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"value": value}})
        self.assertTrue(probe("apply", "configmaps", ns, "a", "-", text("1"), PROBE_MANAGER="one")[1].startswith("answer "))
        conflict = probe("apply", "configmaps", ns, "a", "-", text("2"), PROBE_MANAGER="two")
        self.assertEqual(conflict[0], "status 409 Conflict")
        self.assertIn(".data.value", conflict[1])
        forced = json.loads(probe("force", "configmaps", ns, "a", "-", text("2"), PROBE_MANAGER="two")[1][7:])
        self.assertEqual(forced["data"], {"value": "2"})

    def test_subresources_scale_and_status(self):
        ns = namespace("scale")
        pod = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "none"}]}}
        SERVER.apply({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d", "namespace": ns},
                      "spec": {"replicas": 0, "selector": {"matchLabels": {"a": "b"}}, "template": pod}})
        probe("merge", "deployments", ns, "d", "scale", '{"spec":{"replicas":3}}')
        scale = json.loads(probe("get", "deployments", ns, "d", "scale", "-")[1][7:])
        self.assertEqual((scale["kind"], scale["spec"]["replicas"]), ("Scale", 3))
        probe("merge", "deployments", ns, "d", "status", '{"status":{"observedGeneration":99}}')
        self.assertEqual(SERVER.json("-n", ns, "get", "deployment", "d")["spec"]["replicas"], 3)

    def test_rbac_denies_who_is_impersonated(self):
        ns = namespace("denied")
        SERVER.apply(config_map("a", ns))
        for user in ("jane", "system:serviceaccount:denied:default"):
            denied = probe("get", "configmaps", ns, "a", "-", "-", PROBE_AS=user)
            self.assertEqual(denied[0], "status 403 Forbidden")
            self.assertTrue(denied[1].startswith("error 13 "), denied)  # EACCES
            self.assertIn(f'User "{user}" cannot get resource "configmaps"', denied[1])
        SERVER.kubectl("-n", ns, "create", "rolebinding", "jane", "--clusterrole=view", "--user=jane")
        until("jane may", lambda: probe("get", "configmaps", ns, "a", "-", "-", PROBE_AS="jane")[0] == "status 200 -")

    def test_token_certificate_file_exec_plugin_and_pod_authenticate(self):
        token = SERVER.kubectl("create", "token", "default")
        admin = SERVER.json("config", "view", "--raw")
        cluster = admin["clusters"][0]["cluster"]
        user = admin["users"][0]["user"]
        directory = SERVER.directory

        def write(name, data):
            with open(f"{directory}/{name}", "wb") as f:
                f.write(data)
            return name
        inline = lambda part, key: base64.b64decode(part[key + "-data"]) if key + "-data" in part else open(part[key], "rb").read()
        ca = inline(cluster, "certificate-authority")
        crt, key = inline(user, "client-certificate"), inline(user, "client-key")
        write("ca.pem", ca), write("c.pem", crt), write("k.pem", key)
        write("plugin", b'#!/bin/sh\necho run >> "$COUNT"\necho \'{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential",'
              b'"status":{"token":"' + token.encode() + b'"}}\'\n')
        os.chmod(f"{directory}/plugin", 0o755)
        users = {
            "files": {"client-certificate": "c.pem", "client-key": "k.pem"},
            "inline": {"client-certificate-data": base64.b64encode(crt).decode(), "client-key-data": base64.b64encode(key).decode()},
            "token": {"token": token},
            "plugin": {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "./plugin", "interactiveMode": "Never",
                                "env": [{"name": "COUNT", "value": f"{directory}/count"}]}},
            "wrong": {"token": "wrong"},
        }
        names = {"files": "admin", "inline": "admin", "token": "default", "plugin": "default"}
        config = {"apiVersion": "v1", "kind": "Config", "current-context": "token",
                  "clusters": [{"name": "c", "cluster": {"server": cluster["server"], "certificate-authority": "ca.pem"}}],
                  "users": [{"name": n, "user": u} for n, u in users.items()],
                  "contexts": [{"name": n, "context": {"cluster": "c", "user": n}} for n in users]}
        write("contexts", json.dumps(config).encode())
        for name in names:
            got = probe("create", "selfsubjectreviews", "-", "-", "-",
                        '{"apiVersion":"authentication.k8s.io/v1","kind":"SelfSubjectReview"}',
                        PROBE_KUBECONFIG=f"{directory}/contexts", PROBE_CONTEXT=name)
            self.assertTrue(got[-1].startswith("answer "), (name, got))
            who = json.loads(got[-1][7:])["status"]["userInfo"]["username"]
            self.assertIn(names[name], who, name)
        with open(f"{directory}/count") as f:
            self.assertEqual(f.read(), "run\n", "the plugin runs once, not for each call")
        refused = probe("get", "configmaps", "default", "a", "-", "-", PROBE_KUBECONFIG=f"{directory}/contexts", PROBE_CONTEXT="wrong")
        self.assertIn("refuses the credentials", refused[-1])
        write("contexts", json.dumps({**config, "clusters": [{"name": "c", "cluster": {"server": cluster["server"]}}]}).encode())
        untrusted = probe("get", "configmaps", "default", "a", "-", "-", PROBE_KUBECONFIG=f"{directory}/contexts", PROBE_CONTEXT="token")
        self.assertIn("TLS with the API server", untrusted[-1], "without its CA the server is not trusted")


class Lists(unittest.TestCase):
    COUNT = 5000

    def test_five_thousand_objects_in_chunks_and_a_list_that_expires_in_the_middle_begins_again(self):
        ns = namespace("many")
        for first in range(0, self.COUNT, 1000):
            SERVER.kubectl("create", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": [
                {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": f"c{n}", "namespace": ns}} for n in range(first, first + 1000)]}))
        lines = probe("list", "configmaps", ns, "500")
        self.assertEqual(lines[-1], f"listed {self.COUNT + 1} chunks 11 restarts 0")  # and kube-root-ca.crt
        paused = start("list", "configmaps", ns, "500", "pause")
        paused.expect("chunk 500 ConfigMap")
        paused.send()
        paused.expect("chunk 500")
        # The continue token names a version that etcd forgets; a new server has no snapshot of its own of it.
        SERVER.apply(config_map("more", ns))
        SERVER.kill()
        SERVER.compact()
        SERVER.up()
        paused.send("\n" * 100)
        last = paused.expect("listed")
        self.assertEqual(last, f"listed {self.COUNT + 2} chunks 13 restarts 1")
        SERVER.kubectl("delete", "namespace", ns, "--wait=false")


class Watches(unittest.TestCase):
    def test_changes_are_told_once_each_and_status_only_noise_is_not(self):
        ns = namespace("watch")
        watch = start("watch", ns, "configmaps", "secrets")
        watch.expect("synced"), watch.expect("synced")
        SERVER.apply(config_map("a", ns, "1"))
        watch.expect(f"added configmaps {ns}/a 1")
        SERVER.apply(config_map("a", ns, "2"))
        watch.expect(f"changed configmaps {ns}/a 2")
        SERVER.kubectl("-n", ns, "delete", "configmap", "a")
        watch.expect(f"deleted configmaps {ns}/a")
        self.assertEqual(watch.finish(), 0)
        self.assertEqual([l for l in watch.lines if l.startswith(("gap", "failed"))], [])

    def test_what_comes_while_others_are_handled_is_not_slept_beside(self):
        """All watches are streams of one connection: what comes for one while another is read must not wait until something else comes."""
        ns = namespace("beside")
        rounds, names = 300, [f"c{n}" for n in range(3)]
        SERVER.apply(*(config_map(name, ns, "0") for name in names))
        kinds = [line.split() for line in probe("kinds")]
        plurals = [k[1] for k in kinds if k[3] == "1" and int(k[4], 16) & 6 == 6 and k[1] not in ("events", "pods", "configmaps")]
        watch = start("watch", ns, *plurals, "configmaps")  # the last is listed first: its stream has its turn before most others
        for _ in range(len(plurals) + 1):
            watch.expect("synced")
        context = ssl.create_default_context(cafile=f"{SERVER.directory}/pki/ca.crt")
        context.load_cert_chain(f"{SERVER.directory}/pki/admin.crt", f"{SERVER.directory}/pki/admin.key")
        connections = {name: http.client.HTTPSConnection("127.0.0.1", SERVER.port, context=context) for name in names}

        def change(name, value):
            connections[name].request("PATCH", f"/api/v1/namespaces/{ns}/configmaps/{name}", json.dumps({"data": {"value": str(value)}}),
                                      {"Content-Type": "application/merge-patch+json"})
            connections[name].getresponse().read()
        slowest = 0
        with concurrent.futures.ThreadPoolExecutor(len(names)) as pool:
            for value in range(1, rounds + 1):
                for done in [pool.submit(change, name, value) for name in names]:
                    done.result()
                begun, wanted = time.monotonic(), {f"changed configmaps {ns}/{name} {value}" for name in names}
                while wanted:
                    wanted.discard(watch.expect("changed"))
                slowest = max(slowest, time.monotonic() - begun)
        watch.finish()
        for connection in connections.values():
            connection.close()
        print(f"{rounds} times {len(names)} changes, {len(plurals) + 1} watches: the slowest was told after {slowest * 1e3:.0f} ms")
        self.assertLess(slowest, 5, "a change was told when something else came, or by the client's longest look")

    def test_a_connection_that_nothing_comes_on_any_more_is_left(self):
        """All watches are streams of one connection, which curl would give to the next one as long as another is on it."""
        ns, proxy = namespace("stalled"), Proxy()
        self.addCleanup(proxy.close)
        SERVER.apply(config_map("a", ns, "1"))
        watch = start("watch", ns, "configmaps", "secrets", "services", PROBE_KUBECONFIG=proxy.kubeconfig, PROBE_WATCH_IDLE="5")
        for _ in range(3):
            watch.expect("synced")
        for value in range(2, 4):
            proxy.stall()
            SERVER.apply(config_map("a", ns, str(value)))
            watch.expect(f"changed configmaps {ns}/a {value}", 60)
        self.assertEqual(watch.finish(), 0)
        self.assertEqual([l for l in watch.lines if l.startswith("gap")], [], "it goes on from where it was")
        self.assertIn("nothing was heard for 5 s", "".join(l for l in watch.lines if l.startswith("failed")))

    def test_a_watch_that_alone_is_silent_gets_a_connection_of_its_own_and_disturbs_no_other(self):
        """Its server may be one that sends no bookmarks, or only its stream is stuck."""
        ns, proxy = namespace("silent"), Proxy()
        self.addCleanup(proxy.close)
        SERVER.apply(config_map("a", ns, "0"))
        watch = start("watch", ns, "configmaps", "secrets", PROBE_KUBECONFIG=proxy.kubeconfig, PROBE_WATCH_IDLE="5")
        watch.expect("synced"), watch.expect("synced")
        before, value, silent = proxy.count, 0, 0
        while silent < 3:
            value += 1
            SERVER.apply(config_map("a", ns, str(value)))
            watch.expect(f"changed configmaps {ns}/a {value}", 60)
            silent = len([l for l in watch.lines if l.startswith("failed secrets")])
            self.assertLess(value, 1000)
        SERVER.apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "namespace": ns}})
        watch.expect(f"added secrets {ns}/s", 60)
        grown, there = proxy.count - before, len(proxy.open)
        watch.finish()
        self.assertEqual([l for l in watch.lines if l.startswith("failed configmaps")], [])
        self.assertIn(grown, (2, 3, 4), "one for each time")
        self.assertLessEqual(there, before + 1, "and each is closed after it")

    def test_a_killed_api_server_in_the_middle_of_a_watch_loses_nothing(self):
        """I1: what changed while the server or the watch was away is told, deletions too."""
        ns = namespace("killed")
        SERVER.apply(config_map("stays", ns), config_map("changes", ns, "1"), config_map("goes", ns))
        watch = start("watch", ns, "configmaps")
        watch.expect("synced configmaps 4")
        SERVER.kill()
        watch.expect("failed configmaps")
        SERVER.up()
        SERVER.apply(config_map("changes", ns, "2"), config_map("new", ns))
        SERVER.kubectl("-n", ns, "delete", "configmap", "goes")
        wanted = {f"changed configmaps {ns}/changes 2", f"added configmaps {ns}/new 1", f"deleted configmaps {ns}/goes"}
        while wanted:
            line = watch.expect("")
            wanted = {w for w in wanted if not line.startswith(w)}
        watch.finish()
        self.assertEqual(len([l for l in watch.lines if l.startswith(f"changed configmaps {ns}/changes")]), 1)
        self.assertEqual([l for l in watch.lines if "stays" in l], [f"added configmaps {ns}/stays 1"])

    def test_a_version_that_is_too_old_is_a_gap_and_a_list(self):
        """I3: a 410 is said before what the list finds."""
        ns = namespace("gone")
        SERVER.apply(config_map("a", ns, "1"), config_map("b", ns, "1"))
        watch = start("watch", ns, "configmaps")
        watch.expect("synced configmaps 3")
        os.kill(watch.child.pid, 19)  # SIGSTOP: it does not hear while the versions pass and are forgotten
        try:
            SERVER.kill()
            SERVER.up()
            SERVER.apply(config_map("a", ns, "2"))
            SERVER.kubectl("-n", ns, "delete", "configmap", "b")
            SERVER.compact()
            SERVER.kill()
            SERVER.up()
        finally:
            os.kill(watch.child.pid, 18)
        watch.expect("gap configmaps")
        seen = [watch.expect("") for _ in range(2)]
        self.assertEqual(sorted(line[:len(f"changed configmaps {ns}/a 2")] for line in seen),
                         sorted([f"changed configmaps {ns}/a 2", f"deleted configmaps {ns}/b -"[:len(f"changed configmaps {ns}/a 2")]]))
        watch.expect("synced configmaps 2")
        watch.finish()

    def test_a_watch_that_the_server_ends_goes_on_without_a_list(self):
        ns = namespace("timeout")
        watch = start("watch", ns, "configmaps", PROBE_WATCH_TIMEOUT="2")
        watch.expect("synced configmaps")
        end, n = time.monotonic() + 7, 0
        while time.monotonic() < end:  # three watches
            SERVER.apply(config_map(f"c{n}", ns))
            watch.expect(f"added configmaps {ns}/c{n}")
            n += 1
        watch.finish()
        self.assertEqual([l for l in watch.lines if l.startswith(("gap", "failed"))], [])
        self.assertEqual(len([l for l in watch.lines if l.startswith("synced")]), 1, "one list")


class Leases(unittest.TestCase):
    def test_two_want_it_one_has_it_and_the_other_takes_over_when_it_is_killed(self):
        first = start("lease", "default", "test", "one")
        first.expect("acquired")
        second = start("lease", "default", "test", "two")
        second.send()
        self.assertEqual(second.expect("held"), "held 0")
        first.kill()
        second.expect("acquired", 20)
        lease = SERVER.json("get", "lease", "test")["spec"]
        self.assertEqual((lease["holderIdentity"], lease["leaseTransitions"]), ("two", 1))
        second.finish()
        self.assertEqual(SERVER.json("get", "lease", "test")["spec"].get("holderIdentity", ""), "", "given back")
        third = start("lease", "default", "test", "three")
        third.expect("acquired", 3)
        third.finish()

    def test_a_holder_that_cannot_renew_stops_before_another_may_begin(self):
        """L1."""
        holder = start("lease", "default", "cut", "one")
        holder.expect("acquired")
        SERVER.kill()
        holder.expect("lost", 6)
        holder.send()
        self.assertEqual(holder.expect("held"), "held 0")
        SERVER.up()
        holder.expect("acquired", 20)
        holder.finish()


if __name__ == "__main__":
    SERVER = ApiServer()
    try:
        result = unittest.main(exit=False, verbosity=2).result
    finally:
        SERVER.close()
    sys.exit(not result.wasSuccessful())
