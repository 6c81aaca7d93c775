"""The documentation's figures are those of their CSVs, and none stands without one."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
from marks.csvs import Results, Wrong
from marks.expressions import Figure, evaluate
from marks.pages import places, rendered
from marks.pictures import written
from marks.prose import Exceptions, unsourced

ROOT = Path(__file__).parent.parent
NONE = Exceptions({}, {}, {})


@pytest.fixture
def results(tmp_path):
    rows = [
        "network,threads,setting,faster,faster_low,faster_high,gain,gain_low,gain_high,share,commit",
        'lite0,1,"8 bits, int8",2.038,1.991,2.065,0.33,0.12,0.54,0.62,abc',
        "lite0,2,plain,0.99,0.97,1.03,-0.06,-0.21,0.09,0.5,abc",
        "minilm,1,plain,0.9,0.85,0.95,-0.5,-0.9,-0.1,,abc",
    ]
    (tmp_path / "speed.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return Results(tmp_path)


def _shown(mark, results):
    expression, _, picture = mark.rpartition(": ")
    return written(evaluate(expression, results), picture)


def _problems(text, results):
    return [place.rendered for place in places(text, results) if isinstance(place.rendered, Wrong)]


@pytest.mark.parametrize(
    ("mark", "shown"),
    [
        ("speed[lite0, threads=1].faster: 0.00× (0.00 to 0.00) faster", "2.04× (1.99 to 2.06) faster"),
        ("speed[lite0, threads=1].faster: 0.0", "2.0"),
        ("speed[lite0, threads=1].faster: 0.00 to 0.00", "1.99 to 2.06"),
        ('100 * speed[setting="8 bits, int8"].share: 0 %', "62 %"),
        ("1 / speed[minilm].faster: 0.00× (0.00 to 0.00)", "1.11× (1.05 to 1.18)"),
        ("-1 * speed[minilm].gain: 0.0 (0.0 to 0.0)", "0.5 (0.1 to 0.9)"),
        ("speed[lite0, threads=1].faster - speed[minilm].faster: 0.00", "1.14"),
        ("1e6 * speed[lite0, threads!=1].share: 0,000", "500,000"),
        ("speed[lite0, threads!=1].share / 1e9: 0e0", "5e-10"),
        ("speed[lite0, threads=1].gain: +0.00 (0.00 to 0.00)", "+0.33 (0.12 to 0.54)"),
        ("count(speed[setting=plain]): 0", "2"),
        ("least(speed[].share): 0.00", "0.50"),  # a cell without a number is no number
        ("most(speed[lite0].faster): 0.0", "2.0"),
    ],
)
def test_a_figure_is_computed_and_written_as_its_picture_shows(results, mark, shown):
    assert _shown(mark, results) == shown


@pytest.mark.parametrize(
    ("figure", "picture", "shown"),
    [
        (Figure(0.998, 0.97, 1.03), "0.00×", "a tie (0.97 to 1.03)"),
        (Figure(0.998, 0.97, 1.03), "0.00× (0.00 to 0.00) faster", "a tie (0.97 to 1.03)"),
        (Figure(1.02, 1.0, 1.03), "0.00×", "a tie (1.00 to 1.03)"),  # an end that is 1 holds 1
        (Figure(1.02, 1.01, 1.03), "0.00×", "1.02×"),
        (Figure(0.5, -0.1, 1.2), "0.00×", "a tie (-0.10 to 1.20)"),
        (Figure(-0.06, -0.21, 0.09), "+0.00", "a tie (-0.21 to 0.09)"),
        (Figure(-0.06, -0.21, -0.01), "+0.00", "-0.06"),
        (Figure(0.9, 0.8, 1.2), "0.0 dB", "0.9 dB"),  # neither a ratio nor a difference
        (Figure(1.0), "0.00×", "1.00×"),  # nothing is known of its interval
    ],
)
def test_an_interval_that_holds_nothing_new_is_a_tie(figure, picture, shown):
    assert written(figure, picture) == shown


@pytest.mark.parametrize(
    ("number", "picture", "shown"),
    [
        (255_234_567.0, "~3", "3e8"),
        (1424.0, "~3", "1,420"),
        (211.9, "~3", "212"),
        (69.23, "~3", "69.2"),
        (9.7, "~3", "9.70"),
        (-0.02, "0.0", "0.0"),
        (-0.02, "+0.0", "0.0"),
        (math.inf, "0.0", "inf"),
    ],
)
def test_numbers_are_written_with_the_digits_asked_for(number, picture, shown):
    assert written(Figure(number), picture) == shown


def test_slower_is_not_called_faster(results):
    with pytest.raises(Wrong, match=r"0\.9 is slower, not faster"):
        _shown("speed[minilm].faster: 0.00× faster", results)


@pytest.mark.parametrize(
    ("mark", "told"),
    [
        ("sped[lite0].faster: 0.0", "no 'sped' is a CSV of .*; nearest: 'speed'"),
        ("speed[lite].faster: 0.0", r"no 'lite' is network of a row of speed.csv \[lite\]; nearest: 'lite0'"),
        ("speed[lite0, thread=1].faster: 0.0", "no 'thread' is a column of speed.csv; nearest: 'threads'"),
        ("speed[minilm].fster: 0.0", "no 'fster' is a column of speed.csv; nearest: 'faster'"),
        ("counts(speed[]): 0", "no 'counts' is a word .*; nearest: 'count'"),
        ("speed[lite0].faster: 0.0", r"2 rows of speed.csv are \[lite0\], which differ in threads or setting"),
        ("speed[minilm].share: 0.0", "is empty"),
        ("speed[minilm].setting: 0.0", "'plain' is a text"),
        ("same(speed[].setting)", "not the same in all rows: 8 bits, int8, plain"),
        ("speed[minilm].share + import: 0.0", "is no expression"),
        ("abs(2): 0.0", "is no expression of cells"),
        ("1 / 0: 0", "divides by 0"),
        ("speed[minilm].faster: fast", "shows 0 numbers"),
        ("2: 0.0 (0.0 to 0.0)", "shows an interval, and there is none"),
        ('speed["lite0].faster: 0', "is no expression"),
    ],
)
def test_a_mark_that_names_nothing_or_too_much_is_an_error(results, mark, told):
    found = _problems(f"text <!--{{{mark}}}-->?<!--/-->", results)
    assert len(found) == 1
    with pytest.raises(Wrong, match=told):
        raise found[0]


PAGE = """# Page

