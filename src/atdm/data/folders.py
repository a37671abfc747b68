"""The files below a folder, by what they are."""

from __future__ import annotations

import contextlib
import os
import shlex
import stat
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import UserError
from .classes import of_folders
from .listing import Listing, key_of, left_out, others, require_handles, stamp
from .pixels import suffixes

# Files that tell a folder of atdm's own, with pictures in it that are no data, and what wrote it.
WRITERS = {
    ("audit.json", "recipe.yaml"): "audit",
    ("samples.npz", "truth.npz"): "corrupt",
    ("config.yaml", "truth.npz"): "train",
    ("attack.json",): "attack",
    ("numbers.json", "paragraph.md"): "reproduce",
    ("summary.json", "report.html"): "demo",
    ("model_index.json",): "export",
    ("restored.json",): "restore",
}
# What atdm train writes into its folder.
RUN = {"config.yaml", "data.npz", "levels.safetensors", "log.jsonl", "metrics.json", "objective.json", "trackers.json"}
RUN |= {"truth.npz", "trusted.npz", "checkpoints", "model", "samples"}
DEEPEST = 4  # folders from a file of a run or pipeline up to it
PATIENCE = 20_000  # folders and other files, beyond ten for each image, after which a search gives up
TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")  # the compressed are refused
LISTED = ".png, .jpg, .gif, .webp, .tif and whatever else Pillow reads"


@dataclass
class Tree:
    """What is below a folder, as paths relative to it; links to folders are followed, each folder is read once.

    Args:
        images: files with the ending of an image, sorted by their parts.
        parquet: parquet files.
        tars: tar files.
        endings: how many other files there are, by their ending.
        notes: sentences on what could not be read or was left out.
    """

    images: list[tuple[str, ...]] = field(default_factory=list)
    parquet: list[str] = field(default_factory=list)
    tars: list[str] = field(default_factory=list)
    endings: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)


def search(path: Path) -> Tree:
    """Look through a folder.

    Raises:
        UserError: there is no such folder, it cannot be read, is one that atdm wrote, or holds next to nothing but other files.
    """
    if not path.is_dir():
        raise UserError(f"There is no folder {path}. Expected a folder of images ({LISTED}).")
    if path.resolve() == path.resolve().parent:
        raise UserError(f"{path} is everything on this disk. Expected a folder of images.")
    if (command := _writer_of(os.listdir(path))) in ("audit", "corrupt", "train"):
        instead = f"{path / 'samples.npz'}" if command == "corrupt" else "a folder of images"
        raise UserError(f"{path} is what atdm {command} wrote. Expected {instead}.")
    return _Search(path).run()


def folder_in(spec: str | None) -> Path | None:
    """The folder of images that the spec of a data set names; None: another kind of data, or none."""
    folder = Path((spec or "").removeprefix("folder:")).expanduser()
    return folder if spec and folder.is_dir() else None


def require_apart(out: Path, spec: str | None) -> None:
    """Refuse results in the folder of the images themselves, which would then be one that atdm wrote; below it they are left out.

    Args:
        out: the folder of the results.
        spec: of the data set; None: there is none.

    Raises:
        UserError: they are the same folder.
    """
    folder = folder_in(spec)
    if folder and out.resolve() == folder.resolve():
        raise UserError(f"{out} is the folder of the images of {spec}. Expected another one for the results.")


def require_own(out: Path) -> None:
    """Refuse to write over a file of a run, of a pipeline, or of what another command wrote into its folder.

    Raises:
        UserError: ``out`` is one.
    """
    file = out.resolve()
    for folder in [*file.parents][:DEEPEST] if file.is_file() else ():
        with contextlib.suppress(OSError):  # a folder that may not be listed
            command = _writer_of(os.listdir(folder))
            marks = {name for names, writer in WRITERS.items() if writer == command for name in names}
            if command == "export" or file.relative_to(folder).parts[0] in (RUN if command == "train" else marks):
                what = {"train": "run", "export": "pipeline"}.get(command or "", f"results of atdm {command} in")
                raise UserError(
                    f"{out} is a file of the {what} {folder}. Expected another name, so that it is not overwritten."
                )


def _writer_of(names: Iterable[str]) -> str | None:
    """The command that wrote a folder with these names in it."""
    names = {*names}
    return next((command for marks, command in WRITERS.items() if names.issuperset(marks)), None)


