"""A Hub of one's own on loopback: what its client speaks to create a data set and to commit small files."""

import base64
import json
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread


class Hub:
    """`with Hub() as hub:` serves at hub.url. `created` and `files` hold what was put there; `deny` refuses."""

    def __init__(self, *, deny: bool = False) -> None:
        self.deny = deny
        self.created: list[dict] = []
        self.files: dict[str, bytes] = {}
        self.commits = 0
        self.tokens: set[str | None] = set()

    def __enter__(self) -> "Hub":
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args) -> None:
                pass

            def answer(self, value, status: int = 200) -> None:
                body = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self) -> None:
                self.answer({"error": "not here"}, 404)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"] or 0))
                hub.tokens.add(self.headers["Authorization"])
                if hub.deny:
                    self.answer({"error": "Invalid username or password."}, 401)
                elif self.path == "/api/repos/create":
                    hub.created.append(json.loads(body))
                    self.answer({"url": f"{hub.url}/datasets/owner/name", "id": "x", "name": "owner/name"})
                elif self.path == "/api/validate-yaml":
                    self.answer({"errors": [], "warnings": []})
                elif "/preupload/" in self.path:
                    wanted = [f["path"] for f in json.loads(body)["files"]]
                    files = [{"path": p, "uploadMode": "regular", "shouldIgnore": False, "oid": None} for p in wanted]
                    self.answer({"files": files})
                elif "/commit/" in self.path:
                    hub.commits += 1
                    for line in map(json.loads, body.splitlines()):
                        if line["key"] == "file":
                            hub.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                    url = f"{hub.url}/datasets/owner/name/commit/{'0' * 40}"
                    self.answer({"success": True, "commitOid": "0" * 40, "commitUrl": url, "hookOutput": ""})
                else:
                    self.answer({"error": f"unexpected {self.path}"}, 404)

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *args) -> None:
        self.server.shutdown()
        self.server.server_close()
