"""`python -m services.lm`: load Moshi's language model, warm it up, serve it."""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING

from services.lm.config import MOST_SLOTS, LmConfig
from services.mesh.batching import BatchingOptions
from services.mesh.config import read_config
from services.mesh.engine_metrics import watch
from services.mesh.invariants import SLOTS, Invariants, of_slots
from services.mesh.metrics import Metrics
from services.mesh.process import MeshServer, run
from services.mesh.telemetry import FrameTracer
from services.mesh.tls import peer_identity

if TYPE_CHECKING:
    from moshi.models.loaders import CheckpointInfo

    from services.lm.engine import LmEngine
    from services.lm.sampling import Sampling

log = logging.getLogger("lm")


async def main(config: LmConfig) -> None:
    """Serve until a signal."""
    server = MeshServer(config, "lm", tls=peer_identity(config))
    metrics = Metrics.start(config, "lm")
    began = time.monotonic()
    # torch takes seconds to import: bad flags and a busy port are refused before.
    from services.lm.server import LmServer
    from services.mesh.checkpoint import (
        check_device,
        codec_id,
        lm_id,
        load_tokenizer,
        resolve,
        text_prompt_characters,
    )
    from services.mesh.device import device_memory

    check_device(config.device)
    checkpoint = resolve(config.checkpoint)
    model = lm_id(checkpoint)
    engine = _engine(config, checkpoint)
    tokenizer = load_tokenizer(checkpoint)
    engine.warm_up()
    tracer = FrameTracer.export_to(config.otlp_endpoint, "lm")
    service = LmServer(engine, tokenizer, _defaults(checkpoint), model, codec_id(checkpoint), tracer,
                       config.stall_s, BatchingOptions(config.idle_s, config.yield_cpu),
                       # A prompt may take half of the context, and few tokens are shorter than a character.
                       min(text_prompt_characters(checkpoint), engine.facts.context_frames // 2))
    watch(metrics, service.batchers, device_memory(config.device))
    if config.device != "cpu":
        metrics.total("moshimesh.engine.refused_ways", "{way}", "Faster ways to step that the check at the start "
                      "refused.", lambda: [({"way": way}, 1) for way in engine.refused_ways])
    invariants = Invariants(metrics, [SLOTS], [of_slots(service.batchers)])
    await server.start(service, alive=lambda: all(batcher.alive for batcher in service.batchers))
    facts = engine.facts
    log.info("weights %.1f MB; each slot remembers %d frames of %.1f kB, %.1f MB in all", facts.weights_bytes / 1e6,
             facts.context_frames, facts.kv_bytes_per_frame / 1e3, facts.kv_bytes_per_slot / 1e6)
    floor = f"; a step of all slots with full windows takes at least {facts.floor_ms:.1f} ms" if facts.floor_ms else ""
    log.info("%s weights, %s keys and values%s", facts.precision, facts.kv_precision, floor)
    log.info("ready on %s after %.1f s: %s on %s, %d slots, %s", server.address, time.monotonic() - began, model,
             config.device, engine.slots, engine.way)
    await server.run_until_signal()
    await invariants.close()
    metrics.close()


def _engine(config: LmConfig, checkpoint: CheckpointInfo) -> LmEngine:
    """The engine that the flags ask for."""
    import torch

    from services.lm.engine import LmEngine
    from services.lm.linear import Packing
    from services.lm.sizing import size_of, usual_kv_precision, usual_precision
    from services.mesh.checkpoint import load_lm
    from services.mesh.device import claim_memory

    torch.set_num_threads(config.threads)
    device = torch.device(config.device)
    precision = config.precision or usual_precision(device)
    kv_precision = config.kv_precision or usual_kv_precision(Packing(device, precision))
    # Loaded on the CPU: the engine repacks the weights, and a GPU need not hold them twice.
    lm = load_lm(checkpoint, "cpu", torch.float32 if device.type == "cpu" else torch.bfloat16)
    if config.context_frames > lm.context:
        raise ValueError(f"--context-frames {config.context_frames}: the checkpoint was trained with {lm.context}")
    lm.context = config.context_frames or lm.context
    ours = claim_memory(device, config.gpu_memory_share) if device.type == "cuda" else 0
    if isinstance(config.slots, int):
        slots = config.slots
    else:
        free_bytes = (ours if device.type == "cuda"
                      else os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
        size = size_of(lm, precision, kv_precision)
        slots = min(MOST_SLOTS, size.slots_in(free_bytes, on_gpu=device.type == "cuda"))
        log.info("%.1f GB are ours of %s: %d slots with %s weights and %s keys and values", free_bytes / 1e9, device,
                 slots, precision, kv_precision)
    return LmEngine(lm, slots, device=config.device, precision=precision, kv_precision=kv_precision)


def _defaults(checkpoint: CheckpointInfo) -> Sampling:
    """The checkpoint's own sampling, where its lm_gen_config names one."""
    from services.lm.sampling import Sampling

    generation = checkpoint.lm_gen_config
    names = {"temp_text": "text_temperature", "top_k_text": "text_top_k", "temp": "audio_temperature",
             "top_k": "audio_top_k"}
    defaults = {name: generation[key] for key, name in names.items() if key in generation}
    if not generation.get("use_sampling", True):
        defaults |= {"text_temperature": 0, "audio_temperature": 0}
    try:
        return Sampling(**defaults)
    except ValueError as error:
        raise ValueError(f"the checkpoint's lm_gen_config: {error}") from None


if __name__ == "__main__":
    settings = read_config(LmConfig, "lm")
    run("lm", settings, lambda: main(settings))
