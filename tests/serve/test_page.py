"""The studio page in a browser, against a server that generates with the embedded model."""

from __future__ import annotations

import base64
import shutil
import socket
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import waiting
from browser import wait_until
from llrag_cli import RunFolder
from serve.serving import is_alive, program

BUTTON = "[...document.querySelectorAll('button')].find(each => each.textContent === {!r} && each.checkVisibility())"
PLAYS = "document.querySelector('video')?.currentTime > {}"
STATUS = "document.querySelector('.direct .status')?.textContent"
POSITION = "Number(document.querySelector('.time-line')?.ariaValueNow)"
VIDEOS = "[...document.querySelectorAll('video')]"
YAML = "document.getElementById('yaml').value"
WALL = """(() => {
  const video = document.querySelector('video'), canvas = document.createElement('canvas');
  const context = canvas.getContext('2d');
  canvas.width = canvas.height = 1;
  context.drawImage(video, 0, 0, 6, 6, 0, 0, 1, 1);
  return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
})()"""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Generator[str, None, None]:
    """A studio with one worker, and no video yet."""
    if shutil.which("chromium") is None:
        pytest.skip("needs Chromium")
    import uvicorn

    from llrag_cli.serve.app import create_app
    from llrag_cli.serve.settings import ServeSettings

    settings = ServeSettings(runs=tmp_path_factory.mktemp("runs"), models=("tiny-distilled",))
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(create_app(settings), log_level="warning", ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def browser(address: str) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])


