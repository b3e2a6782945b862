"""The live screen of a study in a notebook: one output of a cell, redrawn in place."""

import io
import logging
import threading
from collections.abc import Callable

from rich.console import Console, RenderableType

WIDTH = 115  # characters, as rich takes for a notebook
REFRESH_SECONDS = 1.0
PAGE = '<pre style="line-height:1.2;white-space:pre;overflow-x:auto">{code}</pre>'

logger = logging.getLogger(__name__)


class NotebookLive:
    """As rich's Live, whose own support of notebooks needs widgets in the kernel and in the browser."""

    def __init__(self, render: Callable[[], RenderableType]) -> None:
        self.render = render
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._run, name="notebook", daemon=True)

    def start(self) -> None:
        from IPython.display import display

        self.handle = display(self._page(), raw=True, display_id=True)
        self.thread.start()

    def stop(self) -> None:
        """Take the last frame away: the report stands in its place."""
        if not self.over.is_set():
            self.over.set()
            self.thread.join()
            self.handle.update({"text/plain": "", "text/html": ""}, raw=True)

    def _run(self) -> None:
        while not self.over.wait(REFRESH_SECONDS):
            try:
                self.handle.update(self._page(), raw=True)
            except Exception:  # what is shown must never cost a study
                logger.exception("the notebook could not be redrawn")

    def _page(self) -> dict[str, str]:
        console = Console(file=io.StringIO(), width=WIDTH, record=True, force_jupyter=False)
        console.print(self.render())
        return {
            "text/plain": console.export_text(clear=False),
            "text/html": console.export_html(inline_styles=True, code_format=PAGE),
        }
