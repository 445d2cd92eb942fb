"""A real browser for pages: Debian's chromium and chromium-driver, driven by selenium."""

import contextlib
import os
import shutil

import pytest

DRIVER = shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(
    DRIVER is None, reason="chromedriver is not on the PATH: apt-get install --no-install-recommends chromium-driver"
)


@contextlib.contextmanager
def open_browser(profile):
    """A headless Chromium whose profile is in the directory `profile`."""
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    arguments = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1200,1000"]
    for argument in [*arguments, f"--user-data-dir={profile}"]:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    os.environ.setdefault("SE_OFFLINE", "true")  # selenium looks for no driver of its own
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        yield browser
    finally:
        browser.quit()
