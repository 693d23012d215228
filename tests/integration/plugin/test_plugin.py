#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""`kubectl tidemark` against a real API server and a controller: what it says is what is there, and what it does happens."""
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "../kube"))
sys.path.insert(0, os.path.join(HERE, "../controller"))
import test_controller as base
from apiserver import KUBE_BIN, KUBECTL, ROOT, ApiServer, until

TIDEMARK = os.path.abspath(os.environ.get("TIDEMARK", "build/src/cli/tidemark"))
COMMANDS = ["status", "points", "tag", "diff", "rewind", "undo", "clone", "restore", "cancel", "resume", "purge", "verify", "adopt", "release", "uninstall-check", "version", "completion", "help"]
SERVER = None
BIN = None
OK, FAILED, USAGE, NOT_FOUND, REFUSED, UNREACHABLE = 0, 1, 2, 3, 4, 5

# Stands for the admission webhook, which records who asks: the same annotation, by the API server alone.
REQUESTER = [
    {"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingAdmissionPolicy", "metadata": {"name": "requester"}, "spec": {
        "matchConstraints": {"resourceRules": [{"apiGroups": ["tidemark.io"], "apiVersions": ["*"], "operations": ["CREATE"], "resources": ["recoveries"]}]},
        "failurePolicy": "Fail", "reinvocationPolicy": "Never", "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression":
            """Object{metadata: Object.metadata{annotations: {"tidemark.io/requested-by":
               '{"username": "' + request.userInfo.username + '", "groups": ["' + request.userInfo.groups.join('", "') + '"]}'}}}"""}}]}},
    {"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingAdmissionPolicyBinding", "metadata": {"name": "requester"},
     "spec": {"policyName": "requester"}}]


def plugin(*arguments, kubeconfig=None, stdin=""):
    """(exit status, standard output, standard error)"""
    environment = dict(os.environ, KUBECONFIG=kubeconfig or SERVER.kubeconfig, PATH=f"{BIN}:{KUBE_BIN}:{os.environ['PATH']}", TERM="dumb")
    done = subprocess.run([f"{BIN}/kubectl-tidemark", *arguments], input=stdin, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          env=environment, timeout=400)
    return done.returncode, done.stdout, done.stderr


def answer(*arguments, code=OK):
    got, out, err = plugin(*arguments, "-o", "json")
    assert got == code, (arguments, got, out, err)
    return json.loads(out)


def requester_is_recorded():
    text = SERVER.kubectl("create", "--dry-run=server", "-o", "json", "-f", "-", check=False, stdin=json.dumps({
        "apiVersion": "tidemark.io/v1alpha1", "kind": "Recovery", "metadata": {"name": "probe", "namespace": "default"},
        "spec": {"application": "a", "mode": "rewind", "point": "latest"}}))
    return text.startswith("{") and "tidemark.io/requested-by" in json.loads(text)["metadata"].get("annotations", {})


