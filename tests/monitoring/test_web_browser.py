"""The page in a real Chromium."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn

from monitoring import layout
from monitoring.recorder import Recorder
from monitoring.web.pages import QUIETEN, application
from monitoring.web.security import Guard
from monitoring.web.server import on_port
from tests.monitoring.generate import BATCH, Shape, Try, generate, hours_of_devices, waits_for_data
from tests.monitoring.web import DONE, HOSTILE, RUN, SWEEP, TOKEN, source, tree

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Dialog, Page, StorageState

CHROMIUM = shutil.which("chromium")
if CHROMIUM is None and os.environ.get("REQUIRE_CHROMIUM"):
    pytest.fail("REQUIRE_CHROMIUM is set, and there is no chromium. As root on Debian type: apt-get install chromium")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no chromium; as root on Debian: apt-get install chromium"
)

ADDRESSES = {
    "overview": "/",
    "run": f"/run?run={RUN}",
    "done": f"/run?run={DONE}",
    "hostile": f"/run?run={HOSTILE}",
    "compare": f"/compare?run={RUN}&run={DONE}",
    "sweep": f"/sweep?sweep={SWEEP}",
}
CHECKS = Path(__file__).with_name("web_checks.js").read_text().partition("\n")[2].rstrip().removesuffix(";")
READY = {
    "overview": "table.runs tbody tr",
    "run": ".u-over",
    "done": ".u-over",
    "hostile": ".u-over",
    "compare": ".u-over",
    "sweep": "#runs tbody tr",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tree(tmp_path_factory.mktemp("browser") / "runs")


@pytest.fixture(scope="module")
def base(root: Path) -> Iterator[str]:
    """The page on a port of its own, in a thread."""
    with pytest.MonkeyPatch.context() as patch, on_port() as place:
        patch.setattr("monitoring.web.pages.EVERY", 0.1)
        patch.setattr("monitoring.web.watched.FRESH", 0.05)
        patch.setattr("monitoring.web.hub.LIST_EVERY", 0.1)
        closing = asyncio.Event()
        app = Guard(application(source(root), closing), TOKEN, written=(QUIETEN,))
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[place.listening])), daemon=True)
        thread.start()
        yield f"http://localhost:{place.port}"
        server.should_exit = server.force_exit = True
        closing.set()
        thread.join(10)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def cookies(chromium: Browser, base: str) -> StorageState:
    """Of somebody who opened the address with the token before."""
    context = chromium.new_context(base_url=base)
    context.new_page().goto(f"/?token={TOKEN}")
    found = context.storage_state()
    context.close()
    return found


@pytest.fixture
def context(chromium: Browser, base: str, cookies: StorageState) -> Iterator[BrowserContext]:
    found = chromium.new_context(
        base_url=base, viewport={"width": 1280, "height": 900}, reduced_motion="reduce", storage_state=cookies
    )
    found.set_default_timeout(20_000)
    yield found
    found.close()


class Viewer:
    """Somebody at the page; whatever the browser complains of is kept."""

    def __init__(self, context: BrowserContext) -> None:
        self.page: Page = context.new_page()
        self.complaints: list[str] = []
        self.page.on(
            "console", lambda said: self.complaints.append(said.text) if said.type in ("error", "warning") else None
        )
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", self.asked)
        self.page.add_init_script(
            "addEventListener('securitypolicyviolation', (event) => console.error('policy', event.violatedDirective))"
        )

    def asked(self, dialog: Dialog) -> None:
        self.complaints.append(f"dialog {dialog.message}")
        dialog.dismiss()

    def opens(self, name: str) -> Page:
        self.page.goto(ADDRESSES[name])
        self.page.wait_for_selector(READY[name])
        return self.page

    def tell(self, script: str, argument: Any = None) -> Any:
        return self.page.evaluate(script, argument)

    def checks(self, name: str) -> list[str]:
        """What is amiss, by one of the checks in web_checks.js."""
        return self.tell(f"() => {CHECKS}.{name}()")


@pytest.fixture
def viewer(context: BrowserContext) -> Viewer:
    return Viewer(context)


def test_the_token_leaves_the_address_and_no_script_sees_the_cookie(viewer: Viewer, base: str) -> None:
    viewer.page.context.clear_cookies()
    viewer.page.goto(f"/?token={TOKEN}")
    viewer.page.wait_for_selector(READY["overview"])
    assert viewer.page.url == f"{base}/"
    assert viewer.tell("document.cookie") == ""
    assert viewer.tell(
        "performance.getEntriesByType('resource').every((each) => each.name.startsWith(location.origin))"
    )
    assert viewer.complaints == []


def _scroll_through(page: Page) -> None:
    for each in page.locator("main section").all():
        each.scroll_into_view_if_needed()
    page.wait_for_load_state("load")


@pytest.mark.parametrize("name", ADDRESSES)
def test_every_page_is_whole_on_a_desk_in_the_dark_and_on_a_phone(viewer: Viewer, name: str) -> None:
    page = viewer.opens(name)
    _scroll_through(page)
    page.wait_for_timeout(200)
    assert page.locator("h1").count() == 1 and page.title()
    assert viewer.checks("names") == []  # for who cannot see it
    assert viewer.checks("contrast") == []
    page.emulate_media(color_scheme="dark")
    assert viewer.tell("getComputedStyle(document.body).backgroundColor") == "rgb(16, 19, 22)"
    assert viewer.checks("contrast") == []
    for width in (768, 375):
        page.set_viewport_size({"width": width, "height": 700})
        page.wait_for_timeout(100)
        assert viewer.tell("document.documentElement.scrollWidth") <= width
    assert viewer.checks("small") == []
    assert viewer.complaints == []


def test_a_hostile_name_and_a_hostile_log_stay_text(viewer: Viewer) -> None:
    page = viewer.opens("overview")
    assert page.get_by_text("<img src=x onerror=alert(1)>", exact=True).count() == 1
    assert page.get_by_text("</script><b>bold</b>").count() >= 1
    page = viewer.opens("hostile")
    assert page.title() == HOSTILE and "<img src=x" in page.locator("h1").inner_text()
    page = viewer.opens("run")
    page.locator(".log div").last.wait_for()
    assert page.locator(".log div").last.inner_text() == "<script>alert(2)</script> red \ufffdback"
    assert page.locator("img, .log script, h1 img").count() == 0
    assert viewer.complaints == []


def test_what_is_recorded_arrives_by_itself(viewer: Viewer, root: Path) -> None:
    page = viewer.opens("run")
    step = page.locator(".tiles div", has_text="Step").first
    recorder = Recorder(layout.attempt_folder(root / RUN, 2), 0, 4, "tiny", 2)
    recorder.step(step=291, tokens=291 * BATCH, loss=float("nan"), grad_norm=0.5)
    recorder.close()
    with layout.rank_log(layout.attempt_folder(root / RUN, 2), 0).open("a") as log:
        log.write("a line that came later\n")
    step.get_by_text("291").wait_for()
    page.get_by_text("a line that came later").wait_for()
    page.locator(".tiles .bad", has_text="NaN").wait_for()
    page.locator("#curves .legend .not-finite").first.wait_for()
    page.goto(ADDRESSES["overview"])
    page.locator("tr", has_text=RUN.split("/")[1]).get_by_text("step 291").wait_for()
    assert viewer.complaints == []


def test_a_curve_is_read_and_zoomed_by_keyboard(viewer: Viewer) -> None:
    page = viewer.opens("run")
    chart = page.locator(".chart", has=page.get_by_role("heading", name="loss", exact=True)).first
    canvas, readout = chart.locator(".canvas"), chart.locator("output")
    canvas.focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    said = readout.inner_text()
    assert said.startswith("step ")
    page.keyboard.press("ArrowRight")
    assert readout.inner_text() != said
    before = canvas.get_attribute("aria-label")
    with page.expect_response(lambda answer: "low=" in answer.url):
        page.keyboard.press("+")
    changed = "([node, before]) => node.getAttribute('aria-label') !== before"
    page.wait_for_function(changed, arg=[canvas.element_handle(), before])
    page.keyboard.press("0")
    with page.expect_download() as values:
        chart.get_by_role("button", name="Save the values as CSV").click()
    head, first = values.value.path().read_text().splitlines()[:2]
    assert head == 'step,"loss"' and first.startswith("1,10.")
    with page.expect_download() as picture:
        chart.get_by_role("button", name="Save the picture as PNG").click()
    assert picture.value.suggested_filename == f"{RUN.replace('/', '_')}-loss.png"
    assert picture.value.path().read_bytes().startswith(b"\x89PNG")
    assert viewer.complaints == []
    chart.locator("summary").focus()
    page.keyboard.press("Enter")
    chart.locator("table tbody tr").nth(10).wait_for()


def test_the_pages_are_reached_by_tab_and_enter(viewer: Viewer, base: str) -> None:
    page = viewer.opens("overview")
    page.keyboard.press("Tab")
    assert viewer.tell("document.activeElement.className") == "skip"
    for _ in range(60):
        page.keyboard.press("Tab")
        if "20251121" in viewer.tell("document.activeElement.matches('a') ? document.activeElement.textContent : ''"):
            break
    outline = viewer.tell("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("Enter")
    page.wait_for_url(f"{base}/run?run=*")
    page.wait_for_selector(READY["done"])


def test_runs_are_filtered_sorted_and_chosen_for_comparison(viewer: Viewer, base: str) -> None:
    page = viewer.opens("overview")
    rows = page.locator("table.runs tbody tr")
    page.get_by_text("5 runs").wait_for()
    page.get_by_label("Filter").fill("sweep")
    assert rows.count() == 2
    page.get_by_label("Filter").fill("")
    page.get_by_role("button", name="Loss").press("Enter")
    assert page.locator("th[aria-sort=descending]").inner_text().startswith("Loss")
    page.get_by_label(f"compare {RUN}").check()
    page.get_by_label(f"compare {DONE}").check()
    page.get_by_role("link", name="Compare 2").click()
    page.wait_for_url(f"{base}/compare?run=*")
    page.wait_for_selector(READY["compare"])
    assert page.locator("#settings table tbody tr").count() >= 1
    page.goto(f"/compare?run={RUN}&run={SWEEP}.0&run=no/such&run={SWEEP}.1&group=name")
    page.locator("#curves .legend li", has_text="name sweep").first.wait_for()
    assert page.get_by_label("Colours by").input_value() == "name"
    keys = page.locator("main > ul line").evaluate_all("found => found.map((each) => each.getAttribute('class'))")
    assert keys == ["line-1", "line-0", "line-0"]  # both of the sweep alike, and the legend tells of them once
    assert page.locator(".chart .legend").first.locator("line").count() == 2
    assert "it cannot be read: no/such" in page.locator(".notice").inner_text()
    assert viewer.complaints == []


def test_a_sweep_is_looked_through_by_keyboard(viewer: Viewer) -> None:
    page = viewer.opens("sweep")
    page.get_by_label("Parameter", exact=True).focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")  # the focus stays where it was
    assert page.get_by_label("Parameter", exact=True).input_value() == "train.batch_tokens"
    page.locator("#against .axis-name", has_text="train.batch_tokens").wait_for()
    assert {"32768", "131072"} <= set(page.locator("#against text").all_text_contents())  # whole numbers as they are
    assert page.get_by_label("Metric", exact=True).input_value() == "validation_loss"
    page.get_by_label("compare run 1").press("Space")
    page.get_by_role("button", name="Validation loss").press("Enter")
    assert viewer.tell("document.activeElement.textContent") == "Validation loss"
    assert page.get_by_label("compare run 1").is_checked()
    assert viewer.complaints == []


def test_metrics_axis_and_scale_are_kept_in_the_address(viewer: Viewer) -> None:
    page = viewer.opens("run")
    page.locator(".menu summary").click()
    page.get_by_label("lr", exact=True).check()
    page.get_by_label("Over", exact=True).select_option("hours")
    page.get_by_label("Log scale").check()
    page.wait_for_url("**metric=lr**axis=hours**log=1**")
    page.get_by_role("heading", name="lr", exact=True).wait_for()
    page.reload()
    page.get_by_role("heading", name="lr", exact=True).wait_for()
    assert (
        page.get_by_label("Over", exact=True).input_value() == "hours" and page.get_by_label("Log scale").is_checked()
    )
    assert viewer.complaints == []


def test_a_setting_is_found_by_its_path(viewer: Viewer) -> None:
    page = viewer.opens("done")
    page.locator("#request summary", has_text="All 3 settings").click()
    assert page.locator("#request tbody tr").count() == 3
    page.locator("#request").get_by_label("Filter").fill("SAM")
    assert page.locator("#request tbody tr").all_inner_texts() == ["same\t1"]
    assert viewer.complaints == []


def test_a_log_is_searched(viewer: Viewer) -> None:
    page = viewer.opens("run")
    page.get_by_role("searchbox", name="Find").fill("checkpoint at")
    page.keyboard.press("Enter")
    page.get_by_text("in the whole log").wait_for()
    assert page.locator(".log div").count() == 2
    page.locator("#logs select").select_option("job")
    page.get_by_text("attempt 2", exact=True).last.wait_for()


def test_a_finding_is_silenced_by_a_click(viewer: Viewer) -> None:
    page = viewer.opens("run")
    button = page.get_by_role("button", name="Silence: ").first
    title = (button.get_attribute("aria-label") or "").removeprefix("Silence: ")
    title = title.partition(" for ")[0]  # what follows grows with time
    button.focus()
    page.keyboard.press("Enter")
    back = page.get_by_role("button", name=f"Say again: {title}", exact=False)
    back.wait_for()
    assert "(silenced)" in page.locator(".finding", has=back).inner_text()
    assert viewer.tell("document.activeElement.textContent") == "Say again"  # the focus stays with the finding
    back.click()
    page.get_by_role("button", name=f"Seen: {title}", exact=False).click()
    back.wait_for()
    assert "(seen)" in page.locator(".finding", has=back).inner_text()
    back.click()
    page.get_by_role("button", name=f"Silence: {title}", exact=False).wait_for()
    assert viewer.complaints == []


def test_cells_of_a_heat_map_are_read_by_keyboard(viewer: Viewer) -> None:
    page = viewer.opens("run")
    for part, words in (("ranks", "rank 1 on n2gpu1201"), ("experts", "expert 1")):
        canvas = page.locator(f"#{part} canvas.heat")
        canvas.scroll_into_view_if_needed()
        canvas.focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowDown")
        page.locator(f"#{part} output", has_text=words).wait_for()
        assert page.locator(f"#{part} table tbody tr").count() >= 4


def test_the_ranks_open_with_the_part_in_which_one_is_slow(viewer: Viewer, root: Path) -> None:
    extra = generate(root / "slow" / "20251101-000000-eeee", Shape((Try(0, 100),), world_size=4))
    waits_for_data(extra, rank=2, seconds=0.31)
    try:
        viewer.page.goto("/run?run=slow/20251101-000000-eeee")
        viewer.page.wait_for_selector(READY["run"])
        ranks = viewer.page.locator("#ranks")
        ranks.scroll_into_view_if_needed()
        part = ranks.get_by_label("Part of a step")
        part.wait_for()
        assert part.input_value() == "data_s"
        first = ranks.locator("tbody tr").first
        assert first.inner_text().split()[0] == "2" and "1.30 slow" in first.inner_text()
        assert "1 rank of late later than the median" in ranks.inner_text()
        part.select_option("Whole step")
        ranks.get_by_text("steps take as long on all").wait_for()
        assert "Times the median" in ranks.locator("thead").inner_text()
        assert viewer.complaints == []
    finally:
        viewer.page.goto("about:blank")
        shutil.rmtree(extra.parent)


def test_what_devices_did_over_time_is_a_map_and_a_table(viewer: Viewer, root: Path) -> None:
    extra = generate(root / "hours" / "20251101-000000-dddd")
    hours_of_devices(extra)
    try:
        viewer.page.goto("/run?run=hours/20251101-000000-dddd")
        viewer.page.wait_for_selector(READY["run"])
        devices = viewer.page.locator("#devices")
        devices.scroll_into_view_if_needed()
        metric = devices.get_by_label("Metric", exact=True)
        metric.wait_for()
        assert metric.input_value() == "gpu_util"
        first = devices.locator("tbody").first.locator("tr").first
        assert first.inner_text().split()[:2] == ["2", "n2gpu1205"] and "84 %" in first.inner_text()  # it idled
        metric.select_option("Temperature")
        devices.get_by_text("Temperature of each rank").wait_for()
        assert first.inner_text().split()[0] == "1" and "94.00 C" in first.inner_text()
        canvas = devices.locator("canvas.heat")
        assert "highest temperature by rank over time: 4 rows, 0.0 h to " in (canvas.get_attribute("aria-label") or "")
        canvas.focus()
        viewer.page.keyboard.press("ArrowRight")
        devices.locator("output", has_text="rank 0 on n2gpu1201, from 10.0 h: 6").wait_for()
        assert "Newest of each rank of the newest attempt" in devices.inner_text()
        assert viewer.complaints == []
    finally:
        viewer.page.goto("about:blank")
        shutil.rmtree(extra.parent)


def test_what_cannot_be_read_is_said_until_it_can_be_again(viewer: Viewer, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ValueError("they make no sense")

    said = {"overview": "the runs cannot be read", "run": "the run cannot be read"}
    for name, function, usual in (("overview", "line", ".quiet[role=status]"), ("run", "run", ".problems")):
        page = viewer.opens(name)
        with monkeypatch.context() as patch:
            patch.setattr(f"monitoring.web.views.{function}", broken)
            page.locator(usual, has_text=f"{said[name]}: ValueError: they make no sense").wait_for()
        page.get_by_text(said[name]).wait_for(state="detached")
    page = viewer.opens("overview")
    page.locator(".quiet[role=status]", has_text="5 runs").wait_for()
    assert viewer.complaints == []


def test_who_scrolled_up_in_a_log_keeps_what_is_read_there(viewer: Viewer, root: Path) -> None:
    extra = root / "short" / "20251101-000000-ffff"
    shutil.copytree(root / DONE, extra)
    log = layout.rank_log(layout.attempt_folder(extra, 0), 0)
    log.write_text("".join(f"line {number:07}\n" for number in range(12_000)))
    try:
        page = viewer.page
        page.goto("/run?run=short/20251101-000000-ffff")
        page.locator(".log div").last.wait_for()
        shown = "document.querySelector('.log').childElementCount"
        assert viewer.tell(shown) == 3000
        page.get_by_role("button", name="Earlier lines").click()
        page.wait_for_function(f"() => {shown} > 3000")
        viewer.tell("document.querySelector('.log').scrollTop = 0")
        page.wait_for_timeout(100)
        first = viewer.tell("document.querySelector('.log').firstChild.textContent")
        with log.open("a") as more:
            more.write("a line that came later\n")
        page.get_by_text("a line that came later").wait_for(state="attached")
        assert viewer.tell("document.querySelector('.log').firstChild.textContent") == first
        assert viewer.tell("document.querySelector('.log').scrollTop") == 0
        viewer.tell("document.querySelector('.log').scrollTop = 1e9")
        page.wait_for_timeout(100)
        with log.open("a") as more:
            more.write("the last line\n")
        page.wait_for_function(f"() => {shown} === 3000")
    finally:
        viewer.page.goto("about:blank")
        shutil.rmtree(extra.parent)


ZOOMS = """async ([axis, factor]) => {
  const { Chart } = await import(document.querySelector("script[type=module]").src.replace("main.js", "chart.js"));
  const values = [1, 2, 3].map((n) => 19000 + n);
  const curves = [{ label: "loss", number: 0, x: values, low: values, high: values, bad: [], ghosts: [] }];
  let range = null;
  const chart = new Chart("loss", (wanted) => {
    range = wanted;
    chart.show(curves, { axis, log: false, range });
  });
  document.querySelector("main").append(chart.node);
  chart.show(curves, { axis, log: false, range });
  for (let n = 0; n < 80; n++) {
    await null;
    chart.scale(factor);
    await null;
    chart.move(0.5);
  }
  await new Promise((done) => setTimeout(done, 50));
  chart.remove();
  return [range.low, range.high];
}"""


OVER_EACH_OTHER = """async () => {
  const { Chart } = await import(document.querySelector("script[type=module]").src.replace("main.js", "chart.js"));
  const curve = (label, number, x) => ({ label, number, x, low: x, high: x, bad: [], ghosts: [] });
  const chart = new Chart("loss", () => {});
  document.querySelector("main").append(chart.node);
  const steps = (count) => Array.from({ length: count }, (_, i) => i + 1);
  chart.show([curve("short", 1, steps(50)), curve("long", 3, steps(200))], { axis: "step", log: false });
  chart.data.open = true;
  await new Promise((done) => setTimeout(done, 50));
  const texts = (row) => [...row.cells].map((cell) => cell.textContent);
  chart.point(-1);
  const found = {
    keys: [...chart.legend.querySelectorAll("line")].map((line) => line.getAttribute("stroke-dasharray")),
    drawn: chart.plot.series.slice(1).map((each) => each.dash.join(" ")),
    rows: [...chart.data.querySelectorAll("tbody tr")].map(texts),
    end: chart.readout.textContent,
  };
  chart.remove();
  return found;
}"""


def test_curves_look_as_their_keys_and_have_no_values_where_they_end(viewer: Viewer) -> None:
    viewer.opens("overview")
    found = viewer.tell(OVER_EACH_OTHER)
    assert found["keys"] == found["drawn"] == ["7 4", "10 3 2 3"]  # by their numbers, whatever is beside them
    assert found["end"] == "step 200: long 200.0"
    rows = {step: values for step, *values in found["rows"]}
    assert rows["50"] == ["50.00", "50.00"] and rows["200"] == ["–", "200.0"] and 40 <= len(rows) <= 45
    assert viewer.complaints == []


@pytest.mark.parametrize("axis", ["step", "tokens", "hours"])
def test_zooming_ends_before_an_axis_has_no_ticks(viewer: Viewer, axis: str) -> None:
    viewer.opens("overview")
    low, high = viewer.tell(ZOOMS, [axis, 0.5])
    assert 0 < high - low <= 2.01
    low, high = viewer.tell(ZOOMS, [axis, 2])
    assert 1e15 < high - low < 1e16
    assert viewer.complaints == []


def test_a_run_that_is_deleted_is_said_to_be_gone(viewer: Viewer, root: Path) -> None:
    extra = root / "short" / "20251101-000000-dddd"
    shutil.copytree(root / DONE, extra)
    viewer.page.goto("/run?run=short/20251101-000000-dddd")
    viewer.page.wait_for_selector(READY["run"])
    shutil.rmtree(extra.parent)
    viewer.page.get_by_text("The run's folder is gone").wait_for()
    assert viewer.page.locator(".tiles").inner_text()  # what was read stays


def test_a_run_that_never_was_is_said_in_words(viewer: Viewer) -> None:
    viewer.page.goto("/run?run=no/such")
    viewer.page.get_by_text("there is no such run or sweep").first.wait_for()


def test_hatched_and_named_not_only_coloured(viewer: Viewer) -> None:
    page = viewer.opens("run")
    page.locator("#time .bucket-repeated").first.wait_for(state="attached")
    assert "hatch" in viewer.tell("getComputedStyle(document.querySelector('#time rect.bucket-repeated')).fill")
    assert {"training", "repeated", "queue"} <= set(page.locator("#time span.key").all_inner_texts())
