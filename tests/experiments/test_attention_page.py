"""The page in a real browser, without network."""

import numpy as np
import pytest

from tests.browser import needs_browser, open_browser
from tfgpt.experiments.attention import page
from tfgpt.models.views import AttentionView, LogitLens

pytestmark = needs_browser

HOSTILE = (
    "</script><script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "<!--<script>",
    "&lt;b&gt; \u202e\u2028",
)
random = np.random.default_rng(0)


def view_of(layers, heads, queries, keys):
    weights = random.dirichlet(np.ones(len(keys)) / 3, size=(layers, heads, len(queries))).astype("float32")
    return AttentionView(queries, keys, weights)


TOKENS = ("to", " be", "\\xe4", *HOSTILE)
VIEWS = {"decoder": view_of(2, 3, TOKENS, TOKENS), "cross": view_of(4, 2, TOKENS, ("sein", "</s>"))}
LENS = LogitLens(
    TOKENS,
    np.zeros((2, 7, 3), int),
    [[[f"{layer}.{place}.{rank}" + HOSTILE[0] for rank in range(3)] for place in range(7)] for layer in range(2)],
    random.random((2, 7, 3)),
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with open_browser(tmp_path_factory.mktemp("profile")) as browser:
        path = tmp_path_factory.mktemp("page") / "attention.html"
        path.write_text(page(VIEWS, LENS, title=HOSTILE[0], lens_views=("decoder",)), encoding="utf-8")
        browser.get(f"file://{path}")
        yield browser


@pytest.fixture(autouse=True)
def fresh(browser):
    browser.refresh()


def script(browser, code, *arguments):
    return browser.execute_script(code, *arguments)


def choose(browser, name, text):
    from selenium.webdriver.support.select import Select

    Select(browser.find_element("id", name)).select_by_visible_text(text)


def shown_weights(browser):
    return script(browser, "return [...document.querySelectorAll('#keys span')].map((key) => +key.dataset.weight)")


def pressed(browser):
    """Which tokens are marked as those whose attention is shown."""
    code = "return [...document.querySelectorAll('#queries button')].map((b) => b.getAttribute('aria-pressed'))"
    return [i for i, value in enumerate(script(browser, code)) if value == "true"]


def test_it_loads_nothing_and_complains_of_nothing(browser):
    assert script(browser, "return performance.getEntriesByType('resource').length") == 0
    assert browser.get_log("browser") == []
    script(browser, "fetch('https://example.com/').catch(() => {})")
    assert any("Content Security Policy" in entry["message"] for entry in browser.get_log("browser"))


def test_tokens_are_text_whatever_they_hold(browser):
    texts = script(browser, "return [...document.querySelectorAll('#queries button')].map((b) => b.textContent)")
    assert texts[:4] == ["to", "␣be", "\\xe4", HOSTILE[0]]
    assert texts[6] == "&lt;b&gt;␣\\u202e\\u2028"
    assert script(browser, "return document.images.length + document.querySelectorAll('b').length") == 0
    assert script(browser, "return document.scripts.length") == 2
    assert browser.title == f"{HOSTILE[0]}" and browser.find_element("tag name", "h1").text == HOSTILE[0]


def test_layer_and_head_are_chosen(browser):
    weights = VIEWS["decoder"].weights
    np.testing.assert_allclose(shown_weights(browser), weights[0, 0, 6], atol=2e-5)  # the last token of the first head
    choose(browser, "layer", "2")
    choose(browser, "head", "3")
    np.testing.assert_allclose(shown_weights(browser), weights[1, 2, 6], atol=2e-5)
    choose(browser, "head", "mean of all")
    np.testing.assert_allclose(shown_weights(browser), weights[1].mean(0)[6], atol=3e-5)


def test_pointing_at_a_token_shows_where_it_looks(browser):
    from selenium.webdriver import ActionChains

    buttons = browser.find_elements("css selector", "#queries button")
    ActionChains(browser).move_to_element(buttons[1]).perform()
    expected = VIEWS["decoder"].weights[0, 0, 1]
    np.testing.assert_allclose(shown_weights(browser), expected, atol=2e-5)
    assert pressed(browser) == [1]
    first = browser.find_element("css selector", "#strongest li").text
    assert f"(token {expected.argmax() + 1}) {100 * expected.max():.1f} %" in first
    colors = script(
        browser, "return [...document.querySelectorAll('#keys span')].map((key) => key.style.backgroundColor)"
    )
    opacities = [float(color.rstrip(")").split(",")[3]) if "rgba" in color else 1.0 for color in colors]
    np.testing.assert_allclose(opacities, np.sqrt(expected / expected.max()), atol=5e-3)
    ActionChains(browser).move_to_element(browser.find_element("tag name", "h1")).perform()
    assert pressed(browser) == [6]  # the token in the tab order again


def test_it_is_used_by_keyboard_alone(browser):
    from selenium.webdriver import ActionChains, Keys

    def press(*keys):
        ActionChains(browser).send_keys(*keys).perform()

    def focused():
        return script(browser, "return document.activeElement.id || document.activeElement.dataset.query")

    press(Keys.TAB)
    assert focused() == "view"
    press(Keys.TAB, Keys.TAB, Keys.ARROW_DOWN)
    assert focused() == "head"
    press(Keys.TAB)
    assert focused() == "6"  # one stop for all tokens
    press(Keys.HOME)
    assert focused() == "0" and pressed(browser) == [0]
    press(Keys.ARROW_LEFT, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert focused() == "2" and pressed(browser) == [2]
    np.testing.assert_allclose(shown_weights(browser), VIEWS["decoder"].weights[0, 1, 2], atol=2e-5)
    status = browser.find_element("id", "chosen")
    assert status.text.startswith("Token 3, in layer 1, head 2, most at token") and status.aria_role == "paragraph"
    assert status.get_attribute("aria-live") == "polite"


def test_cross_attention_has_other_keys(browser):
    choose(browser, "view", "cross")
    choose(browser, "layer", "4")
    keys = script(browser, "return [...document.querySelectorAll('#keys span')].map((key) => key.textContent)")
    assert keys == ["sein", "</s>"]
    np.testing.assert_allclose(shown_weights(browser), VIEWS["cross"].weights[3, 0, 6], atol=2e-5)
    assert not browser.find_element("id", "lens").is_displayed()


def test_the_logit_lens_follows_the_token(browser):
    from selenium.webdriver import ActionChains

    ActionChains(browser).move_to_element(browser.find_elements("css selector", "#queries button")[2]).perform()
    cells = "[...row.cells].map((cell) => cell.textContent)"
    rows = script(browser, f"return [...document.querySelectorAll('#lens-table tr')].map((row) => {cells})")
    assert rows[0] == ["layer", "1", "2", "3"]
    for row, layer in zip(rows[1:], (1, 0), strict=True):  # the last layer is at the top
        cells = [f"{layer}.2.{rank}{HOSTILE[0]} {100 * LENS.probabilities[layer, 2, rank]:.1f} %" for rank in range(3)]
        assert row == [str(layer + 1), *cells]


def test_the_matrix_is_the_head(browser):
    """A pixel in the middle of each cell, against the colour of its weight."""
    code = """
    const canvas = document.getElementById('matrix'), pen = canvas.getContext('2d'), size = canvas.width / 7;
    const pixel = (x, y) => [...pen.getImageData((x + 0.5) * size, (y + 0.5) * size, 1, 1).data];
    return [...Array(7).keys()].map((y) => [...Array(7).keys()].map((x) => pixel(x, y)[2]));
    """
    blue = np.array(script(browser, code))
    np.testing.assert_allclose(blue, 255 - 195 * np.sqrt(VIEWS["decoder"].weights[0, 0]), atol=1)
