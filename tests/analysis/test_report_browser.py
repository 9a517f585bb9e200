"""The report in a real headless Chromium: sorting, filtering, hover, legends, no outside request, no error, phone and print.

Needs the browser and its driver (Debian: `apt-get install chromium chromium-driver`).
"""

import base64
import shutil
from dataclasses import replace

import pytest
from synthetic_study import cells, write_study

from analysis.report.page import write_report
from analysis.results import collect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER), reason="needs Chromium and chromedriver: apt-get install chromium chromium-driver"
    ),
]

EVIL = '</script><script>window.evil = 1</script><img src=x onerror="window.evil = 1"> "quoted" & more'
RUNS = cells(
    blocks=("adaln", "adaln_zero"), sizes=("S", "B"), patches=(4, 2), seeds=(0, 1), sampling=(8, 16), steps=100
)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A study with everything, one cell alone, and the published numbers."""
    folder = tmp_path_factory.mktemp("report")
    study = collect(write_study(folder / "demo", RUNS, failed={3: EVIL}))
    named = replace(study, table=study.table.assign(run=study.table["run"] + "<b>&\"'"))
    one = collect(write_study(folder / "one", RUNS[:1]))
    paths = {
        "demo": write_report(study, folder / "demo.html"),
        "evil": write_report(named, folder / "evil.html"),
        "one": write_report(one, folder / "one.html"),
        "paper": write_report(collect("paper"), folder / "paper.html"),
    }
    return {name: path.as_uri() for name, path in paths.items()}


@pytest.fixture(scope="module")
def browser():
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1280,900",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def demo(browser, pages):
    return visit(browser, pages["demo"])


def visit(browser, url):
    for log in ("browser", "performance"):
        browser.get_log(log)
    browser.get(url)
    return browser


def requests(browser):
    """Addresses that the page asked for since it was visited, as the browser's network log has them."""
    import json

    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"]


def column(browser, table, name, shown=True):
    """The texts (numbers at full precision) of a column, top to bottom."""
    return browser.execute_script(
        """
        const table = document.querySelector(`#${arguments[0]} table`);
        const at = [...table.tHead.rows[0].cells].findIndex((cell) => cell.dataset.name === arguments[1]);
        return [...table.tBodies[0].rows].filter((row) => !arguments[2] || row.offsetParent !== null)
          .map((row) => row.cells[at]).map((cell) => ("v" in cell.dataset ? Number(cell.dataset.v) : cell.textContent.trim()));
        """,
        table,
        name,
        shown,
    )


def click_header(browser, table, name):
    browser.find_element("css selector", f"#{table} th[data-name='{name}'] button").click()


def fill(browser, table, text):
    from selenium.webdriver.common.keys import Keys

    box = browser.find_element("css selector", f"#{table} input[type=search]")
    box.send_keys(Keys.CONTROL, "a")
    box.send_keys(text or Keys.BACKSPACE)
    return browser.find_element("css selector", f"#{table} output").text


@pytest.mark.parametrize("name", ["demo", "evil", "one", "paper"])
def test_nothing_is_fetched_and_no_error_is_logged(browser, pages, name):
    visit(browser, pages[name])
    browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
    asked = [url for url in requests(browser) if not url.startswith("data:")]
    assert asked == [pages[name]]
    assert browser.get_log("browser") == []
    assert browser.execute_script("return window.evil") is None
    drawn = browser.execute_script("return Object.values(Chart.instances).length")
    assert drawn == len(browser.find_elements("css selector", "canvas")) > 1


def test_the_log_would_show_a_request_and_an_error(browser, pages, tmp_path):
    page = tmp_path / "bad.html"
    page.write_text("<img src='http://127.0.0.1:9/x.png'><script>undefinedName</script>")
    visit(browser, page.as_uri())
    assert any("127.0.0.1:9" in url for url in requests(browser))
    assert any("undefinedName" in entry["message"] for entry in browser.get_log("browser"))