class Words(unittest.TestCase):
    """Help, man page, completion: no cluster."""

    def test_kubectl_finds_it_and_every_command_is_explained(self):
        environment = dict(os.environ, PATH=f"{BIN}:{KUBE_BIN}:{os.environ['PATH']}", KUBECONFIG=SERVER.kubeconfig)
        done = subprocess.run([KUBECTL, "tidemark", "help"], text=True, stdout=subprocess.PIPE, env=environment)
        self.assertEqual(done.returncode, 0)
        listed = re.findall(r"(?m)^  ([\w-]+) +\S", done.stdout.split("Commands:")[1].split("\n\n")[0])
        self.assertEqual(listed, COMMANDS)
        for command in COMMANDS:
            code, text, _ = plugin("help", command)
            self.assertEqual((code, plugin(command, "--help")[1]), (OK, text))
            self.assertTrue(text.startswith(f"Usage: kubectl tidemark {command}"), text)
            for part in ("-n, --namespace NAMESPACE", "--context NAME", "--kubeconfig FILE", "Examples:\n  "):
                self.assertIn(part, text)
            for line in text.splitlines():
                self.assertLessEqual(len(line), 110, line)

    def test_the_man_page_has_every_command_and_option(self):
        man = os.environ.get("TIDEMARK_MAN", os.path.join(ROOT, "docs/man/tidemark.1"))
        with open(man, encoding="utf-8") as f:
            text = re.sub(r"\\f[BIPR]", "", f.read()).replace("\\-", "-").split(".SH KUBECTL TIDEMARK\n")[1].split(".SH ")[0]
        for command in COMMANDS:
            self.assertIn(f"kubectl tidemark {command}", text)
            for name in re.findall(r"(?m)^  (?:-\w, )?--([\w-]+)", plugin("help", command)[1]):
                self.assertIn(f"--{name}", text, command)

    def test_wrong_words_are_told_with_the_right_ones(self):
        for words, remedy in ((["rewnd"], "did you mean 'rewind'?"), (["rewind", "shop/shop"], "--to POINT is missing"),
                              (["rewind", "shop/shop", "--to", "yesterday"], "yesterday"), (["clone", "shop/shop"], "--into NAMESPACE is missing"),
                              (["clone", "a/a", "--into", "b", "--image", "x"], "FROM=TO"), (["status", "--al"], "unknown option"),
                              (["open", "shop@-1m"], "kubectl tidemark clone"), (["clone", "a/a", "--into", "a"], "another namespace"),
                              (["adopt"], "NAMESPACE/CLAIM is missing"), (["diff", "shop/shop"], "has no point")):
            code, out, err = plugin(*words)
            self.assertEqual((code, out), (USAGE, ""), words)
            self.assertIn(remedy, err, words)
            self.assertTrue(err.startswith("tidemark: "), err)

