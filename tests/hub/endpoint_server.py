"""A web service around the handler of a model's folder, which treats it as an Inference Endpoint does.

    python endpoint_server.py FOLDER

An image/* body becomes a PIL image in RGB, any other is JSON; parameters may stand in the address; the answer is
JSON; an error is status 400 with a sentence. The port is printed. This package must not be importable.

Every request has a thread of its own. (An Inference Endpoint reads requests side by side and lets one into the handler
at a time, so this is harder on the handler.)
"""

import importlib.util
import io
import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

from PIL import Image

sys.modules["corrmatch_hf"] = None  # where the package is installed for every interpreter
try:
    import corrmatch_hf  # noqa: F401
except ImportError:
    pass
else:
    sys.exit("corrmatch_hf can be imported, so nothing would be shown")

folder = sys.argv[1]
sys.path.insert(0, folder)
spec = importlib.util.spec_from_file_location("handler", os.path.join(folder, "handler.py"))
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
handler = module.EndpointHandler(folder)


class Endpoint(BaseHTTPRequestHandler):
    def do_POST(self):
        try:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers["Content-Type"].startswith("image/"):
                data = {"inputs": Image.open(io.BytesIO(body)).convert("RGB")}
            else:
                data = json.loads(body)
            query = dict(parse_qsl(urlsplit(self.path).query))
            if query and "parameters" not in data:
                data["parameters"] = query
            status, answer = 200, json.dumps(handler(data))
        except Exception as error:
            status, answer = 400, json.dumps({"error": str(error)})
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(answer.encode())

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 512  # connections that wait for a thread


with Server(("127.0.0.1", 0), Endpoint) as server:
    print(server.server_port, flush=True)
    server.serve_forever()
