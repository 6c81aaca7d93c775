"""The commands, their options and exit codes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lilliput import __version__
from lilliput.cli.characters import show_what_can_be_shown
from lilliput.cli.check import check_command
from lilliput.cli.checkpoint import pack_command, unpack_command
from lilliput.cli.clean import clean_command
from lilliput.cli.diagnose import diagnose_command
from lilliput.cli.exits import DONE, OUTCOMES, leave
from lilliput.cli.inspect import export_command, inspect_command, verify_command
from lilliput.cli.options import Data, Given, Inputs, Profile, RecipeFile, TargetName, TaskName
from lilliput.cli.web import web_command

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)


def main() -> None:
    """What the `lilliput` command runs."""
    show_what_can_be_shown()
    app(prog_name="lilliput")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lilliput {__version__}")
        raise typer.Exit(DONE)


@app.callback()
def lilliput(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Make a trained neural network small and fast, measurably, without losing what it learned."""


@app.command()
def compress(
    given: Given,
    inputs: Inputs = None,
    task: TaskName = None,
    data: Data = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder for all results.")] = Path("out"),
    recipe: RecipeFile = None,
    target: TargetName = "onnxruntime",
    profile: Profile = None,
    command: Annotated[
        str | None,
        typer.Option(help='Runs the result on another device: "run {model} {inputs}" prints milliseconds last.'),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Threads of the runtime while it is measured; default: all cores."),
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(min=0, help="At most so long for timing; less means wider intervals, 0 no timing.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON, and nothing else.")] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Check what is given, say what would be done and what it would take; search, train, write nothing.",
        ),
    ] = False,
) -> None:
    """Compress the model of TASK.py, the network in NET.onnx or in FOLDER, and measure what came of it.

    Run again with the same folder, a run that was cut off goes on where it was.

    \b
    A TASK.py:
      import lilliput as lp
      task = lp.Task(net, example=batch, calibrate=batches, metric=lp.metrics.top1(labelled))

    \b
    A network in ONNX, with inputs as it will meet them (numpy.savez("inputs.npz", images=array)):
      lilliput compress net.onnx --inputs inputs.npz

    \b
    A folder of Hugging Face, with texts (and labels) as it will meet them:
      lilliput compress my-bert/ --task text-classification --data reviews.csv

    \b
    A recipe, its steps in order. Weights and values that flow as integers of 8 bits:
      [[steps]]
      kind = "Quantize"
      weights = {kind = "Int", bits = 8}
      activations = {kind = "Int", bits = 8}

    \b
    The larger half of the weights, those as integers of 4 bits, 32 to a scale, all but a layer called head:
      [[steps]]
      kind = "Prune"
      unit = "weights"
      amount = 0.5

    \b
      [[steps]]
      kind = "Quantize"
      weights = {kind = "Int", bits = 4, group = 32}
      where = ["*", "!head"]

    \b
    Exit codes:
      0  done
      2  bad input: the message says what, where, why and what to do
      3  written, but neither smaller nor faster: see the report
      4  written, but harmed: what the network had learned is lost, as its metric or its answers show
    """

    def run() -> int:
        from lilliput.cli import commands
        from lilliput.cli.load import Source

        source = Source(given, inputs, task, data)
        asked = commands.Options(source, out, recipe, target, command, threads, seconds, profile, json)
        if not dry_run:
            return OUTCOMES[commands.compress(asked)]
        commands.dry_run(asked)
        return DONE

    leave(run, f"the same command goes on where it was (folder {out})")


app.command("diagnose")(diagnose_command)
app.command("inspect")(inspect_command)
app.command("verify")(verify_command)
app.command("export")(export_command)
app.command("check")(check_command)
app.command("web")(web_command)
app.command("pack")(pack_command)
app.command("unpack")(unpack_command)
app.command("clean")(clean_command)
