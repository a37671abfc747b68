"""The noise of a set of image files: how much each held when it was saved, and what of it is left at the size it is read at."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from .blocks import Blocks, noise_std

LEAST_SHARE = 0.05  # share of noisy files below which they count as textured ones
SCALES = np.array([0.5, 1, 1.5, 2, 3, 4, 6, 8])  # pixels of a file for one as read, at which remains are measured
STDS = np.array([0.05, 0.1, 0.2, 0.4])
TRIAL = 192  # side of the image of pure noise that is measured
RESIZED = 1.2  # scales from which on what is read no longer shows the noise of the file
LOSSY = ("JPEG", "WebP")


@dataclass(frozen=True)
class FileNoise:
    """What files say about their noise.

    Args:
        kinds: format and chroma subsampling of each file.
        sizes: width and height of each, pixels.
        stds: noise std of each as it was saved, in [-1, 1]; 0 where it looks clean.
        remains: root mean square of what is left of it in the image as it is read.
        hidden: the image as read need not show its noise, for the file is lossy or was resized, and the file can be measured.
    """

    kinds: Sequence[str]
    sizes: Int[np.ndarray, "n 2"]
    stds: Float[np.ndarray, "n"]
    remains: Float[np.ndarray, "n"]
    hidden: Bool[np.ndarray, "n"]

    @classmethod
    def of(cls, files: Sequence[Blocks], scales: Float[np.ndarray, "n"]) -> FileNoise:
        """From what was measured in each file.

        Args:
            scales: pixels of the file along one pixel of the image as it is read.
        """
        kinds = [file.kind for file in files]
        hidden = np.array([k.startswith(LOSSY) for k in kinds]) | (np.abs(np.log(scales)) > np.log(RESIZED))
        hidden &= np.array([file.smooth > 0 for file in files])
        stds = np.array([noise_std(file) if shown else 0.0 for file, shown in zip(files, hidden, strict=True)])
        if not hidden.any() or (stds > 0).sum() < LEAST_SHARE * hidden.sum():
            stds = np.zeros(len(files))
        left = [_left(f, s, scale) if s else 0.0 for f, s, scale in zip(files, stds.tolist(), scales, strict=True)]
        return cls(kinds, np.array([file.size for file in files]), stds, np.array(left), hidden)

    def merged(
        self, stds: Float[np.ndarray, "b"], indices: Int[np.ndarray, "b"], changed: bool
    ) -> Float[np.ndarray, "b"]:
        """Noise std of these items as read.

        Args:
            stds: what the items themselves show.
            changed: something was done to the items after reading, so that they may hold noise that their files do not.
        """
        return np.maximum(stds if changed else np.where(self.hidden[indices], 0.0, stds), self.remains[indices])

    def with_clean(self, count: int) -> FileNoise:
        """The same with so many clean items after the others."""
        none = np.zeros(count)
        return FileNoise(
            [*self.kinds, *["trusted"] * count],
            np.concatenate([self.sizes, np.zeros((count, 2), int)]),
            np.concatenate([self.stds, none]),
            np.concatenate([self.remains, none]),
            np.concatenate([self.hidden, none == 0]),
        )

    def of_these(self, use: Bool[np.ndarray, "n"]) -> FileNoise:
        """The same where the files not in use hold no noise but something else."""
        return replace(self, stds=np.where(use, self.stds, 0.0), remains=np.where(use, self.remains, 0.0))


def _left(file: Blocks, std: float, scale: float) -> float:
    """Root mean square of what is left of noise of ``std`` in the image as read, interpolated between trials."""
    table = _trials(file.kind, _quality(file), file.gray)
    near = min(max(scale, SCALES[0]), SCALES[-1])
    at_scale = [np.interp(np.log(near), np.log(SCALES), row) for row in table]
    return float(std * np.exp(np.interp(np.log(std), np.log(STDS), at_scale)) * min(1.0, near / scale))


def _quality(file: Blocks) -> int:
    """The quality that gives standard quantization tables such steps, in fives; that of WebP files is unknown: 85."""
    if file.steps is None:
        return 85
    scale = 100 * float(np.mean(file.steps)) / 57.6  # the mean of the standard table at quality 50
    return int(np.clip(5 * round((200 - scale) / 10 if scale <= 100 else 1000 / scale), 5, 100))


@lru_cache(maxsize=256)
def _trials(kind: str, quality: int, gray: bool) -> Float[np.ndarray, "stds scales"]:
    """Log of what is left of one unit of noise on mid-gray, saved in this format and resized, for each std and scale."""
    from PIL import Image

    noise = np.random.default_rng(0).standard_normal((TRIAL, TRIAL, 1 if gray else 3))
    out = np.zeros((len(STDS), len(SCALES)))
    for i, std in enumerate(STDS):
        pixels = np.round(127.5 * (1 + std * noise)).clip(0, 255).astype(np.uint8)
        image: Any = Image.fromarray(pixels[:, :, 0] if gray else pixels)
        if kind.startswith(LOSSY):
            options = {"subsampling": {"4:4:4": 0, "4:2:2": 1}.get(kind[5:], 2)} if kind.startswith("JPEG") else {}
            buffer = io.BytesIO()
            image.save(buffer, kind[:4].strip(), quality=quality, **options)
            image = Image.open(buffer)
            image.load()
        for j, scale in enumerate(SCALES):
            small = image.resize([round(TRIAL / scale)] * 2, Image.Resampling.LANCZOS)
            out[i, j] = np.log(max(np.asarray(small, float).std() / 127.5 / std, 1e-3))
    return out
