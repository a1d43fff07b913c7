"""An HTTP server on this machine that sends ranges, and breaks off when it is told to."""

import contextlib
import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Page(BaseHTTPRequestHandler):
    """Pages by path; the first `breaks` answers to a page end after a third of what is left."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server = self.server
        content = server.pages.get(self.path)
        server.asked.append((self.path, self.headers.get("Range")))
        if content is None or self.path in server.down:
            return self.send_error(503 if content else 404)
        start, tag = 0, f'"{hashlib.sha256(content).hexdigest()[:8]}"'
        wanted, same = self.headers.get("Range"), self.headers.get("If-Range") in (None, tag)
        if wanted and same and server.ranges:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                return self.end_headers()
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("ETag", tag)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        part = content[start:]
        if server.breaks.get(self.path, 0) > 0:
            server.breaks[self.path] -= 1
            if server.breaks[self.path] == 0 and server.dies:
                server.down.add(self.path)
            self.wfile.write(part[: max(1, len(part) // 3)])
            self.close_connection = True  # fewer bytes than announced
            return None
        self.wfile.write(part)
        return None

    def do_HEAD(self):
        content = self.server.pages.get(self.path)
        if content is None:
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        return self.end_headers()

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serve():
    """Run a server; its attributes are `pages` {path: content}, `breaks` {path: number}, `ranges`,
    `dies` (after its breaks a page is `down`, with status 503), `asked` [(path, range)], `url`."""
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    httpd.pages, httpd.breaks, httpd.ranges, httpd.asked = {}, {}, True, []
    httpd.dies, httpd.down = False, set()
    httpd.url = f"http://127.0.0.1:{httpd.server_port}"
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    try:
        yield httpd
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()
