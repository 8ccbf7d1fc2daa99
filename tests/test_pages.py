"""Pages tell the truth: every option and every file of the repository that one names exists."""

import re
import runpy
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path

import pytest
from test_layout import ORDER

from allspark_hf import __all__ as EXPORTED
from allspark_hf.cli.main import COMMANDS, main


ROOT = Path(__file__).resolve().parents[1]
FILES = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
PAGES = [name for name in FILES if name.endswith(".md") and not re.match(r"model_cards/|.*/template\.md$", name)]
SHELL = [name for name in FILES if name.endswith(".sh")]
SCRIPTS = [name for name in FILES if re.fullmatch(r"scripts/\w+\.py", name)]
# Of accelerate, npm, hf and tests/kill_and_resume.py.
OTHERS = {"--config_file", "--num_processes", "--cpu", "--ignore-scripts", "--prefix", "--repo-type", "--space-sdk"}
OTHERS |= {"--machine_rank", "--main_process_ip", "--main_process_port", "--num_machines"}
OTHERS |= {"--env", "--exclude", "--kills", "--local-dir", "--help", "--help_all"}


@pytest.fixture(scope="module")
def options() -> dict[str, set[str]]:
    """Script or command -> the options of its parser, at which it is stopped."""
    found, starts = {}, [*SCRIPTS, *(f"allspark {command}" for command in COMMANDS)]

    def parse(parser, *args, **kwargs):
        found[script] = set(parser._option_string_actions)
        sys.exit()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ArgumentParser, "parse_known_args", parse)
        patch.syspath_prepend(str(ROOT / "scripts"))
        for script in starts:
            patch.setattr(sys, "argv", script.split())
            with pytest.raises(SystemExit):
                main() if script.startswith("allspark") else runpy.run_path(str(ROOT / script), run_name="__main__")
    # which pass on what they do not know
    for script in ("allspark study", "scripts/run_study.py", "scripts/label_efficiency.py"):
        found[script] |= found["scripts/train.py"]
    app = "scripts/space/app.py"  # not started: importing gradio takes seconds
    return found | {app: set(re.findall(r'"(--\w+)"', (ROOT / app).read_text(encoding="utf-8")))}


@pytest.mark.parametrize("page", PAGES)
def test_options(page, options):
    """In a command its own, elsewhere those of any."""
    assert options.keys() == {*SCRIPTS, *(f"allspark {command}" for command in COMMANDS), "scripts/space/app.py"}
    text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
    for part in re.split(r"(?=\bscripts/[\w/]+\.py)|(?=\ballspark [a-z]+ )|[`\n]", text):
        script = re.match(r"allspark \w+|[^ ]*", part)[0]
        known = options.get(script, set().union(*options.values())) | OTHERS
        unknown = set(re.findall(r"(?<![\w-])--[A-Za-z][\w-]*", part)) - known
        assert not unknown, f"{page}, {part!r}: there is no {unknown}"


def headings(page: Path) -> list[str]:
    """Of a page, as GitHub names them in links."""
    lines = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return [re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in lines]


@pytest.mark.parametrize("page", PAGES + SHELL)
def test_files(page):
    """Links; paths from the repository's folder; code and recipes by their name alone; modules."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for target, heading in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", text):
        linked = (ROOT / page).parent.joinpath(target) if target else ROOT / page
        assert linked.exists(), f"{page} links to {target}"
        assert not heading or heading in headings(linked), f"{page} links to {target}#{heading}"
    for path in re.findall(r"(?<![\w./-])((?:scripts|tests|allspark_hf|model_cards|\.ci)/[\w./*-]*[\w/*])", text):
        assert path.endswith("/FILE") or any(ROOT.glob(path)), f"{page} names {path}"
    for name in re.findall(r"(?<![\w/.*-])\w[\w-]*\.(?:py|yaml|sh)\b", text):
        assert any(f"/{file}".endswith(f"/{name}") for file in FILES), f"{page} names {name}"
    for name in re.findall(r"\ballspark_hf(?:\.[a-z]\w*)+", text):
        module = name.replace(".", "/")
        assert f"{module}.py" in FILES or f"{module}/__init__.py" in FILES or name[12:] in EXPORTED, name


def test_every_folder_has_its_sentence():
    text = (ROOT / "allspark_hf" / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \| [A-Z].+\. \|$", text, flags=re.MULTILINE) == list(ORDER)
