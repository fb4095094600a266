"""Client of moshi-mesh: full-duplex conversations with Moshi over gRPC."""

from moshimesh.client import HopTiming, Mesh, MeshError, MeshInfo, Ready, Speech, Summary, connect

__all__ = ["HopTiming", "Mesh", "MeshError", "MeshInfo", "Ready", "Speech", "Summary", "connect"]
