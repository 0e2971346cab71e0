"""The command line: a thin shell that turns arguments into calls, and errors into one line and an exit code.

Exit codes: 0 done, 2 usage, 3 input refused, 4 bundle or engine refused, 5 back end or extra missing, 6 try again
later, 130 interrupted from the keyboard, 143 ended by a signal.
"""

import io
import signal
import sys
from types import FrameType

import click

from lfmri.commands.bench import bench
from lfmri.commands.benchmark import benchmark
from lfmri.commands.demo import demo
from lfmri.commands.doctor import doctor
from lfmri.commands.enhance import enhance
from lfmri.commands.evaluate import evaluate
from lfmri.commands.export import export
from lfmri.commands.install_service import install_service
from lfmri.commands.prepare import prepare
from lfmri.commands.report import report
from lfmri.commands.serve import serve
from lfmri.commands.simulate import simulate
from lfmri.commands.synthesise import synthesise
from lfmri.commands.train import train
from lfmri.commands.vary import vary
from lfmri.commands.verify import verify
from lfmri.commands.watch import watch
from lfmri_runtime.errors import LfmriError, TryAgainLater

INTERRUPTED = 130
TERMINATED = 143


@click.group(
    invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(package_name="lfmri")
@click.pass_context
def cli(context: click.Context) -> None:
    """High-field-like images from low-field MR scans, by conditional flow matching.

    Exit codes: 0 done, 2 usage, 3 input refused, 4 bundle refused, 5 back end or extra missing, 6 try again later,
    130 interrupted.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


for command in (
    *(prepare, synthesise, vary, simulate, train, export, enhance, evaluate, benchmark, report, demo),
    *(serve, watch, install_service),
    *(verify, bench, doctor),
):
    cli.add_command(command)


def main() -> None:
    """Entry point of the `lfmri` script."""
    signal.signal(signal.SIGTERM, _terminate)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file's name, or an arrow, that the terminal's encoding lacks
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code."""
    try:
        cli.main(args=arguments, prog_name="lfmri", standalone_mode=False)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.UsageError as error:
        return _complain(error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return _complain("interrupted; no output was left half written", INTERRUPTED)
    except LfmriError as error:
        return _complain(str(error), error.exit_code)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        return _complain(f"{place}{error.strerror or error}; free or mend it and try again", TryAgainLater.exit_code)
    except MemoryError:
        return _complain("not enough memory; close other programs or crop the scan", TryAgainLater.exit_code)
    return 0


def _complain(message: str, code: int) -> int:
    click.echo(f"lfmri: {' '.join(message.split())}", err=True)
    return code


def _terminate(number: int, frame: FrameType | None) -> None:
    """Leave through the ordinary way out, which removes temporary files."""
    raise SystemExit(TERMINATED)
