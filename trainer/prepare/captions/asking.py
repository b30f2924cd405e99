"""One image, one caption: asked until there is one or the tries are used up. No torch."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from trainer.prepare.captions.answers import judged
from trainer.prepare.captions.prompt import seed_of, temperature_of
from trainer.prepare.captions.protocols import Answer, Dialect, Question
from trainer.prepare.captions.text import FILE
from trainer.prepare.captions.wire import NoReply, Reply, Wire
from trainer.prepare.options import CaptionServer
from trainer.prepare.passes import Failed, Made

JPEG_QUALITY = 95
_PASSING = (408, 409, 425, 429)
_HOPELESS = (401, 403, 404, 405, 410)


@dataclass(frozen=True, slots=True)
class Patience:
    """Waits in seconds: before the second try, doubling from there to `longest_wait_s`.

    A server that wants a longer wait than that is not waited for. The whole pass ends after `rounds` times as many
    images in a row without any answer as are asked about at once.
    """

    first_wait_s: float = 1.0
    longest_wait_s: float = 300.0
    rounds: int = 2

    def wait_s(self, faults: int, asked_s: float | None) -> float | None:
        """How long to wait after so many faults in a row, 1 at first; None if what the server asks is too long."""
        own_s = min(self.first_wait_s * 2.0 ** min(faults - 1, 60), self.longest_wait_s)
        if asked_s is None:
            return own_s
        return max(asked_s, own_s) if asked_s <= self.longest_wait_s else None


PATIENCE = Patience()


@dataclass(frozen=True, slots=True)
class Asked:
    """What came of one image. `server` says how the server did: it answered, did not, or never will."""

    made: Made | Failed
    server: Literal["answered", "silent", "hopeless"]


@dataclass(frozen=True, slots=True)
class Asking:
    """Asks one server about images. `wait` returns True if the pass ended meanwhile."""

    wire: Wire
    dialect: Dialect
    server: CaptionServer
    run_seed: int
    patience: Patience
    wait: Callable[[float], bool]

    def caption(self, id: str, image_CHW: np.ndarray) -> Asked:
        """Ask up to `tries` times in all. An answer that is no caption is asked for again with another seed at once; a
        server that is busy or away is asked the same again after a wait.
        """
        picture, rejected, faults = jpeg_base64(image_CHW), 0, 0
        came = Asked(Failed("never asked"), "silent")
        for left in reversed(range(self.server.tries)):
            got = self._ask(picture, seed_of(self.run_seed, id, rejected), temperature_of(rejected))
            if isinstance(got, Answer):
                caption = self._judged(got)
                if isinstance(caption, str):
                    facts = {"answers": rejected + 1, "characters": len(caption)}
                    return Asked(Made({FILE: caption}, facts), "answered")
                came, rejected, faults = Asked(caption, "answered"), rejected + 1, 0
                continue
            reason = fault_of(got)
            if not isinstance(got, NoReply) and not _is_passing(got.status):
                return Asked(Failed(reason), "hopeless" if got.status in _HOPELESS else "silent")
            faults += 1
            # What the model did say, of the image, tells more than a fault after it.
            came = came if came.server == "answered" else Asked(Failed(reason), "silent")
            wait_s = self.patience.wait_s(faults, got.wait_s if isinstance(got, Reply) else None)
            if wait_s is None:
                return Asked(
                    Failed(f"{reason}; it wants a wait of more than {self.patience.longest_wait_s:g} s"), "silent"
                )
            if left and self.wait(wait_s):
                break
        return came

    def _ask(self, picture: str, seed: int, temperature: float) -> Answer | Reply | NoReply:
        question = Question(self.server.model, picture, temperature, seed, self.server.most_tokens)
        got = self.wire.exchange(self.dialect.question_path, self.server.timeout_s, self.dialect.body(question))
        if isinstance(got, NoReply) or got.status != 200:
            return got
        answer = None if got.body is None else self.dialect.answer(got.body)
        return answer if answer is not None else NoReply(f"no answer of such a server: {got.said or 'an unknown form'}")

    def _judged(self, answer: Answer) -> str | Failed:
        if self.wire.key.is_in(answer.text):
            return Failed("the answer repeats the API key")
        return judged(answer, self.server.most_tokens)


def fault_of(got: Reply | NoReply) -> str:
    """What went wrong with the server, in words."""
    if isinstance(got, NoReply):
        return f"the caption server: {got.why}"
    return f"the caption server: HTTP {got.status}{f': {got.said}' if got.said else ''}"


def jpeg_base64(image_CHW: np.ndarray) -> str:
    """A crop, uint8 (3, H, W), as JPEG of high quality with full colour resolution, in base64."""
    file = io.BytesIO()
    Image.fromarray(image_CHW.transpose(1, 2, 0)).save(file, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return base64.b64encode(file.getvalue()).decode()


def _is_passing(status: int) -> bool:
    return status in _PASSING or status >= 500 or status == 200
