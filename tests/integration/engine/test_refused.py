# SPDX-License-Identifier: Apache-2.0
"""A second engine on the same journal is refused with status 78 and a message that names the first; so are a volume whose
journal is not of its backing, a point outside of history, an unknown tag, and a pin without its lock."""
import json

import lib

with lib.Test("refused") as test:
    app = test.application({"data": 64 * lib.MIB})
    second = lib.Application(test, {"data": 64 * lib.MIB}, journal=app.journal, name="second")
    log = lib.run(lib.HOLDER, "--config", second.directory + "/holder.json", status=78, timeout=30)
    lib.check("in use by" in log and "pid %d" % app.pid() in log, "the holder's message:", log)
    with open("/proc/mounts") as f:
        lib.check(second.directory not in f.read(), "a mount is left")

    for point, status, text in (("lsn:99999999", None, "history"), ("tag:none", 404, "none"), ("yesterday-ish", 400, "yesterday-ish")):
        got, answer = lib.call(app.socket, "POST", "/v1/resolve", {"point": point})
        lib.check(got >= 400 and (status is None or got == status), point, got, answer)
        lib.check(text in answer["error"]["message"], point, answer)
    got, answer = lib.call(app.socket, "POST", "/v1/pin", {"pin": "v-none", "point": "latest"})
    lib.check(got >= 400 and "lock" in answer["error"]["message"], got, answer)
    app.tag("one")
    lib.check(lib.call(app.socket, "POST", "/v1/tag", {"name": "one"})[0] == 409, "a tag was given twice")
    app.stop()

    with open(app.config) as f:
        config = json.load(f)
    config["volumes"][0]["adopt"] = True
    with open(app.config, "w") as f:
        json.dump(config, f)
    log = lib.run(lib.HOLDER, "--config", app.directory + "/holder.json", status=78, timeout=30)
    lib.check("was made new in this journal" in log, "the message:", log)
