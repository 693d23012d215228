#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Bad input and trouble, against a real API server: each ends in a condition with a reason and a message that says what to do, and the
application is as it was. Beside these: an unknown policy and two owners of a volume (test_controller), classes, definitions and namespaces
(test_recovery)."""
import json
import os
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import test_recovery as recoveries
from test_recovery import ROOT, ApiServer, base, until

SERVER = None


class Trouble(recoveries.Recoveries):
    def ready(self, status):
        found = next(c for c in status["conditions"] if c["type"] == "Ready")
        return found["status"], found["reason"], found["message"]

    def maps(self, ns):
        return {k: v for k, v in base.actual(ns).items() if k != "mark"}

    def test_a_policy_that_is_not_there_is_named_with_how_to_find_one_and_the_history_goes_on(self):
        ns = base.make_namespace("policy", **{"tidemark.io/policy": "golf"})
        self.start()
        until("the reason", lambda: base.condition(ns, "Ready") == ("False", "PolicyNotFound"))
        message = next(c["message"] for c in base.papp(ns)["status"]["conditions"] if c["type"] == "Ready")
        self.assertIn("no ProtectionPolicy golf", message)
        self.assertIn("kubectl get protectionpolicies", message)
        self.assertEqual(base.condition(ns, "ObjectsCaptured"), ("True", "Journaled"))
        SERVER.apply({**base.POLICY, "metadata": {"name": "golf"}})
        until("it is there", lambda: base.condition(ns, "Ready") == ("True", "Reconciled"))

    def test_points_outside_the_history_change_nothing_and_say_what_history_there_is(self):
        ns = self.make("outside-history")
        self.start()
        self.captured(ns)
        self.settle(ns, base.config_map("a", ns, "1"))
        before = SERVER.json("-n", ns, "get", "configmap", "a")
        for number, (point, said) in enumerate((("2001-01-01T00:00:00Z", "history"), ("-400d", "history"), ("lsn:999999", "lsn"), ("tag:nosuch", "nosuch"),
                                                ("before:nosuch", "no Recovery nosuch"))):
            for mode, more in (("rewind", {}), ("clone", {"targetNamespace": "outside-clone"})):
                status = self.recover(ns, f"r{number}-{mode}", mode=mode, point=point, **more)
                self.assertEqual((status["phase"],) + self.ready(status)[:2], ("Failed", "False", "PointNotAvailable"), (point, mode, status))
                self.assertIn(said, self.ready(status)[2].lower() if said == "lsn" else self.ready(status)[2])
        self.assertEqual(SERVER.json("-n", ns, "get", "configmap", "a"), before)
        self.assertIn("NotFound", SERVER.kubectl("get", "namespace", "outside-clone", check=False))

    def test_a_transform_that_matches_nothing_is_named_and_nothing_is_made(self):
        ns = self.make("transforms")
        self.start()
        self.captured(ns)
        point = self.settle(ns, base.config_map("a", ns, "1"))
        for number, (transform, said) in enumerate((({"image": {"from": "nowhere/", "to": "x/"}}, "nowhere/"),
                                                    ({"storageClass": {"from": "nosuch", "to": "x"}}, "nosuch"),
                                                    ({"replicas": 1, "target": {"kind": "StatefulSet"}}, "StatefulSet"))):
            status = self.recover(ns, f"t{number}", mode="clone", point=point, targetNamespace="transforms-clone", transforms=[transform])
            self.assertEqual((status["phase"],) + self.ready(status)[:2], ("Failed", "False", "TransformFailed"), status)
            self.assertIn(said, self.ready(status)[2])
        self.assertIn("NotFound", SERVER.kubectl("get", "namespace", "transforms-clone", check=False))

    def test_a_quota_that_is_full_is_named_with_what_is_needed_and_nothing_is_made(self):
        ns = self.make("quota")
        self.start()
        self.captured(ns)
        point = self.settle(ns, *(base.config_map(f"c{i}", ns, "1") for i in range(3)))
        base.make_namespace("quota-target")
        SERVER.apply({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "few", "namespace": "quota-target"}, "spec": {"hard": {"count/configmaps": "2"}}})
        until("the quota is in force", lambda: SERVER.json("-n", "quota-target", "get", "resourcequota", "few").get("status", {}).get("used", {}).get("count/configmaps") == "1")
        original, before = self.maps(ns), list(self.maps("quota-target"))
        status = self.recover(ns, "full", mode="clone", point=point, targetNamespace="quota-target")
        self.assertEqual((status["phase"],) + self.ready(status)[:2], ("Failed", "False", "QuotaExceeded"), status)
        self.assertRegex(self.ready(status)[2], "ResourceQuota few of the namespace quota-target .*more of count/configmaps are needed, and 1 of 2 are left")
        self.assertEqual(list(self.maps("quota-target")), before, "nothing is made")
        self.assertEqual(self.maps(ns), original, "the application is as it was")
        # with room it is done again, and what is there is the same
        SERVER.kubectl("-n", "quota-target", "patch", "resourcequota", "few", "--type=merge", "-p", '{"spec":{"hard":{"count/configmaps":"50"}}}')
        until("the room", lambda: SERVER.json("-n", "quota-target", "get", "resourcequota", "few")["status"]["hard"]["count/configmaps"] == "50")
        status = self.recover(ns, "again", mode="clone", point=point, targetNamespace="quota-target")
        self.assertEqual((status["phase"], status["verdicts"]["failed"]), ("Completed", 0), status)

    def test_an_image_that_cannot_be_pulled_is_named_while_the_workload_is_awaited(self):
        ns = self.make("image")
        self.start()
        self.captured(ns)
        point = self.settle(ns, recoveries.deployment("web", ns, "registry.invalid/shop:1", replicas=1))
        SERVER.kubectl("-n", ns, "delete", "deployment", "web")
        self.start_recovery(ns, "pull", mode="rewind", point=point)
        waiting = json.dumps({"status": {"containerStatuses": [
            {"name": "c", "image": "registry.invalid/shop:1", "imageID": "", "ready": False, "restartCount": 0,
             "state": {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image registry.invalid/shop:1"}}}]}})

        def told():
            for pod in SERVER.json("-n", ns, "get", "pods")["items"]:  # as the kubelet would say it
                SERVER.kubectl("-n", ns, "patch", "pod", pod["metadata"]["name"], "--subresource=status", "--type=merge", "-p", waiting, check=False)
            status = self.status(ns, "pull")
            return status if "ImagePullBackOff" in status.get("message", "") else None
        status = until("what is in the way", told)
        self.assertIn("Deployment web is not ready", status["message"])
        self.assertIn("registry.invalid/shop:1", status["message"])
        self.assertEqual((status["phase"], self.ready(status)[:2]), ("Running", ("False", "Running")))
        SERVER.kubectl("-n", ns, "annotate", "recovery", "pull", "tidemark.io/cancel=true")
        until("its end", lambda: self.status(ns, "pull").get("phase") in recoveries.DONE)
        self.assertEqual(SERVER.json("-n", ns, "get", "deployment", "web")["spec"]["replicas"], 1, "what was put back stays")

    def test_deleting_a_recovery_that_runs_cancels_it_and_one_that_has_ended_just_goes(self):
        ns = self.make("deleted")
        self.start()
        self.captured(ns)
        point = self.settle(ns, recoveries.deployment("web", ns))
        self.start_recovery(ns, "going", mode="rewind", point=point)
        until("the workloads are awaited", lambda: self.status(ns, "going").get("step", {}).get("name") == "Await")
        self.assertEqual(SERVER.json("-n", ns, "get", "recovery", "going")["metadata"]["finalizers"], ["tidemark.io/recovery"])
        SERVER.kubectl("-n", ns, "delete", "recovery", "going", "--wait=false")
        until("it is gone", lambda: "NotFound" in SERVER.kubectl("-n", ns, "get", "recovery", "going", check=False))
        long = "r" * 120  # no label is so long
        self.assertEqual(self.recover(ns, long, mode="rewind", point=point)["phase"], "Completed")
        until("nothing holds it", lambda: "finalizers" not in SERVER.json("-n", ns, "get", "recovery", long)["metadata"])

    def test_an_api_server_that_is_away_longer_than_the_lease_loses_nothing(self):
        ns = self.make("away")
        controller = self.start()
        self.captured(ns)
        point = self.settle(ns, *(base.config_map(f"c{i}", ns, "good") for i in range(200)))
        SERVER.apply(*(base.config_map(f"c{i}", ns, "bad") for i in range(200)))
        self.start_recovery(ns, "through", mode="rewind", point=point)
        until("the middle", lambda: "good" in base.actual(ns).values())
        SERVER.kill()
        # As after five minutes: the lease is lost, the term ends. Waited for by what the controller says.
        until("the controller leads no more", lambda: "lost the lease" in controller.log_text())
        self.assertIsNone(controller.child.poll(), "it stays")
        SERVER.up()
        until("the end", lambda: self.status(ns, "through").get("phase") in recoveries.DONE, 180)
        status = self.status(ns, "through")
        self.assertEqual((status["phase"], status["verdicts"]["failed"]), ("Completed", 0), status)
        self.assertEqual({v for k, v in self.maps(ns).items()}, {"good"})
        SERVER.apply(base.config_map("after", ns, "1"))
        until("capture goes on", lambda: self.journaled(ns))


def load_tests(loader, _tests, _pattern):
    """The class's own: those that it inherits are test_recovery's."""
    suite = unittest.TestSuite()
    for name in sorted(vars(Trouble)):
        if name.startswith("test_"):
            suite.addTest(Trouble(name))
    return suite


if __name__ == "__main__":
    recoveries.main(sys.modules[__name__])
