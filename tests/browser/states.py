"""Every state that the page can be in, and how to get there in a real browser."""

from __future__ import annotations

import contextlib
import json
import wave
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from services.gateway.calls.callers import CallerLimits
from services.gateway.trust.guard import Guard
from services.gateway.trust.keys import KeyFile, hash_of, new_key
from services.gateway.trust.tickets import Tickets
from tests.browser.conftest import COUNTED, Tab, open_tab
from tests.browser.gateway import Gateway
from tests.browser.proxy import BadNetwork
from tests.browser.speaker import RATE
from tests.until import until

State = Callable[["World"], Awaitable[Tab]]
STATES: dict[str, State] = {}


class World:
    """A browser, and gateways and networks for it. `async with` closes what was opened."""

    def __init__(self, browser: Any, folder: Path) -> None:
        self._browser, self._folder = browser, folder
        self._opened = contextlib.AsyncExitStack()
        self.key = new_key()

    async def __aenter__(self) -> World:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._opened.aclose()

    async def gateway(self, **bounds: Any) -> Gateway:
        return await self._opened.enter_async_context(Gateway(**bounds))

    async def locked(self) -> Gateway:
        """A gateway that lets only `key` in."""
        file = self._folder / "keys.json"
        file.write_text(json.dumps({"keys": [{"name": "tester", "sha256": hash_of(self.key)}]}))

        def gate(tickets: Tickets) -> Guard:
            return Guard(KeyFile(file), None, tickets, CallerLimits())
        return await self.gateway(gate=gate)

    async def with_voices(self, characters: int = 40) -> Gateway:
        """A gateway with a voice, and a model that can be told so many characters."""
        with wave.open(str(self._folder / "lena.wav"), "wb") as wav:
            wav.setparams((1, 2, RATE, 0, "NONE", ""))
            wav.writeframes(bytes(2 * RATE))
        return await self.gateway(voices=str(self._folder), text_prompt_characters=characters)

    async def network(self, gateway: Gateway, **badness: float) -> BadNetwork:
        return await self._opened.enter_async_context(BadNetwork(gateway.door.port, **badness))

    async def tab(self, url: str, before: str = "") -> Tab:
        """The page at this address in a profile of its own, after a script of ours."""
        context = await self._browser.new_context(permissions=["microphone"], locale="en")
        self._opened.push_async_callback(context.close)
        await context.add_init_script(COUNTED + before)
        return await open_tab(context, url)


def state(reach: State) -> State:
    STATES[reach.__name__] = reach
    return reach


async def french_too(tab: Tab) -> None:
    """Load what the page says in French while there is a network."""
    for language in ("fr", "en"):
        await tab.page.select_option("#language", language)
        await tab.page.wait_for_selector(f"html[lang={language}]")


async def shows(tab: Tab, text: str, where: str = "main") -> None:
    """Wait for a text."""
    async def there() -> bool:
        return text in await tab.page.inner_text(where)
    await until(there)


@state
async def idle(world: World) -> Tab:
    tab = await world.tab((await world.gateway()).url)
    await tab.page.click("#devices summary")
    await tab.page.click("#settings summary")
    return tab


@state
async def directed(world: World) -> Tab:
    """In a mesh with voices, whose model can be told something; in a call, with everything open."""
    tab = await world.tab((await world.with_voices()).url)
    await tab.page.click("#devices summary")
    await tab.page.click("#settings summary")
    await tab.page.select_option("[name=voice]", "lena")
    await tab.page.fill("[name=text_prompt]", "You are a doctor.")
    await tab.talk()
    await tab.figures_of(2)
    return tab


@state
async def live(world: World) -> Tab:
    tab = await world.tab((await world.gateway()).url)
    await tab.talk()
    await tab.figures_of(4)
    await tab.page.focus("#ribbon")
    await tab.page.keyboard.press("ArrowLeft")
    await tab.page.wait_for_selector("#frame:not([hidden])")
    return tab


@state
async def muted(world: World) -> Tab:
    tab = await world.tab((await world.gateway()).url)
    await tab.talk()
    await tab.page.click("#mute")
    return tab


@state
async def slow(world: World) -> Tab:
    network = await world.network(await world.gateway(), jitter_s=0.8)
    tab = await world.tab(network.url)
    await tab.talk()
    await shows(tab, "Moshi's answers come late")
    return tab


