"""The `local-llm` command.

Exit codes: 0 fine, 1 something failed, 2 wrong usage or configuration, 130 interrupted, 141 the reader of the
output went away.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from checks import __version__, output
from checks.contract.config import DEFAULT_PATH, Config, ConfigError, load
from checks.contract.paths import ALERT_UNITS, HEALTH_LOCK, HEALTH_LOG, METRICS_LOCK, METRICS_LOG, SAMPLES
from checks.host import Host

if TYPE_CHECKING:
    from checks import rounds

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141

# What ask uses when it is given an address and no configuration: llama-server ignores the name.
_ANY_MODEL = "local"

_LONGEST_REPORT_DAYS = 366

_EXAMPLES = """\
examples:
  local-llm status                       what runs, on one screen
  sudo local-llm test                    all checks, with what to do about each finding
  sudo local-llm test --json             the same for a program
  local-llm health                       the quick check that cron runs
  local-llm ask "A regex for a date like 2026-11-22?"
  git diff | local-llm ask "Review this change:" -
  local-llm route request.json           where the gateway would send this request, and why
  sudo local-llm report                  the last 7 days against the goals
  sudo local-llm alerts                  what is wrong right now, and what helps
  sudo local-llm drill                   take each side out for one request, and see the other answer

logs:
  journalctl -u local-llm -f             the service
  tail -f /var/log/llm-health.log        the health checks
  tail -f /var/log/llm-metrics.log       the hourly measurements
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    with output.edge():
        return _main(argv)


def _main(argv: Sequence[str] | None) -> int:
    arguments = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = arguments.command
    try:
        code = command(arguments)
        sys.stdout.flush()
        return code
    except ConfigError as error:
        return _fail(str(error), EXIT_USAGE)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The interpreter flushes stdout once more at its end, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="local-llm",
        description="Look at, check and ask the local LLM of this machine.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"local-llm checks {__version__}")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--config", type=Path, default=DEFAULT_PATH, metavar="FILE", help="configuration (default: %(default)s)"
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    status = commands.add_parser("status", parents=[common], help="what runs, on one screen")
    status.set_defaults(command=_status)

    health = commands.add_parser(
        "health", parents=[common], help="the quick check that cron runs; exit code 1 if something is wrong"
    )
    health.add_argument("--log", action="store_true", help="add the line to the log, and print only a failure")
    health.add_argument(
        "--log-file", default=HEALTH_LOG, metavar="FILE", help="the log of --log (default: %(default)s)"
    )
    health.add_argument("--lock-file", default=HEALTH_LOCK, help=argparse.SUPPRESS)
    health.set_defaults(command=_health)

    metrics = commands.add_parser("metrics", parents=[common], help="what the time since the last hourly run was like")
    metrics.add_argument("--log", action="store_true", help="store it and append the line to the log, as cron does")
    metrics.add_argument("--log-file", default=METRICS_LOG, metavar="FILE", help="log for --log (default: %(default)s)")
    metrics.add_argument("--lock-file", default=METRICS_LOCK, help=argparse.SUPPRESS)
    metrics.set_defaults(command=_metrics)

    test = commands.add_parser("test", parents=[common], help="all checks; exit code 1 if one fails")
    test.add_argument("--json", action="store_true", help="results for a program")
    test.set_defaults(command=_test)

    version = commands.add_parser("version", parents=[common], help="versions of llama.cpp, model and checks")
    version.add_argument("--json", action="store_true", help="the same for a program")
    version.set_defaults(command=_version)

    ask = commands.add_parser("ask", parents=[common], help="ask a question; the answer comes as it is made")
    ask.add_argument("question", nargs="+", help="the question; “-” stands for what standard input holds")
    ask.add_argument(
        "--max-tokens",
        type=_positive,
        default=512,
        metavar="N",
        help="longest answer (default: %(default)s tokens)",
    )
    ask.add_argument("--url", help="address of the API (default: the configured one)")
    ask.set_defaults(command=_ask)

    route = commands.add_parser(
        "route", parents=[common], help="where the gateway would send a request, and why; nothing is sent anywhere"
    )
    route.add_argument("file", metavar="FILE", help="the request's body, JSON; “-” stands for standard input")
    route.add_argument(
        "--path", type=_url_path, default="/v1/chat/completions", help="path of the API (default: %(default)s)"
    )
    route.add_argument(
        "--header", action="append", default=[], metavar="'NAME: VALUE'", help="a header of the request; repeatable"
    )
    route.add_argument("--json", action="store_true", help="the gateway's own answer, for a program")
    route.set_defaults(command=_route)

    week = commands.add_parser(
        "report",
        parents=[common],
        help="the goals of the last days against what was measured; exit code 1 if one is missed",
    )
    week.add_argument("--days", type=_days, default=7, metavar="N", help="how far it looks back (default: %(default)s)")
    week.add_argument("--json", action="store_true", help="every figure, hour by hour, for a program")
    week.set_defaults(command=_report)

    alerts = commands.add_parser(
        "alerts",
        parents=[common],
        help="the alerts that are open, exit code 1 if there are any; or send one to try where they go",
    )
    alerts.add_argument(
        "action", nargs="?", choices=["test"], help="send a test message every way, and say how it fared"
    )
    alerts.add_argument("--json", action="store_true", help="the same for a program")
    alerts.add_argument("--log-file", default=HEALTH_LOG, help=argparse.SUPPRESS)
    # What the units call: send what waits, and tell what Prometheus sees.
    alerts.add_argument("--deliver", choices=sorted(ALERT_UNITS), help=argparse.SUPPRESS)
    alerts.add_argument("--relay", action="store_true", help=argparse.SUPPRESS)
    alerts.set_defaults(command=_alerts)

    drill = commands.add_parser(
        "drill",
        parents=[common],
        help="take the cloud and then the local model out for one request, and see who answers; "
        "exit code 1 if the other side did not",
    )
    drill.add_argument("--json", action="store_true", help="the result for a program")
    # What the unit calls: the drill itself, and what brings a side back however that ended.
    steps = drill.add_mutually_exclusive_group()
    steps.add_argument("--run", action="store_true", help=argparse.SUPPRESS)
    steps.add_argument("--restore", action="store_true", help=argparse.SUPPRESS)
    drill.set_defaults(command=_drill)
    return parser