class Trouble(unittest.TestCase):
    def test_a_cluster_that_is_away(self):
        code, _, err = plugin("status", kubeconfig="/nonexistent")
        self.assertEqual(code, UNREACHABLE)
        self.assertIn("kubectl config get-contexts", err)
        with open(SERVER.kubeconfig) as f:
            text = re.sub(r"server: [^,}\s]+", "server: https://127.0.0.1:1", f.read())
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as away:
            away.write(text)
            away.flush()
            code, _, err = plugin("status", kubeconfig=away.name)
        self.assertEqual(code, UNREACHABLE, err)
        self.assertIn("https://127.0.0.1:1", err)
        code, _, err = plugin("status", "--context", "nosuch")
        self.assertEqual(code, UNREACHABLE)
        self.assertIn("nosuch", err)

    def test_an_unknown_application_comes_with_the_one_that_is_meant(self):
        base.make_namespace("meant")
        SERVER.apply({"apiVersion": "tidemark.io/v1alpha1", "kind": "ProtectedApplication", "metadata": {"name": "meant", "namespace": "meant"},
                      "spec": {"policyRef": {"name": "gold"}}})
        for words in (["status", "meant/ment"], ["rewind", "meant/ment", "--to", "latest", "--yes"], ["tag", "meant", "x", "-n", "ment"],
                      ["points", "ment/meant"], ["undo", "meant/ment"], ["clone", "meant/ment", "--into", "other"], ["diff", "meant/ment@-1s"]):
            code, out, err = plugin(*words)
            self.assertEqual((code, out), (NOT_FOUND, ""), (words, err))
            self.assertIn("did you mean meant/meant?", err, words)

    def test_a_limit_is_refused_before_anything_is_asked(self):
        for limit, why in (("0", "'0' is too small: at least 1"), ("99999", "'99999' is too large: at most 5000"), ("-3", "'-3' is not a number")):
            code, out, err = plugin("points", "meant/meant", "--limit", limit, "--context", "nosuch")
            self.assertEqual((code, out), (USAGE, ""), err)
            self.assertIn(why, err)
            self.assertIn("`kubectl tidemark help points`", err)

    def test_what_is_in_the_way_of_uninstalling_is_named(self):
        ns = base.make_namespace("in-the-way")
        volume = {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "in-the-way"}, "spec": {
            "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "persistentVolumeReclaimPolicy": "Retain",
            "claimRef": {"namespace": ns, "name": "data"}, "csi": {"driver": "csi.tidemark.io", "volumeHandle": "tm-in-the-way"}}}
        claim = base.claim("data", ns)
        claim["spec"]["volumeName"] = "in-the-way"
        SERVER.apply(volume, claim)
        until("it is bound", lambda: SERVER.json("get", "pv", "in-the-way")["status"].get("phase") == "Bound")
        code, out, err = plugin("uninstall-check")
        self.assertEqual((code, out), (REFUSED, ""), err)
        for part in (f"{ns}/data", "kubectl tidemark release", "helm rollback", "--no-hooks"):
            self.assertIn(part, err)
        self.assertIn({"namespace": ns, "claim": "data", "volume": "in-the-way"}, answer("uninstall-check", code=REFUSED))
        SERVER.kubectl("-n", ns, "delete", "pvc", "data", "--wait=false")
        SERVER.kubectl("delete", "pv", "in-the-way", "--wait=false")
        until("it is gone", lambda: f"{ns}/data" not in plugin("uninstall-check")[2])

    def test_who_may_not_look_is_told_what_lacks_and_shown_her_own(self):
        ns = base.make_namespace("tenants")
        SERVER.apply({"apiVersion": "tidemark.io/v1alpha1", "kind": "ProtectedApplication", "metadata": {"name": "app", "namespace": ns},
                      "spec": {"policyRef": {"name": "gold"}}},
                     {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "ann", "namespace": ns}})
        token = SERVER.kubectl("-n", ns, "create", "token", "ann")
        with open(SERVER.kubeconfig) as f:
            text = f.read()
        with tempfile.TemporaryDirectory() as directory:
            config = f"{directory}/ann"
            with open(config, "w") as f:
                f.write(re.sub(r"(?m)^( +)client-(certificate|key)[-a-z]*: .*\n", "", text))
            subprocess.run([KUBECTL, f"--kubeconfig={config}", "config", "set-credentials", "ann", f"--token={token}"],
                           check=True, stdout=subprocess.DEVNULL)
            subprocess.run([KUBECTL, f"--kubeconfig={config}", "config", "set-context", "--current", "--user=ann", f"--namespace={ns}"],
                           check=True, stdout=subprocess.DEVNULL)
            code, out, err = plugin("status", kubeconfig=config)
            self.assertEqual((code, out), (REFUSED, ""), err)
            self.assertIn("tidemark-viewer", err)
            self.assertIn("forbidden", err)
            SERVER.apply({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "look", "namespace": ns},
                          "rules": [{"apiGroups": ["tidemark.io"], "resources": ["*"], "verbs": ["get", "list"]}]},
                         {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "look", "namespace": ns},
                          "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "look"},
                          "subjects": [{"kind": "ServiceAccount", "name": "ann", "namespace": ns}]})
            until("the right", lambda: plugin("status", kubeconfig=config)[0] == OK)
            code, out, _ = plugin("status", kubeconfig=config)
            self.assertIn(f"only {ns} is shown", out)
            self.assertIn("tenants/app", out)
            code, out, err = plugin("rewind", "app", "--to", "-1s", "--yes", kubeconfig=config)
            self.assertEqual((code, out), (REFUSED, ""), err)
            self.assertIn("tidemark-operator", err)

    def test_what_is_kept_of_deleted_volumes_is_listed_and_ended(self):
        system = base.make_namespace("records")
        def record(handle, claim, deleted_ns, **data):
            text = json.dumps({"handle": handle, "claim_namespace": "was", "claim_name": claim, "node": "node1", "stream": "tm-1", "size_bytes": 1 << 30,
                               "deleted_ns": deleted_ns})
            return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": handle, "namespace": system, "labels": {"tidemark.io/volume-record": "true"}},
                    "data": {"record": text, **data}}
        second = 10 ** 9
        SERVER.apply(record("tm-1", "data", 1_700_000_000 * second), record("tm-2", "wal", 1_700_000_000 * second, keep="60"), record("tm-3", "there", 0))
        where = ("--system-namespace", system)
        kept = {v["volume"]: v for v in answer("purge", *where)}
        self.assertEqual(sorted(kept), ["tm-1", "tm-2"])
        self.assertTrue(kept["tm-1"]["removedTime"].startswith("2023-11-21T22:13:20"), kept)  # seven days later
        self.assertTrue(kept["tm-2"]["removedTime"].startswith("2023-11-14T22:14:20"), kept)
        self.assertEqual([v["volume"] for v in answer("status", *where)["kept"]], ["tm-1", "tm-2"])
        self.assertIn("2 deleted volumes", plugin("status", *where)[1])
        code, _, err = plugin("purge", "was/there", "--yes", *where)
        self.assertEqual(code, NOT_FOUND, err)
        code, _, err = plugin("purge", "was/data", *where)
        self.assertNotEqual(code, OK)
        self.assertIn("not confirmed", err)
        self.assertEqual(plugin("purge", "was/data", "--yes", *where)[0], OK)
        keeps = {i["metadata"]["name"]: i["data"].get("keep") for i in SERVER.json("-n", system, "get", "configmaps")["items"]}
        self.assertEqual([keeps[name] for name in ("tm-1", "tm-2", "tm-3")], ["0", "60", None])

    def test_without_a_controller_nothing_begins_later(self):
        ns = base.make_namespace("alone")
        SERVER.apply({"apiVersion": "tidemark.io/v1alpha1", "kind": "ProtectedApplication", "metadata": {"name": ns, "namespace": ns},
                      "spec": {"policyRef": {"name": "gold"}}})
        code, out, err = plugin("rewind", f"{ns}/{ns}", "--to", "latest", "--yes")
        self.assertEqual((code, out), (UNREACHABLE, ""))
        self.assertIn("no controller took up the recovery", err)
        self.assertEqual(SERVER.json("-n", ns, "get", "recoveries")["items"], [])
        code, out, _ = plugin("status")
        self.assertTrue(out.startswith("PROBLEM"), out)
        self.assertIn("controller", out)