@state
async def ended(world: World) -> Tab:
    tab = await world.tab((await world.gateway()).url)
    await tab.talk()
    await tab.figures_of(2)
    await tab.end()
    return tab


@state
async def queued(world: World) -> Tab:
    gateway = await world.gateway(slots=1)
    await (await world.tab(gateway.url)).talk()
    tab = await world.tab(gateway.url)
    await tab.page.click("#start")
    await tab.is_("queued")
    await shows(tab, "Number 1 in line")
    return tab


@state
async def full(world: World) -> Tab:
    gateway = await world.gateway(slots=1, most_waiting=0)
    await (await world.tab(gateway.url)).talk()
    tab = await world.tab(gateway.url)
    await tab.page.click("#start")
    await shows(tab, "and so is the line")
    return tab


@state
async def reconnecting(world: World) -> Tab:
    network = await world.network(await world.gateway())
    tab = await world.tab(network.url)
    await tab.talk()
    await tab.figures_of(2)
    await french_too(tab)
    network.down()
    await tab.is_("resuming")
    return tab


@state
async def gone(world: World) -> Tab:
    network = await world.network(await world.gateway())
    tab = await world.tab(network.url)
    await french_too(tab)
    network.down()
    await tab.page.click("#start")
    await shows(tab, "can't be reached")
    return tab


@state
async def no_microphone(world: World) -> Tab:
    tab = await world.tab((await world.gateway()).url, "window.noMicrophone = 'NotFoundError';")
    await tab.page.click("#start")
    await shows(tab, "No microphone was found")
    return tab


@state
async def denied(world: World) -> Tab:
    tab = await world.tab((await world.gateway()).url, "window.noMicrophone = 'NotAllowedError';")
    await tab.page.click("#start")
    await shows(tab, "The microphone is blocked")
    return tab


@state
async def plain_http(world: World) -> Tab:
    gateway = await world.gateway()
    tab = await world.tab(f"http://mesh.test:{gateway.door.port}")
    await shows(tab, "make run TLS=1")
    return tab


@state
async def unsupported(world: World) -> Tab:
    tab = await world.tab((await world.gateway()).url, "delete window.AudioWorkletNode;")
    await shows(tab, "too old")
    return tab


@state
async def key_wanted(world: World) -> Tab:
    tab = await world.tab((await world.locked()).url)
    await tab.page.click("#start")
    await shows(tab, "asks who calls")
    return tab


@state
async def key_refused(world: World) -> Tab:
    tab = await world.tab((await world.locked()).url)
    await tab.page.fill("#key", "mm_wrong")
    await tab.page.click("#start")
    await shows(tab, "has not accepted")
    return tab


@state
async def status(world: World) -> Tab:
    gateway = await world.gateway()
    await (await world.tab(gateway.url)).talk()
    tab = await world.tab(f"{gateway.url}/status")
    await shows(tab, "1", "#facts")
    return tab


@state
async def status_key(world: World) -> Tab:
    tab = await world.tab(f"{(await world.locked()).url}/status")
    await tab.page.wait_for_selector("#key-form:not([hidden])")
    return tab


DEVICES = {"phone": (360, 740), "desktop": (1280, 860)}


async def each_look(tab: Tab) -> AsyncIterator[tuple[str, str]]:
    """The page in both languages and both themes, on a phone and on a desktop in turn; yields the device, and the
    language and theme, each time. All eight would take as long again, and find no more: a rule is broken by a colour or
    by a word.
    """
    for language in ("en", "fr"):
        await tab.page.select_option("#language", language)
        await tab.page.wait_for_selector(f"html[lang={language}]")
        for theme, device in (("light", "phone"), ("dark", "desktop")) if language == "fr" else (
                ("light", "desktop"), ("dark", "phone")):
            await tab.page.select_option("#theme", theme)
            await size(tab, device)
            await tab.page.evaluate("""() => Promise.allSettled(document.getAnimations()
                .filter(one => one instanceof CSSTransition && one.effect.target.checkVisibility())
                .map(one => one.finished))""")
            yield device, f"{language}-{theme}"


async def size(tab: Tab, device: str) -> None:
    width, height = DEVICES[device]
    await tab.page.set_viewport_size({"width": width, "height": height})
