"""What a process of a mesh serves at /metrics."""

from __future__ import annotations

import asyncio
import urllib.request
from collections import defaultdict

from prometheus_client.parser import text_string_to_metric_families

from harness.local_mesh import LocalMesh

Samples = dict[str, dict[tuple[tuple[str, str], ...], float]]
"""Sample name -> labels -> value."""


async def scrape(mesh: LocalMesh, name: str) -> Samples:
    """Of a mesh that was started with `metrics`."""
    return await samples_at(f"127.0.0.1:{mesh.metrics_ports[name]}")


async def samples_at(address: str) -> Samples:
    """Of the process that serves /metrics there."""
    url = f"http://{address}/metrics"
    text = await asyncio.to_thread(lambda: urllib.request.urlopen(url).read().decode())
    samples: Samples = defaultdict(dict)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples[sample.name][tuple(sorted(sample.labels.items()))] = sample.value
    return samples


def value(samples: Samples, name: str, **labels: str) -> float:
    """The sum of a sample's values with these labels."""
    return sum(number for key, number in samples[name].items() if labels.items() <= dict(key).items())
