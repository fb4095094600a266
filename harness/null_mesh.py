"""Real gateways over engines that compute nothing, so that only the mesh is measured or tested."""

from __future__ import annotations

import sys

from harness.local_mesh import LocalMesh


class NullMesh(LocalMesh):
    """Gateways over null services; one process is a codec and an lm."""

    async def start_replica(self, name: str) -> None:
        """Start a gateway's real command, or the process of a codec and its lm; the lm's own start does nothing."""
        service = name.partition("-")[0]
        if service == "gateway":
            await super().start_replica(name)
        elif service == "codec":
            lm = name.replace("codec", "lm")
            await self.start_process(name, [
                sys.executable, "-m", "harness.null_services", "--codec-port", str(self.ports[name]), "--lm-port",
                str(self.ports[lm]), "--slots", str(self.slots), *self.metrics_flags(name)])