# Modules are imported where they are used: `health` runs every few minutes and must stay light (see `probe`).


def _status(arguments: argparse.Namespace) -> int:
    from checks import status

    try:
        screen = status.lines(load(arguments.config), Host())
    except OSError as error:
        return _fail(f"The state cannot be read: {error}. Is this the host the LLM was deployed to?", EXIT_FAILED)
    print("\n".join(screen))
    return 0


def _health(arguments: argparse.Namespace) -> int:
    from checks import health, rounds

    config, host = load(arguments.config), Host()
    try:
        with health.lock(arguments.lock_file):
            done = rounds.health_run(config, host, arguments.log_file) if arguments.log else rounds.look(config, host)
    except health.AlreadyRunningError:
        if not arguments.log:
            print("Another health check is running; this one did nothing.")
        return 0
    except rounds.StoppingError:
        if not arguments.log:
            print("The machine is being shut down; nothing was checked.")
        return 0
    except OSError as error:
        return _fail(f"The health check could not be made: {error}. Use sudo for --log.", EXIT_FAILED)
    return _tell(done, arguments.log, "What is wrong, and what helps: sudo local-llm test")


def _metrics(arguments: argparse.Namespace) -> int:
    from checks import health, rounds

    config, host = load(arguments.config), Host()
    try:
        with health.lock(arguments.lock_file):
            done = rounds.metrics_run(config, host, arguments.log_file if arguments.log else None)
    except health.AlreadyRunningError:
        if not arguments.log:
            print("Another measurement is running; this one did nothing.")
        return 0
    except OSError as error:
        return _fail(f"The measurement could not be made: {error}. Use sudo for --log.", EXIT_FAILED)
    return _tell(done, arguments.log, "More: sudo local-llm health")


