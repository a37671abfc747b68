"""What mkdocs makes while it builds the site: generated pages (results, API, command line, tutorials) and typeset mathematics."""

from __future__ import annotations

import ast
import base64
import contextlib
import html
import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from latex2mathml.converter import convert
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "atdm"
COMMANDS_WITH_PARTS = {"show": ("radius", "run")}
# Packages and modules a user calls, in the order of the menu; those that define a name of ``import atdm`` join by themselves.
PUBLIC = {
    "objective": ["atdm.objective", "atdm.objective.perturb", "atdm.objective.auto"],
    "diffusion": [
        "atdm.diffusion.model",
        "atdm.diffusion.steps",
        "atdm.diffusion.process",
        "atdm.diffusion.predictions",
        "atdm.diffusion.sampling",
        "atdm.diffusion.schedulers",
        "atdm.diffusion.conditioning",
        "atdm.diffusion.latent",
    ],
    "training": [f"atdm.training.{name}" for name in ("config", "train", "run", "checkpoint", "share")],
    "data": ["atdm.data", "atdm.data.source", "atdm.data.toy", "atdm.corruption", "atdm.noise", "atdm.audit"],
    "nets": ["atdm.nets", "atdm.nets.mlp", "atdm.nets.unet"],
    "metrics": ["atdm.metrics"],
    "attack": [
        "atdm.attack",
        "atdm.attack.purify",
        "atdm.attack.poison",
        "atdm.restoration",
        "atdm.restoration.classical",
    ],
    "plot": ["atdm.plot", "atdm.report"],
}


