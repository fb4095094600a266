"""The little of Kubernetes' API that the controller needs: list pods, and annotate one."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

COST = "controller.kubernetes.io/pod-deletion-cost"
PAGE = 500  # pods of one answer: 5 MB at most
ANSWER_S = 10.0


@dataclass(frozen=True)
class Pod:
    """A running pod."""

    name: str
    address: str
    metrics_port: int
    cost: int | None
    """What its annotation says."""


class Kube:
    """A namespace's pods, as a service account sees them."""

    def __init__(self, session: aiohttp.ClientSession, api_url: str, account_folder: str) -> None:
        """Raises OSError when the account's files are not there, ssl.SSLError for a bad CA."""
        account = Path(account_folder)
        self._session, self._token = session, account / "token"
        self._tls = ssl.create_default_context(cafile=account / "ca.crt") if api_url.startswith("https:") else None
        self._pods = f"{api_url}/api/v1/namespaces/{(account / 'namespace').read_text().strip()}/pods"

    async def pods(self, selector: str) -> AsyncIterator[Pod]:
        """Those that run, and say at a port named metrics how many calls they hold. Raises aiohttp.ClientError."""
        following = ""
        while True:
            query = {"labelSelector": selector, "fieldSelector": "status.phase=Running", "limit": str(PAGE)}
            answer = await self._ask("GET", self._pods, params=query | ({"continue": following} if following else {}))
            for item in answer["items"]:
                if pod := _pod(item):
                    yield pod
            following = answer.get("metadata", {}).get("continue", "")
            if not following:
                return

    async def set_cost(self, pod: Pod, cost: int) -> None:
        """Annotate a pod. Raises aiohttp.ClientError; one that is gone is nothing to raise."""
        try:
            await self._ask("PATCH", f"{self._pods}/{pod.name}", json={"metadata": {"annotations": {COST: str(cost)}}},
                            headers={"Content-Type": "application/merge-patch+json"})
        except aiohttp.ClientResponseError as error:
            if error.status != 404:
                raise

    async def _ask(self, method: str, url: str, headers: dict[str, str] | None = None, **options: Any) -> Any:
        token = self._token.read_text().strip()  # the kubelet replaces it every hour
        async with self._session.request(
                method, url, ssl=self._tls or True, headers={"Authorization": f"Bearer {token}", **(headers or {})},
                timeout=aiohttp.ClientTimeout(total=ANSWER_S), raise_for_status=True, **options) as answer:
            return await answer.json()


def _pod(item: dict[str, Any]) -> Pod | None:
    ports = [port["containerPort"] for container in item["spec"]["containers"] for port in container.get("ports", ())
             if port.get("name") == "metrics"]
    metadata, address = item["metadata"], item["status"].get("podIP")
    if not ports or not address or "deletionTimestamp" in metadata:  # one that is being deleted is past choosing
        return None
    said = metadata.get("annotations", {}).get(COST, "")
    return Pod(metadata["name"], f"[{address}]" if ":" in address else address, ports[0],
               int(said) if said.lstrip("-").isdigit() else None)
