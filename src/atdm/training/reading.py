"""The options of a training run that say what it reads."""

from __future__ import annotations

import os
from dataclasses import dataclass

from ..errors import UserError, expect


@dataclass(frozen=True)
class DataConfig:
    """What to learn from, and how it is read.

    Args:
        data: what to learn from: a toy (plane, mixture, moons, swiss_roll), digits, a folder of images, parquet or tar
            files, an .npz of atdm corrupt, hub:name=OWNER/NAME or torchvision:name=CIFAR10,root=PATH; streaming=true in a
            spec of webdataset, parquet or hub decodes images only when their turn comes.
        trusted: 20 or more images that you know to be clean, such as a folder: they join the training data, are not corrupted,
            and samples are compared with them.
        corrupt: corruption to add, such as gaussian:share=0.9,std=0.2 or outliers:share=0.1; '+' composes.
        corrupt_fresh: draw the corruption anew in every epoch; by default it is fixed to the item.
        image_size: resize and crop images to this many pixels (null: as they are).
        crop: center cuts the middle, random another window each time, none squeezes the whole image into the square.
        limit: largest number of items to use, of images chosen by seed; up to as many of the others are held out.
        skip_broken: count and skip unreadable images instead of stopping.
        cache: decode images once, into a file that is mapped; false keeps them in memory.
        max_pixels: an image of more pixels counts as broken.
        workers: processes that prepare batches ahead; 0: none; null: what the device and the data need.
        flip: mirror images at random.
        class_labels: give the network the class of each image: its sub-folder, or the label column of parquet or Hub data.
    """

    data: str = "digits"
    trusted: str | None = None
    corrupt: str = "none"
    corrupt_fresh: bool = False
    image_size: int | None = None
    crop: str = "center"
    limit: int | None = None
    skip_broken: bool = False
    cache: bool = True
    max_pixels: int = 178_956_970
    workers: int | None = None
    flip: bool = False
    class_labels: bool = False

    def __post_init__(self) -> None:
        expect(self.workers is None or self.workers >= 0, "workers", self.workers, "an integer >= 0, or null")
        most = 16 * (os.cpu_count() or 1)  # each is a process with a torch of its own
        if self.workers is not None and self.workers > most:
            raise UserError(
                f"workers is {self.workers}, and this machine has {os.cpu_count()} cores. "
                f"Expected at most {most}, or null to let atdm choose."
            )
