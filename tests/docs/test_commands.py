"""Every `dit` command on a page is one that the command line takes; those that need no study of one's own are run."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from dit import cli

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PLAIN = re.compile(r"^(?:    )?(?:[A-Z_]+=\S+ )*(dit [a-z].*)$")
INLINE = re.compile(r"`(dit [a-z][^`\n]*)`")


def commands(page: Path) -> list[str]:
    """Commands in a page's blocks (lines that begin with `dit`) and in its sentences, without comments and placeholders' dots."""
    found, fenced = [], False
    text = page.read_text()
    for line in text.split("\n"):
        if line.startswith("```"):
            fenced = not fenced
        elif (match := PLAIN.match(line)) and (fenced or line.startswith("    ")):
            found.append(match[1])
    found += INLINE.findall(text)
    return [re.sub(r"\s+(#.*|\.\.\.|…)$", "", command).split(" | ")[0].split(" && ")[0] for command in found]


ALL = sorted({(page.relative_to(ROOT).as_posix(), command) for page in PAGES for command in commands(page)})


def test_pages_have_commands():
    assert len(ALL) > 60


@pytest.mark.parametrize("page, command", ALL)
def test_a_command_on_a_page_is_taken(page, command):
    words = shlex.split(command)[1:]
    if page == "docs/LOG.md" or words in ([], ["VERB"]):
        return
    verb = " ".join(words[:2]) if " ".join(words[:2]) in cli.VERBS else words[0]
    assert verb in cli.VERBS
    rest = words[len(verb.split()) :]
    if not rest or rest == ["--help"]:
        return
    module = importlib.import_module(f"dit.cli.{cli.MODULES.get(verb, verb)}")
    parser = cli._Parser(prog=f"dit {verb}")
    module.configure(parser)
    known = {option for action in parser._actions for option in action.option_strings}
    given = {word.split("=")[0] for word in rest if word.startswith("--")}
    assert given <= known


QUICK = re.compile(r"dit (flops( --.*)?|(results|figures|fit|report) paper.*)$")
RUN = sorted({command.split(" --out")[0] for _, command in ALL if QUICK.match(command)})


@pytest.mark.parametrize("command", RUN)
def test_a_command_on_the_published_numbers_runs(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(shlex.split(command)[1:]) == 0
    assert capsys.readouterr().out