It is <!--{speed[lite0,
threads=1].faster: 0.00×}-->1.93×<!--/--> faster.

<!-- table
2: {speed[*, threads=1].faster: 0.0×}
3: {100 * speed[*, threads=1].share: 0 %} of it
- lite0
-
3:
- minilm
-->
| network | speed | share |
|---|---|---|
| Lite0 | 2.0× | 61 % of it |
| typed | 7.7× | |
| MiniLM \\| text | 0.7× | |

```text
<!--{nothing[].at: 0}-->8.8×<!--/-->
```
"""


def test_what_drifted_is_found_with_its_place_and_rendered(results):
    drifted = [place for place in places(PAGE, results) if place.drifted]
    assert [(place.says, place.rendered) for place in drifted] == [
        ("1.93×", "2.04×"),
        ("61 % of it", "62 % of it"),
        ("0.7×", "0.9×"),
    ]
    assert [PAGE[place.start : place.end] for place in drifted] == [place.says for place in drifted]
    mended = rendered(PAGE, places(PAGE, results))
    assert mended == PAGE.replace("1.93×", "2.04×").replace("61 %", "62 %").replace("| 0.7×", "| 0.9×")
    assert not any(place.drifted for place in places(mended, results))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("<!-- table\n2: {1: 0}\n- lite0\n-->\n| a | b |\n|---|---|\n", "has 0 lines, and its mark 1 rows"),
        ("<!-- table\nlite0\n-->\n| a |\n|---|\n| b |\n", "is no row"),
        ("<!-- table\n- lite0\n-->\n\ntext\n", "has no table behind it"),
        ("a <!--{speed[minilm].faster: 0.0}-->0.9", "not closed"),
        ("<!--{speed[minilm].faster: 0.0}-->0.9<!--/-->", "begins with a mark"),
        ("* <!--{speed[minilm].faster: 0.0}-->0.9<!--/-->", "begins with a mark"),
        ("a <!--{100\n* speed[minilm].faster: 0}-->90<!--/-->", "a sign like"),
    ],
)
def test_a_mark_that_would_not_be_rendered_is_an_error(results, text, told):
    found = _problems(text, results)
    assert [told in str(one) for one in found] == [True]


def _unsourced(text, results, exceptions=NONE):
    return [one.text.split("'")[1] for one in unsourced("page.md", text, places(text, results), exceptions)]


@pytest.mark.parametrize(
    ("text", "figures"),
    [
        ("It is 2.04× faster.", ["2.04×"]),
        ("It keeps 39 to 41 dB, and 62 % of it.", ["41 dB", "62 %"]),
        ("It loses 1.1 and 1.4 points.", ["1.1", "1.4 points"]),
        ("It takes 12\nseconds.", ["12 seconds"]),
        ("Off by 2e-6.", ["2e-6"]),
        ("| a | 1,424 |\n", ["1,424"]),
        ("Convolutions of 3 × 3, 8 bits, version 3.11.2, in 2 layers.", []),
        ("`2.04×` and [a link](1.5.md)\n\n```\n2.04×\n```\n", []),
        ("It is <!--{speed[minilm].faster: 0.0×}-->0.9×<!--/--> or 0.8×.", ["0.8×"]),
        ("<!-- table\n2: {speed[*].faster: 0.0×}\n- minilm\n-->\n| a | b |\n|---|---|\n| 5 | 0.9× |\n", ["5"]),
    ],
)
def test_figures_without_a_source_are_found(results, text, figures):
    assert _unsourced(text, results) == figures


def test_an_exception_names_its_text_and_goes_with_it(results):
    text = "Refused are errors over\n0.1 %, in version 1.5."
    exceptions = Exceptions({"page.md": {"errors over 0.1 %": "a threshold"}}, {r"version \d\.\d": "a version"}, {})
    assert _unsourced(text, results, exceptions) == []
    assert _unsourced("Errors of 0.1 %.", results, exceptions) == ["errors over 0.1 %", "0.1 %"]


def test_csvs_that_are_to_be_made_again_are_named(tmp_path):
    rows = {
        "sound": "faster,processes,commit\n2.0,3,abc\n,,abc\n",
        "changed": "bytes,commit\n7,abc-dirty\n",
        "two": "faster,processes,commit\n2.0,3,abc\n2.0,2,abc\n",
        "alone": "ours_faster,commit\n2.0,abc\n",
        "unread": "bytes,commit\n7,abc-dirty\n",
    }
    for name, text in rows.items():
        (tmp_path / f"{name}.csv").write_text(text, encoding="utf-8")
    results = Results(tmp_path)
    for name in rows.keys() - {"unread"}:
        results.rows(name)
    assert results.doubtful == {
        "from a tree with changes": ["changed"],
        "speeds of fewer than three processes": ["alone", "two"],
    }


def test_the_figures_of_this_repository_are_those_of_its_csvs():
    script = ROOT / "scripts" / "figures.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_check_fails_with_page_and_line_where_a_figure_is_changed(tmp_path, results):
    import figures

    found = figures.look("page.md", PAGE, results, NONE)
    assert found.drifted[0] == "page.md:4: the text says '1.93×', the CSV '2.04×'"
    assert found.wrong == ["page.md:17: '7.7×' has no source: mark it, or reword"]