def _tell(done: rounds.Run, logged: bool, hint: str) -> int:
    """Print a run: what a person asked for, or on a failure what cron mails."""
    if done.ok and not done.unwritten and not done.after:
        if not logged:
            print(done.line)
        return 0
    print(done.line, file=sys.stderr)
    if done.unwritten:
        _fail(f"This line could not be written down: {done.unwritten}. Use sudo for --log.", EXIT_FAILED)
    if done.after:
        _fail(done.after, EXIT_FAILED)
    if not done.ok:
        print(hint, file=sys.stderr)
    return EXIT_FAILED


def _test(arguments: argparse.Namespace) -> int:
    from checks import report, runner

    config, host = load(arguments.config), Host()
    results, seconds = runner.run(config, host)
    if arguments.json:
        print(output.as_json(report.as_json(results, seconds, host.now()), indent=2))
    else:
        output.show(report.as_table(results, seconds), _colour())
    return report.exit_code(results)


def _version(arguments: argparse.Namespace) -> int:
    from checks import status

    versions = status.versions(load(arguments.config), Host())
    if arguments.json:
        print(output.as_json(versions, indent=2))
        return 0
    model = versions["model"]
    print(f"llama.cpp    {versions['llama_cpp_commit'] or 'not installed'}")
    print(f"release      {versions['release'] or 'not installed'}")
    print(f"llama-server {versions['llama_server'] or 'does not say'}")
    print(f"model        {model['name']}, {model['size_bytes']} bytes, sha256 {model['sha256']}")
    print(f"checks       {versions['checks']}")
    return 0


def _ask(arguments: argparse.Namespace) -> int:
    from checks import ask

    url, model = _target(arguments)
    given = b" ".join(sys.stdin.buffer.read() if part == "-" else os.fsencode(part) for part in arguments.question)
    try:
        question = given.decode().strip()
    except UnicodeDecodeError:
        question = given.decode(errors="replace").strip()
        print("(not all of the question is UTF-8: the model sees � for what is not)", file=sys.stderr)
    if not question:
        return _fail("The question is empty.", EXIT_USAGE)
    answer = ask.Answer(url, question, model, arguments.max_tokens)
    wrote = False
    try:
        for piece in answer:
            wrote = True
            sys.stdout.write(piece)
            sys.stdout.flush()
    except ask.AskError as error:
        if wrote:
            print()
        return _fail(str(error), EXIT_FAILED)
    print()
    if answer.cut:
        print(f"(cut at {arguments.max_tokens} tokens; more with --max-tokens)", file=sys.stderr)
    return 0


def _route(arguments: argparse.Namespace) -> int:
    import json

    from checks import route

    config = load(arguments.config)
    try:
        headers = [route.parse_header(text) for text in arguments.header]
        body = sys.stdin.buffer.read() if arguments.file == "-" else Path(arguments.file).read_bytes()
    except (route.HeaderError, OSError) as error:
        reason = f"{arguments.file} cannot be read: {error.strerror}" if isinstance(error, OSError) else str(error)
        return _fail(f"{reason}.", EXIT_USAGE)
    try:
        json.loads(body)
    except ValueError as error:
        print(
            f"local-llm: warning: the request is not JSON ({error}); the gateway is asked all the same.",
            file=sys.stderr,
        )
    try:
        found = route.explain(config.api_url, body, arguments.path, headers)
    except route.RouteError as error:
        return _fail(str(error), EXIT_FAILED)
    print(output.as_json(found.raw, indent=2) if arguments.json else "\n".join(route.lines(found)))
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from checks import samples, week

    config, host = load(arguments.config), Host()
    path = host.path(SAMPLES)
    try:
        if not path.exists():
            raise samples.StoreError(f"{path} is missing: the health check, which makes it, has not run yet")
        with samples.Store.open(path) as store:
            found, notice = week.measure(config, store, arguments.days, host.now()), store.notice
    except PermissionError:
        return _fail(f"{path} may not be read by this user. Use sudo.", EXIT_FAILED)
    except (samples.StoreError, OSError) as error:
        return _fail(f"{error}.", EXIT_FAILED)
    if notice:
        print(f"local-llm: warning: {notice}.", file=sys.stderr)
    if arguments.json:
        print(output.as_json(week.as_json(found)))
    else:
        output.show("\n".join(week.lines(found)), _colour())
    return EXIT_FAILED if found.missed else 0


