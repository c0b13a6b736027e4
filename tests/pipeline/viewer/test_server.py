"""The server ends on Ctrl-C, whatever its clients do."""

import os
import signal
import socket
import subprocess
import sys

ENDLESS_APP = """
from lotlip_data.pipeline.viewer import server

async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    print("sending", flush=True)
    while True:
        await send({"type": "http.response.body", "body": bytes(1 << 20), "more_body": True})

with server.listen(0) as listening:
    print(listening.getsockname()[1], flush=True)
    server.serve(app, listening)
print("ended", flush=True)
"""


def test_it_ends_on_ctrl_c_while_a_client_does_not_read() -> None:
    process = subprocess.Popen([sys.executable, "-c", ENDLESS_APP], stdout=subprocess.PIPE, text=True, env=os.environ)
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert process.stdout.readline() == "sending\n"
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
        assert process.stdout.read() == "ended\n"
    finally:
        process.kill()
