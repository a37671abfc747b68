"""Trusted images of a folder beside corrupted ones."""

from atdm.experiments import trusted
from atdm.plot.samples import save_samples
from helpers import pictures


def test_images_of_a_folder_are_learned_with_and_without_trusted_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_samples(pictures(150), tmp_path / "photos")
    jobs = trusted.jobs("smoke", [0], str(tmp_path / "photos"))
    assert [job.label for job in jobs if job.config.corrupt == "none"] == [trusted.ONLY]
    wanted = ("auto", trusted.WITHOUT, trusted.ONLY, "ddpm")
    by_label = {job.label: trusted.work(job, lambda share: None).rows for job in jobs if job.label in wanted}
    # Levels come from trusted images, of which one method has none; the others say nothing of levels.
    assert {label for label, rows in by_label.items() if "level_auc" in rows[0]} == {"auto"}
    assert by_label["auto"][0]["chosen"] == "omni"
    assert by_label[trusted.WITHOUT][0]["chosen"] != "omni"
    assert len(by_label["ddpm"]) == 1 + len(trusted.STOPS)
    key = "frechet_Small"
    assert key in by_label["ddpm"][0]
    every = trusted.with_best_stop([row for rows in by_label.values() for row in rows], key)
    best = next(row for row in every if row["method"] == trusted.BEST)
    assert best[key] == min(row[key] for row in by_label["ddpm"][1:])
