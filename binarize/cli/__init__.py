"""The command line: one module per command; nothing heavy is imported before a command runs."""

import warnings
from typing import Any, NoReturn, final

import click

from binarize import __version__
from binarize.cli.benchmark import benchmark
from binarize.cli.convert import convert
from binarize.cli.demo import demo
from binarize.cli.doctor import doctor
from binarize.cli.evaluate import evaluate
from binarize.cli.export import export
from binarize.cli.finetune import finetune
from binarize.cli.inspect import inspect
from binarize.cli.output import fail, one_line
from binarize.cli.schemes import schemes
from binarize.errors import BinarizeError, nearest

__all__ = ["COMMANDS", "main"]

# In the order of a user's work, which is the order of the help.
COMMANDS: tuple[click.Command, ...] = (convert, finetune, evaluate, inspect, export, benchmark, schemes, doctor, demo)

BAD_INPUT, INTERRUPTED = 2, 130


@final
class _Main(click.Group):
    """A group that ends bad input with one line and exit code 2, and lets a bug keep its traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            known = ", ".join(self.commands)
            ctx.fail(f"no such command {args[0]!r}{nearest(args[0], self.commands)}; the commands are {known}.")
        return super().resolve_command(ctx, args)

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.exceptions.NoArgsIsHelpError:
            raise
        except click.UsageError as error:
            self._end(_wrong_use(error, info_name or "binarize"), BAD_INPUT)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with warnings.catch_warnings():
                _hush()
                return super().invoke(ctx)
        except click.UsageError as error:
            path = f"{ctx.command_path} {ctx.invoked_subcommand}" if error.ctx is None else error.ctx.command_path
            self._end(_wrong_use(error, path), BAD_INPUT)
        except BinarizeError as error:
            self._end(one_line(error), BAD_INPUT)
        except KeyboardInterrupt:
            self._end("interrupted; what it was writing is left as it was", INTERRUPTED)

    @staticmethod
    def _end(message: str, code: int) -> NoReturn:
        fail(message)
        raise click.exceptions.Exit(code)


def _wrong_use(error: click.UsageError, command: str) -> str:
    return f"cannot run {command}: {error.format_message().rstrip('.')}; `{command} -h` lists what it takes"


def _hush() -> None:
    """Leave out the warnings of torch and others, as Python does for deprecations, unless -W asks for them."""
    import sys

    if not sys.warnoptions:
        warnings.simplefilter("ignore")


@click.group(cls=_Main, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="binarize")
def main() -> None:
    """Rewrite a trained CNN into aggregated binary branches that run on xnor/popcount kernels.

    MODEL is a file (a state_dict or safetensors with --arch, a pickled module, a .pt2 program), torchvision:NAME,
    package.module:factory or path/to/file.py:factory. NET is a file written by `binarize convert`.
    """


for _command in COMMANDS:
    main.add_command(_command)
