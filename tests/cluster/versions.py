"""A Ray that is said to be of other versions than it is."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from cca_ray.cluster.ray_compat import Versions


@contextmanager
def said_to_be(versions: Versions) -> Iterator[str]:
    """The address of the tests' Ray, which meanwhile says that it is of these versions."""
    from ray._private.worker import global_worker

    key, namespace, client = b"CLUSTER_METADATA", b"cluster", global_worker.gcs_client
    before = client.internal_kv_get(key, namespace)
    changed = {**json.loads(before), "ray_version": versions.ray, "python_version": versions.python}
    client.internal_kv_put(key, json.dumps(changed).encode(), True, namespace)
    try:
        yield ray.get_runtime_context().gcs_address
    finally:
        client.internal_kv_put(key, before, True, namespace)
