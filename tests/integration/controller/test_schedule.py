#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints on a schedule, against a real API server. Times that are due are made by putting status.checkpoints.nextTime into
the past: nothing here waits for a clock."""
import json
import os
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import test_controller as base
from test_controller import ControllerTest, condition, make_namespace, papp
from apiserver import ApiServer, until


def policy(name, **spec):
    base.SERVER.apply({"apiVersion": "tidemark.io/v1alpha1", "kind": "ProtectionPolicy", "metadata": {"name": name}, "spec": spec})


def checkpoints(ns):
    items = base.SERVER.json("-n", ns, "get", "checkpoints")["items"]
    return {o["metadata"]["name"]: o for o in items}


def scheduled(ns):
    return {n: o for n, o in checkpoints(ns).items() if o["metadata"].get("labels", {}).get("tidemark.io/scheduled") == "true"}


def told(ns):
    return (papp(ns) or {}).get("status", {}).get("checkpoints", {})


def make_due(ns, time):
    """Without a controller: one that is just writing the status would put its own time back."""
    base.SERVER.kubectl("-n", ns, "patch", "papp", ns, "--subresource=status", "--type=merge", "-p",
                        json.dumps({"status": {"checkpoints": {"nextTime": time}}}))
    # Whatever it waits for is hours away: a change of the application lets it look again.
    make_due.count += 1
    base.SERVER.kubectl("-n", ns, "annotate", "papp", ns, f"look={make_due.count}", "--overwrite")


make_due.count = 0


def ended(checkpoint):
    return checkpoint.get("status", {}).get("phase") in ("Ready", "Failed")


class Schedule(ControllerTest):
    def test_what_is_due_is_made_once_and_missed_times_do_not_pile_up(self):
        policy("hourly", checkpoints={"schedule": "@yearly", "consistent": False})
        ns = make_namespace("hourly", **{"tidemark.io/policy": "hourly"})
        controller = self.start()
        until("the schedule", lambda: told(ns).get("nextTime"))
        self.assertEqual(told(ns)["schedule"], "@yearly UTC")
        self.assertEqual(condition(ns, "Checkpoints"), ("True", "Scheduled"))
        self.assertEqual(scheduled(ns), {}, "a new schedule begins with its next time")
        # The controller is away while five of them pass; two of its kind look after each other.
        controller.kill()
        make_due(ns, "2020-01-01T00:00:00Z")
        controller = self.start("two")
        until("the one", lambda: [o for o in scheduled(ns).values() if ended(o)])
        self.captured(ns)
        self.assertEqual(len(scheduled(ns)), 1)
        name, made = next(iter(scheduled(ns).items()))
        self.assertEqual(told(ns)["lastCheckpoint"], name)
        self.assertGreaterEqual(told(ns)["missed"], 6)
        self.assertEqual(made["metadata"]["annotations"]["tidemark.io/scheduled-at"], told(ns)["lastTime"])
        # Whoever died between making it and writing it down: the next one finds it.
        controller.kill()
        make_due(ns, told(ns)["lastTime"])
        self.start("three")
        until("it is written down again", lambda: told(ns)["nextTime"] > told(ns)["lastTime"])
        self.assertEqual(set(scheduled(ns)), {name})

    def test_what_is_not_kept_is_deleted_and_what_people_made_is_not(self):
        policy("few", checkpoints={"schedule": "@yearly", "consistent": False, "keep": {"count": 2}})
        ns = make_namespace("few", **{"tidemark.io/policy": "few"})
        self.start()
        self.captured(ns)
        until("the schedule", lambda: told(ns).get("nextTime"))
        base.SERVER.kubectl("create", "-f", "-", stdin=json.dumps({
            "apiVersion": "tidemark.io/v1alpha1", "kind": "Checkpoint", "metadata": {"name": "mine", "namespace": ns}, "spec": {"application": ns}}))
        # The runs' own times are in the past and all different: each is a Checkpoint of its own, one after the other.
        names = []
        for hour in range(4):
            base.SERVER.kubectl("create", "-f", "-", stdin=json.dumps({
                "apiVersion": "tidemark.io/v1alpha1", "kind": "Checkpoint", "spec": {"application": ns},
                "metadata": {"name": f"few-{hour}", "namespace": ns, "labels": {"tidemark.io/scheduled": "true"}}}))
            names.append(f"few-{hour}")
            until("its end", lambda n=names[-1]: n not in checkpoints(ns) or ended(checkpoints(ns)[n]))
        until("the last two", lambda: set(scheduled(ns)) == set(names[-2:]))
        self.assertIn("mine", checkpoints(ns))

    def test_two_never_run_at_once(self):
        policy("forbid", checkpoints={"schedule": "@yearly", "consistent": False})
        ns = make_namespace("forbid", **{"tidemark.io/policy": "forbid"})
        controller = self.start()
        until("the schedule", lambda: told(ns).get("nextTime"))
        controller.kill()
        # One is being made: a controller that died left it, and what it held cannot be thawed yet (its pod is on no node).
        policy("forbid", hooks=[{"name": "files", "blueprint": "forbid"}], checkpoints={"schedule": "@yearly", "consistent": False})
        base.SERVER.apply(
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "blueprint-forbid", "namespace": "tidemark-system",
                                                                   "labels": {"tidemark.io/blueprint": "forbid"}},
             "data": {"images": "held", "pre": "true", "post": "true"}},
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": ns}, "spec": {"containers": [{"name": "c", "image": "held"}]}})
        base.SERVER.kubectl("-n", ns, "patch", "pod", "p", "--subresource=status", "--type=merge", "-p", '{"status": {"phase": "Running"}}')
        base.SERVER.kubectl("create", "-f", "-", stdin=json.dumps({
            "apiVersion": "tidemark.io/v1alpha1", "kind": "Checkpoint", "metadata": {"name": "running", "namespace": ns},
            "spec": {"application": ns, "consistent": True}}))
        base.SERVER.kubectl("-n", ns, "patch", "checkpoint", "running", "--subresource=status", "--type=merge", "-p", json.dumps({"status": {
            "phase": "Freezing", "thawBy": "2099-01-01T00:00:00Z", "hooks": [{"hook": "files", "pod": "p", "container": "c", "state": "Held"}]}}))
        make_due(ns, "2020-01-01T00:00:00Z")
        self.start("two")
        until("it waits", lambda: condition(ns, "Checkpoints") == ("True", "Waiting"))
        self.assertEqual(scheduled(ns), {})
        base.SERVER.kubectl("-n", ns, "delete", "checkpoint", "running")
        until("its turn", lambda: scheduled(ns))

    def test_a_failure_is_told_and_ends(self):
        policy("fails", checkpoints={"schedule": "@yearly"})  # consistent, without hooks
        ns = make_namespace("fails", **{"tidemark.io/policy": "fails"})
        controller = self.start()
        until("the schedule", lambda: told(ns).get("nextTime"))
        controller.kill()
        make_due(ns, "2020-01-01T00:00:00Z")
        controller = self.start("two")
        until("the failure", lambda: condition(ns, "Checkpoints") == ("False", "CheckpointFailed"))
        message = [c for c in papp(ns)["status"]["conditions"] if c["type"] == "Checkpoints"][0]["message"]
        self.assertIn("NoHooks", message)
        self.assertIn("add spec.hooks to the policy", message)
        until("an event", lambda: "CheckpointFailed" in base.SERVER.kubectl("-n", ns, "get", "events"))
        policy("fails", checkpoints={"schedule": "@yearly", "consistent": False})
        # Another name, or it would be the one that failed.
        failed = set(scheduled(ns))
        base.SERVER.kubectl("-n", ns, "delete", "checkpoint", *failed)
        controller.kill()
        make_due(ns, "2020-01-01T00:00:00Z")
        self.start("three")
        until("it is over", lambda: condition(ns, "Checkpoints") == ("True", "Scheduled") and
              any(o.get("status", {}).get("phase") == "Ready" for o in scheduled(ns).values()))
        until("its moment", lambda: told(ns).get("lastSuccessTime"))

    def test_no_schedule_any_more_and_a_pause_and_a_bad_one(self):
        policy("off", checkpoints={"schedule": "@yearly", "consistent": False})
        policy("child", extends="off")
        ns = make_namespace("off", **{"tidemark.io/policy": "child"})
        self.start()
        until("the schedule of the policy that it extends", lambda: told(ns).get("nextTime"))
        policy("child", extends="off", checkpoints={"schedule": "99 * * * *"})
        until("what is wrong", lambda: condition(ns, "Checkpoints") == ("False", "BadSchedule"))
        self.assertNotIn("nextTime", told(ns))
        policy("child", extends="off")
        until("it is well again", lambda: condition(ns, "Checkpoints") == ("True", "Scheduled"))
        base.SERVER.kubectl("-n", ns, "patch", "papp", ns, "--type=merge", "-p", '{"spec": {"paused": true}}')
        until("the pause", lambda: condition(ns, "Checkpoints") == ("False", "Paused"))
        policy("off", journal={"history": "1d"})
        until("nothing is left", lambda: condition(ns, "Checkpoints") is None and not told(ns))

    def test_the_schema_refuses_half_a_schedule(self):
        for spec, why in (({}, "one of schedule and interval"), ({"schedule": "@daily", "interval": "1h"}, "one of schedule and interval"),
                          ({"interval": "1h", "timeZone": "UTC"}, "timeZone goes with schedule")):
            said = base.SERVER.kubectl("create", "-f", "-", check=False, stdin=json.dumps({
                "apiVersion": "tidemark.io/v1alpha1", "kind": "ProtectionPolicy", "metadata": {"name": "half"}, "spec": {"checkpoints": spec}}))
            self.assertIn(why, said)


if __name__ == "__main__":
    base.main("__main__")
