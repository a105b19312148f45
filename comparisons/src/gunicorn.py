# SPDX-License-Identifier: BSD-3-Clause
"""What gunicorn serves here: the pages of cruel clients, which lie beside this file,
and for /N a page of N bytes. It reads no body."""

import os

UPLOAD_LIMIT = 100_000
REFUSED = {"/401.asis": "401 Unauthorized", "/503": "503 Service Unavailable"}
PAGES = {}
for name in os.listdir("pages"):
    with open(os.path.join("pages", name), "rb") as page:
        PAGES["/" + name] = page.read()


def app(environ, start_response):
    path = environ["PATH_INFO"]
    status = REFUSED.get(path, "200 OK")
    if status == "200 OK" and int(environ.get("CONTENT_LENGTH") or 0) > UPLOAD_LIMIT:
        status = "413 Content Too Large"
    if status != "200 OK":
        body = b"who there?"
    elif path[1:].isdecimal():
        body = b"x" * int(path[1:])
    else:
        body = PAGES[path]
    # Without its length it is sent in chunks, or ends with the stream.
    length = [] if path.endswith(".shtml") else [("Content-Length", str(len(body)))]
    start_response(status, [("Content-Type", "text/plain"), *length])
    return [body]
