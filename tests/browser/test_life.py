"""What happens to a tab, and that a call leaves nothing behind."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from tests.browser.conftest import Tab, open_tab
from tests.browser.gateway import Gateway
from tests.browser.proxy import BadNetwork
from tests.browser.speaker import WORD_EVERY
from tests.until import until

pytestmark = pytest.mark.slow

CYCLES = 20
BACKGROUND_S = 60


def consecutive(words: list[int]) -> bool:
    return words == list(range(words[0], words[0] + WORD_EVERY * len(words), WORD_EVERY))


async def test_a_page_that_is_loaded_again_goes_on_with_its_call(tab: Tab, gateway: Gateway) -> None:
    await tab.talk()
    await tab.figures_of(3)
    session = await tab.page.evaluate("document.body.dataset.session")
    await tab.page.reload()
    await tab.is_("live")
    before = len(await tab.words())

    async def said_more() -> bool:
        return len(await tab.words()) > before + 4
    await until(said_more)
    words = await tab.words()
    assert await tab.page.evaluate("document.body.dataset.session") == session
    assert words[0] == 0 and words[-1] > 4 * WORD_EVERY
    assert sorted(set(words)) == words and len(range(0, words[-1], WORD_EVERY)) - len(words) <= 1  # one was not heard
    await tab.end()
    assert await tab.page.evaluate("sessionStorage.length") == 0
    await until(lambda: gateway.leaks == 0)
    assert await tab.leaks() == 0


async def test_a_second_tab_has_a_call_of_its_own(tab: Tab, context: Any, gateway: Gateway) -> None:
    await tab.talk()
    other = await open_tab(context, gateway.url)
    await other.talk()
    await other.figures_of(2)
    assert (await tab.state(), await other.state()) == ("live", "live")
    assert gateway.slots_held == 6  # an encoder, a model and a decoder each
    await tab.end()
    await other.page.close()
    await until(lambda: gateway.leaks == 0)


async def test_a_microphone_that_is_unplugged_is_replaced_or_is_silence(tab: Tab, gateway: Gateway) -> None:
    await tab.talk()
    unplug = """() => {
        const [track] = streams.at(-1).getTracks();
        track.stop();
        track.dispatchEvent(new Event('ended')); }"""
    await tab.page.evaluate(unplug)
    await until(lambda: tab.page.is_visible("#hint"))
    assert "default" in await tab.page.inner_text("#hint")
    assert await tab.page.evaluate("streams.length") == 2
    await tab.page.evaluate("window.noMicrophone = 'NotFoundError'")
    await tab.page.evaluate(unplug)

    async def told() -> bool:
        return "silence" in await tab.page.inner_text("#hint")
    await until(told)
    frames = len(gateway.ears.calls[-1])
    await until(lambda: len(gateway.ears.calls[-1]) > frames + 12)
    assert not gateway.ears.calls[-1][-1].any()  # the call goes on
    await tab.end()
    assert await tab.leaks() == 0


async def test_another_microphone_in_mid_call(tab: Tab, gateway: Gateway) -> None:
    await tab.talk()
    await tab.page.click("#devices summary")
    choices = await tab.page.evaluate("[...document.getElementById('microphone').options].map(one => one.value)")
    assert len(choices) > 1
    await tab.page.select_option("#microphone", choices[-1])

    async def taken() -> bool:
        same: bool = await tab.page.evaluate("moshimesh.call.microphoneId") == choices[-1]
        return same
    await until(taken)
    assert await tab.page.evaluate("streams.filter(one => one.active).length") == 1
    await tab.end()


async def test_a_tab_in_the_background_talks_on(tab: Tab, context: Any, gateway: Gateway) -> None:
    await tab.talk(record=False)
    await tab.figures_of(2)
    front = await context.new_page()
    await front.goto("about:blank")
    await front.bring_to_front()
    # What a browser does to a tab that nobody sees, as far as it can be asked for.
    session = await context.new_cdp_session(tab.page)
    await session.send("Emulation.setFocusEmulationEnabled", {"enabled": False})
    await tab.page.evaluate("""() => {
        Object.defineProperty(document, 'visibilityState', {value: 'hidden', configurable: true});
        document.dispatchEvent(new Event('visibilitychange')); }""")
    before = len(gateway.ears.calls[-1])
    await asyncio.sleep(BACKGROUND_S)
    assert len(gateway.ears.calls[-1]) - before > (BACKGROUND_S - 2) * 12.5
    await tab.page.bring_to_front()
    assert await tab.state() == "live"
    assert consecutive(await tab.words())
    await tab.end()
    assert await tab.leaks() == 0


async def test_twenty_calls_leave_nothing_behind(tab: Tab, gateway: Gateway, figures: dict[str, Any]) -> None:
    for _ in range(CYCLES):
        await tab.talk()
        await until(lambda: gateway.slots_held == 3)
        await tab.end()
    await until(lambda: gateway.leaks == 0)
    figures["leaks_after_20_cycles"] = await tab.leaks() + gateway.leaks
    assert figures["leaks_after_20_cycles"] == 0
    assert await tab.page.evaluate("contexts.length") == CYCLES
    assert tab.complaints == []


async def test_a_tab_that_is_closed_gives_its_slots_back(tab: Tab, gateway: Gateway) -> None:
    await tab.talk()
    assert gateway.slots_held == 3
    await tab.page.close()
    await until(lambda: gateway.leaks == 0)


async def test_the_first_load_is_small_and_from_here_alone(context: Any, gateway: Gateway, figures: dict[str, Any]
                                                           ) -> None:
    page = await context.new_page()
    bodies: list[Any] = []
    page.on("response", lambda response: bodies.append(response))
    await page.goto(gateway.url, wait_until="networkidle")
    await page.click("#start")
    await Tab(page).is_("live")
    assert all(response.url.startswith(gateway.url) for response in bodies)
    loaded = sum([len(await response.body()) for response in bodies if response.status == 200])
    figures["first_load_kb"] = round(loaded / 1000, 1)  # as they are unpacked; gzip makes a third of that
    assert figures["first_load_kb"] < 150


@pytest.mark.parametrize("slots", [1])
async def test_a_page_waits_in_line_and_may_leave_it(tab: Tab, context: Any, gateway: Gateway) -> None:
    await tab.talk()
    second, third = await open_tab(context, gateway.url), await open_tab(context, gateway.url)
    for waiting, position in ((second, 1), (third, 2)):
        await waiting.page.click("#start")
        await waiting.is_("queued")

        async def placed(waiting: Tab = waiting, position: int = position) -> bool:
            return str(position) in await waiting.page.inner_text("#status")
        await until(placed)
    await third.page.click("#end")
    await third.is_("ended")
    await tab.end()
    await second.is_("live")
    await second.page.click("#end")
    await second.is_("ended")
    assert [await one.leaks() for one in (tab, second, third)] == [0, 0, 0]
    await until(lambda: gateway.leaks == 0)


async def test_a_muted_caller_is_silent_and_heard_again(tab: Tab, gateway: Gateway) -> None:
    def loudest(frames: int) -> float:
        """Of the last frames that the mesh has heard."""
        return max([float(np.abs(frame).max()) for frame in gateway.ears.calls[-1][-frames:]], default=1.0)

    await tab.talk()
    await until(lambda: 0.1 < loudest(3) < 1.0)
    await tab.page.click("#mute")
    assert await tab.page.get_attribute("#mute", "aria-pressed") == "true"
    await until(lambda: loudest(6) == 0)
    await tab.page.click("#mute")
    await until(lambda: loudest(1) > 0.05)
    await tab.end()


async def test_a_gateway_that_stops_is_talked_to_until_there_is_another_one(tab: Tab, gateway: Gateway) -> None:
    await tab.talk()
    gateway.desk.drain()  # it lets its calls talk on for 5 s, and takes no new ones
    before = len(await tab.page.evaluate("arrivals"))

    async def talks_on() -> bool:
        return len(await tab.page.evaluate("arrivals")) > before + 20
    await until(talks_on)
    assert await tab.state() == "live"
    await tab.is_("resuming")
    await tab.page.click("#end")
    await tab.is_("ended")
    await until(lambda: gateway.leaks == 0)
    assert await tab.leaks() == 0


async def test_a_page_moves_to_another_gateway_beside_its_old_call(context: Any, gateway: Gateway) -> None:
    """The old call answers until the new one has caught up: every answer comes once, and the page never says that it
    connects again.
    """
    async with Gateway(beside=gateway) as another, BadNetwork(gateway.door.port) as network:
        tab = await open_tab(context, network.url)
        await tab.talk()
        await tab.page.evaluate("""() => { window.told = []; window.states = [];
            moshimesh.call.addEventListener('frame', ({detail}) => told.push(detail.sequence));
            moshimesh.call.addEventListener('state', ({detail}) => states.push(detail.state)); }""")
        await tab.figures_of(3)
        network.port = another.door.port
        gateway.desk.drain()
        await until(lambda: (gateway.desk.calls, another.desk.calls) == (0, 1))
        moved = len(await tab.page.evaluate("told"))

        async def talks_on() -> bool:
            return len(await tab.page.evaluate("told")) > moved + 25
        await until(talks_on)
        told = await tab.page.evaluate("told")
        skipped = (await tab.figures_of(len(await tab.figures()) + 1))[-1]["skipped"]  # by the mesh, when it is busy
        assert told == sorted(set(told)) and told[-1] + 1 - told[0] - len(told) <= skipped
        assert await tab.page.evaluate("states") == []
        words = await tab.words()
        assert words == sorted(set(words))
        await tab.end()
        await until(lambda: another.leaks == 0)
        assert tab.complaints == []
