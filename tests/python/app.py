# SPDX-License-Identifier: BSD-3-Clause
# What gunicorn serves in the tests; it reads no body, but to count its bytes.
import os
import tempfile

BIG = bytes((n // 251 + n) % 256 for n in range(5_000_000))
FILE = tempfile.NamedTemporaryFile()
FILE.write(b"before" + BIG)
FILE.flush()
PAGES = {
    "/count": b"",
    "/big": BIG,
    "/page": bytes((n // 251 + n) % 256 for n in range(20_000)),
    "/pid": b"%d" % os.getpid(),
}


def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path in ("/file", "/file-without-length"):
        length = [("Content-Length", str(len(BIG)))] if path == "/file" else []
        start_response("200 OK", length)
        file = open(FILE.name, "rb")
        file.seek(6)
        return environ["wsgi.file_wrapper"](file)
    if path in ("/pieces", "/list"):
        start_response("200 OK", [("Content-Type", "text/plain")])
        pieces = (BIG[at : at + 50_000] for at in range(0, len(BIG), 50_000))
        # Of the first there is more to come, as far as anybody knows.
        return pieces if path == "/pieces" else list(pieces)
    if path in ("/fails", "/fails-in-chunks"):
        length = [("Content-Length", str(len(BIG)))] if path == "/fails" else []
        start_response("200 OK", length)
        return fails()
    # What the conformance suite asks for.
    body = b"x" * int(path[1:]) if path[1:].isdecimal() else PAGES[path]
    if path == "/count":
        body = b"%d" % len(environ["wsgi.input"].read())
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


def fails():
    yield BIG[:50_000]
    raise RuntimeError("to be seen")