class _Search:
    """One walk; what was left out, by the reason."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tree = Tree()
        self.seen: set[tuple[int, int]] = set()
        self.passed = 0
        self.left: dict[str, list[str]] = {}

    def run(self) -> Tree:
        waiting = [str(self.path)]  # links to folders come last, so that folders are found under their own names
        while waiting:
            start = waiting.pop(0)
            if self._known(start):
                self._leave("links to folders that were read already", start)
                continue
            for folder, folders, files in os.walk(start, onerror=self._unreadable):
                if folder != start and self._known(folder):
                    folders.clear()
                    continue
                self.seen.add(_identity(folder))
                if folder != str(self.path) and (command := _writer_of((*files, *folders))):
                    self._leave("folders that atdm wrote", f"{folder} (atdm {command})")
                    folders.clear()
                    continue
                self._hidden(folder, folders)
                links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
                waiting += [os.path.join(folder, name) for name in sorted(links)]
                folders[:] = sorted({*folders}.difference(links))
                self._sort_in(folder, files)
        self.tree.images.sort()
        self.tree.notes = [note for what, names in self.left.items() for note in left_out(what, names)]
        return self.tree

    def _known(self, folder: str) -> bool:
        try:
            return _identity(folder) in self.seen
        except OSError as problem:
            self._unreadable(problem)
            return True

    def _leave(self, what: str, name: str) -> None:
        self.left.setdefault(what, []).append(os.path.relpath(name.partition(" (")[0], self.path))

    def _unreadable(self, problem: OSError) -> None:
        require_handles(problem)
        if problem.filename == str(self.path):
            raise UserError(f"The folder {self.path} cannot be read ({problem.strerror}). Expected one that can.")
        self._leave("folders that cannot be read", str(problem.filename))

    def _hidden(self, folder: str, folders: list[str]) -> None:
        for name in [name for name in folders if name.startswith(".")]:
            folders.remove(name)
            self._leave("hidden folders", os.path.join(folder, name))

    def _sort_in(self, folder: str, files: list[str]) -> None:
        parts = Path(folder).relative_to(self.path).parts
        for name in files:
            lower = name.lower()
            if name.startswith("."):
                if lower.endswith((*suffixes(), ".parquet", *TARS)):
                    self._leave("hidden files", os.path.join(folder, name))
            elif lower.endswith(suffixes()):
                self.tree.images.append((*parts, name))
            elif lower.endswith(".parquet"):
                self.tree.parquet.append(os.path.join(*parts, name))
            elif lower.endswith(TARS):
                self.tree.tars.append(os.path.join(*parts, name))
            else:
                self.tree.endings[os.path.splitext(lower)[1]] += 1
            self.passed += not lower.endswith(suffixes())
        self.passed += 1
        if self.passed > PATIENCE + 10 * len(self.tree.images):
            raise UserError(
                f"Of the first {self.passed + len(self.tree.images):,} files and folders in {self.path} "
                f"{len(self.tree.images):,} are images. Expected a folder of images, not of everything."
            )


def _identity(folder: str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def from_folder(path: Path, tree: Tree) -> Listing:
    """Each image file that was found below ``path`` (flat or in class subfolders).

    Raises:
        UserError: there is none.
    """
    special, names, stamps = [], [], []
    for name in (os.path.join(*parts) for parts in tree.images):
        file = os.path.join(path, name)
        try:
            kind = os.stat(file).st_mode
        except OSError:  # a link to nothing is a broken image, by name
            kind = stat.S_IFREG
        if stat.S_ISREG(kind):
            names.append(name)
            stamps.append(stamp(file))
        else:  # to read a pipe or a device may never end
            special.append(name)
    endings = tree.endings.copy()
    endings.update({".parquet": len(tree.parquet), ".tar": len(tree.tars)})
    notes = (*tree.notes, *left_out("special files", special), *others(+endings))
    if not names:
        held = "".join(f" {note}." for note in notes)
        raise UserError(f"The folder {path} holds no image.{held} Expected files ending in {LISTED}.")
    return Listing(
        len(names),
        names.__getitem__,
        lambda i: (path / names[i]).read_bytes(),
        key_of("folder", *stamps),
        notes,
        labelled=lambda: of_folders(names, os.sep),
    )


def no_data(path: Path) -> UserError:
    """The error for a file that holds no data set."""
    if path.suffix.lower() == ".zip":
        command = f"unzip {shlex.quote(str(path))} -d {shlex.quote(str(path.with_suffix('')))}"
        return UserError(f"{path} is a zip file. Expected a folder of images: {command}")
    return UserError(f"{path} is a file. Expected a folder of images, a .parquet, .tar, .npz or .npy file.")


def elsewhere(spec: str) -> str:
    """What is expected in place of an address or a pattern that is no folder; of other paths an empty text."""
    if "://" in spec:
        return "It is an address. Expected a folder or file of this machine; of addresses those of .tar files are read, with streaming."
    folder, _, pattern = spec.rpartition("/")
    if folder and any(mark in pattern for mark in "*?[") and Path(folder).expanduser().is_dir():
        return f"Images are read from a folder without a pattern. Expected {folder}"
    return ""
