"""Sub-commands of the command line, made alike: help, description, examples, and no abbreviated flags."""

import argparse
from collections.abc import Callable, Mapping
from typing import NamedTuple

from .scalars import ConfigError, Seconds, read_scalar

Run = Callable[[argparse.Namespace], int]


class Commands(NamedTuple):
    """Where sub-commands are added.

    Attributes:
        parsers: argparse's own list of them.
        examples: by name of the command; the end of its help.
    """

    parsers: "argparse._SubParsersAction[argparse.ArgumentParser]"
    examples: Mapping[str, str]

    def add(self, name: str, run: Run | None, summary: str, *, description: str = "") -> argparse.ArgumentParser:
        """Return the parser of a new sub-command.

        Args:
            name: what people type.
            run: what it does; None where only its own sub-commands do something.
            summary: a few words, without a capital letter and a full stop.
            description: what its own help says; empty for the summary as a sentence.
        """
        parser = self.parsers.add_parser(
            name,
            help=summary,
            description=description or f"{summary[0].upper()}{summary[1:]}.",
            epilog=self.examples[name],
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,  # a flag that comes later must not change what a script means
        )
        if run is not None:
            parser.set_defaults(run=run)
        return parser

    def group(self, name: str, summary: str, examples: Mapping[str, str]) -> "Commands":
        """Return the list of a new sub-command's own sub-commands, one of which must be given.

        Args:
            name: what people type.
            summary: as in `add`.
            examples: those of its sub-commands, and under `name` its own.
        """
        parser = Commands(self.parsers, examples).add(name, None, summary)
        return Commands(parser.add_subparsers(dest=f"{name}_command", metavar="COMMAND", required=True), examples)


def seconds(text: str) -> float:
    """Return a duration of the command line in seconds, above 0; for argparse."""
    try:
        found = float(read_scalar(Seconds, text, "time"))
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if found <= 0:
        raise argparse.ArgumentTypeError(f"expected a time above 0, found {text!r}")
    return found