def on_files(files, config):
    """Add the generated pages."""
    pages = {"reference/cli.md": command_line(), "reference/index.md": public_names()}
    pages |= {f"reference/{name}.md": api(name, modules) for name, modules in modules_of_pages().items()}
    for notebook in sorted((ROOT / "docs" / "tutorials").glob("*.ipynb")):
        pages |= tutorial(notebook)
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    for path in sorted((ROOT / "results").rglob("*")):  # beside docs/, so that links work on GitHub too
        if path.is_file():
            name = path.relative_to(ROOT).as_posix().replace("README.md", "index.md")
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links out of docs/ into results/ are one level shorter on the site, and notebooks are pages."""
    markdown = re.sub(r"\]\(((?:\.\./)*)\.\./results/", r"](\1results/", markdown)
    markdown = re.sub(r"(tutorials/[\w-]+)\.ipynb\)", r"\1.md)", markdown)
    return markdown.replace("results/README.md", "results/index.md")


def on_page_content(content, page, config, files):
    """LaTeX, as arithmatex marks it, becomes MathML: browsers draw it without a script, a font or a network. Roles of docstrings go."""
    content = re.sub(r":(?:class|func|meth|mod|attr|data):<code>(~?)\.?(.*?)</code>", _role, content)
    content = re.sub(
        r'<span class="arithmatex">\\\((.*?)\\\)</span>', lambda m: mathml(m[1], "inline"), content, flags=re.S
    )
    return re.sub(
        r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', lambda m: mathml(m[1], "block"), content, flags=re.S
    )


def _role(found: re.Match) -> str:
    return f"<code>{found[2].rpartition('.')[2] if found[1] else found[2]}</code>"


def mathml(latex: str, display: str) -> str:
    """A formula; its LaTeX is the text for readers of screens."""
    source = html.unescape(latex).strip()
    made = convert(source, display=display).replace("<math ", f'<math aria-label="{html.escape(source)}" ', 1)
    return f'<div class="formula">{made}</div>' if display == "block" else made


# --- the API, from docstrings -----------------------------------------------------------------------------------------
def api(name: str, modules: list[str]) -> str:
    """The page of some modules: each public name with its signature and docstring, drawn by mkdocstrings."""
    parts = [f"# {name}", f"Generated from the docstrings of {', '.join(f'`{m}`' for m in modules)}."]
    for module in modules:
        parts.append(
            f"## {module}\n\n::: {module}\n    options: {{members: false, show_root_heading: false, show_root_toc_entry: false}}"
        )
        parts += [f"::: {where}\n    options: {{heading_level: 3}}" for where in names_of(module)]
    return "\n\n".join(parts) + "\n"


def modules_of_pages() -> dict[str, list[str]]:
    """The modules of each page, with those that define a name of ``import atdm``."""
    found = {page: [*modules] for page, modules in PUBLIC.items()}
    for place in _dictionary(SOURCE / "__init__.py", "_WHERE").values():
        module = f"atdm.{place}"
        page = next(
            (p for p, modules in PUBLIC.items() for m in modules if m.split(".")[1] == module.split(".")[1]), None
        )
        if page and module not in found[page]:
            found[page].append(module)
    return found


def public_names() -> str:
    """The table of what ``import atdm`` gives."""
    pages = {module: page for page, modules in modules_of_pages().items() for module in modules}
    lines = ["# Public names", "", "What `from atdm import NAME` gives. Each is imported when first used.", ""]
    lines += ["| name | where | page |", "|---|---|---|"]
    for name, place in _dictionary(SOURCE / "__init__.py", "_WHERE").items():
        module = f"atdm.{place}"
        page = pages.get(module) or next((p for m, p in pages.items() if module.startswith(f"{m}.")), None)
        lines.append(f"| `{name}` | `{module}` | {f'[{page}]({page}.md)' if page else '–'} |")
    return "\n".join(lines) + "\n"


def names_of(module: str) -> list[str]:
    """Where each public name of a module is defined: those of ``__all__``, else what it defines itself without an underscore."""
    file = _file(module)
    tree = ast.parse(file.read_text(encoding="utf-8"))
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    homes = dict.fromkeys(_own(module), module)
    homes |= {
        alias.name: home
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module
        for alias in node.names
        if alias.name in _own(home := f"{package}.{node.module}")
    }
    exported = _value(tree, "__all__") or [name for name, home in homes.items() if home == module and name[0] != "_"]
    return [f"{homes[name]}.{name}" for name in exported if name in homes]


def _own(module: str) -> list[str]:
    """The names that a module defines itself."""
    return [name for node in ast.parse(_file(module).read_text(encoding="utf-8")).body for name in _defined(node)]


def _defined(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        yield node.target.id
    elif isinstance(node, ast.Assign):
        yield from (target.id for target in node.targets if isinstance(target, ast.Name) and target.id != "__all__")


def _file(module: str) -> Path:
    place = SOURCE.joinpath(*module.split(".")[1:])
    return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")


def _value(tree: ast.Module, name: str):
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            with contextlib.suppress(ValueError):
                return ast.literal_eval(node.value)
    return None


def _dictionary(file: Path, name: str) -> dict[str, str]:
    return _value(ast.parse(file.read_text(encoding="utf-8")), name)


# --- the command line, from its parsers -------------------------------------------------------------------------------
class _Built(Exception):
    """A command has built its parser."""


def command_line() -> str:
    """The options of every command, as ``atdm COMMAND --help`` has them."""
    from atdm.cli.parser import SUMMARY

    parts = [
        "# Command line",
        "Generated from the parsers; `atdm COMMAND --help` prints the same. `-` and `_` in the name of an option are the same. [The commands](../commands.md) "
        "has an example of each.",
    ]
    for command, summary in SUMMARY.items():
        for part in COMMANDS_WITH_PARTS.get(command, ("",)):
            parts.append(f"## atdm {command} {part}".strip() + f"\n\n{summary[0].upper()}{summary[1:]}.")
            parts += _options(parser_of([command, *part.split()]))
    return "\n\n".join(parts) + "\n"


def parser_of(words: list[str]):
    """The parser of a command."""
    from atdm.cli import parser as cli_parser

    module, found = importlib.import_module(f"atdm.cli.{words[0]}"), []

    def make(*command):
        parser = cli_parser.make_parser(*command)
        found.append(parser)

        def stop(*_, **__):
            raise _Built

        parser.parse_args = stop
        return parser

    with mock.patch.object(module, "make_parser", make), contextlib.suppress(_Built):
        module.run(words[1:])
    return found[0]


def _options(parser) -> list[str]:
    """A table for each group of options."""
    tables = []
    for group in parser._action_groups:
        rows = [_row(parser, action) for action in group._group_actions if action.dest not in ("help", "print_config")]
        rows = [row for row in rows if "shtab" not in row]
        if rows:
            title = [] if group.title in ("options", "positional arguments") else [f"**{group.title.rstrip(':')}**"]
            tables += [*title, "\n".join(["| option | meaning | type | default |", "|---|---|---|---|", *rows])]
    return tables


def _row(parser, action) -> str:
    kind = getattr(action, "_typehint", None) or action.type
    kind = (
        "flag"
        if action.nargs == 0
        else re.sub(r"typing\.|<class '|'>", "", str(kind or "str"))
        .replace(" | None", " or null")
        .replace(" | ", " or ")
    )
    default = ""
    if action.option_strings and not action.required and action.default != "==SUPPRESS==":
        default = json.dumps(action.default, default=str)
    name = ", ".join(action.option_strings) or action.metavar or action.dest
    cells = [f"`{name}`", " ".join((action.help or "").split()), f"`{kind}`", default and f"`{default}`"]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


# --- tutorials, from notebooks ----------------------------------------------------------------------------------------
def tutorial(notebook: Path) -> dict[str, str | bytes]:
    """The page of an executed notebook, and its pictures."""
    name, parts, files = f"tutorials/{notebook.stem}", [], {}
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                picture = f"{name}-{len(files)}.png"
                files[picture] = base64.b64decode("".join(data["image/png"]))
                parts.append(f"![What the cell above drew]({Path(picture).name})")
            elif text := "".join(output.get("text", data.get("text/plain", []))).strip():
                parts.append(f"```text\n{text}\n```")
    parts.append(f"*This page is an executed notebook: [{notebook.name}]({notebook.name}).*")
    return {f"{name}.md": "\n\n".join(parts) + "\n", **files}
