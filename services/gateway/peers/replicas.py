"""The replicas of a service: which they are, how much room they have, and which one gets the next session.

A long stream can't be balanced once it is open, so the choice is made when a session opens or moves: the better of two
replicas drawn at random, by free slots (the power of two choices). Choosing the best of all would send all callers that
arrive within one poll to the same replica.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import grpc
from moshimesh.codec.v1 import codec_pb2, codec_pb2_grpc
from moshimesh.lm.v1 import lm_pb2, lm_pb2_grpc

from services.gateway.peers.channels import open_channel, why_not
from services.gateway.peers.clocks import PeerClock
from services.gateway.peers.subset import subset
from services.gateway.peers.tunnel import SPANS_SENT_S, Call, Method, Tunnel
from services.mesh.errors import MeshError, NoFreeSlot, PeerLost, from_rpc_error
from services.mesh.tls import Identity, Pair

log = logging.getLogger(__name__)

POLL_S = 1.0  # how stale the number of free slots may be; a full replica says so itself
POLL_ANSWER_S = 1.0  # a replica that takes longer gets no new sessions until it answers again
FIRST_POLL_S = 0.2
# Sessions leave a connection whose certificate was replaced one after another, so that the work of their rebuilt rows
# does not come all at once, and one free slot is enough for all. One that takes longer does not hold up the others.
MOVE_S = 2.0
LOOK_S = 0.05

ENCODE = Method("/moshimesh.codec.v1.CodecService/Encode", codec_pb2.EncodeRequest, codec_pb2.EncodeResponse)
STEP = Method("/moshimesh.lm.v1.LmService/Step", lm_pb2.StepRequest, lm_pb2.StepResponse)
DECODE = Method("/moshimesh.codec.v1.CodecService/Decode", codec_pb2.DecodeRequest, codec_pb2.DecodeResponse)


@dataclass(frozen=True)
class Facts:
    """What a replica says about itself; slots by the method whose calls take them."""

    weights_id: str
    """What it serves: a codec's codec_id, a language model's model_id."""
    instance_id: str
    """Names the process; equal under each of its addresses."""
    draining: bool
    total: dict[str, int]
    free: dict[str, int]
    info: codec_pb2.GetInfoResponse | lm_pb2.GetInfoResponse


async def codec_facts(channel: grpc.aio.Channel) -> Facts:
    """Ask a codec replica. Raises AioRpcError."""
    info = await codec_pb2_grpc.CodecServiceStub(channel).GetInfo(codec_pb2.GetInfoRequest(), timeout=POLL_ANSWER_S,
                                                                 wait_for_ready=True)
    return Facts(info.codec_id, info.instance_id, info.draining,
                 {ENCODE.name: info.encode_slots_total, DECODE.name: info.decode_slots_total},
                 {ENCODE.name: info.encode_slots_free, DECODE.name: info.decode_slots_free}, info)


async def lm_facts(channel: grpc.aio.Channel) -> Facts:
    """Ask a language model replica. Raises AioRpcError."""
    info = await lm_pb2_grpc.LmServiceStub(channel).GetInfo(lm_pb2.GetInfoRequest(), timeout=POLL_ANSWER_S,
                                                           wait_for_ready=True)
    return Facts(info.model_id, info.instance_id, info.draining, {STEP.name: info.slots_total},
                 {STEP.name: info.slots_free}, info)


@dataclass(eq=False)
class Replica:
    """One process of a service, the tunnel to it, and what is known of its clock."""

    role: str
    address: str
    channel: grpc.aio.Channel
    facts: Facts | None = None  # None: it does not answer
    problem: str = "not asked yet"
    answered_at: float = -math.inf
    """When it said `facts`, or the last time that it said anything, by time.monotonic."""
    host: str = ""
    """The name that was resolved to this address."""
    pair: Pair | None = None
    """The certificate that its connection was made with; None: in plain text."""
    refused: bool = False
    """Whether the log has it that this connection can't be made."""
    tunnel: Tunnel = field(init=False)
    clock: PeerClock = field(default_factory=PeerClock)

    def __post_init__(self) -> None:
        self.tunnel = Tunnel(self.role, self.channel)

    def free(self, method: str, weights_id: str) -> int:
        """Slots that a session of these weights could take here."""
        facts = self.facts
        if facts is None or facts.draining or facts.weights_id != weights_id:
            return 0
        return facts.free[method]


