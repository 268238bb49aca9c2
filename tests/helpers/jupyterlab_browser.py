"""A real JupyterLab in a real, headless Chromium, for tests of what a reader of the notebooks sees.

    with open_jupyterlab(notebooks, scratch, find_chromium()) as lab, lab.notebook("00_quickstart.ipynb") as notebook:
        notebook.run_all()
        assert notebook.errors() == []
        before, after = notebook.picture_change(lambda: notebook.press_slider("ArrowRight"))
        assert notebook.problems == []

Nothing of the user's own Jupyter or browser settings is read, and the notebooks are copies.
"""

import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from playwright.sync_api import Browser, Error, Locator, Page, sync_playwright

TOKEN = "only-this-test"
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CHROMIUM_PLACES = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "C:/Program Files/Google/Chrome/Application/chrome.exe",
)
CHROMIUM_OPTIONS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
)
SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True},
    "notebook-extension/tracker": {"windowingMode": "none"},  # all cells are in the page, seen or not
}
# Resolves when the kernel has really answered; the page shows "idle" before it is even connected.
NOTEBOOK_READY = """async () => {
    window.waits_for = "the page";
    await jupyterapp.restored;
    window.waits_for = "the notebook's tab";
    while (!jupyterapp.shell.currentWidget?.sessionContext) await new Promise(done => setTimeout(done, 50));
    const panel = jupyterapp.shell.currentWidget;
    window.waits_for = "the notebook's cells";
    await panel.context.ready;
    window.waits_for = "a session";
    await panel.sessionContext.ready;
    window.waits_for = "the kernel's first answer";
    await panel.sessionContext.session.kernel.info;
    delete window.waits_for;
}"""
END_ALL_KERNELS = "() => window.jupyterapp?.serviceManager.sessions.shutdownAll()"
# Resolves to null while the picture is being replaced: the old source is gone then.
IMAGE_URL = """image => fetch(image.src).then(answer => answer.blob()).then(blob => new Promise(done => {
    const reader = new FileReader();
    reader.onloadend = () => done(reader.result);
    reader.readAsDataURL(blob);
})).catch(() => null)"""


def find_chromium() -> str | None:
    """Path of an installed Chromium or Chrome, or None."""
    on_path = (shutil.which(name) for name in CHROMIUM_NAMES)
    return next((place for place in (*on_path, *CHROMIUM_PLACES) if place and Path(place).exists()), None)


@contextmanager
def open_jupyterlab(notebooks: Path, scratch: Path, chromium: str) -> Iterator["JupyterLab"]:
    """Serve a copy of the folder `notebooks` (made in the empty folder `scratch`), and start a browser for it."""
    root = scratch / "notebooks"
    shutil.copytree(notebooks, root, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    with _server(root, scratch) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(CHROMIUM_OPTIONS))
        try:
            yield JupyterLab(root, url, browser)
        finally:
            browser.close()


@contextmanager
def _server(root: Path, scratch: Path) -> Iterator[str]:
    for name, settings in SETTINGS.items():
        path = scratch / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings), encoding="utf-8")
    folders = {
        "JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces", "IPYTHONDIR": "ipython",
    }
    environment = os.environ | {variable: str(scratch / name) for variable, name in folders.items()}
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "jupyterlab", "--allow-root", "--no-browser", "--expose-app-in-browser", "--ip=127.0.0.1",
        f"--port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={TOKEN}",
        f"--ServerApp.root_dir={root}", "--LabApp.extension_manager=readonly",
    ]
    url, log = f"http://127.0.0.1:{port}", scratch / "server.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink)
    try:
        _await_server(process, url, log)
        yield url
    finally:
        process.terminate()  # the server then ends its kernels
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await_server(process: subprocess.Popen, url: str, log: Path, timeout: float = 120) -> None:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/api/status?token={TOKEN}", timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"JupyterLab did not start within {timeout:.0f} s:\n{log.read_text(errors='replace')[-4000:]}")


