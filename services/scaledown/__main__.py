"""`python -m services.scaledown`: annotate the mesh's pods with the calls that they hold, until a signal."""

from __future__ import annotations

import asyncio
import logging
import signal

import aiohttp

from services.mesh import logs
from services.mesh.config import read_config
from services.scaledown.config import ScaledownConfig
from services.scaledown.costs import Costs
from services.scaledown.kube import Kube

log = logging.getLogger("scaledown")


async def main(config: ScaledownConfig) -> None:
    """Count and write, again and again. A round that fails changes nothing; the next one may succeed."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with aiohttp.ClientSession() as session:
        costs = Costs(Kube(session, config.api_url, config.account_folder), session, config.selector)
        while not stop.is_set():
            try:
                if written := await costs.round():
                    log.info("%d pods have another deletion cost", written)
            except (aiohttp.ClientError, asyncio.TimeoutError, TimeoutError, OSError) as error:
                log.warning("Kubernetes' API: %s", error or type(error).__name__)
            try:
                await asyncio.wait_for(stop.wait(), config.every_s)
            except (asyncio.TimeoutError, TimeoutError):
                continue


if __name__ == "__main__":
    settings = read_config(ScaledownConfig, "scaledown")
    logs.configure(settings, "scaledown")
    try:
        asyncio.run(main(settings))
    except OSError as failure:
        raise SystemExit(f"scaledown: {failure}; it runs in a pod, with a service account") from None
