"""Promises of the page at /dashboard, in a real browser before a real server."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from potstill.serving.server import Server
from tests.serving.metered import KEY, key_file, mock_engine, say, server_of, serving, some_traffic

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")
SIZES = [(1280, 900), (390, 844)]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Server]]:
    folder = tmp_path_factory.mktemp("dashboard")
    with mock_engine() as engine:
        made = server_of(engine, folder, keys=[key_file(folder)], telemetry={"steps": True})
        with serving(made) as url:
            some_traffic(url, KEY)
            yield url, made


def opened(browser: Any, url: str, width: int, height: int, scheme: str = "light") -> tuple[Any, list[str], list[str]]:
    """The page with its key given, what the browser complained of, and every address that it asked."""
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    complaints: list[str] = []
    asked: list[str] = []
    page.on("pageerror", lambda fault: complaints.append(str(fault)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{url}/dashboard")
    page.wait_for_selector("#ask:not([hidden])")
    assert page.locator("#all").is_hidden()
    page.fill("#key", "a wrong key")
    page.click("button")
    page.wait_for_selector("#wrong:not(:empty)")
    page.fill("#key", KEY)
    page.click("button")
    page.wait_for_selector("#all:not([hidden])")
    page.wait_for_selector("#plots svg path", timeout=20_000)
    return page, complaints, asked


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_the_page_shows_what_the_server_does_at_any_width_and_asks_nobody_else(
    browser: Any, server: tuple[str, Server], width: int, height: int
) -> None:
    url, _ = server
    page, complaints, asked = opened(browser, url, width, height)
    assert complaints == []
    assert {each.split("?")[0] for each in asked if not each.startswith("data:")} == {
        f"{url}/dashboard", f"{url}/dashboard.json",
    }  # fmt: skip
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.locator("#plots .card").count() == 8
    assert "mock@1" in page.locator("#models").inner_text()
    assert "exact_cache" in page.locator("#plots").inner_text()
    assert "tester" in page.locator("#tables").inner_text()
    assert page.locator("#alarms .alarm").count() == 0
    outside = page.evaluate(
        """() => [...document.querySelectorAll('svg text')].filter((each) => {
             const box = each.getBoundingClientRect(), plot = each.ownerSVGElement.getBoundingClientRect();
             return box.left < plot.left - 1 || box.right > plot.right + 1; }).map((each) => each.textContent)"""
    )
    assert outside == []
    page.close()


def test_the_page_is_live_and_says_what_is_wrong(browser: Any, server: tuple[str, Server]) -> None:
    url, made = server
    page, _, _ = opened(browser, url, *SIZES[0])
    with httpx.Client(base_url=url, headers={"authorization": f"Bearer {KEY}"}, timeout=30) as http:
        for _ in range(30):
            assert say(http, "cache").status_code == 200
    page.locator("#plots .card").nth(2).filter(has_text=re.compile("exact_cache [1-9]")).wait_for(timeout=20_000)
    assert page.locator("#tiles").inner_text() != ""
    made.meter.capture_full.set(1)
    page.wait_for_selector("#alarms .alarm", timeout=20_000)
    assert "the folder is full" in page.locator("#alarms").inner_text()
    made.meter.capture_full.set(0)
    page.close()


def test_light_and_dark_are_told_apart_and_readable(browser: Any, server: tuple[str, Server]) -> None:
    contrasts = {}
    for scheme in ("light", "dark"):
        page, _, _ = opened(browser, server[0], *SIZES[0], scheme)
        contrasts[scheme] = page.evaluate(
            """() => {
              const light = (colour) => {
                const [r, g, b] = colour.match(/[0-9.]+/g).slice(0, 3).map((v) => v / 255)
                  .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
                return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
              return ['strong', '.legend', 'th'].map((each) => {
                const node = document.querySelector('#all ' + each), card = node.closest('.card, .tile');
                const [a, b] = [light(getComputedStyle(node).color), light(getComputedStyle(card).backgroundColor)];
                return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05); })
                .concat(light(getComputedStyle(document.body).backgroundColor)); }"""
        )
        page.close()
    for found in contrasts.values():
        assert min(found[:3]) >= 4.5, "WCAG 2.1 AA"
    assert contrasts["light"][3] > 0.8 > 0.1 > contrasts["dark"][3]


def test_text_from_outside_is_never_markup(browser: Any, server: tuple[str, Server]) -> None:
    url, made = server
    made.meter.add(made.meter.answers, 5, "<img src=x onerror=document.title='owned'>", "<b id=evil>cache</b>")
    page, complaints, _ = opened(browser, url, *SIZES[0])
    page.wait_for_timeout(2500)
    assert page.locator("#evil").count() == 0
    assert page.title() == "Potstill"
    assert complaints == []
    page.close()


def test_without_keys_the_page_shows_itself_at_once(browser: Any, tmp_path: Path) -> None:
    with mock_engine() as engine, serving(server_of(engine, tmp_path)) as url:
        page = browser.new_page()
        page.goto(f"{url}/dashboard")
        page.wait_for_selector("#all:not([hidden])")
        assert page.locator("#ask").is_hidden()
        page.close()