class Replicas:
    """All replicas of one service, asked every second how they are."""

    def __init__(self, role: str, targets: str, ask: Callable[[grpc.aio.Channel], Awaitable[Facts]],
                 failover_s: float = 15.0, tls: Identity | None = None, *, most: int = 0, gateway: str = "") -> None:
        """`targets`: host:port of each, separated by commas; a name with several addresses stands for all of them, as
        a headless service of Kubernetes does. A session whose replica was lost looks for another one for `failover_s`.
        `tls` is who we are; without it they are spoken to in plain text. Of more than `most` replicas (0: no limit)
        only those are known that fall to this `gateway` (see subset.py).
        """
        self.role = role
        self.failover_s = failover_s
        self._targets = [target.strip() for target in targets.split(",") if target.strip()]
        self._ask = ask
        self._tls = tls
        self._most, self._gateway = most, gateway
        self._others: Collection[str] = ()  # addresses that fall to other gateways
        self.emptying: Collection[Replica] = ()
        """Those that get no session while others have room (see packing.py)."""
        self._replicas: dict[str, Replica] = {}
        self._successors: dict[str, Replica] = {}  # by address: with the new certificate, not used before they answer
        self._leaving: set[asyncio.Task[None]] = set()
        self._poller: asyncio.Task[None] | None = None
        self._refreshing: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._refreshing.set_result(None)
        self._refreshed_at = -math.inf

    async def connect(self, deadline: float) -> None:
        """Wait until one replica answers. Raises PeerLost at the deadline (time.monotonic), or for a wrong service."""
        while not self.answering:
            await self.refresh()
            if wrong := [replica for replica in self._replicas.values() if replica.problem == "UNIMPLEMENTED"]:
                raise PeerLost(f"what listens at {wrong[0].address} is not the {self.role} service; correct "
                               f"--{self.role}")
            if time.monotonic() > deadline:
                problems = ", ".join([f"{replica.address}: {await why_not(replica.channel, self._tls is not None)}"
                                      for replica in self._replicas.values()])
                raise PeerLost(f"no {self.role} service at {', '.join(self._targets)} ({problems or 'unknown host'}); "
                               f"start it, or name another one with --{self.role}")
            await asyncio.sleep(FIRST_POLL_S)
        self._poller = asyncio.create_task(self._poll_forever())

    async def close(self) -> None:
        """Disconnect from all of them."""
        if self._poller is not None:
            self._poller.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._poller
        for leaving in list(self._leaving):
            leaving.cancel()
        await asyncio.gather(*self._leaving, return_exceptions=True)
        for replica in (*self._replicas.values(), *self._successors.values()):
            await replica.channel.close()

    @property
    def known(self) -> list[Replica]:
        """All of them, also those that do not answer."""
        return [*self.answering, *(replica for replica in self._replicas.values() if replica.facts is None)]

    @property
    def answering(self) -> list[Replica]:
        """Those that answered the last time they were asked: one address of each process."""
        found: dict[str, Replica] = {}
        for replica in self._replicas.values():
            if replica.facts is not None:
                found.setdefault(replica.facts.instance_id, replica)
        return list(found.values())

    @property
    def usable(self) -> bool:
        """Whether a session could go to one of them: it answers and does not drain; its slots may all be taken."""
        return any(replica.facts is not None and not replica.facts.draining for replica in self.answering)

    def info(self, weights_id: str) -> Any:
        """The GetInfo response of a replica that serves these weights. Raises PeerLost when none answers."""
        for replica in self.answering:
            if replica.facts is not None and replica.facts.weights_id == weights_id:
                return replica.facts.info
        raise PeerLost(f"no {self.role} replica answers", peer=self.role)

    def total(self, method: str, weights_id: str) -> int:
        """Slots for a method's calls in all."""
        return sum(replica.facts.total[method] for replica in self.answering
                   if replica.facts is not None and replica.facts.weights_id == weights_id)

    def free(self, method: str, weights_id: str) -> int:
        """Free slots for a method's calls, as of the last poll."""
        return sum(replica.free(method, weights_id) for replica in self.answering)

    async def pick(self, method: str, weights_id: str, passed_over: Collection[Replica] = ()) -> Replica:
        """A replica with a free slot that is not among those to avoid.

        Raises:
            NoFreeSlot: those that answer are full.
            PeerLost: none answers.
        """
        for refreshed in (False, True):
            candidates = [replica for replica in self.answering
                          if replica not in passed_over and replica.free(method, weights_id)]
            if candidates:
                candidates = [replica for replica in candidates if replica not in self.emptying
                              and replica.address not in self._others] or candidates
                chosen = max(random.sample(candidates, min(2, len(candidates))),
                             key=lambda replica: replica.free(method, weights_id))
                assert chosen.facts is not None
                chosen.facts.free[method] -= 1  # until the next poll knows better
                return chosen
            if not refreshed:  # a slot may have come back since the last poll
                await self.refresh()
        if self.usable:
            total = self.total(method, weights_id)
            raise NoFreeSlot(f"all {total} slots of the {self.role} service are taken; try again later", slots=total)
        raise PeerLost(f"no {self.role} replica answers", peer=self.role)

    async def refresh(self, max_age_s: float = 0.0) -> None:
        """Ask those that answer how they are now; all of them, a second for each that is down, if none does.

        Callers that ask at the same time share the answers, and `max_age_s` old ones may do: however many callers want
        to know, the replicas are asked once.
        """
        if self._refreshing.done():
            if max_age_s and time.monotonic() - self._refreshed_at < max_age_s:
                return
            self._refreshing = asyncio.ensure_future(self._ask_answering())
        await asyncio.shield(self._refreshing)

    async def _ask_answering(self) -> None:
        await asyncio.gather(*(self._refresh(replica) for replica in self.answering))
        if not self.answering:
            await self._ask_all()
        self._refreshed_at = time.monotonic()

    async def _ask_all(self) -> None:
        await self._resolve()
        await self._connect_anew()
        await asyncio.gather(*(self._refresh(replica) for replica in (*self._replicas.values(),
                                                                      *self._successors.values())))
        await self._hand_over()

    async def _poll_forever(self) -> None:
        while True:
            await asyncio.sleep(POLL_S)
            try:
                await self._ask_all()
            except Exception:
                log.exception("asking the %s replicas failed", self.role)

    async def _refresh(self, replica: Replica) -> None:
        try:
            replica.facts = await self._ask(replica.channel)
            replica.answered_at = time.monotonic()
        except grpc.aio.AioRpcError as error:
            if replica.facts is not None:
                log.warning("the %s replica at %s does not answer: %s", self.role, replica.address,
                            from_rpc_error(error, self.role).message)
            replica.facts, replica.problem = None, error.code().name

    async def _resolve(self) -> None:
        found: dict[str, str] = {}  # address: host
        for target in self._targets:
            host, _, port = target.rpartition(":")
            with contextlib.suppress(OSError):  # a name that can't be resolved now keeps the replicas it had
                infos = await asyncio.get_running_loop().getaddrinfo(host.strip("[]"), int(port), type=1)
                # Servers of ours listen on all IPv4 addresses by default, so localhost's other one would never answer.
                addresses = [info[4][0] for info in infos if host != "localhost" or info[0].name == "AF_INET"]
                for address in addresses:
                    found.setdefault(f"[{address}]:{port}" if ":" in str(address) else f"{address}:{port}",
                                     host.strip("[]"))
        ours = subset(found, self._gateway, self._most)
        self._others = found.keys() - ours
        for address in sorted(ours - self._replicas.keys()):
            self._replicas[address] = self._connect(address, found[address])
        for address in self._replicas.keys() - ours:
            # One that drains has left the name and takes no new calls, not even ours that ask how it is. One that falls
            # to others now, since another has come, keeps the calls that it has.
            gone = self._replicas[address].facts is None or address in self._others
            if gone and not self._replicas[address].tunnel.busy:
                await self._replicas.pop(address).channel.close()

    def _connect(self, address: str, host: str) -> Replica:
        return Replica(self.role, address, open_channel(address, host, self._tls), host=host,
                       pair=self._pair)

    @property
    def _pair(self) -> Pair | None:
        """What connections are made with now."""
        return None if self._tls is None else self._tls.current

    async def _connect_anew(self) -> None:
        """When our certificate was replaced, prepare a new connection beside each. A channel keeps what it was made
        with, for ever.
        """
        if self._tls is None:
            return
        self._tls.look()
        for address, successor in list(self._successors.items()):
            if successor.pair is not self._pair or address not in self._replicas:
                await self._successors.pop(address).channel.close()
        for address, replica in self._replicas.items():
            if replica.pair is not self._pair and address not in self._successors:
                self._successors[address] = self._connect(address, replica.host)

    async def _hand_over(self) -> None:
        """Use the new connections that work. The others keep the old one: perhaps the replica does not know our new CA
        yet.
        """
        for address, successor in list(self._successors.items()):
            old = self._replicas.get(address)
            if old is None or successor.facts is None:
                if old is not None and old.facts is not None and not successor.refused:
                    successor.refused = True
                    log.warning("the %s replica at %s can't be called with the new certificate (%s); the connection "
                                "with the one before stays", self.role, address,
                                await why_not(successor.channel, tls=True))
                continue
            self._replicas[address] = self._successors.pop(address)
            successor.clock = old.clock
            leaving = asyncio.create_task(self._leave(old, successor.facts.weights_id))
            self._leaving.add(leaving)
            leaving.add_done_callback(self._leaving.discard)

    async def _leave(self, old: Replica, weights_id: str) -> None:
        """Let the sessions of a connection move as they do for a drain, and close it. While no slot is free they stay:
        their frames are as safe there as they were.
        """
        told: Call[Any, Any] | None = None
        wait_until = 0.0
        try:
            while old.tunnel.busy:
                if told is None or told.ended or time.monotonic() > wait_until:
                    told = next((call for call in old.tunnel.calls if not call.draining
                                 and self.free(call.method, weights_id)), None)
                    if told is not None:
                        told.drain()
                        wait_until = time.monotonic() + MOVE_S
                await asyncio.sleep(LOOK_S)
            await asyncio.sleep(SPANS_SENT_S)
            log.info("the %s replica at %s is called with the new certificate alone", self.role, old.address)
        finally:
            await old.channel.close()


def movable(error: MeshError) -> bool:
    """Whether a session that met this error can go on at another replica."""
    return error.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED) or error.reason in (
        "NO_FREE_SLOT", "ENGINE_FAILED")


