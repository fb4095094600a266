"""The page in front of a real mesh, with a real model; and the module in a page of one's own."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from harness.local_mesh import LocalMesh
from services.gateway.edges.web import page
from tests.browser.conftest import open_tab
from tests.browser.gateway import Gateway
from tests.browser.sound import read_wav
from tests.until import until

pytestmark = pytest.mark.slow


async def test_a_real_model_answers(mesh: LocalMesh, browser: Any, figures: dict[str, Any]) -> None:
    """The bundled checkpoint: it hears the question, and speaks when it is over."""
    context = await browser.new_context(permissions=["microphone"])
    tab = await open_tab(context, mesh.url)
    await tab.talk()
    seconds = await tab.figures_of(14)
    await tab.page.evaluate("moshimesh.call.apply({temperature: 0.5})")
    await tab.page.click("#interrupt")
    seconds = await tab.figures_of(len(seconds) + 3)
    assert await tab.state() == "live", await tab.page.inner_text("#problem")
    said = await tab.page.inner_text("#captions")
    await tab.end()
    _, right = read_wav(await tab.download("#wav"))
    transcript = (await tab.download("#text")).decode()
    await context.close()
    figures["real_mesh"] = {"said": len(said.split()), "underruns": seconds[-1]["underruns"],
                            "mos": round(seconds[-1]["mos"], 2)}
    assert tab.complaints == []
    assert np.abs(right).max() > 0.05, "Moshi said nothing"
    assert said.strip() and re.match(r"\d{4}-\d\d-\d\dT", transcript)


@pytest.fixture
async def own_page(gateway: Gateway) -> AsyncIterator[str]:
    """The example of the module's README on another server, with the module beside it."""
    readme = (page.FOLDER / "moshimesh" / "README.md").read_text()
    example = re.search(r"```html\n(.*?)```", readme, re.S)
    assert example is not None
    html = example[1].replace("https://mesh.example.org", gateway.url)

    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=html, content_type="text/html")

    app = web.Application()
    app.add_routes([web.get("/", answer), web.static("/moshimesh", page.FOLDER / "moshimesh")])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://localhost:{runner.addresses[0][1]}"
    await runner.cleanup()


async def test_the_ten_lines_of_the_readme_are_a_page(context: Any, own_page: str, gateway: Gateway) -> None:
    tab = await context.new_page()
    complaints: list[str] = []
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    await tab.goto(own_page)
    await tab.click("#talk")

    async def said() -> bool:
        return "w8" in await tab.inner_text("#said")
    await until(said)
    await tab.click("#end")
    await until(lambda: gateway.leaks == 0)
    assert complaints == []
