"""The documentation's code is found, run and blamed at its own line."""

import importlib.util
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).parent.parent / "scripts" / "snippets.py"


@pytest.fixture(scope="module")
def snippets():
    spec = importlib.util.spec_from_file_location("snippets", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["snippets"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["snippets"]


def _page(folder: Path, text: str) -> Path:
    page = folder / "page.md"
    page.write_text(text, encoding="utf-8")
    return page


def test_blocks_of_a_page_share_their_names(snippets, tmp_path, capsys):
    text = "```python\nx = 1\n```\ntext\n\n- item\n  ~~~python\n  if x:\n      x += 1\n  ~~~\n\n"
    page = _page(tmp_path, text + "```py\nassert x == 2\n```\n")
    assert snippets.run(page, 30) is None
    assert "3 run, 0 skipped" in capsys.readouterr().out


def test_a_failure_is_reported_at_the_line_of_the_page(snippets, tmp_path):
    page = _page(tmp_path, "# Title\n\n```python\nx = 1\n```\n\n```python\nx += 1\nassert x == 3, 'no'\n```\n")
    found = snippets.run(page, 30)
    assert found.startswith(f"{page}:9: a block failed (exit status 1)\n")
    assert "AssertionError: no" in found


def test_a_syntax_error_is_reported_at_the_line_of_the_page(snippets, tmp_path):
    assert snippets.run(_page(tmp_path, "\n```python\n\nx = = 1\n```\n"), 30).startswith(f"{tmp_path}/page.md:4: ")


def test_other_languages_are_left_alone(snippets, tmp_path):
    page = _page(tmp_path, "```\n1 / 0\n```\n```sh\nfalse\n```\n````md\n```python\n1 / 0\n```\n````\n")
    assert snippets.run(page, 30) is None


def test_a_block_is_skipped_only_with_a_reason(snippets, tmp_path, capsys):
    assert snippets.run(_page(tmp_path, "```python no-run: needs a GPU\n1 / 0\n```\n"), 30) is None
    assert "page.md:1: not run: needs a GPU" in capsys.readouterr().out
    for info in ("no-run", "no-run:", "skip: why"):
        found = snippets.run(_page(tmp_path, f"\n```python {info}\nx = 1\n```\n"), 30)
        assert found.startswith(f"{tmp_path}/page.md:2: after `python` only")


def test_a_fence_must_be_closed(snippets, tmp_path):
    assert "page.md:1: this fence is never closed" in snippets.run(_page(tmp_path, "```python\nx = 1\n"), 30)


def test_a_page_has_a_time_limit(snippets, tmp_path):
    page = _page(tmp_path, "```python\nimport time\ntime.sleep(30)\n```\n")
    assert snippets.run(page, 0.5) == f"{page}:2: the blocks of this page ran past 0.5 s"


def test_blocks_run_in_an_empty_folder_of_their_own(snippets, tmp_path):
    page = _page(tmp_path, "```python\nimport os\nopen('left', 'w').close()\nassert len(os.listdir()) == 2\n```\n")
    assert snippets.run(page, 30) is None
    assert [file.name for file in tmp_path.iterdir()] == ["page.md"]


def test_an_example_may_define_classes_and_functions(snippets, tmp_path):
    text = "```python\nimport inspect, pickle\nclass A:\n    def f(self):\n        return 1\n```\n"
    text += "```python\npickle.loads(pickle.dumps(A()))\nassert 'return 1' in inspect.getsource(A.f)\n"
    text += "assert inspect.getsource(A).startswith('class A')\n```\n"
    assert snippets.run(_page(tmp_path, text), 30) is None
