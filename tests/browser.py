"""Chromium for the tests of pages, without a network. Where Playwright is missing, importing this skips them."""

import shutil
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SWITCHES = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
SWITCHES += ["--disable-background-networking", "--disable-component-update"]
SWITCHES += ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]  # a camera


@contextmanager
def chromium():
    """One of them in a process: Playwright cannot be started twice at a time."""
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=SWITCHES)
        yield browser
        browser.close()


@contextmanager
def visitors(browser, hosts_of_none=frozenset({None})):
    """A function that opens an address as a new visitor; at the end nothing may have gone wrong in the page.

    Args:
        hosts_of_none: what the requests that need no host, such as those of data: addresses, name as theirs.
    """
    contexts, errors, hosts = [], [], set()

    def open_page(address, width=1280, height=1000, **options):
        contexts.append(browser.new_context(viewport={"width": width, "height": height}, **options))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: message.type == "error" and errors.append(message.text))
        page.on("request", lambda request: hosts.add(urlsplit(request.url).hostname))
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert errors == []
    assert hosts - hosts_of_none == {"127.0.0.1"}