@contextmanager
def studio(browser: Any, address: str, route: str = "", *, width: int = 1300, scheme: str = "light") -> Iterator[Any]:
    """A page of the studio; nothing may appear in its console."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    problems: list[str] = []
    page.on("console", lambda message: problems.append(f"{message.text} {message.location.get('url')}"))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(f"{address}/{route}")
    page.wait_for_selector("h1")
    yield page
    assert problems == []
    context.close()


def press(page: Any, name: str) -> None:
    """Press a button once it can be pressed."""
    wait_until(page, f"{BUTTON.format(name)}?.disabled === false")
    page.get_by_role("button", name=name, exact=True).first.click()


def require_accessible(page: Any) -> None:
    """No violation of axe, and nothing wider than the window."""
    from axe_playwright_python.sync_playwright import Axe

    violations = Axe().run(page).response["violations"]
    assert [(each["id"], [node["html"] for node in each["nodes"]]) for each in violations] == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def write(page: Any, prompt: str, *, more_seconds: int = 0) -> None:
    """A scene of one shot, 10 s and so many times 20 s long."""
    press(page, "New scene")
    page.get_by_label("What the video shows").fill(prompt)
    page.get_by_role("slider", name="Length of shot-1").focus()
    for _ in range(more_seconds // 20):
        page.keyboard.press("Shift+PageUp")


def drop(page: Any, target: str, file: Path) -> None:
    """Drop a file from elsewhere on a part of the page."""
    transfer = page.evaluate_handle(
        """([name, content]) => {
          const transfer = new DataTransfer();
          const bytes = Uint8Array.from(atob(content), each => each.charCodeAt(0));
          transfer.items.add(new File([bytes], name, { type: 'image/png' }));
          return transfer;
        }""",
        [file.name, base64.b64encode(file.read_bytes()).decode()],
    )
    for event in ("dragenter", "dragover", "drop"):
        page.dispatch_event(target, event, {"dataTransfer": transfer})


def test_an_empty_studio_offers_the_comparison(browser: Any, address: str) -> None:
    with studio(browser, address, scheme="dark") as page:
        assert page.inner_text("h1") == "See what memory does"
        require_accessible(page)
        press(page, "Compare native and retrieval")
        wait_until(page, "document.querySelectorAll('.member video').length === 2")
        assert page.locator(".member h2").all_inner_texts() == [
            "Native the last moments only",
            "Retrieval strategy nearest",
        ]
        wait_until(page, f"{VIDEOS}.every(each => each.currentTime > 0)")
        states = "[...document.querySelectorAll('.member .status')].map(each => each.textContent)"
        wait_until(page, f"{states}.every(text => text.startsWith('Finished'))")
        page.get_by_role("slider").first.focus()
        page.keyboard.press("Home")
        wait_until(page, f"{POSITION} < 0.5")
        page.keyboard.press("End")
        wait_until(page, f"{VIDEOS}.every(each => each.paused && each.duration - each.currentTime < 0.1)")
        native, retrieval = page.locator(".member").all()
        assert "nothing is retrieved" in native.inner_text()
        wait_until(page, "document.querySelectorAll('.thumbnails button').length === 4")
        assert native.locator(".thumbnails button").count() == 0
        wait_until(page, "[...document.querySelectorAll('.thumbnails img')].every(each => each.naturalWidth)")
        retrieval.locator(".thumbnails button").first.click()
        wait_until(page, f"{POSITION} < 6")  # the first place
        require_accessible(page)


def test_a_video_plays_while_it_is_generated_and_is_directed(browser: Any, address: str) -> None:
    with studio(browser, address) as page:
        write(page, "a red circle bounces on a plain blue wall", more_seconds=300)
        press(page, "Generate")
        wait_until(page, PLAYS.format(0))
        press(page, "Pause generation")
        wait_until(page, f"{STATUS}?.startsWith('Paused')")
        made, total = page.evaluate(f"{STATUS}.match(/\\d+ of \\d+/)[0].split(' of ').map(Number)")
        assert 0 < made < total  # it plays before it is finished
        wait_until(page, PLAYS.format(0.5))
        require_accessible(page)
        assert page.evaluate("document.activeElement.textContent") == "Resume generation"  # in the place of the other
        page.keyboard.press("Enter")
        page.get_by_label("Now ...").fill("a white cross orbits on a plain pink wall")
        press(page, "Cut")
        wait_until(page, "document.querySelectorAll('.shot-list li').length === 2")
        wait_until(page, "document.querySelector('.outcome')?.textContent.startsWith('Cut at 0:')")
        second = page.locator(".shot-list button").nth(1)
        minutes, seconds = second.inner_text().split(":")
        cut = 60 * int(minutes) + float(seconds)
        press(page, "Newest")
        wait_until(page, f"{POSITION} > {cut + 1}")
        press(page, "Stop")
        wait_until(page, f"{STATUS}?.startsWith('Stopped')")
        second.click()
        wait_until(page, f"Math.abs({POSITION} - {cut}) < 2 && !document.querySelector('video').seeking")
        red, _, blue = page.evaluate(WALL)
        assert red > blue  # pink
        page.locator(".shot-list button").first.click()
        wait_until(page, f"{POSITION} < 2 && !document.querySelector('video').seeking")
        red, _, blue = page.evaluate(WALL)
        assert red < blue
        page.get_by_label("Seconds").fill("2")
        press(page, "Extend")
        wait_until(page, f"{STATUS}?.startsWith('Finished')")


def test_takes_are_compared_and_picked(browser: Any, address: str) -> None:
    with studio(browser, address) as page:
        write(page, "a green square passes by on a gray wall")
        page.get_by_label("Takes").fill("2")
        page.get_by_label("Seed", exact=True).fill("7")
        press(page, "Generate")
        wait_until(page, "document.querySelectorAll('.member video').length === 2")
        assert page.locator(".member h2").all_inner_texts() == ["Take 1 seed 7", "Take 2 seed 8"]
        press(page, "Pick take 2")
        wait_until(page, f"{BUTTON.format('Pick take 2')}.ariaPressed === 'true'")
        require_accessible(page)
        page.get_by_role("link", name="Library").click()
        wait_until(page, "document.querySelectorAll('.card').length >= 2")
        picked = page.locator(".card", has_text="Picked")
        assert picked.count() == 1 and "Take 2" in picked.inner_text()


def test_a_scene_is_written_as_rows_and_as_a_file(browser: Any, address: str, tmp_path: Path) -> None:
    picture = tmp_path / "mara in red.png"
    Image.new("RGB", (64, 64), "red").save(picture)
    lengths = "[...document.querySelectorAll('.handle')].map(each => Number(each.ariaValueNow)).join()"
    with studio(browser, address) as page:
        press(page, "Open the example")
        wait_until(page, f"{lengths} === '6,4,4,6'")
        page.get_by_role("slider", name="Length of arrival").focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Shift+ArrowRight")
        wait_until(page, f"{lengths} === '8.5,4,4,6'")
        page.get_by_role("slider", name="Length of return").scroll_into_view_if_needed()
        handle = page.get_by_role("slider", name="Length of return").bounding_box()
        page.mouse.move(handle["x"] + 5, handle["y"] + 20)
        page.mouse.down()
        page.mouse.move(handle["x"] + 65, handle["y"] + 20)
        page.mouse.up()
        assert float(page.get_by_role("slider", name="Length of return").get_attribute("aria-valuenow")) > 6
        drop(page, ".shot:last-child", picture)
        wait_until(page, "document.querySelector('.references input')?.value === 'mara-in-red'")
        press(page, "Scene file")
        wait_until(page, "document.getElementById('yaml').value.includes('mara-in-red')")
        assert "seconds: 8.5" in page.input_value("#yaml")
        wait_until(page, "document.querySelectorAll('.remember input:checked').length === 2")

        third = page.locator(".shot").nth(2)
        third.locator(".shot-more summary").press("Enter")
        third.get_by_label("Earlier uploads").select_option(label="mara in red")
        third.get_by_label("Sink frames at the cut").select_option("drop")
        wait_until(page, f"/name: elsewhere[^]*sink: drop\\n  image: char_/.test({YAML})")
        wait_until(page, "document.querySelector('.estimate').textContent.includes('cannot start from one picture')")
        third.get_by_label("Open elsewhere with nothing").press("Enter")
        first = page.locator(".shot").first
        first.locator(".shot-more summary").press("Enter")
        first.get_by_label("Name").fill("beginning")
        first.get_by_label("Name").press("Tab")
        wait_until(page, f"/- beginning\\n  - mara-in-red/.test({YAML})")  # what another shot remembers
        page.get_by_text("More settings").press("Enter")
        page.get_by_label("Settings of the model").fill("memory.retrieved: 3\nmemory.guard")
        assert page.get_by_label("Settings of the model").get_attribute("aria-invalid") == "true"
        page.get_by_label("Settings of the model").fill("memory.retrieved: 3")
        wait_until(page, f"{YAML}.includes('memory.retrieved: 3')")
        require_accessible(page)
        page.get_by_role("radio", name="Switch").last.check(force=True)  # the text beside it is what is seen
        wait_until(page, "document.getElementById('yaml').value.match(/cut: true/g).length === 1")
        require_accessible(page)

        page.fill("#yaml", "shots:\n- prompt: a red circle\n  seconds: -3\n")
        wait_until(page, "document.getElementById('yaml').ariaInvalid === 'true'")
        problem = "document.getElementById('yaml-problem').textContent"
        wait_until(page, f"{problem}.includes('`seconds` must be more than 0')")
        page.fill("#yaml", "shots:\n- prompt: a gold circle at dusk\n  seconds: 3\n")
        wait_until(page, f"{lengths} === '3'")
        wait_until(page, "document.querySelector('.reading').textContent.includes('dusk')")
        wait_until(page, "document.querySelector('.numbers').textContent.includes('MB')")
        wait_until(page, "document.querySelector('.numbers').textContent.includes('about')")  # the time


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (2560, "dark")])
def test_every_view_fits_phones_and_walls(browser: Any, address: str, width: int, scheme: str) -> None:
    with studio(browser, address, "#/library", width=width, scheme=scheme) as page:
        wait_until(page, "document.querySelector('.cards').ariaBusy === 'false'")
        require_accessible(page)
        for route in page.evaluate("[...document.querySelectorAll('.card a')].map(each => each.getAttribute('href'))")[
            :3
        ]:
            if route.startswith("#/"):
                page.goto(f"{address}/{route}")
                page.wait_for_selector("video")
                require_accessible(page)


def test_a_browser_without_media_source_says_so_and_a_video_is_deleted(browser: Any, address: str) -> None:
    with studio(browser, address) as page:
        page.evaluate("delete window.MediaSource")
        page.add_init_script("delete window.MediaSource; delete window.ManagedMediaSource")
        page.reload()
        page.wait_for_selector("h1")
        write(page, "a blue triangle on a brown wall")
        press(page, "Generate")
        page.wait_for_selector(".stage-notice")
        assert "cannot play a video while it is generated" in page.inner_text(".stage-notice")
        wait_until(page, PLAYS.format(0))
        notice = "document.querySelector('.stage-notice').textContent"
        wait_until(page, f"{notice}.endsWith('This is the finished file.')")
        page.get_by_role("link", name="Library").click()
        card = page.locator(".card", has_text="a blue triangle")
        card.locator("summary").press("Enter")
        card.get_by_role("button", name="Delete").press("Enter")
        page.get_by_role("button", name="Delete", exact=True).last.press("Enter")  # of the question
        wait_until(page, "!document.querySelector('.cards').textContent.includes('a blue triangle')")


def test_a_page_goes_on_when_the_server_was_killed_and_started_again(browser: Any, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    with program(tmp_path / "runs", "--port", port) as server:
        context = browser.new_context()
        page = context.new_page()
        wrong: list[str] = []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        identifier = server.create(seconds="60", seed=3)  # 41 blocks
        page.goto(f"{server.address}/#/video/{identifier}")
        wait_until(page, PLAYS.format(0))
        worker = int((server.runs / identifier / "run.owner").read_text().split()[1])
        server.kill()
        made = RunFolder(server.runs / identifier).blocks_committed()
        wait_until(page, "document.getElementById('connection').checkVisibility()")
        waiting.wait_until(lambda: not is_alive(worker))
    with program(tmp_path / "runs", "--port", port) as server:
        wait_until(page, f"{STATUS}?.startsWith('Finished')")
        wait_until(page, "!document.getElementById('connection').checkVisibility()")
        wait_until(page, "document.querySelector('video').duration === 61.125")
        ranges = "(each => [each.length, each.start(0), each.end(0)])(document.querySelector('video').buffered)"
        assert page.evaluate(ranges) == [1, 0, 61.125]
        page.get_by_role("slider").focus()
        page.keyboard.press("End")
        caption = "document.querySelector('.retrieved .caption').textContent"
        wait_until(page, f"{caption}.startsWith('Block 40 ') || {caption}.startsWith('Block 41 ')")
        assert 0 < made < 41 and server.video(identifier)["llrag"]["resumed_at"] and wrong == []
        context.close()
