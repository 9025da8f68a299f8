"""A server in OpenAI's form that really looks: it finds the white frames among those it is shown.

`misbehave(number)` may name what the request of that number gets instead of an answer.
"""

from __future__ import annotations

import base64
import io
import json
import math
import re
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from PIL import Image

KEY = "right"


class Stub:
    """What a stub server does and has seen.

    Attributes:
        misbehave: request number -> None, or one of "429", "500", "half", "nonsense", "other",
            "stall", "die", "empty", "400".
        tells_logprobs: whether answers carry probabilities.
        wants_key: refuse other keys than `KEY`.
        prompts: the question of every request that was answered well.
        most_at_once: requests in work at the same time, at most.
    """

    def __init__(self) -> None:
        self.misbehave: Callable[[int], str | None] = lambda number: None
        self.tells_logprobs = True
        self.wants_key = False
        self.says: Callable[[str], str | None] = lambda question: None
        self.prompts: list[str] = []
        self.stamps: list[list[float]] = []
        self.num_requests = self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        self.url = ""


def seen(messages) -> tuple[list[float], list[bool], str]:
    """Seconds, whether the picture behind each is white, and the question."""
    seconds, white, text = [], [], ""
    for part in messages[0]["content"]:
        if part["type"] == "text":
            text = part["text"]
            stamp = re.search(r"(\d+\.\d)", text)
            seconds += [float(stamp[1])] if stamp and len(text) < 30 else []
        else:
            jpeg = base64.b64decode(part["image_url"]["url"].split(",", 1)[1])
            white.append(bool(np.asarray(Image.open(io.BytesIO(jpeg))).mean() > 200))
    return seconds, white, text


def told(seconds: list[float], white: list[bool]) -> str:
    """The first and last white frame, half a step wider."""
    shown = [second for second, is_white in zip(seconds, white, strict=True) if is_white]
    if not shown:
        return "not present"
    half = (seconds[1] - seconds[0]) / 2
    return f"{shown[0] - half:.1f} - {shown[-1] + half:.1f} seconds"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    stub: Stub

    def log_message(self, *words) -> None:
        pass

    def do_GET(self) -> None:
        self._send(200, {"object": "list", "data": []})

    def do_POST(self) -> None:
        stub = self.stub
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with stub.lock:
            stub.num_requests += 1
            number = stub.num_requests
            stub.at_once += 1
            stub.most_at_once = max(stub.most_at_once, stub.at_once)
        try:
            self._answer(body, stub.misbehave(number))
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client has given up
        finally:
            with stub.lock:
                stub.at_once -= 1

    def _answer(self, body, fault: str | None) -> None:
        stub = self.stub
        if stub.wants_key and self.headers["Authorization"] != f"Bearer {KEY}":
            return self._send(401, {"error": {"message": "no such key"}})
        if fault in ("429", "500", "400"):
            return self._send(int(fault), {"error": {"message": f"fault {fault}"}})
        if fault == "die":
            self.close_connection = True
            return self.connection.close()
        if fault == "stall":
            time.sleep(1)
        if fault == "other":
            return self._send(200, {"hello": "world"})
        if fault == "empty":
            return self._send(200, {"choices": []})
        if body.get("logprobs") and not stub.tells_logprobs:
            return self._send(400, {"error": {"message": "logprobs are not supported"}})
        seconds, white, question = seen(body["messages"])
        is_there = any(white)
        text = ("Yes" if is_there else "No") if "yes or no" in question else told(seconds, white)
        text = stub.says(question) or text
        choice = {"index": 0, "message": {"role": "assistant", "content": text}}
        choice["finish_reason"] = "stop"
        if body.get("logprobs"):
            chances = {"Yes": 0.8, " yes": 0.1, "No": 0.1}
            if not is_there:
                chances = {"Yes": 0.01, "no": 0.99}
            top = [
                {"token": token, "logprob": math.log(chance), "bytes": None}
                for token, chance in chances.items()
            ]
            choice["logprobs"] = {"content": [dict(top[0], top_logprobs=top)]}
        with stub.lock:
            stub.prompts.append(question)
            stub.stamps.append(seconds)
        whole = {"id": "1", "object": "chat.completion", "created": 1, "model": body["model"]}
        self._send(200, whole | {"choices": [choice]}, half=fault == "half")

    def _send(self, status: int, record, half: bool = False) -> None:
        data = json.dumps(record).encode()
        data = data[: len(data) // 2] if half else data
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("retry-after-ms", "5")
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def serving(stub: Stub):
    """A running server; its address is `stub.url`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"stub": stub}))
    server.daemon_threads = True
    stub.url = f"http://127.0.0.1:{server.server_port}/v1"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
