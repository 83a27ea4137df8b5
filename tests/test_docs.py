"""What the documents show exists: every command with its options, every file they point to."""
import re
import shlex
from importlib import import_module
from pathlib import Path

import click
import pytest

from hftpipe import cli

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def commands():
    """Every ``hftpipe ...`` line in a code block of README and docs."""
    for page in PAGES:
        for block in re.findall(r"^```\w*\n(.*?)^```", page.read_text(), re.M | re.S):
            for line in block.splitlines():
                text = line.removeprefix("$ ").split("#")[0].strip()
                if text.startswith("hftpipe ") and "..." not in text.replace("//...", ""):
                    yield pytest.param(text, id=f"{page.name}:{text[:60]}")


@pytest.mark.parametrize("text", list(commands()))
def test_every_command_shown_is_understood(text):
    args = [str(ROOT / "README.md") if a == "FILE" else a for a in shlex.split(text)[1:]]
    command, name = cli.group, "hftpipe"
    context = None
    while True:
        context = command.make_context(name, args, parent=context, obj=cli.Settings())
        if not isinstance(command, click.Group):
            return
        name, command, args = command.resolve_command(context, [
            *getattr(context, "_protected_args", []), *context.args])


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_of_the_documents_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_make_targets_shown_exist():
    targets = set(re.findall(r"^([a-z-]+(?: [a-z-]+)*):", (ROOT / "Makefile").read_text(), re.M))
    known = {t for group in targets for t in group.split()}
    shown = set(re.findall(r"^make ([a-z]+)", (ROOT / "README.md").read_text(), re.M))
    assert shown and shown <= known


def test_every_command_has_a_help_text_with_an_example():
    for name in cli.COMMANDS:
        command = import_module(f"hftpipe.cli.{name}").command
        text = command.get_help(click.Context(command, info_name=name))
        assert "Example:" in text or isinstance(command, click.Group), name


def test_the_compiled_strategy_shown_is_the_one_that_is_built():
    """``tests/dist.py`` installs ``examples/momentum`` as an author would, and trades with it."""
    shown = re.search(r"```cython\n(.*?)```", (ROOT / "docs/strategy.md").read_text(), re.S)[1]
    built = (ROOT / "examples/momentum/momentum.pyx").read_text()
    assert built.partition('"""\n')[2] == shown


def test_the_function_for_numba_shown_compiles(tmp_path, monkeypatch):
    pytest.importorskip("numba", reason="the compiler of these strategies is not installed")
    from hftpipe import strategies
    from tests.chain import table
    page = (ROOT / "docs/strategy.md").read_text()
    shown = next(b for b in re.findall(r"```python\n(.*?)```", page, re.S) if "jit.strategy" in b)
    (tmp_path / "shown_for_numba.py").write_text(shown)
    monkeypatch.syspath_prepend(tmp_path)
    assert strategies.load("shown_for_numba:fade", {}, table()).version == strategies.VERSION


def test_tests_named_for_the_venue_exist():
    """The table of the local venue names its proofs."""
    import re
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs/venues.md").read_text()))
    there = {name for path in (ROOT / "tests").glob("test_*.py")
             for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text(), re.M)}
    assert len(named) > 50 and named <= there, sorted(named - there)


def rows(page, heading):
    """Cells of the table below *heading*, without its head."""
    lines = page.split(f"\n### {heading}\n", 1)[1].split("\n### ")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")]
            for line in lines if line.startswith("|")][2:]


def test_what_the_client_does_is_said_of_everything_and_proven_or_said_not_to_be():
    import re
    page = (ROOT / "docs/venues.md").read_text()
    client = "\n## The client\n" + page.split("\n## The client\n", 1)[1]
    tables = {name: rows(client, name) for name in (
        "Answers to orders and cancels", "Rate limit", "Order updates", "Pitfalls")}
    tables["Error codes"] = rows(page, "Error codes")
    bare = [row[:2] for table in tables.values() for row in table
            if not re.search(r"`test_\w+`", row[-1]) and not row[-1].startswith("not covered")]
    assert not bare, "neither a test nor a word that there is none"

    def numbers(name):
        return {int(n) for row in tables[name] for n in re.findall(r"\b\d{1,3}\b", row[0])}
    assert numbers("Pitfalls") == set(range(1, 25))
    assert {400, 401, 403, 404, 408, 422, 429, 500, 502, 503, 504} <= numbers(
        "Answers to orders and cancels")
    assert {*range(400, 414), 500} <= numbers("Error codes")
    said = " ".join(row[0] + row[1] for row in tables["Order updates"])
    from hftpipe.alpaca.updates import KINDS, QUIET
    assert not {event for event in {*KINDS, *QUIET} if f"`{event}`" not in said}