def test_a_click_on_a_head_sorts_numbers_as_numbers_both_ways(demo):
    before = column(demo, "scores", "train_gflops")
    click_header(demo, "scores", "train_gflops")
    assert column(demo, "scores", "train_gflops") == sorted(before) != before
    click_header(demo, "scores", "train_gflops")
    assert column(demo, "scores", "train_gflops") == sorted(before, reverse=True)
    head = demo.find_element("css selector", "#scores th[data-name='train_gflops']")
    assert head.get_attribute("aria-sort") == "descending"


def test_gaps_sort_last_in_both_directions(demo):
    for _ in range(2):
        click_header(demo, "scores", "fd_digits")
        values = column(demo, "scores", "fd_digits")
        assert values[-1] == ""
        assert "" not in values[:-1]


def test_a_filter_takes_words_and_comparisons(demo):
    everything = column(demo, "scores", "size", shown=False)
    assert (
        fill(demo, "scores", "size=B step>=80 adaLN-Zero")
        == f"{len(column(demo, 'scores', 'size'))} of {len(everything)} rows"
    )
    assert set(column(demo, "scores", "size")) == {"B"}
    assert set(column(demo, "scores", "step")) == {80, 100}
    assert set(column(demo, "scores", "block")) == {"adaLN-Zero"}
    fill(demo, "scores", "fd_digits<20")
    values = column(demo, "scores", "fd_digits")
    assert values
    assert max(values) < 20
    assert fill(demo, "scores", "nothing-like-this").startswith("0 of")
    assert fill(demo, "scores", "") == f"{len(everything)} rows"


def point_at(browser, chart, series, place):
    """Move the mouse onto a mark of a chart, by the place of its series among the chart's, and read what the page then says."""
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.support.ui import WebDriverWait

    x, y, width, height = browser.execute_script(
        """
        const canvas = document.querySelector(`#chart-${arguments[0]} canvas`);
        canvas.scrollIntoView({ block: "center", behavior: "instant" });
        const mark = Chart.getChart(canvas).getDatasetMeta(arguments[1]).data[arguments[2]];
        return [mark.x, mark.y, canvas.clientWidth, canvas.clientHeight];
        """,
        chart,
        series,
        place,
    )
    canvas = browser.find_element("css selector", f"#chart-{chart} canvas")
    ActionChains(browser, duration=0).move_to_element_with_offset(canvas, x - width / 2, y - height / 2).perform()
    return WebDriverWait(browser, 5).until(
        lambda _: browser.execute_script(
            """
            const tip = Chart.getChart(document.querySelector(`#chart-${arguments[0]} canvas`)).tooltip;
            return tip.opacity ? [...tip.title, ...tip.body.flatMap((part) => part.lines)] : null;
            """,
            chart,
        )
    )


def test_a_mark_under_the_mouse_names_its_run(demo):
    runs = {run.run for run in RUNS}
    where = demo.execute_script(
        "return Chart.getChart(document.querySelector('#chart-compute canvas')).data.datasets.map((one) => !one.means)"
    )
    words = point_at(demo, "compute", where.index(True), 0)
    assert {line.split(": ")[0] for line in words} & runs
    assert any(line.startswith("FD (digits features, 512 samples): ") for line in words)


def test_a_mean_under_the_mouse_says_of_how_many_seeds(demo):
    where = demo.execute_script(
        "return Chart.getChart(document.querySelector('#chart-gflops canvas')).data.datasets.map((one) => Boolean(one.means))"
    )
    words = point_at(demo, "gflops", where.index(True), 0)
    assert "mean of 2 seeds" in words[0]
    assert any("s.d." in line for line in words)
    named = [line.split(": ")[0] for line in words if ": " in line]
    assert len({run.run for run in RUNS} & set(named)) == 2


