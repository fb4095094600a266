"""Everybody can use the page: axe's rules, the keyboard alone, a phone, in both languages and both themes.

With $MOSHIMESH_SHOTS, a picture of each state goes to that folder.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.browser.conftest import Tab, open_tab
from tests.browser.gateway import Gateway
from tests.browser.states import DEVICES, STATES, World, each_look, shows, size
from tests.npm import node_with_packages
from tests.until import until

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
SHOTS = os.environ.get("MOSHIMESH_SHOTS", "")
KEEP_SENT = """{
    const {send} = WebSocket.prototype;
    window.sent = [];
    WebSocket.prototype.send = function(data) {
      if (typeof data === 'string') sent.push(data);
      send.call(this, data);
    };
}"""
AXE = """async () => (await axe.run(document, {resultTypes: ['violations']})).violations.flatMap(
    rule => rule.nodes.map(node => `${rule.id}: ${node.target} ${node.failureSummary}`))"""


@pytest.fixture(scope="session")
def axe() -> str:
    """The rules, as a script."""
    node_with_packages(HERE)
    return (HERE / "node_modules" / "axe-core" / "axe.min.js").read_text()


@pytest.fixture
async def world(browser: Any, tmp_path: Path) -> Any:
    async with World(browser, tmp_path) as world:
        yield world


@pytest.mark.parametrize("name", STATES)
async def test_axe_finds_nothing_and_nothing_overflows(name: str, world: World, axe: str, figures: dict[str, Any]
                                                       ) -> None:
    tab = await STATES[name](world)
    await tab.page.evaluate(axe)
    found: list[str] = []
    async for device, look in each_look(tab):
        found += [f"{look}: {violation}" for violation in await tab.page.evaluate(AXE)]
        for wide in (device, *(DEVICES.keys() - {device})):
            await size(tab, wide)
            width, inner = await tab.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
            assert width <= inner, f"{look} on a {wide} is {width} px wide"
            if SHOTS:
                await tab.page.screenshot(path=f"{SHOTS}/{name}-{wide}-{look}.png", full_page=True)
    figures["axe_violations"] = figures.get("axe_violations", 0) + len(found)
    figures["axe_states"] = figures.get("axe_states", 0) + 1
    assert found == []


async def focused(tab: Tab) -> str:
    name: str = await tab.page.evaluate("document.activeElement.id || document.activeElement.name || "
                                        "document.activeElement.textContent")
    return name


async def tab_to(tab: Tab, name: str) -> None:
    """Press Tab until this has the focus, and see that one sees it."""
    for _ in range(40):
        await tab.page.keyboard.press("Tab")
        if await focused(tab) == name:
            break
    assert await focused(tab) == name
    assert await tab.page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"


async def test_a_whole_call_by_keyboard_alone(context: Any, gateway: Gateway) -> None:
    tab = await open_tab(context, gateway.url)
    press = tab.page.keyboard.press
    await tab_to(tab, "language")
    await press("ArrowDown")
    await tab.page.wait_for_selector("html[lang=fr]")
    await tab_to(tab, "theme")
    await press("End")
    await tab.page.wait_for_selector("html[data-theme=dark]")
    await tab_to(tab, "start")
    await tab_to(tab, "record")
    await press("Space")
    await press("Shift+Tab")
    await press("Enter")
    await tab.is_("live")
    assert await focused(tab) == "end"  # where the button was
    await press("Shift+Tab")
    await press("Shift+Tab")
    await press("Space")
    assert await tab.page.get_attribute("#mute", "aria-pressed") == "true"
    await press("Space")
    await press("Tab")
    await press("Enter")
    assert await focused(tab) == "interrupt"
    await tab_to(tab, "volume")
    await press("Home")
    assert await tab.page.input_value("#volume") == "0"
    await tab_to(tab, "ribbon")
    await until(lambda: tab.page.evaluate("+document.getElementById('ribbon').ariaValueNow > 20"))
    await press("ArrowLeft")
    chosen = await tab.page.inner_text("#frame-title")
    await press("ArrowLeft")
    assert await tab.page.inner_text("#frame-title") != chosen
    assert "Trame" in await tab.page.evaluate("document.activeElement.ariaValueText")
    await tab_to(tab, "close")
    await press("Enter")
    assert await focused(tab) == "ribbon"
    await tab_to(tab, "Microphone et haut-parleur")
    await press("Enter")
    await tab_to(tab, "microphone")
    await tab_to(tab, "Réglages")
    await press("Enter")
    await tab_to(tab, "temperature")
    await tab.page.keyboard.type("0.5")
    await press("Tab")
    for _ in range(40):
        await press("Shift+Tab")
        if await focused(tab) == "end":
            break
    await press("Enter")
    await tab.is_("ended")
    await shows(tab, "Télécharger le son")
    await tab_to(tab, "wav")


async def test_the_trace_id_of_a_frame_can_be_copied(world: World) -> None:
    gateway = await world.gateway(traces=True)
    tab = await world.tab(gateway.url)
    await tab.page.context.grant_permissions(["microphone", "clipboard-read", "clipboard-write"])
    await tab.talk()
    await tab.figures_of(2)
    box = await tab.page.locator("#ribbon").bounding_box()
    await tab.page.mouse.click(box["x"] + box["width"] - 8, box["y"] + 20)
    trace = await tab.page.inner_text("#trace")
    assert len(trace) == 32
    await tab.page.click("#copy")
    await shows(tab, "Copied")
    assert await tab.page.evaluate("navigator.clipboard.readText()") == trace


async def test_a_key_opens_a_call_and_goes_nowhere_else(world: World) -> None:
    gateway = await world.locked()
    tab = await world.tab(gateway.url)
    asked: list[str] = []
    tab.page.on("request", lambda request: asked.append(request.url))
    tab.page.on("websocket", lambda socket: asked.append(socket.url))
    await tab.page.fill("#key", world.key)
    await tab.talk()
    assert any(url.endswith("/api/pcm") for url in asked) and not any(world.key in url or "ek_" in url for url in asked)
    assert world.key not in await tab.page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}])")
    await tab.end()
    status = await world.tab(f"{gateway.url}/status")
    await status.page.fill("#key", world.key)
    await status.page.keyboard.press("Enter")
    await shows(status, "speaker", "#models")


async def test_a_change_of_temperature_reaches_the_mesh_in_mid_call(tab: Tab) -> None:
    await tab.talk()
    sent: list[str] = []
    await tab.page.evaluate(f"() => {KEEP_SENT}")
    await tab.page.click("#settings summary")
    await tab.page.fill("[name=temperature]", "0.4")
    await tab.page.keyboard.press("Tab")

    async def told() -> bool:
        sent[:] = await tab.page.evaluate("sent")
        return any('"settings"' in message and '"temperature":0.4' in message for message in sent)
    await until(told)
    assert await tab.page.is_disabled("[name=seed]")
    await tab.end()
    assert tab.complaints == []


async def opened(tab: Tab) -> dict[str, Any]:
    """The message with which the page has opened its last call."""
    messages: list[dict[str, Any]] = [json.loads(message) for message in await tab.page.evaluate("sent")]
    return next(message for message in reversed(messages) if "pacing" in message)


async def test_a_voice_and_instructions_go_with_the_call_and_are_remembered(world: World) -> None:
    gateway = await world.with_voices(characters=20)
    tab = await world.tab(gateway.url, KEEP_SENT)
    await tab.page.click("#settings summary")
    await tab.page.focus("[name=temperature]")
    await tab_to(tab, "voice")
    await tab.page.keyboard.press("ArrowDown")
    await tab_to(tab, "text_prompt")
    await tab.page.keyboard.type("You are a doctor. Are you?")
    await tab.talk()
    asked = await opened(tab)
    assert (asked["voice"], asked["text_prompt"]) == ("lena", "You are a doctor. Ar")
    assert await tab.page.is_disabled("[name=voice]") and await tab.page.is_disabled("[name=text_prompt]")
    await tab.end()
    await tab.page.reload()
    await tab.page.wait_for_selector("#start:enabled")
    assert await tab.page.input_value("[name=voice]") == "lena"
    assert await tab.page.input_value("[name=text_prompt]") == "You are a doctor. Ar"
    assert tab.complaints == []


async def test_a_model_that_can_t_be_told_anything_is_not(world: World) -> None:
    tab = await world.tab((await world.gateway()).url, KEEP_SENT)
    await tab.page.click("#settings summary")
    await tab.page.wait_for_selector("#start:enabled")
    assert not await tab.page.is_visible("[name=text_prompt]") and not await tab.page.is_visible("[name=voice]")
    await tab.page.evaluate("document.querySelector('[name=text_prompt]').value = 'left from another mesh'")
    await tab.talk()
    assert (await opened(tab))["text_prompt"] == ""


async def test_who_wants_less_motion_gets_less(world: World) -> None:
    tab = await world.tab((await world.gateway()).url)
    await tab.page.emulate_media(reduced_motion="reduce")
    assert await tab.page.evaluate("document.getAnimations().length") == 0
    await tab.page.emulate_media(reduced_motion="no-preference")
    await until(lambda: tab.page.evaluate("document.getAnimations().length > 0"))
