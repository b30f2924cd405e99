"""Captions by a vision model behind HTTP: several images at once, and an end when the server is gone. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from threading import Event, Lock
from typing import Literal

from trainer.errors import DataError, UsageError
from trainer.prepare.captions.address import KEY_VARIABLE, Key, base_of
from trainer.prepare.captions.asking import Asked, Asking, Patience
from trainer.prepare.captions.identity import Identity, identify
from trainer.prepare.captions.prompt import AGAIN_TEMPERATURE, PROMPT_VERSION, TEMPERATURE
from trainer.prepare.captions.text import FILE
from trainer.prepare.captions.wire import Wire
from trainer.prepare.options import CaptionServer
from trainer.prepare.passes import Encode, Failed, Inputs, Made
from trainer.prepare.recipe import Recipe

IMAGES_PER_REQUEST_SLOT = 4
"""So many images a batch for each request in flight: at its end, some slots are idle until the last has its answer."""


class ServerPass:
    """Asks a server about each image alone. Raises UsageError for an address or a time that cannot be."""

    artefact = "caption"
    files: tuple[str, ...] = (FILE,)
    needs: tuple[str, ...] = ("image",)
    each_alone: Literal[True] = True

    def __init__(self, server: CaptionServer, seed: int, key: Key, patience: Patience) -> None:
        if not (server.timeout_s > 0.0 and math.isfinite(server.timeout_s)):
            raise UsageError(f"--caption-timeout-s {server.timeout_s:g}: say a number of seconds above 0")
        self.batch = IMAGES_PER_REQUEST_SLOT * server.requests
        self._server, self._seed, self._patience = server, seed, patience
        self._wire = Wire(base_of(server.url), key)

    @cached_property
    def _identity(self) -> Identity:
        return self._ask_identity()

    def _ask_identity(self) -> Identity:
        return identify(self._wire, self._server.model, self._server.timeout_s)

    @property
    def recipe(self) -> Recipe:
        """Asks the server once which weights the name stands for. Raises DataError if it does not answer."""
        return Recipe(
            model=self._server.model,
            revision=self._identity.revision,
            options={
                "from": self._identity.dialect.name,
                "prompt": PROMPT_VERSION,
                "most_tokens": self._server.most_tokens,
                "seed": self._seed,
                "temperature": TEMPERATURE,
                "temperature_again": AGAIN_TEMPERATURE,
            },
        )

    @contextmanager
    def open(self) -> Iterator[Encode]:
        """Ask again whether the model is there and still the same one: hours may have passed. Raises DataError."""
        if self._ask_identity() != self._identity:
            raise DataError(
                f"--caption-model {self._server.model}: {self._wire.base} has another model of this name than at the "
                "start; give the same command again. Everything made so far is kept"
            )
        watch = Watch(self._wire.base, self._patience.rounds * self._server.requests)
        asking = Asking(self._wire, self._identity.dialect, self._server, self._seed, self._patience, watch.ended.wait)
        with ThreadPoolExecutor(self._server.requests, "caption") as slots:

            def encode(batch: Sequence[Inputs]) -> list[Made | Failed]:
                watch.raise_if_gone()
                return list(slots.map(lambda inputs: watch.ask(asking, inputs), batch))

            try:
                yield encode
                watch.raise_if_gone()
            finally:
                watch.ended.set()


class Watch:
    """Sees whether the server is still there. Once it is gone, no more images are asked about; the answers that the
    batch already has are kept before the error is raised."""

    def __init__(self, base: str, most_silent: int) -> None:
        self.ended = Event()
        self._base, self._most_silent = base, most_silent
        self._lock = Lock()
        self._silent = 0
        self._gone = ""

    def ask(self, asking: Asking, inputs: Inputs) -> Made | Failed:
        """One image, unless the server is gone."""
        if self.ended.is_set():
            return Failed("not asked: the caption server was gone")
        assert inputs.image_CHW is not None, "the pass needs the image"
        asked = asking.caption(inputs.id, inputs.image_CHW)
        self._note(asked)
        return asked.made

    def _note(self, asked: Asked) -> None:
        with self._lock:
            self._silent = 0 if asked.server == "answered" else self._silent + 1
            if not isinstance(asked.made, Failed) or self._gone:
                return
            if asked.server == "hopeless":
                self._gone = f"{asked.made.reason} (has the model gone, or is {KEY_VARIABLE} wrong?)"
            elif self._silent >= self._most_silent:
                self._gone = f"{asked.made.reason}, for {self._silent} images in a row"
            if self._gone:
                self.ended.set()

    def raise_if_gone(self) -> None:
        """Raise DataError if the pass cannot go on."""
        if self._gone:
            raise DataError(
                f"captions ended early, {self._base}: {self._gone}. Every caption made so far is kept; the same "
                "command goes on from there"
            )
