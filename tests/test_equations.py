"""Every implemented equation has one home and a test, docs/paper.md is current, and the scan finds what is wrong."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("airtune_tools_equations", ROOT / "tools" / "equations.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    yield spec.loader.exec_module(module) or module
    del sys.modules[spec.name]


@pytest.fixture
def project(tmp_path):
    """A small project: (1) implemented and tested, (2) open."""
    (tmp_path / "src").mkdir()
    (tmp_path / "tests").mkdir()
    (tmp_path / "docs").mkdir()
    entry = '[[equation]]\nnumber = {}\nname = "Some law"\nstatus = "{}"\n'
    (tmp_path / "equations.toml").write_text(entry.format(1, "implemented") + entry.format(2, "open"))
    (tmp_path / "src" / "law.py").write_text('def law():\n    """Law y, (1).\n\n    Unlike (2).\n    """\n')
    (tmp_path / "tests" / "test_law.py").write_text("def test_law():\n    # by hand: (1)\n    assert True\n")
    return tmp_path


def test_airtune_itself(tool, capsys):
    assert tool.main([]) == 0, capsys.readouterr().out


def test_a_sound_project_passes_once_written(tool, project, capsys):
    assert tool.main([], project) == 1
    assert "not current" in capsys.readouterr().out
    assert tool.main(["--write"], project) == 0
    assert tool.main([], project) == 0
    text = (project / "docs" / "paper.md").read_text()
    assert "[`law`](../src/law.py)" in text and "[`test_law`](../tests/test_law.py)" in text and "*open*" in text


@pytest.mark.parametrize(
    ("file", "text", "complaint"),
    [
        ("src/law.py", "def law():\n    pass\n", "(1) Some law: needs exactly one home in src, has 0"),
        ("src/more.py", 'class Again:\n    """Law y, (1)."""\n', "has 2: src/law.py:law, src/more.py:Again"),
        (
            "src/more.py",
            'class A:\n    def b(self):\n        """Other z, (2)."""\n',
            "open in equations.toml but has a home",
        ),
        ("src/more.py", 'def c():\n    """Other z, (7)."""\n', "(7): not in equations.toml"),
        ("tests/test_law.py", "def test_law():\n    assert (1)\n", "(1) Some law: no test mentions it"),
    ],
)
def test_what_is_wrong_is_found(tool, project, file, text, complaint):
    (project / file).write_text(text)
    assert any(complaint in line for line in tool.problems(project))


def test_a_protocol_and_a_function_call_are_no_claim(tool, project):
    """A Protocol computes nothing, and f(2) in a comment is no mention of an equation."""
    (project / "src" / "more.py").write_text('class Laws(Protocol):\n    """Any law, (1)."""\n')
    (project / "tests" / "test_more.py").write_text("def test_more():\n    # f(2)\n    assert True\n")
    assert tool.problems(project) == []
    assert 2 not in tool.tests(project)


def test_bad_lists_are_refused(tool, project):
    listing = project / "equations.toml"
    good = listing.read_text()
    listing.write_text(good.replace("number = 2", "number = 3"))
    with pytest.raises(SystemExit, match="in order"):
        tool.equations(project)
    listing.write_text(good.replace('"open"', '"maybe"'))
    with pytest.raises(SystemExit, match="status"):
        tool.equations(project)
