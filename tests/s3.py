"""A real S3-compatible server on this machine, as a process of its own."""

import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tests.test_tracking import free_port

# What an environment needs to use the server; nobody checks the keys.
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_EC2_METADATA_DISABLED": "true"}
BUCKET = "studies"


@contextmanager
def s3_server() -> Iterator[str]:
    """The URI, without a path, of an empty bucket, as text in which {} stands for the path."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 60
        while True:
            with suppress(urllib.error.URLError, ConnectionError):
                request = urllib.request.Request(f"http://127.0.0.1:{port}/{BUCKET}", method="PUT")
                with urllib.request.urlopen(request, timeout=5):
                    break
            assert time.monotonic() < end, "the server does not start"
            assert process.poll() is None, "the server has ended"
            time.sleep(0.1)
        yield f"s3://{BUCKET}/{{}}?scheme=http&endpoint_override=127.0.0.1%3A{port}&region=us-east-1"
    finally:
        process.terminate()
        process.wait(10)