def test_a_run_named_with_markup_stays_text_in_the_tooltip(browser, pages):
    visit(browser, pages["evil"])
    where = browser.execute_script(
        "return Chart.getChart(document.querySelector('#chart-compute canvas')).data.datasets.map((one) => !one.means)"
    )
    words = point_at(browser, "compute", where.index(True), 0)
    assert any("<b>&\"'" in line for line in words)


def test_a_click_in_the_legend_hides_a_series_with_its_runs_and_shows_it_again(demo):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.support.ui import WebDriverWait

    def visible():
        return demo.execute_script(
            """
            const chart = Chart.getChart(document.querySelector("#chart-compute canvas"));
            return chart.data.datasets.map((one, index) => [one.label, chart.isDatasetVisible(index)]);
            """
        )

    assert all(shown for _, shown in visible())
    for hidden in ({"S/2"}, set()):
        x, y, width, height = demo.execute_script(
            """
            const canvas = document.querySelector("#chart-compute canvas"), chart = Chart.getChart(canvas);
            canvas.scrollIntoView({ block: "center", behavior: "instant" });
            const at = chart.legend.legendItems.findIndex((item) => item.text === "S/2"), box = chart.legend.legendHitBoxes[at];
            return [box.left + box.width / 2, box.top + box.height / 2, canvas.clientWidth, canvas.clientHeight];
            """
        )
        canvas = demo.find_element("css selector", "#chart-compute canvas")
        ActionChains(demo, duration=0).move_to_element_with_offset(
            canvas, x - width / 2, y - height / 2
        ).click().perform()
        WebDriverWait(demo, 5).until(
            lambda _, hidden=hidden: {label for label, shown in visible() if not shown} == hidden
        )


def test_axes_change_between_linear_and_logarithmic(demo):
    def kind(axis):
        return demo.execute_script(
            "return Chart.getChart(document.querySelector('#chart-compute canvas')).scales[arguments[0]].type", axis
        )

    assert kind("x") == "logarithmic"
    box = demo.find_element("css selector", "#chart-compute input[name=x]")
    box.click()
    assert kind("x") == "linear"
    box.click()
    assert kind("x") == "logarithmic"


def test_another_block_can_be_chosen(demo):
    from selenium.webdriver.support.ui import Select

    def names():
        return demo.execute_script(
            """
            const { data } = Chart.getChart(document.querySelector("#chart-compute canvas"));
            return data.datasets.flatMap((one) => one.data).map((one) => one.run);
            """
        )

    assert {name.split("-")[0] for name in names() if name} == {"adaln_zero"}
    Select(demo.find_element("css selector", "#chart-compute select")).select_by_visible_text("adaLN")
    assert {name.split("-")[0] for name in names() if name} == {"adaln"}


def test_a_reason_with_markup_is_shown_as_it_is(demo):
    assert column(demo, "failure-table", "reason") == [EVIL]
    assert demo.find_elements("css selector", "#failure-table img") == []


@pytest.mark.parametrize("name", ["demo", "one", "paper"])
def test_a_phone_scrolls_down_only(browser, pages, name):
    size = {"width": 375, "height": 667, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        visit(browser, pages[name])
        wide = browser.execute_script("return document.documentElement.scrollWidth")
        assert wide == 375
        canvases = browser.find_elements("css selector", "canvas")
        assert all(canvas.size["width"] <= 375 for canvas in canvases)
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_it_prints_charts_at_the_papers_width_and_without_controls(demo):
    pdf = base64.b64decode(demo.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})["data"])
    assert pdf.startswith(b"%PDF")
    assert pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page ") + pdf.count(b"/Type /Page/") >= 3
    demo.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        assert not demo.find_element("css selector", "#chart-compute .controls").is_displayed()
        assert not demo.find_element("css selector", "nav").is_displayed()
        printed = demo.execute_script(
            "return [...document.querySelectorAll('#scores tbody tr')].filter((row) => row.offsetParent !== null).length"
        )
        assert printed == 40
    finally:
        demo.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
