"""What can be set about the scale-down controller."""

from __future__ import annotations

from pydantic import Field

from services.mesh.config import ProcessConfig


class ScaledownConfig(ProcessConfig):
    """Flags of `python -m services.scaledown`; each is also MOSHIMESH_NAME in the environment."""

    every_s: float = Field(10.0, ge=1, le=600, description="how often the pods' calls are counted")
    api_url: str = Field("https://kubernetes.default.svc", description="where Kubernetes' API is")
    account_folder: str = Field("/var/run/secrets/kubernetes.io/serviceaccount", description="folder with token, "
                                "ca.crt and namespace of a service account that may get, list and patch pods")
    selector: str = Field("app.kubernetes.io/part-of=moshi-mesh,app.kubernetes.io/name in (codec,lm,gateway)",
                          description="label selector of the pods")
