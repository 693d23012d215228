# SPDX-License-Identifier: Apache-2.0
"""J5, J6 with the engine as it is run: sealed segments are compressed, status and metrics say what that saves, and their points open with
what was there, also after a crash; a journal is verified as before, and switching it off leaves what is compressed readable."""
import json

import lib


def compressed(app):
    status = app.status()
    return status if status["compressed_bytes"] else None


def check_then(app, expected):
    view = app.view("tag:then")
    lib.check(lib.digest(view.device("data")) == expected, "a point in compressed history is not what it was")
    view.close()


with lib.Test("compress", "fio") as test:
    app = test.application({"data": 64 * lib.MIB}, compress=0)
    device = app.device("data")
    test.fio(device, size=32 * lib.MIB, bs="4k", buffer_compress_percentage=75, refill_buffers=1)
    app.sync()
    app.tag("then")
    expected = lib.digest(device)
    test.fio(device, size=8 * lib.MIB, bs="64k", buffer_compress_percentage=75, refill_buffers=1)
    app.call("POST", "/v1/seal")
    status = lib.wait_for("the history to be compressed", lambda: compressed(app), 120)
    print("%d KiB of the history take %d KiB" % (status["compressed_plain_bytes"] // 1024, status["compressed_bytes"] // 1024))
    lib.check(status["compressed_bytes"] < status["compressed_plain_bytes"] * 7 // 8, status)
    check_then(app, expected)
    app.kill_engine()
    lib.check(compressed(app), app.status())
    check_then(app, expected)
    app.check_latest()
    with open(app.config) as f:
        config = json.load(f)
    del config["compress_after_ns"]
    with open(app.config, "w") as f:
        json.dump(config, f)
    app.call("POST", "/v1/configure")
    check_then(app, expected)
