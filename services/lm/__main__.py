"""`python -m services.lm`: load Moshi's language model, warm it up, serve it."""

from __future__ import annotations

import logging
import time

from services.lm.config import LmConfig
from services.mesh.config import read_config
from services.mesh.serving import MeshServer, run
from services.mesh.telemetry import FrameTracer

log = logging.getLogger("lm")


async def main(config: LmConfig) -> None:
    """Serve until a signal."""
    server = MeshServer(config, "lm")
    began = time.monotonic()
    # torch takes seconds to import: bad flags and a busy port are refused before.
    import torch

    from services.lm.engine import LmEngine
    from services.lm.sampling import Sampling
    from services.lm.server import LmServer
    from services.mesh.checkpoint import load_lm, load_tokenizer, model_id, resolve

    torch.set_num_threads(config.threads)
    checkpoint = resolve(config.checkpoint)
    model = model_id(config.checkpoint, checkpoint)
    dtype = torch.float32 if torch.device(config.device).type == "cpu" else torch.bfloat16
    engine = LmEngine(load_lm(checkpoint, config.device, dtype), config.slots, device=config.device)
    tokenizer = load_tokenizer(checkpoint)
    names = {"temp_text": "text_temperature", "top_k_text": "text_top_k", "temp": "audio_temperature",
             "top_k": "audio_top_k"}  # what a checkpoint's lm_gen_config calls them
    defaults = Sampling(**{name: checkpoint.lm_gen_config[key] for key, name in names.items()
                           if key in checkpoint.lm_gen_config})
    engine.warm_up()
    tracer = FrameTracer.export_to(config.otlp_endpoint, "lm")
    await server.start(LmServer(engine, tokenizer, defaults, model, tracer, config.stall_s))
    log.info("ready on %s after %.1f s: %s on %s, %d slots", server.address, time.monotonic() - began, model,
             config.device, config.slots)
    await server.run_until_signal()


if __name__ == "__main__":
    settings = read_config(LmConfig, "lm")
    run("lm", settings, lambda: main(settings))