def _alerts(arguments: argparse.Namespace) -> int:
    from checks import alert_rules, alerts, delivery, samples

    config, host = load(arguments.config), Host()
    if not host.is_root:
        return _fail("The state of alerts is root's: sudo local-llm alerts", EXIT_USAGE)
    if arguments.deliver:
        problem = delivery.deliver(config, host, arguments.deliver)
        return _fail(f"{problem}.", EXIT_FAILED) if problem else 0
    if arguments.relay:
        from checks import relay

        problem = relay.run(config, host, arguments.log_file)
        return _fail(f"{problem}.", EXIT_FAILED) if problem else 0
    if arguments.action == "test":
        sent = list(alerts.send_test(config, host, arguments.log_file))
        found: object = [{"way": each.way, "ok": not each.problem, "problem": each.problem} for each in sent]
        screen = [f"{each.way:15}  {each.problem or 'sent'}" for each in sent]
        failed = any(each.problem for each in sent)
    else:
        try:
            state = alerts.current(config, host)
        except samples.StoreError as error:
            return _fail(f"{error}.", EXIT_FAILED)
        found = alert_rules.as_json(state)
        screen = [*alert_rules.lines(state, host.now()), "", *alerts.ways(config, host)]
        failed = bool(alert_rules.opened(state))
    print(output.as_json(found, indent=2) if arguments.json else "\n".join(screen))
    return EXIT_FAILED if failed else 0


def _drill(arguments: argparse.Namespace) -> int:
    from checks import drill

    config, host = load(arguments.config), Host()
    if not host.is_root:
        return _fail("A drill takes parts of the service out and needs root: sudo local-llm drill", EXIT_USAGE)
    try:
        if arguments.restore:
            left = drill.restore(config, host)
            if left:
                print("\n".join(drill.log_lines(left)))
            return EXIT_FAILED if left else 0
        found = drill.run(config, host) if arguments.run else drill.start(host)
    except (drill.DrillError, OSError) as error:
        return _fail(str(error), EXIT_FAILED)
    if arguments.json:
        print(output.as_json(found.as_json(), indent=2))
    else:
        print("\n".join((drill.log_lines if arguments.run else drill.lines)(found)))
    return 0 if found.ok else EXIT_FAILED


def _target(arguments: argparse.Namespace) -> tuple[str, str]:
    """The API's address and the model's name; an address that is given needs no configuration."""
    if arguments.url:
        if not arguments.url.startswith(("http://", "https://")):
            raise ConfigError(f"--url is {arguments.url!r}, expected an address such as http://127.0.0.1:8765")
        return arguments.url.rstrip("/"), _ANY_MODEL
    config: Config = load(arguments.config)
    return config.api_url, config.model.name


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _days(text: str) -> int:
    days = _positive(text)
    if days > _LONGEST_REPORT_DAYS:
        raise argparse.ArgumentTypeError(f"{text} is more than {_LONGEST_REPORT_DAYS} days")
    return days


def _url_path(text: str) -> str:
    if not text.startswith("/") or not text.isascii() or not text.isprintable() or " " in text:
        raise argparse.ArgumentTypeError(f"{text!r} is not a path such as /v1/chat/completions")
    return text


def _colour() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


def _fail(message: str, code: int) -> int:
    print(f"local-llm: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
