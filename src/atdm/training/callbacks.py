"""What may be called while training: a class with methods to override, as in Keras, Lightning and the Hugging Face Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .state import Step


class Callback:
    """Override what is needed; the methods do nothing.

    :func:`~atdm.training.train.fit`, which owns no files, calls ``on_step``; :func:`~atdm.training.run.train` calls all.
    Training is the same with and without: its random numbers are a function of seed and step, whatever a callback draws.
    What a method raises ends the training.
    """

    def on_step(self, step: Step) -> bool | None:
        """After each optimizer step, in every process. True ends the training, in all processes, after this step."""

    def on_log(self, step: Step, scalars: dict[str, float]) -> None:
        """Every ``log_every`` steps and at the last one, in the main process, as are the two below.

        Args:
            scalars: :meth:`Step.summary <atdm.training.state.Step.summary>`: what a line of ``log.jsonl`` holds.
        """

    def on_sample(self, step: int, path: Path) -> None:
        """After a grid of samples of the averaged weights was drawn.

        Args:
            step: optimizer steps done.
            path: the picture, a PNG.
        """

    def on_save(self, step: int, path: Path) -> None:
        """After a checkpoint was written.

        Args:
            step: optimizer steps done.
            path: its folder.
        """
