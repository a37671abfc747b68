"""Wrong command lines, drawn at random from what the parsers take: each ends in a sentence, none in a traceback."""

import random
import re
import signal
from contextlib import contextmanager

import pytest

from atdm.cli.parser import SUMMARY, make_parser
from helpers import atdm

# What options are given: no number, no path, no name; too large, too small, empty, of another kind, meant for other programs.
ODD = [
    *(
        "",
        " ",
        "x",
        "null",
        "true",
        "-1",
        "0",
        "nan",
        "inf",
        "-inf",
        "1e400",
        "9" * 40,
        "1.5",
        "1,2",
        "1,",
        ",",
        "[]",
        "{}",
        "[1",
    ),
    *(
        "a:b=c",
        "a:b",
        ":",
        "=",
        "a=",
        "digits:subspace=0",
        "digits:subspace=x",
        "plane:n=-1",
        "plane:n=99999999999999",
        "moons:x=1",
    ),
    *(
        "linear:steps=0",
        "linear:prediction=x",
        "cosine:steps=9e9",
        "flow:shift=0",
        "edm:sigma_data=-1",
        "mlp:width=0",
        "mlp:width=x",
    ),
    *(
        "gaussian:std=-1",
        "gaussian:share=nan",
        "jpeg:quality=0",
        "gaussian+",
        "poison:model=x",
        "auto:k=x",
        "published:omega=x",
    ),
    *(
        "/",
        "..",
        ".",
        "/dev/null",
        "/dev/null/x",
        "/etc/passwd",
        "/proc/self",
        "nothing/here",
        "~",
        "~/",
        "x" * 5000,
        "x" * 300,
    ),
    *(
        "folder:",
        "folder:x",
        "npz:x",
        "npz:",
        "x.npz",
        "x.npy",
        "*.tar",
        "{0..3}.tar",
        "x.parquet",
        "parquet:path=,column=",
        "webdataset:*",
    ),
    *(
        "hub:name=",
        "torchvision:name=x",
        "torchvision:name=CIFAR10,root=nothing",
        "hub:",
        "none",
        "auto",
        "all",
        "published",
        "constant:r=-1",
    ),
    *(
        "\x1b[31mred",
        "[/b]",
        "[bold]x",
        "$x_$",
        "ü",
        "\u202ex",
        "a\nb",
        "%s%n",
        "../../x",
        "--",
        "-",
        "🙂",
        "\udcff",
        "{x}",
        "<script>",
        "`x`",
    ),
]
# What makes the start of a line cheap where its options happen to be right.
CHEAP = {
    "train": [
        "--data",
        "plane:n=40",
        "--steps",
        "1",
        "--net",
        "mlp:width=8,depth=1",
        "--batch_size",
        "4",
        "--out",
        "run",
    ],
    "sample": ["{run}", "--n", "2", "--sampling_steps", "2", "--out", "s.npz"],
    "evaluate": ["{run}", "--n", "4", "--sampling_steps", "2", "--out", "e.json"],
    "attack": [
        "{run}",
        "--n",
        "2",
        "--sampling_steps",
        "2",
        "--seeds",
        "1",
        "--attack",
        "random",
        "--checks",
        "false",
        "--budgets",
        "0",
    ],
    "purify": ["{run}", "--data", "plane:n=20", "--noise", "0.3", "--sampling_steps", "2", "--out", "p.npz"],
    "corrupt": ["--data", "plane:n=20", "--corrupt", "gaussian", "--out", "noisy"],
    "audit": ["plane:n=40"],
    "restore": ["plane:n=20", "--model", "{run}", "--out", "restored"],
    "export": ["{run}", "--out", "exported"],
    "features": ["--data", "digits", "--steps", "1", "--limit", "20"],
}
# Where they would be dear: something is always wrong.
WRONG = {
    "demo": ["--seeds", "x"],
    "reproduce": ["nothing", "--scale", "x"],
    "compare": ["nothing.json", "--seeds", "x"],
    "report": ["nothing"],
    "bench": ["--net", "nothing"],
    "show radius": ["--omegas", "x"],
    "show run": ["nothing"],
}


class Heard(Exception):
    pass


@pytest.fixture(scope="module")
def options():
    """The options of each command, as its parser takes them."""
    import importlib

    import jsonargparse

    found = {}
    with pytest.MonkeyPatch.context() as patch:

        def listen(self, *_, **__):
            raise Heard(self)

        patch.setattr(jsonargparse.ArgumentParser, "parse_args", listen)
        for line in [*CHEAP, *WRONG]:
            command, *part = line.split()
            with pytest.raises(Heard) as heard:
                importlib.import_module(f"atdm.cli.{command}").run([*part, "--x"])
            actions = heard.value.args[0]._actions
            found[line] = sorted(
                s for a in actions for s in a.option_strings if s.startswith("--") and "shtab" not in s
            )
    return found


