"""A server with the part of OpenAI's protocol that the tests need; its reply depends on the image's width."""

import base64
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image


def completion(text="A scene.", finish="stop", tokens=7, **message):
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text, **message}}
    usage = {"prompt_tokens": 50, "completion_tokens": tokens, "total_tokens": 50 + tokens}
    return 200, {"id": "1", "object": "chat.completion", "created": 0, "model": "served", "choices": [choice]} | (
        {"usage": usage} if tokens else {}
    )


def failure(status, message, **headers):
    return status, {"error": {"message": message, "type": "error", "code": None}}, {"retry-after-ms": "1", **headers}


class Endpoint:
    """An endpoint on loopback.

    Attributes:
        answers: By width of an image, the reply, or a list of replies in turn, of which the last repeats.
        requests: (path, headers, body, image) of each request.
        everything: The reply to all images while it is set.
    """

    def __init__(self):
        self.answers = {}
        self.requests = []
        self.everything = None
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                models = {
                    "object": "list",
                    "data": [{"id": "served", "object": "model", "created": 0, "owned_by": "x"}],
                }
                self.give(200, models)

            def do_POST(self):
                headers = {name.lower(): value for name, value in self.headers.items()}
                body = json.loads(self.rfile.read(int(headers["content-length"])))
                image = None
                for part in body["messages"][0]["content"]:
                    if part["type"] == "image_url":
                        data = base64.b64decode(part["image_url"]["url"].removeprefix("data:image/png;base64,"))
                        image = Image.open(io.BytesIO(data))
                        image.load()
                endpoint.requests.append((self.path, headers, body, image))
                self.give(*endpoint.answer(image.width))

            def give(self, status, body, headers=()):
                content = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                kind = "application/json" if content[:1] in (b"{", b"[") else "text/html"
                fixed = {"content-type": kind, "content-length": str(len(content))}
                for name, value in (fixed | dict(headers)).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, width):
        answer = self.everything or self.answers.get(width, completion())
        if isinstance(answer, list):
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        return answer() if callable(answer) else answer

    def request_count(self, width):
        return sum(image.width == width for *_, image in self.requests)

    def close(self):
        self.server.shutdown()
        self.server.server_close()
