"""The page of `run.py inspect` in a real browser: it draws itself, answers to pointer and keys, asks nothing of the
network, and runs nothing that a text says. Needs Debian's chromium and chromium-driver, and the extra [browser-test]."""

import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

from lmjax.interpret.page import page
from tests.interpret.test_page import HOSTILE, attention, facts_of

QUIET = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--window-size=1200,900",
)  # fmt: skip
TOKENS = ["<s>", "The", " cat", "\n", HOSTILE, "\x1b[0m", " 🙂", " end"]


def browser(phone: bool = False) -> webdriver.Chrome:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in QUIET:
        options.add_argument(argument)
    if phone:
        size = {"width": 390, "height": 844, "pixelRatio": 2.0}
        options.add_experimental_option("mobileEmulation", {"deviceMetrics": size})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))


@pytest.fixture(scope="module")
def chrome():
    found = browser()
    yield found
    found.quit()


def facts(tokens: list[str]) -> dict:
    T = len(tokens)
    top = [[[0, 0.5], [1, 0.25]] for _ in tokens]
    p = [None] + [0.5 ** (1 + t % 9) for t in range(1, T)]
    return facts_of(
        tokens, words=["one", HOSTILE], p=p, entropy=p, top=[None, *top[1:]], next=top[0],
        lens={"rows": ["embed", "layer 0"], "words": [[[1, 0]] * T] * 2, "p": [[[0.6, 0.2]] * T] * 2, "kl": [[0.1] * T] * 2,
              "ahead": 1, "own": "comes next", "targets": [*tokens[1:], "one"]},
        direct={"names": ["embed", "L0H0", "L0 mlp"], "values": [[0.5, -1.0, t] for t in range(T)], "targets": tokens,
                "ahead": 1, "columns": ["H0", "mlp"], "layers": [["L0H0", "L0 mlp"]]},
        input={"values": np.linspace(-1, 1, T).tolist(), "source": [], "told": "What each token gave", "largest": 1.0},
        scores={"previous": [[0.1, 0.9], [0.2, 0.3]]}, told={"previous": "the token before"}, head=[0, 1],
    )  # fmt: skip


def opened(chrome, folder: Path, told: dict, weights: list, causal=(True,)) -> None:
    file = folder / "report.html"
    file.write_text(page(told, weights, causal=causal), encoding="utf-8")
    chrome.get(file.as_uri())
    wait(chrome, "return document.body.dataset.ready && document.body.dataset.drawn")


def wait(chrome, script: str, seconds: float = 30.0):
    end = time.monotonic() + seconds
    while not (found := chrome.execute_script(script)):
        assert time.monotonic() < end, f"{script}: {chrome.get_log('browser')}"
        time.sleep(0.02)
    return found


@pytest.fixture(scope="module")
def shown(chrome, tmp_path_factory):
    opened(chrome, tmp_path_factory.mktemp("page"), facts(TOKENS), [attention(2, 2, len(TOKENS), 2.0)])
    return chrome


def text_of(chrome, selector: str) -> str:
    return chrome.execute_script("return document.querySelector(arguments[0]).textContent", selector)


def token(chrome, t: int):
    return chrome.find_element(By.CSS_SELECTOR, f"#text span[data-t='{t}']")


def test_what_a_text_says_is_shown_and_not_run(shown):
    assert text_of(shown, "#text span[data-t='4']") == HOSTILE
    assert text_of(shown, "#text span[data-t='5']") == "\\x1b[0m"
    assert shown.title == "a model"
    assert shown.execute_script("return document.scripts.length") == 3
    assert shown.execute_script("return document.querySelectorAll('img').length") == 0
    assert shown.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert shown.get_log("browser") == []


def test_a_token_that_is_chosen_is_told_about_everywhere(shown):
    token(shown, 2).click()
    assert "token 2 of 8; p = 13 %, 3.0 bits" in text_of(shown, "#detail")
    assert text_of(shown, "#direct-title") == "What was added to the logit of The, read behind The"
    assert "1.00" in text_of(shown, "#direct tr:nth-child(2)")
    shown.find_element(By.ID, "text").send_keys(Keys.ARROW_RIGHT)
    assert "token 3 of 8" in text_of(shown, "#detail") and "⏎" in text_of(shown, "#detail")
    # what comes next stands behind the last one
    for cell in (token(shown, 8), shown.find_elements(By.CSS_SELECTOR, "#lens tr:first-child td")[7]):
        token(shown, 2).click()
        cell.click()
        assert text_of(shown, "#detail").startswith("What would come next:one50 %")
        assert text_of(shown, "#direct-title") == "What was added to the logit of ·end, read behind ·end"
        assert shown.find_element(By.CSS_SELECTOR, "#lens tr:first-child td.chosen").text == HOSTILE.replace(" ", "·")
    shown.find_elements(By.CSS_SELECTOR, "#lens tr:first-child td")[0].click()
    assert "token 1 of 8" in text_of(shown, "#detail")
    shown.find_element(By.ID, "text").send_keys(Keys.ARROW_LEFT)
    assert "the first one is given" in text_of(shown, "#detail")
    assert text_of(shown, "#direct-title") == "Nothing predicts the first token."


