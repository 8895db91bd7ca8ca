"""An object store on loopback that speaks S3: moto, behind a gate that counts and can be shut.

Not a test itself. Needs `pip install 'moto[server,s3]'`.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

BUCKET, OTHER_BUCKET = "library", "archive"


class Gate:
    """Passes connections on to a port, and counts the bytes that come back.

    shut_after: bytes after which every connection ends and none is taken any more; None: never.
    """

    def __init__(self, port: int) -> None:
        self._to = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self.sent = self.received = 0
        self.shut_after: int | None = None
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._drop()

    def _shut(self) -> bool:
        return self.shut_after is not None and self.sent + self.received >= self.shut_after

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            if self._shut():
                client.close()
                continue
            server = socket.create_connection(("127.0.0.1", self._to))
            with self._lock:
                self._open |= {client, server}
            for one, other, back in ((client, server, False), (server, client, True)):
                threading.Thread(target=self._pass, args=(one, other, back), daemon=True).start()

    def _pass(self, one: socket.socket, other: socket.socket, back: bool) -> None:
        with suppress(OSError):
            while data := one.recv(1 << 16):
                with self._lock:
                    self.sent += len(data) if back else 0
                    self.received += 0 if back else len(data)
                if self._shut():
                    self._drop()
                    return
                other.sendall(data)
        for end in (one, other):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _drop(self) -> None:
        with self._lock:
            ends, self._open = self._open, set()
        for end in ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@contextmanager
def running(folder: Path) -> Iterator[tuple[Gate, dict[str, str]]]:
    """A server with two buckets and one user; the gate to it, and the environment of that user."""
    import boto3

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = (folder / "moto.log").open("w")
    calls = 5  # what is made below; from then on every request needs the user's key
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        env=os.environ | {"INITIAL_NO_AUTH_ACTION_COUNT": str(calls)},
        stdout=log,
        stderr=log,
    )
    gate = None
    try:
        _wait(port)
        there = {
            "endpoint_url": f"http://127.0.0.1:{port}",
            "region_name": "us-east-1",
            "aws_access_key_id": "first",
            "aws_secret_access_key": "first",
        }
        users = boto3.client("iam", **there)
        users.create_user(UserName="reader")
        key = users.create_access_key(UserName="reader")["AccessKey"]
        everything = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
        users.put_user_policy(
            UserName="reader",
            PolicyName="all",
            PolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": [everything]}),
        )
        for bucket in (BUCKET, OTHER_BUCKET):
            boto3.client("s3", **there).create_bucket(Bucket=bucket)
        gate = Gate(port)
        yield (
            gate,
            {
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{gate.port}",
                "AWS_ALLOW_HTTP": "true",
                "AWS_REGION": "us-east-1",
                "AWS_ACCESS_KEY_ID": key["AccessKeyId"],
                "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"],
            },
        )
    finally:
        if gate is not None:
            gate.close()
        server.terminate()
        server.wait(30)
        log.close()


def _wait(port: int) -> None:
    for _ in range(600):
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    raise TimeoutError("moto did not start")