def lines(options, run, count, seed):
    rng = random.Random(seed)
    dear = ("--seeds", "--train", "--scale", "--net", "--omegas", "--push_to_hub", "--help", "--quick", "--thorough")
    for _ in range(count):
        name = rng.choice([*options, *CHEAP])
        words = [word.replace("{run}", str(run)) for word in {**CHEAP, **WRONG}[name]]
        for _ in range(rng.randint(1, 2)):
            option = rng.choice(options[name])
            if name in WRONG and option in dear:
                continue
            value = rng.choice(ODD)
            kind = rng.random()
            if kind < 0.1:
                words.insert(rng.randrange(len(words) + 1), value)
            elif kind < 0.2:
                words += [option]
            elif kind < 0.25:
                words += [option[:-1] + rng.choice("xyz"), value]
            elif kind < 0.6:
                words += [f"{option}={value}"]
            else:
                words += [option, value]
        yield [*name.split(), *words]


class Stuck(BaseException):
    """A line has not ended in time."""


PATIENCE = 180  # seconds for a line that takes one, on a busy machine


@contextmanager
def ending(words):
    def stop(*_):
        raise Stuck(words)

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def check(capsys, words):
    with ending(words):
        code, out, err = atdm(capsys, *words)
    assert code in (0, 2, 130), (words, code)
    assert "Traceback" not in err, words
    assert not re.search(r" object at 0x|<class '", err), (words, err)
    assert "\x1b" not in out + err, words
    assert (code == 0) or err.startswith("atdm: ") or "\natdm: " in err, (words, err)
    return code


def test_all_commands_are_tried(options):
    assert {name.partition(" ")[0] for name in options} == {*SUMMARY}
    assert make_parser("train").prog == "atdm train"


@pytest.mark.parametrize("seed", range(3))
def test_a_wrong_line_is_a_sentence(capsys, folder, options, tmp_path, monkeypatch, seed):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    codes = [check(capsys, words) for words in lines(options, folder, 20, seed)]
    assert codes.count(2) > 10


