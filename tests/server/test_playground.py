"""The playground in a real browser, from the prompt to the tokens."""

import time

import pytest

from tests.browser import needs_browser, open_browser
from tests.server.conftest import send
from tfgpt.generation import GenerationSettings
from tfgpt.runtime import open_runner
from tfgpt.text import load_tokenizer

pytestmark = needs_browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with open_browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def page(browser, served):
    browser.get(f"http://127.0.0.1:{served.rest_port}/")
    wait(browser, lambda: browser.execute_script("return document.getElementById('model').value") == "tiny")
    return browser


def wait(browser, condition):
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 30).until(lambda _: condition())


def find(page, name):
    return page.find_element("id", name)


def fill(page, **fields):
    for name, value in fields.items():
        find(page, name).clear()
        find(page, name).send_keys(str(value))


def ended(page):
    return "ended by" in find(page, "status").text


def test_a_prompt_is_continued_by_keyboard(page, release):
    from selenium.webdriver import ActionChains, Keys

    wait(page, lambda: page.switch_to.active_element == find(page, "prompt"))
    fill(page, temperature=0, max_tokens=30, prompt="some words")
    find(page, "prompt").send_keys(Keys.CONTROL, Keys.ENTER)
    wait(page, lambda: ended(page))
    settings = GenerationSettings(max_new_tokens=30)
    [expected] = open_runner(release, "onnx").continue_texts(load_tokenizer(release), ["some words"], settings)
    text = find(page, "text").get_property("textContent")
    assert "some words" + text == expected
    buttons = page.find_elements("css selector", "#text [role=button]")
    assert f"{len(buttons)} tokens in" in find(page, "status").text
    # By Tab to the tokens, and by arrow keys through them.
    page.execute_script("document.getElementById('stop').focus()")
    buttons[0].send_keys("")
    page.execute_script("arguments[0].focus()", buttons[0])
    for keys, place in ((Keys.ARROW_RIGHT, 1), (Keys.ARROW_RIGHT, 2), (Keys.END, -1), (Keys.ARROW_LEFT, -2)):
        ActionChains(page).send_keys(keys).perform()
        assert page.switch_to.active_element == buttons[place]
        assert buttons[place].get_attribute("aria-current") == "true"
        rows = [row.text for row in page.find_elements("css selector", "#alternatives tr")]
        assert len(rows) == 8 and all(row.endswith("%") for row in rows)
        shares = [float(row.split()[-2]) for row in rows]
        assert shares == sorted(shares, reverse=True) and sum(shares) <= 100.5
        chosen = page.find_elements("css selector", "#alternatives tr[aria-selected=true]")
        assert chosen[0].text == rows[0] and find(page, "chosen").text.split()[-2] == rows[0].split()[-2]
    assert [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_variants_and_attention(page, served, release):
    from selenium.webdriver.support.ui import Select

    variant = Select(find(page, "variant"))
    assert [option.text for option in variant.options] == ["float32", "int8"]
    variant.select_by_visible_text("int8")
    fill(page, temperature=0, max_tokens=12, prompt="some words")
    find(page, "run").click()
    wait(page, lambda: ended(page))
    tokenizer = load_tokenizer(release)
    [expected] = open_runner(release, "onnx", "int8").continue_texts(
        tokenizer, ["some words"], GenerationSettings(max_new_tokens=12)
    )
    assert "some words" + find(page, "text").get_property("textContent") == expected
    assert not find(page, "look").is_enabled()
    page.find_elements("css selector", "#text [role=button]")[5].click()
    find(page, "look").click()
    wait(page, lambda: find(page, "weights").is_displayed())
    prompt = [*tokenizer.encode("some words"), *page.execute_script("return tokens.slice(0, 5).map((one) => one.id)")]
    asked = {"model": "tiny:int8", "prompt": prompt}
    weights = send(served, "POST", "/v1/attention", asked)[1]["attention"]
    assert len(page.find_elements("css selector", "#context span")) == len(prompt)

    def most():
        shares = [row.text.rpartition("%")[0].split()[-1] for row in page.find_elements("css selector", "#attended tr")]
        return [float(share) for share in shares]

    mean = sorted((sum(w) / 4 for w in zip(*(head for layer in weights for head in layer))), reverse=True)
    assert len(weights) * len(weights[0]) == 4 and most() == pytest.approx([100 * w for w in mean[:8]], abs=0.06)
    Select(find(page, "layer")).select_by_visible_text("layer 2")
    Select(find(page, "head")).select_by_visible_text("head 1")
    assert most() == pytest.approx([100 * w for w in sorted(weights[1][0], reverse=True)[:8]], abs=0.06)
    page.find_elements("css selector", "#text [role=button]")[2].click()
    assert not find(page, "weights").is_displayed()
    assert [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_stopping(page, served):
    from selenium.webdriver import Keys

    batcher = next(iter(served.models._versions["tiny"].values())).servable.texts["float32"].batcher
    step = batcher._slots.step
    batcher._slots.step = lambda tokens: time.sleep(0.03) or step(tokens)
    try:
        fill(page, temperature=2, max_tokens=150, prompt="a")
        find(page, "run").click()
        wait(page, lambda: "tokens" in find(page, "status").text)
        assert not find(page, "run").is_enabled()
        find(page, "prompt").send_keys(Keys.ESCAPE)
        wait(page, lambda: "ended by stopped" in find(page, "status").text)
        wait(page, lambda: batcher.load == (0, 0))
    finally:
        batcher._slots.step = step
    assert find(page, "run").is_enabled()


def test_an_error_is_shown(page):
    fill(page, temperature=-1, prompt="a", max_tokens=5)
    page.execute_script("document.getElementById('temperature').removeAttribute('min')")
    find(page, "run").click()
    wait(page, lambda: "temperature is -1, expected" in find(page, "status").text)
    assert "error" in find(page, "status").get_attribute("class")


def test_text_is_no_markup(page):
    page.execute_script(
        """const token = "<img src=x onerror=\\"document.title='owned'\\">";
        add({text: token, logprobs: {tokens: [token], token_logprobs: [-1], top_logprobs: [{[token]: -1}]}});
        describe(0);"""
    )
    assert page.title == "tfgpt playground" and not page.find_elements("css selector", "#text img, aside img")


def test_every_control_has_a_name(page):
    unnamed = page.execute_script(
        """return [...document.querySelectorAll("input, select, textarea, button")].filter(
            (one) => !(one.labels?.length || one.textContent.trim() || one.ariaLabel)).map((one) => one.id)"""
    )
    assert unnamed == [] and page.execute_script("return document.documentElement.lang") == "en"


def test_nothing_comes_from_elsewhere(served, page):
    status, content, headers = send(served, "GET", "/")
    assert status == 200 and headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in headers["content-security-policy"] and b"://" not in content
    resources = page.execute_script("return performance.getEntriesByType('resource').map((one) => one.name)")
    assert all(name.startswith(f"http://127.0.0.1:{served.rest_port}/") for name in resources)
