"""Files made to run code when they are read: none of it runs, and each ends in a sentence or is read as data. Run with ``-m slow``."""

import json
import pickle
import shutil
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import atdm

pytestmark = pytest.mark.slow


class Evil:
    """Makes the file ``mark`` when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (open, (str(self.mark), "w"))


def objects(mark):
    return np.array([Evil(mark)] * 4, dtype=object)


def run_with(folder, at, file, content):
    """A copy of a run with a file of this content."""
    shutil.copytree(folder, at)
    (at / file).write_bytes(content)
    return str(at)


def pipeline_with(stock, at, **index):
    """A copy of a pipeline whose index names other parts."""
    shutil.copytree(stock, at)
    named = json.loads((at / "model_index.json").read_text())
    (at / "model_index.json").write_text(json.dumps({**named, **index}))
    return at


def module(mark):
    return f"open({str(mark)!r}, 'w')\nfrom diffusers import DDPMScheduler, UNet2DModel\nclass Mine(UNet2DModel): pass\nclass Plan(DDPMScheduler): pass\n"


def arrays(at, mark, **_):
    np.savez(at / "a.npz", samples=objects(mark))
    np.save(at / "b.npy", objects(mark), allow_pickle=True)
    (at / "c.npy").write_bytes(pickle.dumps(Evil(mark)))
    (at / "d.npz").write_bytes(pickle.dumps(Evil(mark)))
    for name in ("a.npz", "b.npy", "c.npy", "d.npz"):
        yield ["audit", str(at / name)]
        yield ["train", "--data", str(at / name), "--steps", "1", "--out", str(at / "run")]


def truth(at, mark, **_):
    from atdm.corruption.truth import Truth
    from atdm.errors import UserError

    np.savez(at / "samples.npz", samples=np.random.default_rng(0).normal(size=(40, 3)).astype("f4"))
    np.savez(at / "truth.npz", touched=objects(mark), about=objects(mark))
    with pytest.raises(UserError):
        Truth.load(at / "truth.npz")
    yield [
        "train",
        "--data",
        str(at / "samples.npz"),
        "--objective",
        "ambient",
        "--steps",
        "1",
        "--out",
        str(at / "run"),
    ]


def run_folders(at, mark, folder, **_):
    yaml = f"!!python/object/apply:builtins.open ['{mark}', 'w']\n".encode()
    np.savez(at / "objects.npz", crc32=objects(mark), item_shape=objects(mark))
    for number, (file, content) in enumerate(
        (
            ("config.yaml", b"data: " + yaml),
            ("config.yaml", yaml),
            ("objective.json", pickle.dumps(Evil(mark))),
            ("log.jsonl", pickle.dumps(Evil(mark))),
            ("truth.npz", (at / "objects.npz").read_bytes()),
            ("data.npz", (at / "objects.npz").read_bytes()),
            (".lock", pickle.dumps(Evil(mark))),
            ("checkpoints/step-00000020/state.safetensors", pickle.dumps(Evil(mark))),
        )
    ):
        run = run_with(folder, at / f"run-{number}", file, content)
        yield ["export", run, "--out", str(at / f"exported-{number}")]
        yield ["evaluate", run, "--n", "4", "--sampling_steps", "2", "--weights", "raw"]
        yield ["show", "run", run]


def configurations(at, mark, **_):
    for number, text in enumerate(
        (
            f"data: !!python/object/apply:builtins.open ['{mark}', 'w']",
            f"!!python/object/apply:os.system ['touch {mark}']",
            f"objective: {{class_path: builtins.open, init_args: {{file: '{mark}', mode: w}}}}",
            f"data: {{class_path: builtins.open, init_args: {{file: '{mark}', mode: w}}}}",
        )
    ):
        (at / f"{number}.yaml").write_text(text)
        yield ["train", "--config", str(at / f"{number}.yaml"), "--out", str(at / "run")]


def words(at, mark, **_):
    code = f"__import__('os').system('touch {mark}')"
    for word in (code, f"$(touch {mark})", f"`touch {mark}`", f"plane:n={code}", f"x;touch {mark}", f"|touch {mark}"):
        for option in ("--data", "--net", "--process", "--corrupt", "--objective.name", "--init", "--vae", "--config"):
            yield ["train", "--data", "plane:n=40", option, word, "--steps", "1", "--out", str(at / "run")]


def weights(at, mark, stock, **_):
    for name in ("diffusion_pytorch_model.bin", "pytorch_model.bin", "diffusion_pytorch_model.safetensors"):
        pipeline = pipeline_with(stock, at / name)
        (pipeline / "unet" / "diffusion_pytorch_model.safetensors").unlink()
        (pipeline / "SHA256SUMS").unlink(missing_ok=True)
        torch.save({"conv_in.weight": Evil(mark)}, pipeline / "unet" / name)
        yield ["sample", str(pipeline), "--n", "1", "--sampling_steps", "1", "--out", str(at / "x.npz")]
        yield ["train", "--data", "digits", "--init", str(pipeline), "--steps", "1", "--out", str(at / "run")]
        yield ["train", "--data", "digits", "--vae", str(pipeline / "unet"), "--steps", "1", "--out", str(at / "run")]


def own_code(at, mark, stock, monkeypatch, **_):
    """Pipelines that bring Python files and name their classes."""
    for number, index in enumerate(
        (
            {"unet": ["mine", "Mine"]},
            {"unet": ["unet.mine", "Mine"]},
            {"scheduler": ["mine", "Plan"]},
            {"_class_name": ["mine", "Mine"]},
            {"_class_name": "mine.Mine"},
            {"unet": [str(at), "Mine"]},
        )
    ):
        pipeline = pipeline_with(stock, at / f"own-{number}", **index)
        for place in (
            pipeline / "mine.py",
            pipeline / "pipeline.py",
            pipeline / "unet" / "mine.py",
            pipeline / "scheduler" / "mine.py",
        ):
            place.write_text(module(mark))
        config = json.loads((pipeline / "unet" / "config.json").read_text())
        config |= {"auto_map": {"AutoModel": "mine.Mine"}} | ({"_class_name": "Mine"} if number % 2 else {})
        (pipeline / "unet" / "config.json").write_text(json.dumps(config))
        monkeypatch.chdir(pipeline)
        yield ["sample", str(pipeline), "--n", "1", "--sampling_steps", "1", "--out", str(at / f"{number}.npz")]
        yield ["train", "--data", "digits", "--init", str(pipeline), "--steps", "1", "--out", str(at / "run")]


def tables(at, mark, **_):
    """Scripts beside parquet files, and a column of an extension type that older pyarrow unpickled."""
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    about = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": pickle.dumps(Evil(mark))}
    schema = pa.schema([pa.field("image", pa.binary(), metadata=about)])
    (at / "table").mkdir()
    parquet.write_table(pa.table({"image": [b"x", b"y"]}, schema=schema), at / "table" / "a.parquet")
    for name in ("table.py", "dataset.py", "a.py"):
        (at / "table" / name).write_text(module(mark))
    yield ["audit", str(at / "table")]
    yield ["audit", f"parquet:{at}/table/a.parquet"]
    yield ["audit", f"hub:name={at}/table"]


def images(at, mark, **_):
    """PostScript under the name of a picture, and tar files that would write beside them."""
    (at / "photos").mkdir()
    for i in range(20):
        Image.new("RGB", (8, 8), (12 * i,) * 3).save(at / "photos" / f"{i}.png")
    script = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(%pipe%touch {mark}) (w) file\nshowpage\n"
    for name in ("a.png", "b.eps", "c.pdf", "d.svg"):
        (at / "photos" / name).write_text(script)
    with tarfile.open(at / "photos.tar", "w") as tar:
        for name in ("../mark", str(mark), "0.png", "1.png"):
            tar.add(at / "photos" / "0.png", name)
        link = tarfile.TarInfo("2.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    yield ["audit", str(at / "photos")]
    yield ["corrupt", "--data", str(at / "photos.tar"), "--corrupt", "gaussian", "--out", str(at / "noisy")]


KINDS = (arrays, truth, run_folders, configurations, words, weights, own_code, tables, images)


@pytest.mark.parametrize("kind", KINDS)
def test_no_input_runs_code(tmp_path, capsys, monkeypatch, folder, stock, kind):
    mark = tmp_path / "mark"
    at = tmp_path / "inputs"
    at.mkdir()
    monkeypatch.chdir(at)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    tried = 0
    for line in kind(at, mark, folder=folder, stock=stock, monkeypatch=monkeypatch):
        code, _, err = atdm(capsys, *line)
        assert not mark.exists(), line
        assert code in (0, 2), (line, err)
        assert "Traceback" not in err, (line, err)
        tried += 1
    assert tried > (0 if kind is truth else 1)


def test_the_mark_would_be_made(tmp_path):
    """Without which the table would show nothing."""
    pickle.loads(pickle.dumps(Evil(tmp_path / "mark")))
    assert (tmp_path / "mark").exists()