@pytest.mark.slow
def test_three_hundred_wrong_lines(capsys, folder, options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for words in lines(options, folder, 300, "three hundred"):
        check(capsys, words)


SENTENCES = [
    (["train", "--limit", "true"], "The option limit is 'true'. Expected an integer or null."),
    (["train", "--image_size", ""], "The option image_size is ''. Expected an integer or null."),
    (["train", "--steps", "x"], "The option steps is 'x'. Expected an integer."),
    (["train", "--lr", "x"], "The option lr is 'x'. Expected a number."),
    (["train", "--lr", "inf"], "lr is inf. Expected a finite number >= 0."),
    (["train", "--weight_decay", "inf"], "weight_decay is inf. Expected a finite number >= 0."),
    *(
        (["train", "--data", "plane:n=40", "--out", "run", "--epochs", number], f"epochs is {shown}, which makes ")
        for number, shown in (("inf", "inf"), ("1e308", "1e+308"), ("1e30", "1e+30"))
    ),
    (["train", "--cache=x"], "The option cache is 'x'. Expected true or false."),
    (["train", "--precision", "fp61"], "Did you mean 'fp16'?"),
    (["train", "--config", "nothing.yaml"], "Expected a configuration in YAML, or the name of a recipe"),
    (["train", "--config", "empty.yaml"], "it is empty. Expected a configuration in YAML"),
    (["train", "--config", "utf16.yaml"], "it is not text in UTF-8"),
    (["train", "--config", "list.yaml"], "not names with values"),
    (["train", "--config", "."], "Is a directory"),
    *(
        (["train", "--data", "plane:n=40", "--process", f"{name}:steps=0"], "has 0 timesteps")
        for name in ("linear", "cosine", "flow", "edm")
    ),
    (["train", "--data", "plane:n=40", "--process", "linear:steps=10"], "more than 20 steps, or a smaller beta_end"),
    (["attack", "x", "--budgets", "0,9e99"], "Expected numbers separated by commas"),
    (["train", "--stepz", "3"], "Unknown option 'stepz'. Did you mean 'steps'"),
    (["report", "x", "--attack.budgets", "0"], "Unknown option 'attack.budgets'. Did you mean 'budgets'"),
    (["train", "--objective.weigth=3"], "Unknown option 'objective.weigth'. Did you mean 'objective.weight'"),
    *(
        ([command, "x", "--steps", "5"], "Unknown option 'steps'. Did you mean 'sampling_steps'")
        for command in ("sample", "evaluate", "attack", "purify")
    ),
    (["train", "3"], "Nothing is expected at '3'"),
    (["train", "--out"], "The option --out is without its value"),
    (["train", "--seed", str(2**64)], "Expected an integer of at most 63 bits"),
    *(
        ([*words, "--threads", number], "8 for each core, or 0: as many as the work is worth")
        for number in ("1000", "-1")
        for words in (["train"], ["bench"], ["sample", "{run}", "--out", "x.npz"], ["evaluate", "{run}"])
    ),
    (["train", "--workers", "99999"], "or null to let atdm choose"),
    *(
        ([*words, f"--{option}="], f"The option {option} is empty. Expected a value, or the command without it.")
        for words, option in (
            (["train"], "data"),
            (["train"], "init"),
            (["train"], "vae"),
            (["evaluate", "{run}"], "out"),
            (["export", "{run}", "--out", "exported"], "measured"),
            (["attack", "{run}"], "undefended"),
        )
    ),
    (["evaluate", ""], "model is empty."),
    *(
        (
            [*words, "x\udcff"],
            f"{name} is 'x\\udcff', which is no text in UTF-8. Expected another name, such as that of a link",
        )
        for words, name in (
            (["train", "--out"], "The option out"),
            (["train", "--data"], "The option data"),
            (["audit"], "data"),
            (["report", "{run}"], "model"),
            (["sample", "{run}", "--out"], "The option out"),
        )
    ),
    (["train", "--config="], "Expected a configuration in YAML"),
    (["train", "--config", "[1]"], "Expected a configuration in YAML"),
    (["train", "--objective.version", "1"], "The option objective.version is '1'. Valid: 2."),
    (["train", "--print_config=x"], "The option print_config is 'x'. Expected it alone"),
    (["train", "--init", "broken"], "in directory broken. Expected a diffusers pipeline"),
    (["train", "--data", "plane:n=40", "--vae", "broken"], "in directory broken. Expected a folder"),
    *(
        ([*words, "--max_pixels", number], f"max_pixels is {number}. Expected a positive number of pixels.")
        for number in ("0", "-1")
        for words in (["train", "--data", "broken"], ["audit", "broken"])
    ),
    (["sample", "{run}", "--image_size", "-1"], "image_size is -1. Expected a positive number of pixels."),
    (["evaluate", "{run}", "--stop_ratio", "-1"], "stop_ratio is -1.0. Expected a noise level sigma_t/alpha_t >= 0."),
    (["evaluate", "{run}", "--limit", "5"], "--limit is for --data; a run's"),
    (["attack", "{run}", "--budgets", "-1"], "The budgets are [-1.0]. Expected 0 or more."),
    *(
        (
            ["attack", "{run}", "--sampling_steps", "5", "--at", at],
            f"The steps to attack are '{at}'{of}. Expected all, or indices",
        )
        for at, of in (
            ("-1", ""),
            ("1e1", ""),
            ("\u0663", ""),
            ("9" * 19, ""),
            ("3-1", ", of 10 from 0 on"),
            ("0-99999999999", ", of 10 from 0 on"),
            ("5", ", of 5 from 0 on"),
        )
    ),
    *(
        (
            [*words, "--seeds", seeds],
            f"The seeds are '{seeds}'. Expected integers of at most 63 bits separated by commas",
        )
        for words in (["attack", "{run}"], ["evaluate", "{run}"])
        for seeds in ("0..3", "0,", str(2**63), "1.0")
    ),
    (["evaluate", "{run}", "--seeds", "0,-0"], "Expected each once"),
    (["attack", "{run}", "--n", "1"], "n is 1. Expected 2 or more samples."),
    (["report", "{run}", "--steps_list", "x"], "Expected numbers separated by commas, such as 10,50,250."),
    (["show", "radius", "--omegas", "x"], "Expected numbers separated by commas, such as 1,2,4."),
    *(
        (["train", "--data", "plane:n=40", f"--{option}", spec], f"'{spec.rpartition('=')[2]}' is not a valid option '")
        for option, specs in (
            ("objective", ("auto:k=inf", "input_perturbation:gamma=inf", "free:radius=inf", "free:radius=nan")),
            ("objective.radius", ("published:omega=inf", "constant:r=inf", "floored:floor=nan")),
            ("objective.weight", ("constant:value=inf", "relative:k=nan")),
            ("process", ("flow:shift=inf", "edm:sigma_max=inf", "linear:beta_end=nan")),
        )
        for spec in specs
    ),
    (["train", "--data", "plane:n=40", "--net", "mlp:depth=99999999"], "a depth from 1 to 1000"),
    (["train", "--data", "digits", "--net", "digits:blocks=99999999"], "Expected at most 1000"),
    (["train", "--data", "npz:"], "The data set 'npz:' names nothing"),
    (["train", "--data", "/"], "everything on this disk"),
    (["train", "--data", "plane:n=100000000000000"], "points would take"),
    (["train", "--out", "x" * 5000], "File name too long (xxx"),
    (["audit", "digits", "--out", "x" * 300], "File name too long"),
    (["audit", "--help=x", "digits"], "takes no value, and has 'x'"),
    (["audit"], "What is missing: data."),
    (["corrupt", "--data", "digits"], "What is missing: corrupt, out."),
    (["compare", "--train", "ddpm", "--data", "broken", "--scale", "smoke"], "Expected a whole image file.\n"),
    (["features", "--data", "broken"], "--skip_broken true skips such files.\n"),
    (["features", "--data", "broken", "--max_pixels", "10"], "A larger --max_pixels takes it"),
]


WRITTEN = [  # in a file of YAML, which holds more than a command line can
    *(
        (f"{name}: null", f"The option {name} is null. Expected {kind}.")
        for name, kind in (
            ("steps", "an integer"),
            ("data", "text"),
            ("out", "text"),
            ("label_dropout", "a number"),
            ("cache", "true or false"),
        )
    ),
    ("precision: null", "The option precision is null. Valid: bf16, fp16, no."),
    ("objective: {name: null}", "The option objective.name is null. Expected text."),
    *(
        (f"objective: {value}", f"The option objective is {shown}. Expected names with values, as in {{name: ...}}, or")
        for value, shown in (("null", "null"), ("5", "5"), ("[1]", "[1]"), ("auto", "'auto'"))
    ),
    ("objective: {gate: .nan}", "The option objective.gate is nan. Expected a number."),
    ("lr: .nan", "The option lr is nan. Expected a number."),
    ("lr: .inf", "lr is inf. Expected a finite number"),
    ('out: "a\\0b"', "The option out is 'a\\x00b', which holds a zero byte. Expected text."),
    ("a: &x [*x]", "The configuration holds itself."),
    ("data: &x {a: *x}", "Expected text."),
    ("steps: 99999999999999999999", "Expected an integer of at most 63 bits."),
]


@pytest.mark.parametrize(("text", "sentence"), WRITTEN)
def test_values_that_only_a_file_can_hold(capsys, tmp_path, monkeypatch, text, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(text)
    code, _, err = atdm(capsys, "train", "--config", "mine.yaml")
    assert code == 2
    assert sentence in err
    assert [*tmp_path.iterdir()] == [tmp_path / "mine.yaml"]


@pytest.mark.parametrize(("words", "sentence"), SENTENCES)
def test_sentences_that_lead_somewhere(capsys, folder, tmp_path, monkeypatch, words, sentence):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.yaml").write_bytes(b"")
    (tmp_path / "utf16.yaml").write_bytes("steps: 1".encode("utf-16"))
    (tmp_path / "list.yaml").write_text("- 1")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "z.png").write_bytes(b"text")
    for i in range(3):
        Image.new("RGB", (8, 8), (40 * i,) * 3).save(tmp_path / "broken" / f"{i}.png")
    code, _, err = atdm(capsys, *[word.replace("{run}", str(folder)) for word in words])
    assert code == 2
    assert sentence in err


def test_infinity_is_a_number(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train = [
        "train",
        "--data",
        "plane:n=40",
        "--net",
        "mlp:width=8",
        "--steps",
        "1",
        "--batch_size",
        "4",
        "--threads",
        "1",
    ]
    for words in (["--objective.kappa", "inf"], ["--objective.kappa=inf"]):
        assert atdm(capsys, *train, *words, "--out", f"run{words[0]}")[0] == 0


def test_only_commands_with_the_option_advise_it(options):
    from atdm.cli.common import SKIPPING

    assert {name for name, found in options.items() if "--skip_broken" in found} == {*SKIPPING}


def test_more_samples_than_the_memory_holds_are_refused_at_once(stock, tmp_path, capsys):
    out = tmp_path / "samples.npz"
    code, _, err = atdm(capsys, "sample", str(stock), "--n", str(10**12), "--out", str(out))
    assert code == 2
    assert err.startswith("atdm: 1,000,000,000,000 samples would take 512,000.0 GB of memory, and ")
    assert err.endswith(" GB are free. Expected a smaller --n.\n")
    assert not out.exists()
    out = tmp_path / "report.html"
    words = ["report", str(stock), "--data", "digits", "--n", str(10**12), "--steps_list", "5,10", "--out", str(out)]
    code, _, err = atdm(capsys, *words)
    assert code == 2
    assert err.startswith("atdm: 4,000,000,000,064 samples of a model would take 2,048,000.0 GB of memory, and ")
    assert err.endswith(" GB are free. Expected a smaller --n or --attacked.\n")
    assert not out.exists()


def test_a_configuration_that_is_not_there_keeps_its_name(tmp_path, capsys):
    path = tmp_path / ("a" * 100) / "mine.yaml"
    code, _, err = atdm(capsys, "train", "--config", str(path))
    assert code == 2
    assert f"{path}" in err
