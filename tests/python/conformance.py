# SPDX-License-Identifier: BSD-3-Clause
"""gunicorn with one of lingerd's workers, which is named, as a program of the suite
that any sender passes (tests/conformance). What runs this has gunicorn."""

import os
import sys

from gunicorn.app.wsgiapp import run

HERE = os.path.dirname(os.path.abspath(__file__))
worker = sys.argv[1]


def lacks(why):
    print("lacks:", why)
    sys.exit()


if "LINGER_SECONDS" in os.environ:
    lacks("gunicorn has no clients that are worth less time")
if "THREADS" in os.environ and worker == "SyncWorker":
    lacks("the sync worker has one thread")
sys.path[:0] = [os.path.join(HERE, "../../senders/python/src")]
options = {
    "-k": f"lingerd.gunicorn.{worker}",
    "-w": os.environ.get("PROCESSES", "1"),
    "--threads": os.environ.get("THREADS", "1"),
    "--timeout": "600",
    "-b": "127.0.0.1:" + os.environ["PORT"],
    "-e": "LINGERD_SOCKET=" + os.environ["LINGERD_SOCKET"],
    "--chdir": HERE,
}
if "PROCESSES" in os.environ:
    # Each is to let in whom it has a thread for, as a program under test does. gthread
    # would let in more, and a client that says nothing has its thread for five seconds.
    options["--worker-connections"] = options["--threads"]
if "TLS_CERT" in os.environ:
    options.update({"--certfile": os.environ["TLS_CERT"], "--keyfile": os.environ["TLS_KEY"]})
words = [word for pair in options.items() for word in pair]
sys.argv = ["gunicorn", "--no-control-socket", *words, "app:app"]
run()
