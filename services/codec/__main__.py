"""`python -m services.codec`: load Mimi, warm it up, serve it."""

from __future__ import annotations

import logging
import os
import sys
import time

from services.codec.config import CodecConfig
from services.mesh.batching import BatchingOptions
from services.mesh.config import read_config
from services.mesh.engine_metrics import watch
from services.mesh.invariants import SLOTS, Invariants, of_slots
from services.mesh.metrics import Metrics
from services.mesh.process import MeshServer, run
from services.mesh.telemetry import FrameTracer
from services.mesh.tls import peer_identity

log = logging.getLogger("codec")


async def main(config: CodecConfig) -> None:
    """Serve until a signal."""
    server = MeshServer(config, "codec", tls=peer_identity(config))
    metrics = Metrics.start(config, "codec")
    began = time.monotonic()
    if sys.version_info >= (3, 14):  # where torch can't compile; on a GPU, moshi's Mimi has a function compiled
        os.environ.setdefault("NO_TORCH_COMPILE", "1")
    # torch takes seconds to import: bad flags and a busy port are refused before.
    import torch

    from services.codec.engine import build_engines
    from services.codec.server import CodecServer
    from services.codec.speech_learning import learn_from_clips
    from services.codec.speech_table import FILE, read_speech_table
    from services.mesh.checkpoint import check_device, codec_id, load_mimi, resolve
    from services.mesh.device import claim_memory, device_memory

    check_device(config.device)
    torch.set_num_threads(config.threads)
    if torch.device(config.device).type == "cuda":
        claim_memory(torch.device(config.device), config.gpu_memory_share)
    checkpoint = resolve(config.checkpoint)
    codec = codec_id(checkpoint)
    mimi = load_mimi(checkpoint, config.device)
    table = read_speech_table(checkpoint.mimi_weights.parent, mimi.num_codebooks, mimi.cardinality)
    if table is None:
        log.info("%s has no %s: learning it from the bundled voices", codec, FILE)
        table = learn_from_clips(mimi)
    encoder, decoder = build_engines(mimi, config.slots, config.codec_precision)
    encoder.warm_up()
    decoder.warm_up()
    tracer = FrameTracer.export_to(config.otlp_endpoint, "codec")
    service = CodecServer(encoder, decoder, codec, tracer, config.stall_s,
                          BatchingOptions(config.idle_s, config.yield_cpu),
                          table.tobytes())
    watch(metrics, service.batchers, device_memory(config.device))
    invariants = Invariants(metrics, [SLOTS], [of_slots(service.batchers)])
    await server.start(service, alive=lambda: all(batcher.alive for batcher in service.batchers))
    log.info("ready on %s after %.1f s: %s on %s, %d slots", server.address, time.monotonic() - began, codec,
             config.device, config.slots)
    await server.run_until_signal()
    await invariants.close()
    metrics.close()


if __name__ == "__main__":
    settings = read_config(CodecConfig, "codec")
    run("codec", settings, lambda: main(settings))
