"""Reports which backends are available on this machine, and measures the time of a step."""

import os
import sys
from argparse import ArgumentParser
from collections.abc import Sequence

from .benchmark import command
from .report import report


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        arguments: The arguments of the command; None for those of the process.
    """
    parser = ArgumentParser("python -m radam_fused", description=__doc__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    info = "which backends are available, and why the others are not (the default)"
    commands.add_parser(
        "info", help=info, description=f"Prints {info.removesuffix(' (the default)')}."
    )
    bench = "the time of a step: FusedRAdam, torch.optim.RAdam and fused AdamW; under a minute"
    command.add_arguments(
        commands.add_parser("bench", help=bench, description=f"Measures {bench}.")
    )
    options = parser.parse_args(arguments)
    try:
        if options.command == "bench":
            command.run(options)
        else:
            for line in report():
                print(line, flush=True)
    except BrokenPipeError:  # by a reader such as head
        # Python flushes stdout once more at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
