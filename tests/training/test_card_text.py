"""A model card shows somebody else's names as text, and no folder of this machine."""

import json
import shutil

import pytest
import yaml

from atdm.training import share

NAME = "photos\n# Not a heading <script>alert(1)</script> `code` | cell"


@pytest.mark.parametrize(
    "spec",
    [
        f"/home/me/secret/{NAME}",
        f"folder:/home/me/secret/{NAME}",
        f"npz:/home/me/secret/{NAME}.npz",
        f"npz:path=/home/me/secret/{NAME}.npz",
        f"webdataset:/home/me/secret/{NAME}-{{000..002}}.tar",
        f"webdataset:path=/home/me/secret/{NAME}.tar,column=png",
        f"parquet:path=/home/me/secret/{NAME}.parquet,column=img",
        "hub:name=/home/me/secret/set",
        "torchvision:name=CIFAR10,root=/home/me/secret",
        "home/me/secret/photos",
        "~/secret/photos",
    ],
)
def test_data_of_any_name(folder, tmp_path, spec):
    run = tmp_path / "run"
    shutil.copytree(folder, run)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"] = spec
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    rows = json.loads((run / "metrics.json").read_text())["rows"] if (run / "metrics.json").is_file() else []
    out = tmp_path / "my `model` | <b>\n# Heading"
    share.export(run, out)
    card = (out / "README.md").read_text()
    assert rows == [] or "| metric |" in card
    front, _, body = card.removeprefix("---\n").partition("\n---\n")
    assert yaml.safe_load(front)["library_name"] == "diffusers"
    headings = [line for line in body.splitlines() if line.startswith("# ")]
    fenced = body.split("```")
    assert len([line for part in fenced[::2] for line in part.splitlines() if line.startswith("# ")]) == 1, headings
    assert "secret" not in card
    assert "/home" not in card
    for part in fenced[::2]:  # outside of code
        for line in part.splitlines():
            assert "<script" not in line.replace("`", "`").split("`")[0]
            assert not line.startswith("<")
    for line in body.splitlines():
        if line.startswith("| data |"):
            assert line.replace("\\|", "").count("|") == 3
