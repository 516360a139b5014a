"""kinfolk transfer: post-train once, use it on every member"""

import typer

from kinfolk.cli.transfer_bake import bake
from kinfolk.cli.transfer_train import train
from kinfolk.cli.transfer_tune import tune

transfer = typer.Typer(no_args_is_help=True, help="Post-train once, use it on every member.")
for command in (train, tune, bake):
    transfer.command()(command)