class Verbs(base.ControllerTest):
    def protect(self, name):
        ns = base.make_namespace(name, **{"tidemark.io/policy": "gold"})
        self.start()
        self.captured(ns)
        return ns

    def point(self, ns, *objects):
        """Applies the objects and gives the point when all of it is journaled."""
        SERVER.apply(*objects)
        def journaled():
            plan = answer("rewind", f"{ns}/{ns}", "--to", "latest", "--dry-run")
            changes = sum(plan["plan"].get(key, 0) for key in ("create", "change", "recreate", "delete"))
            return f"lsn:{plan['point']['objectsLsn']}" if changes == 0 else None
        return until("the journal", journaled)

    def test_status_is_what_is_there(self):
        ns = self.protect("looked")
        base.make_namespace("bare")
        SERVER.apply(base.claim("orphan", "bare", "foreign"), base.claim("data", ns, "foreign"),
                     {"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "foreign"}, "provisioner": "foreign.example.com"},
                     {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "namespace": ns},
                      "data": {"DATABASE_URL": "postgres://shop:hunter2@db.example.com:5432/shop"}})
        until("the volume", lambda: base.condition(ns, "Protected") == ("False", "VolumesNotCaptured"))
        until("the finding", lambda: (base.papp(ns) or {}).get("status", {}).get("findings"))
        status = answer("status")
        mine = next(a for a in status["applications"] if a["namespace"] == ns)
        self.assertEqual((mine["name"], mine["state"], mine["policy"], mine["volumesTotal"], mine["volumesCaptured"]), (ns, "partly", "gold", 1, 0))
        self.assertIn("data", mine["message"])
        claims = {(c["namespace"], c["claim"]): c for c in status["unprotected"]}
        self.assertIn("kubectl annotate namespace bare tidemark.io/policy=", claims["bare", "orphan"]["remedy"])
        self.assertIn("foreign.example.com", claims[ns, "data"]["reason"])
        self.assertEqual(claims["bare", "orphan"]["size"], "1Gi")
        self.assertTrue(any("csi.tidemark.io" in p["problem"] for p in status["problems"]), status["problems"])
        self.assertFalse(any("controller does not run" in p["problem"] for p in status["problems"]), status["problems"])
        code, text, _ = plugin("status", f"{ns}/{ns}")
        self.assertEqual(code, OK)
        self.assertRegex(text, rf"(?m)^{ns}/{ns} +partly +0/1 ")
        self.assertIn("outside: database db.example.com", text)
        self.assertIn("adopt", text)
        self.assertNotIn("hunter2", text)
        self.assertEqual(len(answer("status", "-n", ns)["applications"]), 1)
        self.assertEqual(plugin("status", "-o", "yaml")[0], OK)
        SERVER.kubectl("annotate", "namespace", ns, "tidemark.io/policy=silver", "--overwrite")
        until("the reason", lambda: base.condition(ns, "Ready") == ("False", "PolicyNotFound"))
        self.assertEqual(answer("status", f"{ns}/{ns}")["applications"][0]["reason"], "PolicyNotFound")

    def test_a_dry_run_changes_nothing_and_names_each_object(self):
        ns = self.protect("dry")
        point = self.point(ns, base.config_map("kept", ns, "good"), base.config_map("gone", ns, "old"))
        SERVER.apply(base.config_map("kept", ns, "bad"), base.config_map("later", ns))
        SERVER.kubectl("-n", ns, "delete", "configmap", "gone")
        before = base.actual(ns)
        plan = answer("rewind", ns, "-n", ns, "--to", point, "--dry-run")
        objects = {o["object"].split("/")[-1]: o["action"] for o in plan["objects"]}
        self.assertEqual((objects["kept"], objects["gone"], objects["later"]), ("change", "create", "delete"))
        code, text, _ = plugin("rewind", f"{ns}/{ns}", "--to", point, "--dry-run")
        self.assertEqual(code, OK)
        self.assertRegex(text, rf"core/v1/ConfigMap/{ns}/kept +change")
        self.assertRegex(text, r"1 to create, 1 to change, 0 to recreate, 1 to delete")
        code, text, _ = plugin("diff", f"{ns}/{ns}@{point}")
        self.assertRegex(text, rf"core/v1/ConfigMap/{ns}/later +delete")
        self.assertEqual(base.actual(ns), before)
        self.assertEqual(SERVER.json("-n", ns, "get", "recoveries")["items"], [], "dry runs are taken away")

    def test_rewind_and_undo_and_undo_again(self):
        ns = self.protect("back")
        point = self.point(ns, base.config_map("value", ns, "good"))
        SERVER.apply(base.config_map("value", ns, "bad"), base.config_map("later", ns))
        code, text, err = plugin("rewind", f"{ns}/{ns}", "--to", point, "--yes")
        self.assertEqual(code, OK, err)
        self.assertEqual(base.actual(ns), {"value": "good"})
        self.assertIn(f"{ns}/{ns} is as it was at 20", text)
        self.assertRegex(text, r"RTO +\d+ ms")
        self.assertIn(f"kubectl tidemark undo {ns}/{ns}", text)
        listed = answer("points", f"{ns}/{ns}", "--named")["points"]
        self.assertEqual([p["kind"] for p in listed], ["before rewind"])
        # This controller serves no webhook: what needs an answer says so, and names are told all the same.
        code, text, err = plugin("points", f"{ns}/{ns}")
        self.assertEqual((code, "before rewind" in text), (OK, True), err)
        self.assertIn("only those with a name: nobody answers", err)
        for words in (["verify", f"{ns}/{ns}"], ["diff", f"{ns}/{ns}@-1s", f"{ns}/{ns}@latest"], ["points", f"{ns}/{ns}", "--last-clean"]):
            code, text, err = plugin(*words)
            self.assertEqual((code, text), (UNREACHABLE, ""), words)
            self.assertIn("nobody answers", err)
        done = answer("undo", f"{ns}/{ns}", "--yes")
        self.assertEqual(done["phase"], "Completed")
        self.assertEqual(base.actual(ns), {"value": "bad", "later": "1"})
        self.assertEqual(answer("undo", f"{ns}/{ns}", "--yes")["phase"], "Completed")
        self.assertEqual(base.actual(ns), {"value": "good"})
        self.assertEqual(len(answer("status", f"{ns}/{ns}")["recoveries"]), 0, "none is under way")
        self.assertIn("Completed", plugin("status", f"{ns}/{ns}")[1])

    def test_a_tag_is_a_point_and_can_be_given_once(self):
        ns = self.protect("tagged")
        self.point(ns, base.config_map("value", ns, "good"))
        code, text, err = plugin("tag", f"{ns}/{ns}", "before", "--label", "commit=1a2b")
        self.assertEqual(code, OK, err)
        self.assertRegex(text, rf"^{ns}/{ns}: tag:before is 20")
        SERVER.apply(base.config_map("value", ns, "bad"))
        code, _, err = plugin("tag", f"{ns}/{ns}", "before")
        self.assertEqual(code, REFUSED, err)
        listed = answer("points", f"{ns}/{ns}")["points"]
        self.assertEqual([(p["point"], p["kind"], p["labels"]) for p in listed], [("tag:before", "tag", {"commit": "1a2b"})])
        self.assertEqual(answer("rewind", f"{ns}/{ns}", "--to", "tag:before", "--yes")["phase"], "Completed")
        self.assertEqual(base.actual(ns), {"value": "good"})

    def test_what_is_refused_says_why_and_changes_nothing(self):
        ns = self.protect("refused")
        self.point(ns, base.config_map("value", ns, "good"))
        code, out, err = plugin("rewind", f"{ns}/{ns}", "--to", "2020-01-01T00:00:00Z", "--yes")
        self.assertEqual((code, out), (REFUSED, ""), err)
        self.assertIn("PointNotAvailable", err)
        self.assertIn("kubectl tidemark points", err)
        code, out, err = plugin("undo", f"{ns}/{ns}", "--yes")
        self.assertEqual((code, out), (NOT_FOUND, ""))
        self.assertIn("no rewind of it", err)
        code, out, err = plugin("clone", f"{ns}/{ns}", "--into", "refused-clone", "--image", "nosuch=other", "--yes")
        self.assertEqual((code, out), (REFUSED, ""))
        self.assertIn("TransformFailed", err)
        code, out, err = plugin("cancel", f"{ns}/{ns}")
        self.assertEqual((code, out), (NOT_FOUND, ""))
        self.assertEqual(base.actual(ns), {"value": "good"})

    def test_clone_beside_and_restore_of_a_namespace_that_is_gone(self):
        ns = self.protect("made")
        point = self.point(ns, base.config_map("value", ns, "good"), {
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": ns}, "spec": {
                "replicas": 0, "selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}},
                "spec": {"containers": [{"name": "c", "image": "shop:1"}]}}}})
        SERVER.apply(base.config_map("value", ns, "bad"))
        code, text, err = plugin("clone", f"{ns}/{ns}", "--to", point, "--into", "made-try", "--isolated", "--image", "shop:1=shop:2", "--yes")
        self.assertEqual(code, OK, err)
        self.assertEqual(base.actual("made-try"), {"value": "good"})
        web = SERVER.json("-n", "made-try", "get", "deployment", "web")["spec"]
        self.assertEqual(web["template"]["spec"]["containers"][0]["image"], "shop:2")
        self.assertIn("kubectl delete namespace made-try", text)
        self.assertEqual(base.actual(ns), {"value": "bad"})
        SERVER.kubectl("delete", "namespace", "made-try", ns)
        code, text, err = plugin("restore", f"{ns}/{ns}", "--to", point, "--yes")
        self.assertEqual(code, OK, err)
        self.assertIn("the Recovery is made in namespace default", err)
        self.assertEqual(base.actual(ns), {"value": "good"})
        SERVER.kubectl("-n", "default", "delete", "recoveries", "--all")

    def test_waiting_can_be_left_and_a_recovery_cancelled(self):
        ns = self.protect("left")
        point = self.point(ns, base.config_map("value", ns, "good"))
        # It cannot begin: the target is being deleted, and held.
        SERVER.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "left-held"}},
                     base.config_map("stuck", "left-held", finalizers=["example.com/hold"]))
        SERVER.kubectl("delete", "namespace", "left-held", "--wait=false")
        code, out, err = plugin("clone", f"{ns}/{ns}", "--to", point, "--into", "left-held", "--no-wait", "--yes")
        self.assertEqual(code, OK, err)
        name = out.strip().split("/")[1]
        def waits_for():
            status = SERVER.json("-n", ns, "get", "recovery", name).get("status", {})
            return status.get("message", "") if status.get("phase") == "Pending" else ""
        until("it waits, and says for what", lambda: "being deleted" in waits_for())
        going = answer("status")["recoveries"]
        self.assertEqual([(r["namespace"], r["name"], r["mode"]) for r in going], [(ns, name, "clone")])
        self.assertIn("being deleted", going[0]["message"])
        # One that waits for it is interrupted; the recovery goes on.
        waiting = subprocess.Popen([f"{BIN}/kubectl-tidemark", "clone", f"{ns}/{ns}", "--to", point, "--into", "left-held", "--yes"],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ, KUBECONFIG=SERVER.kubeconfig))
        self.assertIn("clone left/left", waiting.stderr.readline())  # it waits for a second by now
        until("a second one", lambda: len([r for r in answer("status")["recoveries"] if r["phase"] == "Pending"]) == 2)
        waiting.send_signal(signal.SIGINT)
        _, err = waiting.communicate(timeout=120)
        self.assertEqual(waiting.returncode, 130)
        self.assertIn("goes on in the cluster", err)
        code, out, err = plugin("cancel", f"{ns}/{ns}")
        self.assertEqual(code, OK, err)
        self.assertEqual(out.count("Cancelled"), 2, out)
        SERVER.kubectl("-n", "left-held", "patch", "configmap", "stuck", "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
        until("the end", lambda: "NotFound" in SERVER.kubectl("get", "namespace", "left-held", check=False))

    def test_completion_offers_what_there_is(self):
        ns = self.protect("offered")
        def complete(*words):
            done = subprocess.run([f"{BIN}/kubectl_complete-tidemark", *words], text=True, stdout=subprocess.PIPE,
                                  env=dict(os.environ, KUBECONFIG=SERVER.kubeconfig))
            lines = done.stdout.splitlines()
            self.assertEqual((done.returncode, lines[-1][0]), (0, ":"))
            return [line.split("\t")[0] for line in lines[:-1]]
        self.assertEqual(sorted(complete("")), sorted(COMMANDS))
        self.assertEqual(complete("rew"), ["rewind"])
        self.assertEqual(complete("rewind", "off"), [f"{ns}/{ns}"])
        self.assertEqual(complete("diff", "off"), [f"{ns}/{ns}@"])
        self.assertIn("--dry-run", complete("rewind", f"{ns}/{ns}", "--"))
        self.assertIn("-1h", complete("rewind", f"{ns}/{ns}", "--to", "-"))
        self.assertIn(ns, complete("clone", "x/x", "--into", "off"))
        self.assertEqual(complete("status", "-o", "j"), ["json"])


class NotInstalled(unittest.TestCase):
    """The last: takes the kinds away."""

    def test_a_cluster_without_the_kinds_says_how_to_install(self):
        for recovery in SERVER.json("get", "recoveries", "-A")["items"]:  # one that nobody carries out any more holds its kind up
            SERVER.kubectl("-n", recovery["metadata"]["namespace"], "patch", "recovery", recovery["metadata"]["name"], "--type=merge",
                           "-p", '{"metadata":{"finalizers":null}}')
        SERVER.kubectl("delete", "crd", "protectedapplications.tidemark.io", "recoveries.tidemark.io", "checkpoints.tidemark.io",
                       "protectionpolicies.tidemark.io", "vaults.tidemark.io", "historyreviews.tidemark.io")
        until("the group's end", lambda: "tidemark.io" not in SERVER.kubectl("api-versions"))
        for words in (["status"], ["rewind", "a/a", "--to", "-1s", "--yes"], ["points", "a/a"], ["restore", "a/a", "--yes"]):
            code, out, err = plugin(*words)
            self.assertEqual((code, out), (NOT_FOUND, ""), (words, err))
            self.assertIn("Tidemark is not installed", err)
            self.assertIn("packaging/crds", err)


def load_tests(loader, _tests, _pattern):
    suite = unittest.TestSuite()
    for case in (Words, Trouble, Verbs, NotInstalled):
        suite.addTests(loader.loadTestsFromTestCase(case))
    return suite


if __name__ == "__main__":
    SERVER = base.SERVER = ApiServer()
    BIN = tempfile.mkdtemp(prefix="tidemark-plugin-")
    try:
        for link in ("kubectl-tidemark", "kubectl_complete-tidemark"):
            os.symlink(TIDEMARK, f"{BIN}/{link}")
        SERVER.kubectl("apply", "-f", os.path.join(ROOT, "packaging/crds"))
        SERVER.kubectl("wait", "--for=condition=Established", "--timeout=180s", "crd", "--all")
        SERVER.kubectl("create", "namespace", "tidemark-system")
        until("the policy", lambda: SERVER.kubectl("apply", "-f", "-", stdin=json.dumps(base.POLICY), check=False).startswith("protectionpolicy"))
        SERVER.apply(*REQUESTER)
        until("the requester is recorded", requester_is_recorded)
        result = unittest.main(exit=False, verbosity=2).result
    finally:
        SERVER.close()
        shutil.rmtree(BIN)
    sys.exit(not result.wasSuccessful())
