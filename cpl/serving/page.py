"""The page: a photo in, a slider between before and after, and what the routers chose."""

from __future__ import annotations

import asyncio
import html
import json
import shutil
import sys
import tempfile
import traceback
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cpl.errors import CplError
from cpl.extras import require
from cpl.images import SUFFIXES
from cpl.serving import panels
from cpl.serving.session import AS_IT_IS, Answer, Session, restored_name, save_answer
from cpl.serving.worker import Worker

_SHOWN_SIDE = 2048  # pixels: larger photos are shown smaller; the file to download is whole
_FILES_KEPT = 20  # restored files that can still be downloaded
_WAITING = 32  # visitors in the queue
_CSS = """
.gradio-container { max-width: 1180px !important; margin: 0 auto !important }
#cpl-head h1 { font-size: 26px; margin: .2rem 0 }
#cpl-head p { margin: 0; opacity: .8 }
#cpl-photo label { font-size: 13px }
#cpl-examples img { aspect-ratio: 4 / 3; object-fit: cover }
"""


@dataclass(frozen=True)
class Example:
    """A photo that the page offers, and the degradation that is added to it."""

    name: str
    path: Path
    degradation: str


class Handlers:
    """What the page's buttons do: from the values of its inputs to those of its outputs.

    Args:
        folder: of restored files, where the page may hand them out from.
    """

    def __init__(self, session: Session, worker: Worker, folder: Path, examples: list[Example]) -> None:
        self.session, self.worker, self.folder, self.examples = session, worker, folder, examples
        self._files: deque[Path] = deque()

    async def restore(self, path: str | None, degradation: str, progress: Any = None) -> tuple[Any, ...]:
        """(before and after for the slider or None, file to download or None, summary, routing)."""

        def report(share: float) -> None:
            if progress is not None:
                progress(share, desc="restoring")

        try:
            # Away from the event loop, one after another, so that the page still answers meanwhile.
            return await asyncio.wrap_future(
                self.worker.submit(lambda: self._work(path, degradation, report))
            )
        except CplError as error:
            return None, None, panels.message(str(error)), ""
        except Exception:
            traceback.print_exc(file=sys.stderr)
            return None, None, panels.message("Something went wrong here; the server's log says what."), ""

    def example(self, index: int) -> tuple[str, str]:
        """The photo and the degradation of an example that was clicked."""
        chosen = self.examples[index]
        return str(chosen.path), chosen.degradation

    def _work(self, path: str | None, degradation: str, report: Any) -> tuple[Any, ...]:
        answer = self.session.answer(path, degradation or AS_IT_IS, progress=report)
        file = self._save(answer, Path(path or "photo").name)
        pictures = (shown(answer.before), shown(answer.after))
        chosen = panels.routing(answer.choices, answer.likely, self.session.usage)
        return pictures, str(file), panels.summary(answer), chosen

    def _save(self, answer: Answer, name: str) -> Path:
        while len(self._files) >= _FILES_KEPT:
            shutil.rmtree(self._files.popleft(), ignore_errors=True)
        # A folder of its own keeps the file's name as the visitor knows it.
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        self._files.append(folder)
        path = folder / restored_name(name, answer.source)
        save_answer(answer, path)
        return path


def shown(image: np.ndarray) -> Any:
    """A PIL image of [H, W, 3] in [0, 1], no larger than the page can use."""
    pil = require("PIL.Image")
    picture = pil.fromarray(np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8))
    picture.thumbnail((_SHOWN_SIDE, _SHOWN_SIDE), pil.Resampling.LANCZOS)
    return picture


def build(handlers: Handlers, about: str) -> Any:
    """The page as gradio.Blocks. ``about`` is a line under its title."""
    gr = require("gradio")
    session = handlers.session
    choices = [
        ("nothing: restore it as it is", AS_IT_IS),
        *((panels.plain(n), n) for n in session.degradations),
    ]
    limits = session.limits
    # Nothing is measured or sent: gradio would else ask its makers' server for its newest version.
    with gr.Blocks(title="CPL: restore a photo", analytics_enabled=False) as page:
        gr.HTML(
            "<h1>Restore a photo</h1>"
            f"<p>One network for noise, blur, rain, haze and low light. {html.escape(about)}</p>",
            elem_id="cpl-head",
        )
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                photo = gr.File(
                    label=f"Photo, up to {limits.pixels / 1e6:g} MP and {limits.upload_bytes / 2**20:.3g} MiB",
                    file_types=sorted(SUFFIXES),
                    height=140,
                    elem_id="cpl-photo",
                )
                degradation = gr.Radio(
                    choices, value=AS_IT_IS, label="Add to it first", elem_id="cpl-degradation"
                )
                button = gr.Button("Restore", variant="primary", elem_id="cpl-restore")
                examples = gr.Dataset(
                    components=[gr.Image(render=False, height=90)],
                    samples=[[str(example.path)] for example in handlers.examples],
                    label="Or take one of these",
                    type="index",
                    elem_id="cpl-examples",
                    visible=bool(handlers.examples),
                )
            with gr.Column(scale=5, min_width=420):
                slider = gr.ImageSlider(
                    label="Before | after",
                    format="png",  # the default would compress what there is to compare
                    type="pil",
                    interactive=False,
                    buttons=["fullscreen"],
                    height=440,
                    elem_id="cpl-slider",
                )
                said = gr.HTML(elem_id="cpl-summary")
                download = gr.DownloadButton(
                    "Download the restored photo", elem_id="cpl-download", size="md", visible=False
                )
        chosen = gr.HTML(elem_id="cpl-routing")

        async def restore(path: str | None, name: str, progress: Any = gr.Progress()) -> tuple[Any, ...]:  # noqa: B008
            pictures, file, text, table = await handlers.restore(path, name, progress)
            return pictures, gr.update(value=file, visible=file is not None), text, table

        given, shows = [photo, degradation], [slider, download, said, chosen]
        one_at_a_time = {"concurrency_limit": 1, "concurrency_id": "model", "api_visibility": "private"}
        button.click(restore, given, shows, show_progress_on=slider, **one_at_a_time)
        # A photo of one's own is wanted restored, not made worse. The browser sees to it at once: the server's answer
        # could come after the visitor's choice, and put that back.
        photo.upload(None, None, degradation, js=f"() => {json.dumps(AS_IT_IS)}")
        examples.click(handlers.example, examples, given, api_visibility="private", queue=False).then(
            restore, given, shows, show_progress_on=slider, **one_at_a_time
        )
    page.queue(max_size=_WAITING, default_concurrency_limit=1)
    # gradio looks whether a file was uploaded, and is not one of this machine that a visitor names by its path,
    # only in what it takes for launched, and a page that is mounted, as here, it does not.
    page.has_launched = True
    return page


def look() -> dict[str, Any]:
    """Theme and style. The fonts are the visitor's own: none is fetched."""
    gr = require("gradio")
    theme = gr.themes.Soft(
        primary_hue="blue",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
    return {"theme": theme, "css": _CSS + panels.CSS}
