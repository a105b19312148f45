# SPDX-License-Identifier: BSD-3-Clause
# What gunicorn serves in the tests; it never reads a body.
import os
import tempfile

BIG = bytes((n // 251 + n) % 256 for n in range(5_000_000))
FILE = tempfile.NamedTemporaryFile()
FILE.write(b"before" + BIG)
FILE.flush()
PAGES = {
    "/big": BIG,
    "/page": bytes((n // 251 + n) % 256 for n in range(20_000)),
    "/pid": b"%d" % os.getpid(),
}


def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/file":
        start_response("200 OK", [("Content-Length", str(len(BIG)))])
        file = open(FILE.name, "rb")
        file.seek(6)
        return environ["wsgi.file_wrapper"](file)
    if path == "/pieces":
        # Of which there is more to come, as far as anybody knows.
        start_response("200 OK", [("Content-Type", "text/plain")])
        return (BIG[at : at + 50_000] for at in range(0, len(BIG), 50_000))
    # A number is how many bytes tests/conformance wants.
    body = b"x" * int(path[1:]) if path[1:].isdigit() else PAGES[path]
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
