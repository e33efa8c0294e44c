"""The command line: which commands there are.

Exit codes: 0 all done; 1 some file failed, or an error that the message explains; 2 wrong usage; 3 a run that cannot be relied
on ('ppse diagnose'); 130 interrupted.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from . import __version__
from .allocation import keep_freed_memory
from .commands import adapt, corpora, enhance, inpaint, study, train, train_av, train_listener, train_semi
from .console import Commands


class OrFirst(Commands):
    """Commands of which the first is meant where none is named: `ppse train SPEECH…` is `ppse train vae SPEECH…`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        named = not args or args[0] in self.commands or args[0] in ctx.help_option_names
        return super().parse_args(ctx, args if named else [next(iter(self.commands)), *args])


SETTINGS = {"help_option_names": ["-h", "--help"]}

app = typer.Typer(
    cls=Commands, no_args_is_help=True, rich_markup_mode="markdown", pretty_exceptions_enable=False, context_settings=SETTINGS,
    help="Speech enhancement by inverting generative models: a prior of clean speech, a model of noise, and posterior inference. "
    "No recorded noise is needed to train it.",
)
training = typer.Typer(
    cls=OrFirst, no_args_is_help=True, rich_markup_mode="markdown", context_settings=SETTINGS,
    help="Train a speech prior. `ppse train SPEECH…` is `ppse train vae SPEECH…`.",
)
training.command()(train.vae)
training.command()(train.dvae)
training.command()(train_av.av_vae)
training.command()(train_semi.semi)
training.command()(train_listener.listener)

app.command()(enhance.enhance)
app.command()(enhance.stream)
app.command()(inpaint.inpaint)
app.command()(inpaint.extend)
app.add_typer(training, name="train")
app.command()(adapt.adapt)
app.command()(train.import_dvae)
app.command()(corpora.mix)
app.command()(corpora.evaluate)
app.command()(study.diagnose)
app.command()(study.sample)
app.command()(enhance.demo)


def main() -> None:
    """Run the command line."""
    keep_freed_memory()
    app(prog_name="ppse")  # completion and help go by this name, however the program was started


def _version(show: bool) -> None:
    if show:
        print(f"ppse {__version__}")
        raise typer.Exit


@app.callback()
def _root(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False) -> None:
    pass
