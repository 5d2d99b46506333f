"""`python -m sandbox`: the demo machine from the command line."""

import argparse
import sys

from sandbox import demo
from sandbox.common import SandboxError, fail
from sandbox.image import DISTRIBUTIONS


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit code is 0 only if it did what it says."""
    options = _parser().parse_args(argv)
    try:
        if options.command == "demo":
            demo.demo(options.image)
        elif options.command == "down":
            demo.down(everything=options.all)
        elif options.command == "status":
            return 0 if demo.status() else 1
        else:
            demo.open_ssh(options.remote_command)
    except SandboxError as error:
        return fail(error)
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sandbox",
        description="A container that is like a VPS, to try the deploy on. See also `make help`.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    start = commands.add_parser(
        "demo", help="start the machine, deploy to it, check it, ask it a question; safe to repeat"
    )
    start.add_argument(
        "--image", choices=list(DISTRIBUTIONS), help="default: ubuntu24.04 where a registry answers, else debian12"
    )
    down = commands.add_parser("down", help="remove the machine, the hub and their state")
    down.add_argument(
        "--all", action="store_true", help="also remove images, ccache volumes, test machines and the cache"
    )
    commands.add_parser("status", help="what runs and how to reach it; exit code 1 if the machine does not run")
    ssh = commands.add_parser("ssh", help="log in to the machine, or run a command there")
    ssh.add_argument(
        "remote_command", nargs=argparse.REMAINDER, metavar="COMMAND", help="command to run (default: a shell)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
