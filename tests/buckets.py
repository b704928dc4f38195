"""Real object stores on this machine, each a process of its own: one speaks S3, one Google's protocol."""

import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tests.ports import free_port

# What an environment needs to use the servers; nobody checks the keys.
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_EC2_METADATA_DISABLED": "true"}
BUCKET = "studies"


@contextmanager
def serving(command: list[str], ready: urllib.request.Request) -> Iterator[None]:
    """A process as long as the context; `ready` is asked again and again until it is answered."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 60
        while True:
            with suppress(urllib.error.URLError, ConnectionError), urllib.request.urlopen(ready, timeout=5):
                break
            assert time.monotonic() < end, "the server does not start"
            assert process.poll() is None, "the server has ended"
            time.sleep(0.1)
        yield
    finally:
        process.kill()
        process.wait(10)


@contextmanager
def s3_server() -> Iterator[str]:
    """The URI, without a path, of an empty bucket, as text in which {} stands for the path."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with serving(command, urllib.request.Request(f"http://127.0.0.1:{port}/{BUCKET}", method="PUT")):
        yield f"s3://{BUCKET}/{{}}?scheme=http&endpoint_override=127.0.0.1%3A{port}&region=us-east-1"


@contextmanager
def gs_server() -> Iterator[str]:
    """The same in Google's protocol."""
    port = free_port()
    command = [sys.executable, "-m", "gcp_storage_emulator", "start", "--in-memory", f"--default-bucket={BUCKET}"]
    command += ["--host=127.0.0.1", f"--port={port}"]
    with serving(command, urllib.request.Request(f"http://127.0.0.1:{port}/storage/v1/b/{BUCKET}")):
        endpoint = f"scheme=http&endpoint_override=127.0.0.1%3A{port}&retry_limit_seconds=5"
        yield f"gs://anonymous@{BUCKET}/{{}}?{endpoint}"
