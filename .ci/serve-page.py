"""Uses the chat page as a person would, in headless Chromium: see .ci/serve-page."""

import tempfile
import time

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from serve_server import ROOT, SMOLLM2, served

KEY = "secret"
PICTURES = ROOT / "target/serve-page"
FLAGS = """--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync --window-size=1000,800""".split()

# Notes each length that the last answer's text has had.
WATCH = """
window.lengths = new Set();
new MutationObserver(() => {
  const last = document.querySelector('#messages li:last-child.assistant .text');
  if (last) window.lengths.add(last.textContent.length);
}).observe(document.getElementById('messages'), {childList: true, subtree: true, characterData: true});
"""
UNNAMED = """
return [...document.querySelectorAll('input, textarea, button, ol')].filter(
  (e) => !(e.labels?.length || e.getAttribute('aria-label') || (e.tagName === 'BUTTON' && e.textContent.trim())))
  .map((e) => e.outerHTML);
"""


class Page:
    """The page, as it is in the browser."""

    def __init__(self, driver, server):
        self.driver, self.server = driver, server

    def one(self, selector):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def until(self, what, holds):
        """Waits until something is so; a minute is far more than any of it takes."""
        end = time.monotonic() + 60
        while not (found := holds()):
            assert time.monotonic() < end, f"{what}: {self.one('body').text}"
            time.sleep(0.02)
        return found

    def last(self, part):
        return self.one(f"#messages li:last-child .{part}").text

    def ask(self, text):
        self.one("#text").send_keys(text, Keys.ENTER)
        self.until("an answer begins", lambda: self.one("#stop").is_displayed() or self.last("note"))

    def set(self, field, value):
        if not self.one("#settings").get_attribute("open"):
            self.one("#settings summary").click()
        self.one(field).clear()
        self.one(field).send_keys(value)

    def picture(self, name):
        PICTURES.mkdir(parents=True, exist_ok=True)
        assert self.driver.save_screenshot(str(PICTURES / f"{name}.png"))

    def colour(self, selector):
        return self.one(selector).value_of_css_property("background-color")


def key_is_asked_for(page):
    page.until("a key is asked for", lambda: page.one("#key-form").is_displayed())
    page.one("#key").send_keys("wrong", Keys.ENTER)
    page.until("a wrong key is told", lambda: "not one of" in page.one("#key-error").text)
    page.one("#key").send_keys(KEY, Keys.ENTER)
    page.until("the model is named", lambda: page.one("#model").text == "tried")
    assert not page.one("#key-form").is_displayed()


def answer_streams(page):
    page.driver.execute_script(WATCH)
    page.set("#system", "You are a careful teacher.")
    page.set("#temperature", "0")
    page.ask("Count from one to ten, again and again.")
    page.until("the answer is there", lambda: "tokens" in page.last("note"))
    lengths = page.driver.execute_script("return window.lengths.size")
    assert lengths > 3, f"the answer came in {lengths} pieces"
    assert "120 tokens" in page.last("note") and len(page.last("text")) > 50, page.last("note")


def drafts_are_coloured(page):
    drafted = "#messages .exit, #messages .lookup"
    assert page.driver.find_elements(By.CSS_SELECTOR, drafted), "something was drafted"
    clear = page.colour(drafted)
    assert clear == "rgba(0, 0, 0, 0)" and not page.one("#legend").is_displayed()
    page.one("#drafts").click()
    assert page.colour(drafted) != clear and page.one("#legend").is_displayed()


def answer_stops(page):
    page.set("#most", "6000")
    page.ask("Tell me everything about the sea.")
    page.until("text comes", lambda: page.last("text"))
    assert not page.one("#send").is_displayed()
    page.one("#stop").click()
    page.until("it says so", lambda: page.last("note") == "Stopped.")
    cancelled = 'eesd_requests_ended_total{outcome="cut_short"}'
    page.until("the server stops", lambda: page.server.metric(cancelled, KEY) == 1)
    page.until("nothing runs", lambda: page.server.metric('eesd_requests{state="decoding"}', KEY) == 0)
    # It goes on from there.
    page.set("#most", "5")
    page.ask("Go on.")
    page.until("another answer", lambda: "5 tokens" in page.last("note"))


def mistakes_are_told(page):
    page.set("#most", "5")
    page.driver.execute_script("document.getElementById('text').value = 'x '.repeat(20000)")
    page.ask("y")
    page.until("too long", lambda: "error" in page.one("#messages li:last-child .note").get_attribute("class"))
    assert "context" in page.last("note"), page.last("note")


def it_fits_a_phone_and_the_dark(page):
    light = page.colour("body")
    page.picture("light")
    page.driver.set_window_size(390, 844)
    dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
    assert page.colour("body") != light
    page.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    )
    wide = page.driver.execute_script("return document.documentElement.scrollWidth - window.innerWidth")
    assert wide <= 0, f"{wide} pixels wider than the screen"
    assert page.one("#text").is_displayed() and page.one("#send").is_displayed()
    page.picture("phone-dark")


def everything_has_a_name(page):
    assert page.driver.execute_script(UNNAMED) == []


def nothing_was_refused(page):
    """By the policy of the page, first of all. What the server refuses is told there too."""
    told = [entry["message"] for entry in page.driver.get_log("browser") if entry["level"] == "SEVERE"]
    assert not [message for message in told if "401" not in message and "400" not in message], told


def main():
    assert SMOLLM2, "tools/get-smollm2 fetches the model"
    options = webdriver.ChromeOptions()
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    flags = ["-m", SMOLLM2, "--alias", "tried", "--api-key", KEY, "-n", 120, "--ignore-eos", "-c", 8192]
    # Which drafts however fast the machine is.
    flags += ["--exit", SMOLLM2.parent / "exit-29.safetensors", "--draft", "exit", "--controller", "fixed:4"]
    with tempfile.TemporaryDirectory() as profile, served(*flags) as server:
        for flag in [*FLAGS, f"--user-data-dir={profile}"]:
            options.add_argument(flag)
        options.binary_location = "/usr/bin/chromium"
        driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
        try:
            driver.get(server.address + "/")
            page = Page(driver, server)
            for step in [
                key_is_asked_for,
                answer_streams,
                drafts_are_coloured,
                answer_stops,
                everything_has_a_name,
                it_fits_a_phone_and_the_dark,
                mistakes_are_told,
                nothing_was_refused,
            ]:
                step(page)
                print(step.__name__.replace("_", " "), flush=True)
        finally:
            driver.quit()


if __name__ == "__main__":
    main()
