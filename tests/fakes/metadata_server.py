"""A metadata server of Google Cloud on the loopback: answers what a test puts into `answers`."""

import http.server
import threading


class FakeMetadata:
    """A context manager; `address` is host:port, `asked` the paths of all questions.

    Args:
      flavor: of the header by which the real one is known; None sends none.
      **answers: entries of the instance, dashes written as underscores.
    """

    def __init__(self, flavor="Google", **answers):
        self.answers = {"preempted": "FALSE", "maintenance_event": "NONE", **answers}
        self.asked = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.asked.append(self.path)
                name = self.path.removeprefix("/computeMetadata/v1/instance/").replace("-", "_")
                known = name in outer.answers and self.headers.get("Metadata-Flavor") == "Google"
                self.send_response(200 if known else 404)
                if flavor:
                    self.send_header("Metadata-Flavor", flavor)
                self.end_headers()
                self.wfile.write(outer.answers.get(name, "").encode())

            def log_message(self, *unused):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self):
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *unused):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
