"""The `kinfolk` command: one small file per subcommand, and the one place where errors become exit codes."""

import logging
import os
import sys
from typing import Annotated

# libgomp's threads otherwise spin while they wait, which slows a small training step on a busy machine fourfold.
# It reads this once, when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# transformers imports torchao wherever it is installed, which then tells of CUDA libraries that nothing here needs.
os.environ.setdefault("TORCHAO_FORCE_SKIP_LOADING_SO_FILES", "1")

import typer

from kinfolk import __version__
from kinfolk.cli.adaptability import adaptability
from kinfolk.cli.average import average
from kinfolk.cli.build import build
from kinfolk.cli.card import card
from kinfolk.cli.chat import chat
from kinfolk.cli.compare import compare
from kinfolk.cli.consistency import consistency
from kinfolk.cli.doctor import doctor
from kinfolk.cli.evaluate import evaluate
from kinfolk.cli.export import export
from kinfolk.cli.grow import grow
from kinfolk.cli.laws import laws
from kinfolk.cli.merge import merge
from kinfolk.cli.plan import plan
from kinfolk.cli.publish import publish
from kinfolk.cli.report import report
from kinfolk.cli.schedule import schedule
from kinfolk.cli.serve import serve
from kinfolk.cli.transfer import transfer
from kinfolk.errors import KinfolkError
from kinfolk.machine_faults import machine_fault

for chatty in ("torchao", "torch.utils._pytree"):
    logging.getLogger(chatty).setLevel(logging.ERROR)

app = typer.Typer(
    name="kinfolk",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS = (
    plan, build, grow, average, export, card, publish, evaluate, merge, consistency, adaptability, report,
    compare, chat, serve, doctor,
)  # fmt: skip
for command in COMMANDS:
    app.command()(command)
app.add_typer(laws, name="laws")
app.add_typer(schedule, name="schedule")
app.add_typer(transfer, name="transfer")


def _print_version(asked: bool) -> None:
    if asked:
        print(f"kinfolk {__version__}")
        raise typer.Exit


@app.callback()
def kinfolk(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Build a family of language models for about the compute of its largest member."""


def main() -> None:
    """Run the command line; a fault of the user's input or machine is printed, never a traceback."""
    try:
        try:
            app()
        finally:
            if sys.__stdout__ is not None:
                sys.__stdout__.flush()
    except KinfolkError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        # What is still to be written goes nowhere: Python writes it once more at its end, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(141)
    except Exception as error:
        fault = machine_fault(error)
        if fault is not None:
            print(f"error: {fault}", file=sys.stderr)
        elif isinstance(error, OSError):
            where = f"{error.filename}: " if error.filename else ""
            print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        else:
            raise
        sys.exit(1)
