"""What an operator sees, and what a page is told before it calls; with real calls behind it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from services.gateway.calls.callers import CallerLimits
from services.gateway.edges.web import entry, status, tickets
from services.gateway.trust.gate import Gate, OpenGate
from services.gateway.trust.guard import Guard
from services.gateway.trust.keys import KeyFile, hash_of, new_key
from services.gateway.trust.tickets import Tickets
from services.gateway.watching.recent import RecentFrames
from services.gateway.watching.status import Status
from services.mesh.recorder import HOP_NAMES
from tests.gateway.house import OPENING, House, spoken
from tests.gateway.redis_server import RedisServer
from tests.gateway.watching.test_metering import MS, context
from tests.gateway.web_door import WebDoor
from tests.until import until

LATE = context(3, late_ms=100)
LATE.traceparent = f"00-{'ab' * 16}-{'cd' * 8}-00"


class Desk:
    """A house with its operator's door."""

    def __init__(self, house: House, gate: Gate) -> None:
        self.house, self.recent = house, RecentFrames()
        shown = Status(house.fleet, house.line, house.desk, self.recent)
        self._gate, self._shown = gate, shown

    def routes(self, _: object) -> Sequence[web.RouteDef]:
        return [*status.routes(self._shown.now, self._gate), *entry.routes(self.house.desk, self._gate),
                *tickets.routes(self._gate)]


async def get(door: WebDoor, path: str, key: str = "") -> tuple[int, dict[str, Any]]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with door._session.get(door.url + path, headers=headers) as answer:
        assert answer.headers["Cache-Control"] == "no-store"
        return answer.status, await answer.json()


@pytest.fixture
async def house() -> AsyncIterator[House]:
    redis = RedisServer()
    async with House(redis.url) as house:
        yield house
    redis.close()


@pytest.fixture
def key() -> str:
    return new_key()


@pytest.fixture
def guard(house: House, key: str, tmp_path: Path) -> Guard:
    file = tmp_path / "keys.json"
    file.write_text(json.dumps({"keys": [{"name": "operator", "sha256": hash_of(key)}]}))
    return Guard(KeyFile(file), None, Tickets(house.store), CallerLimits())


async def test_the_status_tells_of_replicas_room_and_calls(house: House) -> None:
    desk = Desk(house, OpenGate())
    async with WebDoor(desk.routes) as door:
        end = asyncio.Event()
        call = house.hold(OPENING, spoken(0, 3, end))
        await anext(call)  # ready
        await house.fleet.refresh()
        code, shown = await get(door, "/api/status")
        assert code == 200
        assert shown["calls"] == {"held": 1, "waiting": 0}
        assert shown["gateway"]["version"] and not shown["gateway"]["draining"]
        by_role = {replica["role"]: replica for replica in shown["replicas"]}
        assert by_role.keys() == {"codec", "lm"}
        for replica in by_role.values():
            assert replica["answers"] and not replica["draining"] and replica["address"]
            assert replica["slots_free"] == replica["slots_total"] - 1 and replica["age_s"] < 5
        (model,) = shown["models"]
        assert model["slots_free"] == model["slots_total"] - 1 and model["waiting"] == 0
        await call.aclose()  # type: ignore[attr-defined]


async def test_the_status_tells_of_frames_and_of_late_ones(house: House) -> None:
    desk = Desk(house, OpenGate())
    for sequence in range(100):
        desk.recent.add(context(sequence), 80 * MS)
    desk.recent.add(LATE, 80 * MS)
    async with WebDoor(desk.routes) as door:
        _, shown = await get(door, "/api/status")
    assert (shown["frames"]["answered"], shown["frames"]["late"], shown["frames"]["window_s"]) == (101, 1, 60)
    assert list(shown["frames"]["hops"]) == list(HOP_NAMES.values())
    assert shown["frames"]["hops"]["lm.step"]["p50_ms"] == pytest.approx(5, rel=0.05)
    (late,) = shown["late"]
    assert (late["sequence"], late["trace_id"], late["slowest_hop"]) == (3, "ab" * 16, "lm.step")


async def test_a_replica_that_is_gone_is_shown_as_gone(house: House) -> None:
    desk = Desk(house, OpenGate())
    async with WebDoor(desk.routes) as door:
        await house.lm.kill()

        async def shown_as_gone() -> bool:
            _, shown = await get(door, "/api/status")
            lm = next(replica for replica in shown["replicas"] if replica["role"] == "lm")
            return not lm["answers"] and bool(lm["problem"]) and lm["age_s"] > 0
        await until(shown_as_gone)


async def test_with_keys_the_status_wants_one_and_no_ticket(house: House, guard: Guard, key: str) -> None:
    desk = Desk(house, guard)
    async with WebDoor(desk.routes) as door:
        assert (await get(door, "/api/status"))[0] == 401
        assert (await get(door, "/api/status", "mm_other"))[0] == 401
        assert (await get(door, "/api/status", key))[0] == 200
        async with aiohttp.ClientSession() as session, session.post(
                f"{door.url}/api/tickets", headers={"X-Api-Key": key}) as answer:
            ticket = (await answer.json())["ticket"]
        code, refused = await get(door, "/api/status", ticket)
        assert (code, refused["error"]["reason"]) == (403, "KEY_NEEDED")


async def test_a_page_learns_whether_it_needs_a_key_and_which_models_there_are(house: House) -> None:
    desk = Desk(house, OpenGate())
    house.lm.text_prompt_characters = 40
    await house.fleet.refresh()
    async with WebDoor(desk.routes) as door:
        code, told = await get(door, "/api/entry")
    assert (code, told["keys"]) == (200, False)
    assert told["models"] == [model.model_id for model in await house.desk.models()]
    assert told["text_prompt_characters"] == {told["models"][0]: 40}


async def test_without_a_key_a_page_learns_only_that_it_needs_one(house: House, guard: Guard, key: str) -> None:
    desk = Desk(house, guard)
    async with WebDoor(desk.routes) as door:
        assert await get(door, "/api/entry") == (200, {"keys": True, "models": [], "voices": [],
                                                         "text_prompt_characters": {}})
        code, told = await get(door, "/api/entry", key)
        assert (code, told["keys"], len(told["models"])) == (200, True, 1)
        assert (await get(door, "/api/entry", "mm_other"))[0] == 401