@dataclass
class JupyterLab:
    """A running server, whose notebooks lie in `root`, and the browser."""

    root: Path
    url: str
    browser: Browser
    _workspaces = itertools.count()

    @contextmanager
    def notebook(self, name: str, timeout: float = 120) -> Iterator["NotebookPage"]:
        """Open the notebook `name` (a path below `root`) with a kernel that answers; afterwards, end the kernel."""
        if not (self.root / name).is_file():
            raise FileNotFoundError(f"{self.root / name}: no such notebook")
        try:
            notebook = self._open(name, timeout / 2)
        except Error:  # a kernel whose port was taken before it came to use it never answers: rare, but it happens
            notebook = self._open(name, timeout / 2)
        notebook.page.set_default_timeout(1000 * timeout)
        try:
            yield notebook
            notebook.evaluate("() => jupyterapp.shell.currentWidget.sessionContext.shutdown()", timeout)
        finally:
            notebook.page.close()

    def _open(self, name: str, timeout: float) -> "NotebookPage":
        """Open a notebook and wait for its kernel; leave neither page nor kernel behind where that fails."""
        # So high that a picture fits in at once: a screenshot of a taller one shows what lies over it.
        page = self.browser.new_page(viewport={"width": 1400, "height": 2000})
        page.set_default_timeout(1000 * timeout)
        notebook = NotebookPage(page, page.locator("body"), [])
        try:
            page.goto(f"{self.url}/lab/workspaces/test-{next(self._workspaces)}/tree/{name}?token={TOKEN}")
            page.wait_for_function("() => window.jupyterapp !== undefined")
            page.on("pageerror", lambda error: notebook.problems.append(str(error)))
            page.on("console", lambda line: line.type == "error" and notebook.problems.append(line.text))
            notebook.evaluate(NOTEBOOK_READY, timeout)
        except Error:
            with suppress(Error):  # the first one says more
                notebook.evaluate(END_ALL_KERNELS, timeout=10)
            page.close()
            raise
        return notebook


@dataclass
class NotebookPage:
    """One open notebook.

    `page` is playwright's page, for whatever the methods here do not cover; sliders, pictures and so on are those in
    `area`; `problems` are the errors of the page itself, as a browser's console shows them.
    """

    page: Page
    area: Locator
    problems: list[str]

    def cell(self, number: int) -> "NotebookPage":
        """The same notebook, of which only the cell with this number is looked at."""
        return replace(self, area=self.page.locator(".jp-Notebook .jp-Cell").nth(number))

    def evaluate(self, function: str, timeout: float):
        """Run a JavaScript function in the page and return what it resolves to, within `timeout` seconds."""
        return self.page.evaluate(f"""() => Promise.race([
            ({function})(),
            new Promise((_, fail) => setTimeout(
                () => fail(new Error("not done in {timeout} s; waits for " + (window.waits_for ?? "the last call"))),
                {1000 * timeout},
            )),
        ])""")

    def run_all(self, timeout: float = 300) -> None:
        """Run all cells, as the menu does, and wait for the last one."""
        self.evaluate("() => jupyterapp.commands.execute('notebook:run-all-cells')", timeout)

    def cells(self) -> list[dict]:
        """The notebook's cells as they are now, in nbformat's form."""
        return self.page.evaluate("() => jupyterapp.shell.currentWidget.content.model.toJSON().cells")

    def errors(self) -> list[str]:
        """What the cells raised, and which code cells never ran."""
        found = []
        for number, cell in enumerate(self.cells()):
            if cell["cell_type"] == "code":
                outputs = cell["outputs"]
                found += [f"cell {number}: {o['ename']}: {o['evalue']}" for o in outputs if o["output_type"] == "error"]
                found += [f"cell {number} did not run"] if cell["execution_count"] is None else []
        return found

    def sliders(self) -> Locator:
        """The handles of all sliders, in their order on the page."""
        return self.area.locator(".widget-inline-hbox .noUi-handle")

    def pictures(self) -> Locator:
        """The pictures of all `Image` widgets, in their order on the page."""
        return self.area.locator("img.widget-image")

    def press_slider(self, key: str = "ArrowRight", index: int = 0) -> None:
        """Move a slider as the keyboard does: "ArrowRight", "ArrowLeft", "Home" or "End"."""
        handle = self.sliders().nth(index)
        handle.click()
        handle.press(key)

    def choose(self, label: str, index: int = 0) -> None:
        """Choose an entry of a drop-down list."""
        self.area.locator(".widget-dropdown select").nth(index).select_option(label=label)

    def type_text(self, text: str, index: int = 0) -> None:
        """Type into a text field, and press Enter."""
        field = self.area.locator(".widget-text input").nth(index)
        field.fill(text)
        field.press("Enter")

    def picture_change(self, action: Callable[[], None], index: int = 0, timeout: float = 60) -> tuple[bytes, bytes]:
        """Do something, wait until the picture is another one, and return screenshots of it from before and after.

        Raises:
            playwright.sync_api.TimeoutError: the picture stays as it is.
        """
        picture = self.pictures().nth(index)
        before, source = picture.screenshot(), picture.get_attribute("src")
        action()
        self.page.wait_for_function(
            "([image, source]) => image.src !== source && image.complete && image.naturalWidth > 0",
            arg=[picture.element_handle(), source],
            timeout=1000 * timeout,
        )
        return before, picture.screenshot()

    def await_picture(self, png: bytes, index: int = 0, timeout: float = 60) -> None:
        """Wait until a picture is `png`, byte by byte.

        Raises:
            TimeoutError: it does not become that.
        """
        url = f"data:image/png;base64,{b64encode(png).decode()}"
        deadline = time.monotonic() + timeout
        while self.pictures().nth(index).evaluate(IMAGE_URL) != url:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the picture is another one, still after {timeout:.0f} s")
            self.page.wait_for_timeout(50)
