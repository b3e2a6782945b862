"""A real browser without a screen, for tests of what people see; each page has one that was never used before."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE_MS = 120_000  # that a busy machine may need for a page of MLflow's


@contextmanager
def started() -> Iterator[Any]:
    """Chromium, as Playwright drives it. Skips the test where one of the two is missing."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="Playwright is not installed: pip install playwright"
    )
    if CHROMIUM is None:
        pytest.skip("no Chromium or Chrome on the path")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@contextmanager
def opened(chromium: Any, address: str, width: int = 1600, height: int = 1000, scheme: str = "light") -> Iterator[Any]:
    """A page in a window of this size, in a new profile: no local storage, no cookies."""
    context = chromium.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    context.set_default_timeout(PATIENCE_MS)
    try:
        page = context.new_page()
        page.goto(address)
        yield page
    finally:
        context.close()