def test_alternatives_appear_under_the_pointer(shown):
    ActionChains(shown).move_to_element(token(shown, 1)).perform()
    tip = shown.find_element(By.ID, "tip")
    assert tip.is_displayed() and "p = 25 %" in tip.text and HOSTILE.replace(" ", "·") in tip.text
    ActionChains(shown).move_to_element(shown.find_element(By.TAG_NAME, "h1")).perform()
    assert not tip.is_displayed()


def test_heads_are_chosen_by_picture_and_by_what_they_do(shown):
    assert text_of(shown, "#big-label").startswith("Layer 0, head 1") and "previous 0.90" in text_of(
        shown, "#big-label"
    )
    shown.find_element(By.CSS_SELECTOR, "#thumbs canvas[data-head='1,0']").click()
    assert text_of(shown, "#big-label").startswith("Layer 1, head 0")
    (best, *_) = shown.find_elements(By.CSS_SELECTOR, "#scores button")
    assert best.text == "L0H1 0.90"
    best.click()
    assert text_of(shown, "#big-label").startswith("Layer 0, head 1")
    weights = attention(2, 2, len(TOKENS), 2.0)[0, 1]
    big = shown.find_element(By.ID, "big")
    shown.execute_script("arguments[0].scrollIntoView({block: 'center'})", big)
    # the last row's first column
    ActionChains(shown).move_to_element_with_offset(
        big, -big.size["width"] // 2 + 8, big.size["height"] // 2 - 8
    ).perform()
    said = float(text_of(shown, "#tip").rsplit(" ", 1)[1])
    assert abs(said - weights[-1, 0]) < 0.01
    pixels = shown.execute_script(
        "const c = document.getElementById('big'); return [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]"
    )
    alpha = np.array(pixels).reshape(len(TOKENS), len(TOKENS), 4)[..., 3]
    np.testing.assert_allclose(alpha, 255 * np.sqrt(weights), atol=3)


def test_the_text_is_coloured_by_what_is_asked(shown):
    def colours():
        return [token(shown, t).value_of_css_property("background-color") for t in range(len(TOKENS))]

    seen = []
    for name in ("probability", "entropy", "attention", "input"):
        Select(shown.find_element(By.ID, "colour")).select_by_value(name)
        seen.append(tuple(colours()))
    assert len(set(seen)) == 4


def test_a_source_is_coloured_where_it_is_what_is_looked_at(chrome, tmp_path):
    """Of three kinds of attention; the weights of one say nothing of another's tokens."""
    rng, sizes = np.random.default_rng(0), {"source": 3, "tokens": 5}
    sides = [("source", "source"), ("tokens", "tokens"), ("tokens", "source")]
    weights = [rng.dirichlet(np.ones(sizes[of]), (2, 2, sizes[by])).astype(np.float32) for by, of in sides]
    told = facts([f"t{i}" for i in range(5)])
    told |= {"source": ["x", "y", "z"], "head": [1, 1], "scores": {"previous": [[0.1, 0.2], [0.3, 0.9]]}}
    told["attention"] = [{"name": f"{by} {of}", "by": by, "of": of, "scored": by == of == "tokens"} for by, of in sides]
    told["input"] |= {"source": [0.5, -0.5, 0.9]}
    opened(chrome, tmp_path, told, weights, [False] * 3)

    def alphas(side: str) -> list[float]:
        colours = [node.value_of_css_property("background-color") for node in
                   chrome.find_elements(By.CSS_SELECTOR, f"#{side} span:not(.next)")]  # fmt: skip
        return [float(colour.split(",")[3].rstrip(")")) for colour in colours]

    # the heads that have scores are the first that are shown
    assert Select(chrome.find_element(By.ID, "which")).first_selected_option.text == "tokens tokens"
    assert "previous 0.90" in text_of(chrome, "#big-label")
    Select(chrome.find_element(By.ID, "colour")).select_by_value("input")
    np.testing.assert_allclose(alphas("source"), [0.5, 0.5, 0.9], atol=0.01)
    assert text_of(chrome, "#input div:nth-child(3) b") == "z"
    Select(chrome.find_element(By.ID, "colour")).select_by_value("attention")
    token(chrome, 4).click()
    for kind, on_source, on_text in ((0, None, None), (1, None, 1), (2, 2, None)):
        Select(chrome.find_element(By.ID, "which")).select_by_value(str(kind))
        for side, number in (("source", on_source), ("text", on_text)):
            wanted = np.zeros(sizes[side.replace("text", "tokens")]) if number is None else weights[number][0, 0, 4]
            np.testing.assert_allclose(alphas(side), wanted, atol=0.01)


def test_a_large_one_draws_itself_and_fits_a_phone(tmp_path):
    phone = browser(phone=True)
    try:
        tokens = [f" word{t}" for t in range(256)]
        opened(phone, tmp_path, facts(tokens) | {"scores": {}, "head": [11, 3]}, [attention(12, 12, 256, 2.0)])
        assert phone.execute_script("return document.querySelectorAll('#thumbs canvas').length") == 144
        # tables scroll by themselves
        assert phone.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    finally:
        phone.quit()
