#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The command line by its outputs: help, man page, completion, errors and exit codes, formats, progress.
TIDEMARK is the program, TIDEMARK_MAN the man page."""
import contextlib
import fcntl
import json
import os
import pty
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import time
import unittest

import fake_api

TIDEMARK = os.environ.get("TIDEMARK", "tidemark")
MAN = os.environ.get("TIDEMARK_MAN")
COMMANDS = ["up", "apply", "policy", "key", "delete", "detach", "status", "points", "tag", "open", "views", "close", "diff", "rewind", "undo",
            "verify", "upgrade-engine", "data", "node", "controller", "version", "completion", "help"]
READING = ["status", "key", "points", "views", "diff", "verify", "upgrade-engine", "version", "tag", "open", "rewind", "undo"]
try:
    import yaml
except ImportError:
    yaml = None


def run(*args, stdin="", env=None, cwd=None, progress=False):
    """`progress`: with how long it takes, which it tells after a second."""
    environment = dict(os.environ, TERM="xterm")
    environment.pop("NO_COLOR", None)
    environment.update(env or {})
    done = subprocess.run([TIDEMARK, *args], input=stdin, capture_output=True, text=True, env=environment, cwd=cwd,
                          timeout=180)
    if not progress:
        done.stderr = re.sub(r"^tidemark: .*, \d+ s\n", "", done.stderr, flags=re.MULTILINE)
    return done


def run_on_terminal(*args, answer=None, env=None, columns=0, progress=False):
    """stdin, stdout and stderr are a terminal; gives (exit code, all output). `answer` is typed at a question."""
    pid, master = pty.fork()
    if pid == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        os.environ.pop("NO_COLOR", None)
        os.environ.update(dict({"TERM": "xterm"}, **(env or {})))
        try:
            os.execv(TIDEMARK, [TIDEMARK, *args])
        finally:
            os._exit(127)
    text, deadline = b"", time.monotonic() + 120
    while time.monotonic() < deadline:
        if not select.select([master], [], [], 1)[0]:
            continue
        try:
            chunk = os.read(master, 4096)
        except OSError:
            break
        if not chunk:
            break
        text += chunk
        if answer is not None and b"[y/N]" in text:
            os.write(master, answer.encode() + b"\n")
            answer = None
    os.close(master)
    text = text.decode()
    if not progress:
        text = re.sub("\r\033\\[K[^\r\n]*(?=\r\033\\[K)", "", text).replace("\r\033[K", "")
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), text


def options_of(command):
    """[(letter or None, name)] as the help of the command has them."""
    text = run("help", command).stdout
    return [(m[1], m[2]) for m in re.finditer(r"^  (?:-(\w), )?--([\w-]+)", text, re.M)]


class Help(unittest.TestCase):
    def test_alone(self):
        result = run()
        self.assertEqual(result.returncode, 2)
        self.assertEqual(result.stdout, "")
        for command in COMMANDS:
            self.assertRegex(result.stderr, rf"(?m)^  {command} +\S")

    def test_lists_all_commands_points_and_exit_codes(self):
        for args in (["help"], ["--help"], ["-h"]):
            result = run(*args)
            self.assertEqual(result.returncode, 0)
            listed = re.findall(r"(?m)^  ([\w-]+) +\S", result.stdout.split("Commands:")[1].split("\n\n")[0])
            self.assertEqual(listed, COMMANDS)
            for code in range(7):
                self.assertRegex(result.stdout, rf"(?m)^  {code}  \S")
            self.assertIn("lsn:184467", result.stdout)

    def test_every_command_is_explained(self):
        for command in COMMANDS:
            with self.subTest(command=command):
                result = run("help", command)
                self.assertEqual(result.returncode, 0)
                self.assertEqual(run(command, "--help").stdout, result.stdout)
                self.assertTrue(result.stdout.startswith(f"Usage: tidemark {command}"))
                for part in ("Options of every command:", "--state DIR", "--socket PATH", "--no-color", "-q, --quiet",
                             "Examples:\n  "):
                    self.assertIn(part, result.stdout)
                self.assertEqual("--output" in result.stdout, command in READING + ["apply", "delete", "detach", "close"])
                for line in result.stdout.splitlines():
                    self.assertLessEqual(len(line), 100, line)

    def test_issue_options(self):
        expected = {"points": ["since", "limit", "last-clean"], "tag": ["label"], "open": ["volume", "mount", "nbd", "salvage"], "apply": ["file"],
                    "rewind": ["to", "dry-run", "yes"], "undo": ["dry-run"], "delete": ["purge"]}
        for command, names in expected.items():
            have = [name for _, name in options_of(command)]
            for name in names:
                self.assertIn(name, have)

    def test_usage_golden(self):
        for command, usage in (("rewind", "APP --to POINT [OPTIONS]"), ("open", "APP@POINT [OPTIONS]"),
                               ("status", "[APP] [OPTIONS]"), ("apply", "-f FILE [OPTIONS]"),
                               ("diff", "APP@POINT APP@POINT [OPTIONS]"), ("tag", "APP NAME [OPTIONS]")):
            self.assertEqual(run("help", command).stdout.splitlines()[0], f"Usage: tidemark {command} {usage}")

    def test_examples_parse(self):
        """Each example line of the help is accepted by the parser: it fails for lack of a server, not of grammar."""
        for command in COMMANDS:
            if command in ("up", "data", "node", "controller", "completion", "help"):
                continue
            for line in run("help", command).stdout.split("Examples:\n")[1].splitlines():
                words = line.split("tidemark ", 1)[1].split(" | ")[0].split()
                if "-f" in words:
                    continue
                with self.subTest(line=line):
                    result = run(*words, "--socket", "/nonexistent/s")
                    expected = {"version": (0, 5), "policy": (1,), "key": (1, 5)}.get(command, (5,))  # 1: there is no such file
                    self.assertIn(result.returncode, expected, result.stderr)


@unittest.skipUnless(MAN, "TIDEMARK_MAN is not set")
class ManPage(unittest.TestCase):
    def setUp(self):
        with open(MAN, encoding="utf-8") as f:
            self.text = re.sub(r"\\f[BIPR]", "", f.read()).replace("\\-", "-")

    def test_every_command_and_option(self):
        for command in COMMANDS:
            self.assertIn(f".SS tidemark {command}\n", self.text)
            section = self.text.split(f".SS tidemark {command}\n")[1]
            section = re.split(r"(?m)^\.S[SH] ", section)[0]
            everywhere = self.text.split(".SH OPTIONS")[1].split(".SH COMMANDS")[0]
            for letter, name in options_of(command):
                text = everywhere if f"--{name}" in everywhere else section
                self.assertRegex(text, rf"(?m)^(-{letter}, )?--{name}\b", f"{command} --{name}")
                if letter:
                    self.assertIn(f"-{letter}, --{name}", text)

    def test_exit_codes(self):
        for code in range(7):
            self.assertIn(f"\n{code}\n", self.text.split(".SH EXIT STATUS")[1])

    @unittest.skipUnless(shutil.which("man"), "man is not installed")
    def test_no_warnings(self):
        result = subprocess.run(["man", "--warnings", "-l", MAN], capture_output=True, text=True,
                                env=dict(os.environ, LC_ALL="C.UTF-8", MANWIDTH="80"), check=False)
        self.assertEqual((result.returncode, result.stderr), (0, ""))

    @unittest.skipUnless(shutil.which("mandoc"), "mandoc is not installed")
    def test_mandoc(self):
        result = subprocess.run(["mandoc", "-T", "lint", "-W", "warning", MAN], capture_output=True, text=True,
                                check=False)
        self.assertEqual(result.stdout, "")


def readline_words(line):
    """The words as bash gets them: readline splits at @ : = as well."""
    words = []
    for word in line.split(" "):
        words += re.findall(r"[@:=]+|[^@:=]+", word) or [""]
    return words


def quoted(words):
    return " ".join("'" + word + "'" for word in words)


class Completion(unittest.TestCase):
    """Each line as the shell would complete it, by its script; gives whole words, but of bash what follows the last of @ : =."""

    def setUp(self):
        self.directory = tempfile.TemporaryDirectory()
        self.addCleanup(self.directory.cleanup)
        self.api = fake_api.FakeApi(os.path.join(self.directory.name, "tidemark.sock"))
        self.addCleanup(lambda: self.api and self.api.stop())

    def shell(self, name, *args):
        result = subprocess.run([name, *args], capture_output=True, text=True, check=False, timeout=180,
                                env=dict(os.environ, HOME=self.directory.name, LC_ALL="C.UTF-8"))
        self.assertEqual((result.returncode, result.stderr), (0, ""), args)
        return result.stdout.splitlines()

    def bash(self, line):
        words = readline_words(line)
        script = run("completion", "bash").stdout
        return self.shell("bash", "-c", f'tidemark() {{ "{TIDEMARK}" "$@"; }}\n{script}\ncompopt() {{ :; }}\nCOMP_WORDS=({quoted(words)})\n'
                          f"COMP_CWORD={len(words) - 1}\nCOMP_LINE={quoted([line])}\nCOMP_POINT={len(line)}\nbefore=; before=$(compgen -v | sort)\n_tidemark\n"
                          'for one in $(compgen -v | sort | comm -13 <(echo "$before") - | grep -vxE "COMPREPLY|MAPFILE|PIPESTATUS|_"); do echo "left in the shell: $one" >&2; done\n'
                          'for one in "${COMPREPLY[@]}"; do echo "$one"; done')

    def zsh(self, line):
        words = line.split(" ")
        script = run("completion", "zsh").stdout
        return self.shell("zsh", "-f", "-c", f'tidemark() {{ "{TIDEMARK}" "$@"; }}\ncompdef() {{ : }}\n{script}\n'
                          "_describe() { for one in $entries; do one=${one//\\\\:/,}; one=${one%%:*}; print -r -- ${one//,/:}; done }\n"
                          "_files() { print files $* }\ncompset() { : }\n"
                          f"words=({quoted(words)})\nCURRENT={len(words)}\n_tidemark || true")

    def fish(self, line):
        script = os.path.join(self.directory.name, "tidemark.fish")
        with open(script, "w", encoding="utf-8") as f:
            f.write(run("completion", "fish").stdout)
        found = self.shell("fish", "--no-config", "-c", f"function tidemark; {TIDEMARK} $argv; end; source {script}; complete -C '{line}'")
        return [one.split("\t")[0] for one in found]

    def check(self, complete, after_break):
        """`after_break`: only what follows the last of @ : = is given."""
        def cut(*words):
            return [re.split("[@:=]", word)[-1] if after_break and not word.endswith(("@", ":")) else word for word in words]
        where = f"tidemark --state {self.directory.name} "
        self.assertEqual(sorted(complete("tidemark ")), sorted(COMMANDS))
        self.assertEqual(complete("tidemark re"), ["rewind"])
        self.assertEqual(sorted(complete("tidemark status -o ")), ["json", "table", "yaml"])
        self.assertEqual(complete("tidemark rewind shop --d"), ["--dry-run"])
        self.assertEqual(sorted(complete("tidemark key ")), ["generate", "rotate", "show"])
        self.assertEqual(complete(where + "key rotate "), ["shop"])
        self.assertEqual(complete(where + "key rotate shop /etc/passwd "), [])
        self.assertEqual(complete(where + "key show /etc/passwd "), [])
        self.assertEqual(complete("tidemark completion f"), ["fish"])
        self.assertIn("latest", complete("tidemark rewind shop --to "))
        self.assertEqual(complete(where + "points "), ["shop"])
        self.assertEqual(complete(where + "points shop "), [])
        self.assertEqual(complete(where + "close "), ["v-1a2b3c"])
        self.assertEqual(complete(where + "open sh"), ["shop@"])
        self.assertEqual(complete(where + "open shop@tag:be"), cut("shop@tag:before"))
        self.assertIn(cut("shop@latest")[0], complete(where + "open shop@"))
        self.assertEqual(complete(where + "rewind shop --to tag:b"), cut("tag:before"))
        self.assertEqual(complete(where + "rewind shop --to=tag:b"), cut("--to=tag:before"))
        self.assertEqual(complete(where + "open shop@-1h --volume "), ["data", "wal"])
        self.assertEqual(complete(where + "open shop@-1h --volume w"), ["wal"])

    def test_bash(self):
        self.check(self.bash, True)
        for command in COMMANDS:
            self.assertEqual(sorted(self.bash(f"tidemark {command} --")), sorted(f"--{name}" for _, name in options_of(command)))
        with open(os.path.join(self.directory.name, "shop.yaml"), "w", encoding="utf-8"):
            pass
        os.mkdir(os.path.join(self.directory.name, "sub"))
        for line in ("apply -f ", "key show ", "key rotate shop "):
            self.assertEqual(self.bash(f"tidemark {line}{self.directory.name}/sh"), [f"{self.directory.name}/shop.yaml"])
        self.assertEqual(self.bash(f"tidemark apply --file={self.directory.name}/sh"), [f"{self.directory.name}/shop.yaml"])
        self.assertEqual(self.bash(f"tidemark --state {self.directory.name}/s"), [f"{self.directory.name}/sub"])

    @unittest.skipUnless(shutil.which("zsh"), "zsh is not installed")
    def test_zsh(self):
        self.check(self.zsh, False)
        self.assertEqual(self.zsh("tidemark apply -f x"), ["files"])
        self.assertEqual(self.zsh("tidemark --state x"), ["files -/"])
        script = run("completion", "zsh").stdout
        self.shell("zsh", "-f", "-c", f"autoload -U compinit && compinit -D -u\n{script}\nwhich _tidemark")

    @unittest.skipUnless(shutil.which("fish"), "fish is not installed")
    def test_fish(self):
        self.check(self.fish, False)
        with open(os.path.join(self.directory.name, "shop.yaml"), "w", encoding="utf-8"):
            pass
        os.mkdir(os.path.join(self.directory.name, "sub"))
        self.assertEqual(self.fish(f"tidemark apply -f {self.directory.name}/sh"), [f"{self.directory.name}/shop.yaml"])
        self.assertEqual(self.fish(f"tidemark --state {self.directory.name}/s"), [f"{self.directory.name}/sub/"])

    def test_what_is_settled_is_not_offered_again(self):
        self.assertNotIn("--yes", self.bash("tidemark rewind shop --yes --"))
        self.assertIn("--label", self.bash("tidemark tag shop x --label a=b --"))

    def test_without_a_server(self):
        self.api.stop()
        self.api = None
        for line in ("points ", "open ", "close ", "open shop@-1h --volume "):
            self.assertEqual(self.bash(f"tidemark --state {self.directory.name} {line}"), [])
        self.assertIn("latest", self.bash(f"tidemark --state {self.directory.name} rewind shop --to "))
        for list_ in ("applications", "views"):
            result = run("completion", list_, "--state", self.directory.name)
            self.assertEqual((result.returncode, result.stdout, result.stderr), (0, "", ""))

    def test_names_for_scripts(self):
        self.assertEqual(run("completion", "applications", "--state", self.directory.name).stdout, "shop\n")
        self.assertEqual(run("completion", "views", "--state", self.directory.name).stdout, "v-1a2b3c\n")


class Usage(unittest.TestCase):
    """Wrong usage ends with 2 and says what was expected, before anything is asked."""

    def refused(self, *args, says=()):
        result = run(*args, "--socket", "/nonexistent/s")
        self.assertEqual((result.returncode, result.stdout), (2, ""), args)
        lines = result.stderr.splitlines()
        self.assertEqual(len(lines), 2, result.stderr)
        self.assertTrue(lines[0].startswith("tidemark: "))
        self.assertTrue(lines[1].startswith("  "))
        for text in says:
            self.assertIn(text, lines[0])

    def test_commands(self):
        self.refused("stauts", says=["unknown command 'stauts'", "did you mean 'status'?"])
        self.refused("rewnd", says=["'rewind'"])
        self.refused("snapshotting", says=["unknown command"])
        self.refused("help", "stat", says=["'status'"])
        self.refused("")

    def test_options(self):
        self.refused("rewind", "shop", "--too", "latest", says=["unknown option '--too'", "--to?"])
        self.refused("status", "--wach", says=["--watch?"])
        self.refused("status", "-Z", says=["unknown option"])
        self.refused("rewind", "shop", says=["--to POINT is missing"])
        self.refused("apply", says=["--file FILE is missing"])
        self.refused("status", "--watch=yes", says=["takes no value"])
        self.refused("points", "shop", "--limit", "many", says=["--limit", "'many'"])
        self.refused("points", "shop", "--limit", "1", "--limit", "2", says=["twice"])
        self.refused("status", "-o", "xml", says=["table, json, yaml"])
        result = run("points", "shop", "--limit")
        self.assertEqual(result.returncode, 2)
        self.assertIn("needs a value", result.stderr)

    def test_operands(self):
        self.refused("delete", says=["APP is missing"])
        self.refused("tag", "shop", says=["NAME is missing"])
        self.refused("status", "shop", "bank", says=["unexpected 'bank'"])
        self.refused("delete", "../etc", says=["not the name of an application"])
        self.refused("close", "..", says=["not the name of a view"])
        self.refused("tag", "shop", "a b", says=["cannot name a tag"])
        self.refused("tag", "shop", "x", "--label", "novalue", says=["expected KEY=VALUE"])
        self.refused("open", "shop", says=["expected APP@POINT"])
        self.refused("open", "shop@-90s", "--mount", "/a", "--nbd", "/b", says=["exclude each other"])
        self.refused("diff", "shop@-1h", "bank@latest", says=["two applications"])

    def test_points(self):
        for point in ("yesterday", "", "-", "-90", "90s", "lsn:", "lsn:x", "tag:", "tag:a/b", "2026-13-01T00:00:00Z",
                      "2026-11-21T02:04:46", "lsn:99999999999999999999999", "x" * 300):
            self.refused("rewind", "shop", f"--to={point}", says=["--to"])
            self.refused("open", f"shop@{point}")
        self.refused("rewind", "shop", "--to", "yesterday", says=["expected latest", "lsn:NUMBER"])
        self.refused("points", "shop", "--last-clean", "--since", "-1h", says=["--last-clean goes without"])

    def test_too_many(self):
        self.refused("tag", "shop", "x", *(["--label", "a=b"] * 40), says=["more than"])


class WithoutServer(unittest.TestCase):
    def test_unreachable(self):
        with tempfile.TemporaryDirectory() as directory:
            stale = os.path.join(directory, "stale")
            fake_api.FakeApi(stale)
            os.rename(stale, stale + "-moved")
            calls = [["status"], ["views"], ["close", "v-1"], ["delete", "shop"], ["points", "shop"], ["tag", "shop", "x"],
                     ["open", "shop@latest"], ["diff", "shop@-1h", "shop@latest"], ["rewind", "shop", "--to", "-90s"],
                     ["undo", "shop"], ["verify", "shop"], ["apply", "-f", "-"]]
            for args in calls:
                with self.subTest(args=args):
                    result = run(*args, "--state", directory, stdin="kind: x\n")
                    self.assertEqual((result.returncode, result.stdout), (5, ""))
                    self.assertRegex(result.stderr, rf"^tidemark: \S.*: cannot reach `tidemark up` at {directory}/tidemark.sock: ")
                    self.assertIn("\n  start it with `tidemark up`", result.stderr)
            result = run("status", "--socket", "/" + "x" * 200)
            self.assertEqual(result.returncode, 5)
            self.assertIn("107 bytes", result.stderr)

    def test_stopped(self):
        """Whoever has stopped `tidemark up` (Ctrl-Z, a debugger) is told so, in place of waiting with it."""
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, "tidemark.sock")
            script = ("import fake_api, signal; fake_api.FakeApi.request_queue_size = 64; "
                      f"fake_api.FakeApi({path!r}); print(flush=True); signal.pause()")
            with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=os.path.dirname(os.path.abspath(__file__))) as server:
                try:
                    server.stdout.readline()
                    os.kill(server.pid, signal.SIGSTOP)
                    os.waitid(os.P_PID, server.pid, os.WSTOPPED)
                    for args in [["status"], ["rewind", "shop", "--to", "-90s", "--yes"], ["apply", "-f", "-"]]:
                        with self.subTest(args=args):
                            result = run(*args, "--state", directory, stdin="kind: x\n")
                            self.assertEqual((result.returncode, result.stdout), (5, ""))
                            self.assertIn(f"`tidemark up` (pid {server.pid}) at {path} is stopped and answers nobody", result.stderr)
                            self.assertIn(f"\n  `kill -CONT {server.pid}`", result.stderr)
                    waiting = []
                    with contextlib.suppress(BlockingIOError):
                        while True:
                            waiting.append(socket.socket(socket.AF_UNIX))
                            waiting[-1].setblocking(False)
                            waiting[-1].connect(path)
                    result = run("status", "--state", directory)
                    self.assertEqual(result.returncode, 5)
                    self.assertIn("as many wait there as can: it is stopped", result.stderr)
                    for one in waiting:
                        one.close()
                    os.kill(server.pid, signal.SIGCONT)
                    self.assertEqual(run("status", "--state", directory).returncode, 0)
                finally:
                    server.kill()

    def test_local_commands(self):
        result = run("version", "--socket", "/nonexistent/s")
        self.assertEqual(result.returncode, 0)
        self.assertRegex(result.stdout, r"^tidemark \d+\.\d+\.\d+\n")
        self.assertEqual(run("version", "-q", "--socket", "/nonexistent/s").stdout.count("\n"), 1)
        self.assertIsNone(json.loads(run("version", "-o", "json", "--socket", "/nonexistent/s").stdout)["server"])
        self.assertEqual(run("--version").returncode, 0)

    def test_policy_lint(self):
        with tempfile.TemporaryDirectory() as directory:
            good, bad = os.path.join(directory, "good.yaml"), os.path.join(directory, "bad.yaml")
            head = "apiVersion: tidemark.io/v1alpha1\nkind: ProtectionPolicy\nmetadata: {name: gold}\n"
            with open(good, "w", encoding="utf-8") as f:
                f.write(head + "spec: {journal: {history: 30d, quota: 1Gi, thinning: [{after: 2h, keep: 1m}]}}\n")
            with open(bad, "w", encoding="utf-8") as f:
                f.write(head + "spec: {journal: {history: 30}}\n")
            result = run("policy", "lint", good)
            self.assertEqual(result.returncode, 0)
            self.assertIn("every write is kept for 2h, then a point each 1m until 30d", result.stdout)
            result = run("policy", "lint", bad, good)
            self.assertEqual(result.returncode, 1)
            self.assertIn("bad.yaml:4:27: spec.journal.history: found '30'", result.stderr)
            self.assertIn("ProtectionPolicy/gold", result.stdout)
            self.assertEqual(run("policy", "check", good).returncode, 2)
            self.assertEqual(run("policy", "lint").returncode, 2)

    def test_apply_reads_files_first(self):
        result = run("apply", "-f", "/nonexistent.yaml", "--socket", "/nonexistent/s")
        self.assertEqual(result.returncode, 1)
        self.assertIn("/nonexistent.yaml", result.stderr)

    def test_full_disk_behind_stdout(self):
        with open("/dev/full", "w", encoding="utf-8") as full:
            result = subprocess.run([TIDEMARK, "help"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("cannot write the output", result.stderr)


class PluginWithoutCluster(unittest.TestCase):
    """`kubectl tidemark` that finds no cluster ends with 5, and says at once what it tried and what to do."""

    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = directory.name
        self.plugin = os.path.join(self.directory, "kubectl-tidemark")
        os.symlink(os.path.abspath(shutil.which(TIDEMARK)), self.plugin)

    def run_plugin(self, *args, config=None):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("KUBE")}
        environment["HOME"] = self.directory
        if config is not None:
            environment["KUBECONFIG"] = os.path.join(self.directory, "config")
            with open(environment["KUBECONFIG"], "w", encoding="utf-8") as f:
                f.write(config)
        return subprocess.run([self.plugin, *args], capture_output=True, text=True, timeout=180, check=False, env=environment)

    def test_it_says_why(self):
        cluster = ("apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: 'https://127.0.0.1:1'}}]\nusers: [{name: u, user: {token: x}}]\n"
                   "contexts: [{name: ctx, context: {cluster: c, user: u}}]\ncurrent-context: ctx\n")
        for config, options, says, remedy in ((None, [], f"cannot open {self.directory}/.kube/config: No such file", "`kubectl config get-contexts`"),
                                              ("", [], "is empty", "`kubectl config get-contexts`"),
                                              (cluster, ["--context", "nope"], "has no context 'nope'", "`kubectl config get-contexts`"),
                                              (cluster, [], "cannot connect to the API server https://127.0.0.1:1: Connection refused", "`kubectl cluster-info`")):
            for args in (["status"], ["rewind", "shop/shop", "--to", "-1h"], ["points", "shop/shop"]):
                result = self.run_plugin(*args, *options, config=config)
                self.assertEqual((result.returncode, result.stdout), (5, ""), (args, config))
                first, second = result.stderr.splitlines()
                self.assertTrue(first.startswith(f"tidemark: {args[0]}: "), first)
                self.assertIn(says, first)
                self.assertIn(remedy, second)
        completed = self.run_plugin("__complete", "rewind", "", config=cluster)
        self.assertEqual((completed.returncode, completed.stdout, completed.stderr), (0, ":4\n", ""))


class Served(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.TemporaryDirectory()
        self.api = fake_api.FakeApi(os.path.join(self.directory.name, "tidemark.sock"))
        self.where = ["--state", self.directory.name]

    def tearDown(self):
        self.api.stop()
        self.directory.cleanup()

    def run(self, *args, **kwargs):  # pylint: disable=arguments-differ
        if args and isinstance(args[0], unittest.TestResult) or not args:
            return super().run(*args, **kwargs)
        return run(*args, *self.where, **kwargs)

    def good(self, *args, **kwargs):
        result = self.run(*args, **kwargs)
        self.assertEqual((result.returncode, result.stderr), (0, ""), args)
        return result.stdout

    def asked(self, method, path):
        found = [c for c in self.api.calls if (c["method"], c["path"]) == (method, path)]
        self.assertTrue(found, self.api.calls)
        return found[-1]

    # Formats
    def test_status_json_is_what_the_api_gives(self):
        answer = json.loads(self.good("status", "-o", "json"))
        self.assertEqual(answer["applications"], [fake_api.SHOP])
        for field in ("name", "state", "lsn", "durable_lsn", "oldest_lsn", "oldest_time", "rpo_ms", "journal_bytes"):
            self.assertIn(field, answer["applications"][0])
        self.good("status", "shop", "-o", "json")
        self.assertEqual(self.api.calls[-1]["query"], {"app": "shop"})

    def test_suspicious(self):
        rows = self.good("points", "shop").splitlines()
        self.assertEqual([("SUSPICIOUS" in row, "1200" in row) for row in rows if "SUSPICIOUS" in row or "1200" in row], [(True, True)])
        self.assertEqual(self.good("points", "shop", "--last-clean", "-q"), "lsn:1150\n")
        self.assertEqual(self.api.calls[-1]["path"], "/v1/applications/shop/last-clean")
        self.assertIn("suspicious since 2026-01-01T12", self.run("points", "shop", "--last-clean").stderr)

    def test_json_of_every_reading_command(self):
        expected = {("points", "shop", "--last-clean"): fake_api.LAST_CLEAN,
                    ("points", "shop"): {"points": fake_api.POINTS}, ("views",): {"views": [fake_api.VIEW]},
                    ("diff", "shop@-1h", "shop@latest"): fake_api.DIFF, ("open", "shop@-1h"): fake_api.VIEW,
                    ("rewind", "shop", "--to", "-90s"): fake_api.REWIND, ("undo", "shop"): fake_api.REWIND,
                    ("rewind", "shop", "--to", "-90s", "--dry-run"): fake_api.PLAN}
        for args, answer in expected.items():
            self.assertEqual(json.loads(self.good(*args, "-o", "json")), answer, args)
        for args in (["tag", "shop", "x"], ["open", "shop@-1h"], ["rewind", "shop", "--to", "-90s"], ["undo", "shop"]):
            self.assertIsInstance(json.loads(self.good(*args, "--output=json"))["lsn"], int)

    @unittest.skipUnless(yaml, "python3-yaml is not installed")
    def test_yaml_is_the_same_value(self):
        for args in (["status"], ["points", "shop"], ["views"], ["diff", "shop@-1h", "shop@latest"], ["version"],
                     ["rewind", "shop", "--to", "-90s", "--dry-run"], ["verify", "shop"], ["delete", "shop"]):
            with self.subTest(args=args):
                self.assertEqual(yaml.safe_load(self.good(*args, "-o", "yaml")), json.loads(self.good(*args, "-ojson")))

    def test_table_status(self):
        text = self.good("status")
        lines = text.splitlines()
        self.assertEqual(lines[0], "OK: 1 application, protected.")
        self.assertRegex(text, r"shop +protected +1234 +12 ms +.* ago +1\.0 MiB +8\.0 GiB +1\n")
        self.assertRegex(text, r"shop +data +8\.0 GiB +1\.2 GiB +/dev/loop0 +/srv/shop/data\n")
        self.assertRegex(text, r"shop +wal +2\.0 GiB +512 B +- +nbd\+unix:///wal")
        self.assertNotIn("\033", text)
        self.api.applications = [fake_api.SHOP, fake_api.BROKEN]
        self.assertEqual(self.good("status").splitlines()[0],
                         "PROBLEM: bank is suspended: journal full (1 of 2 applications)")
        self.assertIn("durable up to LSN 1230", self.good("status", "shop"))
        resyncing = dict(fake_api.SHOP, state="resyncing", resync={"done_bytes": 1, "total_bytes": 4})
        self.api.applications = [resyncing]
        self.assertEqual(self.good("status").splitlines()[0], "UNDER WAY: shop is resyncing (25 %) (1 of 1 applications)")
        self.api.applications = []
        self.assertIn("No application is protected", self.good("status"))

    def test_sparse_answers(self):
        """A newer or an older server: missing fields and nulls show as '-'."""
        self.api.applications = [{"name": "x", "state": "failed", "message": None, "lsn": None, "volumes": [{}]}]
        self.assertIn("PROBLEM: x is failed", self.good("status"))
        self.assertIn("x is failed", self.good("status", "x"))

    def test_tables(self):
        points = self.good("points", "shop")
        self.assertRegex(points, r"1300 +2026-01-02T00:00:00.000Z +.* ago +tag +before +build=0123")
        self.assertNotIn("\033", points)
        self.assertRegex(points, r"1100 .* rewind +- +to lsn:7")
        self.assertRegex(self.good("views"), r"v-1a2b3c +shop +1200 +2026-01-01T12:00:00.000Z +open .* 4\.0 KiB +data: /mnt/then")
        self.assertRegex(self.good("diff", "shop@-1h", "shop@latest"), r"(?s)data +8\.0 KiB +2\n.*app\.yaml +changed\n")
        self.assertIn("tidemark close v-1a2b3c", self.good("open", "shop@-1h"))
        self.assertEqual(self.good("open", "shop@-1h", "-q"), "v-1a2b3c\n")
        self.assertIn("tag:x is LSN 1301", self.good("tag", "shop", "x"))
        self.assertEqual(self.good("tag", "shop", "x", "-q"), "")
        self.assertEqual(self.good("close", "v-1a2b3c"), "v-1a2b3c closed\n")
        result = self.good("rewind", "shop", "--to", "-90s")
        for text in ("LSN 1000", "data 5.0 MiB", "app.yaml: write", "rewind 50 ms", "RPO       3 ms", "tidemark undo shop"):
            self.assertIn(text, result)
        plan = self.good("rewind", "shop", "--to", "-90s", "--dry-run")
        for text in ("Plan: shop goes from LSN 1234 back to LSN 1000", "systemctl stop shop", "the clock was set"):
            self.assertIn(text, plan)
        self.assertIn("9.9", self.good("version"))

    # Requests
    def test_requests(self):
        self.good("tag", "shop", "x", "--label", "a=b=c", "-l", "k=")
        self.assertEqual(json.loads(self.asked("POST", "/v1/applications/shop/tag")["body"]),
                         {"name": "x", "labels": {"a": "b=c", "k": ""}})
        self.run("points", "shop", "--since", "2026-01-01T00:00:00+01:00", "-n", "1")
        self.assertEqual(self.asked("GET", "/v1/applications/shop/points")["query"],
                         {"since": "2026-01-01T00:00:00+01:00", "limit": "1"})
        self.good("open", "shop@tag:a.b", "--volume", "data", "--mount", "then", cwd="/tmp")
        self.assertEqual(json.loads(self.asked("POST", "/v1/applications/shop/open")["body"]),
                         {"point": "tag:a.b", "volume": "data", "mount": "/tmp/then"})
        self.good("open", "shop@latest", "--nbd", "/run/x")
        self.assertEqual(json.loads(self.asked("POST", "/v1/applications/shop/open")["body"]),
                         {"point": "latest", "nbd": "/run/x"})
        self.good("rewind", "--to", "lsn:5", "shop")
        self.assertEqual(json.loads(self.asked("POST", "/v1/applications/shop/rewind")["body"]),
                         {"to": "lsn:5", "dry_run": False})
        self.good("diff", "shop@-1h", "shop@latest")
        self.assertEqual(json.loads(self.asked("POST", "/v1/applications/shop/diff")["body"]),
                         {"from": "-1h", "to": "latest"})
        self.assertIn("kept: journal /s/journal", self.good("delete", "shop"))
        self.assertEqual(self.asked("DELETE", "/v1/applications/shop")["query"], {})
        self.good("delete", "shop", "--purge")
        self.assertEqual(self.asked("DELETE", "/v1/applications/shop")["query"], {"purge": "true"})

    def test_apply(self):
        folder = os.path.join(self.directory.name, "a b")
        os.mkdir(folder)
        good, bad = os.path.join(folder, "shop.yaml"), os.path.join(folder, "bad.yaml")
        for path, text in ((good, "kind: ProtectedApplication\n# ü\n"), (bad, "bad: 1\n")):
            with open(path, "w", encoding="utf-8") as f:
                f.write(text)
        self.assertEqual(self.good("apply", "-f", good), "ProtectedApplication/shop created\n")
        call = self.asked("POST", "/v1/apply")
        self.assertEqual(call["query"], {"directory": folder, "file": good})
        self.assertEqual((call["body"], call["type"]), ("kind: ProtectedApplication\n# ü\n", "application/yaml"))
        self.assertIn("(dry run)", self.good("apply", "-f", good, "--dry-run"))
        self.good("apply", "-f", "-", stdin="kind: x\n", cwd=folder)
        self.assertEqual(self.asked("POST", "/v1/apply")["query"], {"directory": folder, "file": "stdin"})
        self.api.calls.clear()
        result = self.run("apply", "-f", good, "-f", bad)
        self.assertEqual((result.returncode, result.stdout), (1, ""))
        self.assertIn(f"{bad}:3:5: unknown field 'bad'", result.stderr)
        self.assertEqual([c["query"].get("dry_run") for c in self.api.calls], ["true", "true"])
        self.assertEqual(len(json.loads(self.good("apply", "-f", good, "-f", good, "-o", "json"))["results"]), 2)

    # Errors
    def test_exit_codes(self):
        for args in (["points", "bank"], ["status", "bank"], ["close", "v-9"], ["rewind", "bank", "--to", "latest"]):
            result = self.run(*args)
            self.assertEqual((result.returncode, result.stdout), (3, ""), args)
            self.assertRegex(result.stderr, r"^tidemark: \S.*: no (application|view) '.*'\n  \S")
        for status, code, exit_code in ((409, "EBUSY", 4), (409, "EEXIST", 4), (422, "ERANGE", 4), (400, "EINVAL", 1),
                                        (500, "EIO", 1), (404, "ENOENT", 3), (500, "ECONNREFUSED", 1), (500, "ENOSUCH", 1)):
            self.api.refuses = (status, code, "because")
            result = self.run("tag", "shop", "x")
            self.assertEqual(result.returncode, exit_code, code)
            self.assertTrue(result.stderr.startswith("tidemark: tag shop x: because\n"), result.stderr)

    def test_failed_operations(self):
        for code, exit_code in (("EBUSY", 4), ("ENOENT", 3), ("EIO", 1), ("EUCLEAN", 6)):
            self.api.fails = (code, "it went wrong")
            result = self.run("rewind", "shop", "--to", "-90s", "-o", "json")
            self.assertEqual((result.returncode, result.stdout), (exit_code, ""))
            self.assertIn("tidemark: rewind shop: it went wrong", result.stderr)

    def test_salvage(self):
        text = self.good("open", "shop@-90s", "--salvage")
        self.assertTrue(json.loads(self.api.calls[0]["body"])["salvage"])
        for line in ("note: the last point", "found: l0-0000000003.idx: is missing", "8.0 KiB cannot be read", "read-only"):
            self.assertIn(line, text)
        self.assertRegex(text, r"(?m)^data +65536 +8192 +segment 3 is lost$")
        answer = json.loads(self.good("open", "shop@-90s", "--salvage", "-o", "json"))
        self.assertEqual(answer["salvage"], fake_api.SALVAGE)
        self.api.calls.clear()
        self.assertNotIn("cannot be read", self.good("open", "shop@-90s"))
        self.assertNotIn("salvage", json.loads(self.api.calls[0]["body"]))

    def test_upgrade_engine(self):
        text = self.good("upgrade-engine", "shop")
        self.assertEqual(text, "shop: engine 9.9 (pid 43) took over from 9.8 (pid 42); I/O paused for 48.2 ms\n")
        self.assertEqual(json.loads(self.api.calls[0]["body"]), {"disconnect": False})
        self.api.calls.clear()
        self.assertIn("connect again", self.good("upgrade-engine", "shop", "--disconnect"))
        self.assertEqual(json.loads(self.good("upgrade-engine", "shop", "-o", "json"))["pause_ms"], 48.2)

    def test_warnings(self):
        self.api.warnings = ["this kernel is old"]
        self.assertIn("\nwarning: this kernel is old\n", self.good("status"))

    def test_verify(self):
        self.assertIn("reads back as it was written", self.good("verify", "shop"))
        self.api.verify_ok = False
        result = self.run("verify", "shop", "-o", "json")
        self.assertEqual(result.returncode, 6)
        self.assertFalse(json.loads(result.stdout)["ok"])
        self.assertEqual(json.loads(result.stdout)["damage"], [fake_api.DAMAGE])
        self.assertIn("damage was found", result.stderr)
        result = self.run("verify", "shop")
        self.assertEqual(result.returncode, 6)
        self.assertRegex(result.stdout, r"(?m)^1200-1210 .* data +65536 +4096 +segment-0000000003\.tmj +payload at block 17")
        self.assertIn("--salvage", result.stderr)

    def test_nonsense_answers(self):
        for raw in (b"", b"<html>", b"[]", b"{}", b'{"operation": 1}', b'{"operation": {}}', b'{"applications": 7}'):
            self.api.raw = raw
            for args in (["rewind", "shop", "--to", "-90s"], ["status"], ["points", "shop"], ["apply", "-f", "-"]):
                result = self.run(*args, stdin="x: 1\n")
                self.assertIn(result.returncode, (0, 1), (raw, args, result.stderr))

    def test_escapes_in_messages(self):
        self.api.refuses = (500, "EIO", "bad \x1b[2Jname \x9b2J")
        self.assertIn("bad ?[2Jname ?2J", self.run("status").stderr)
        self.api.refuses = None
        self.assertIn("esc=?[31mred csi=?31mred", self.run("points", "shop").stdout)

    # Progress, colours, questions
    def test_progress_lines(self):
        self.api.slow_s = 2.6
        result = self.run("verify", "shop", progress=True)
        self.assertEqual(result.returncode, 0)
        self.assertRegex(result.stderr, r"^tidemark: verify shop: reading, 1\.0 GiB of 2\.0 GiB \(50 %\), [12] s\n$")
        self.assertEqual(self.run("verify", "shop", "-q", progress=True).stderr, "")

    def test_progress_of_a_slow_call(self):
        self.api.delay_s = 2.6
        self.assertRegex(self.run("status", progress=True).stderr, r"^tidemark: status, [12] s\n$")

    def test_progress_on_a_terminal(self):
        self.api.slow_s = 2.6
        code, text = run_on_terminal("verify", "shop", *self.where, progress=True)
        self.assertEqual(code, 0)
        self.assertGreaterEqual(text.count("\r\033[Kverify shop: reading, 1.0 GiB of 2.0 GiB (50 %)"), 2)
        self.assertIn("\r\033[Kshop: every record", text)

    def test_colours(self):
        code, text = run_on_terminal("status", *self.where)
        self.assertEqual(code, 0)
        self.assertIn("\033[32mprotected", text)
        for extra, env in ((["--no-color"], {}), ([], {"NO_COLOR": "1"}), ([], {"TERM": "dumb"})):
            code, text = run_on_terminal("status", *self.where, *extra, env=env)
            self.assertEqual(code, 0)
            self.assertNotIn("\033[", text)

    def test_progress_keeps_to_one_line(self):
        """A line that wraps could not be cleared."""
        self.api.slow_s = 2.6
        code, text = run_on_terminal("verify", "shop", *self.where, columns=30, progress=True)
        self.assertEqual(code, 0)
        shown = re.findall("\r\033\\[K(verify[^\r]*)", text)
        self.assertTrue(shown)
        self.assertEqual({len(line) for line in shown}, {29})

    def test_narrow_terminals(self):
        """Columns stand closer; where they do not fit either, each cell has a line. Elsewhere the width is nobody's business."""
        wide = self.good("views").splitlines()
        for columns in (250, 120):
            code, text = run_on_terminal("views", *self.where, "--no-color", columns=columns)
            self.assertEqual((code, [line.rstrip() for line in text.splitlines()]), (0, [line.rstrip() for line in wide]))
        needed = len(wide[0])
        code, text = run_on_terminal("views", *self.where, "--no-color", columns=needed - 1)
        self.assertEqual(code, 0)
        self.assertRegex(text, r"v-1a2b3c shop")
        code, text = run_on_terminal("views", *self.where, "--no-color", columns=40)
        self.assertEqual(code, 0)
        self.assertRegex(text, r"(?m)^VIEW +v-1a2b3c\r$")
        self.assertRegex(text, r"(?m)^LSN +1200\r$")

    def test_question(self):
        rewind = ["rewind", "shop", "--to", "-90s", *self.where]
        for answer, expected in (("n", 1), ("", 1), ("y", 0), ("yes", 0)):
            self.api.calls.clear()
            code, text = run_on_terminal(*rewind, answer=answer)
            self.assertEqual(code, expected, text)
            self.assertIn("Plan: shop goes", text)
            done = [c for c in self.api.calls if c["path"].endswith("/rewind") and not json.loads(c["body"])["dry_run"]]
            self.assertEqual(len(done), 1 - expected)
        code, text = run_on_terminal(*rewind, "--yes")
        self.assertEqual(code, 0)
        self.assertNotIn("[y/N]", text)
        self.api.calls.clear()
        code, text = run_on_terminal("delete", "shop", "--purge", *self.where, answer="n")
        self.assertEqual((code, self.api.calls), (1, []))

    def test_interrupt(self):
        self.api.slow_s = 20
        process = subprocess.Popen([TIDEMARK, "rewind", "shop", "--to", "-90s", *self.where], stderr=subprocess.PIPE,
                                   text=True)
        while not any(c["path"].startswith("/v1/operations/") for c in self.api.calls):
            time.sleep(0.02)
        process.send_signal(2)
        self.assertIn("the operation goes on", process.communicate(timeout=180)[1])
        self.assertEqual(process.returncode, 130)

    def test_watch(self):
        process = subprocess.Popen([TIDEMARK, "status", "--watch", "-o", "json", *self.where], stdout=subprocess.PIPE,
                                   text=True)
        text = ""
        while text.count("\n}\n") < 2:
            text += process.stdout.readline()
        process.kill()
        process.communicate()
        decoder = json.JSONDecoder()
        first, end = decoder.raw_decode(text)
        self.assertEqual(decoder.raw_decode(text[end:].lstrip())[0], first)


if __name__ == "__main__":
    unittest.main()
