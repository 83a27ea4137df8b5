"""Entry point of one process of a run: ``python -m hftpipe.cli.stage --run-dir D --process P``.

The supervisor starts these; people do not.  A failure is one line on standard error and the
documented exit code.
"""
from __future__ import annotations

import argparse
import sys
import traceback

from hftpipe import secret
from hftpipe.errors import Exit, HftpipeError


def main(argv: list[str] | None = None) -> int:
    """Run one process until the control page says stop; its exit code."""
    parser = argparse.ArgumentParser(prog="hftpipe.cli.stage")
    parser.add_argument("--run-dir", required=True)
    parser.add_argument("--process", required=True)
    parser.add_argument("--secrets", action="store_true")   # they come on standard input
    args = parser.parse_args(argv)
    try:
        if args.secrets:
            secret.take(0)
        if args.process == "guardian":          # without what only the others need
            from hftpipe import guardian
            return int(guardian.run(args.run_dir))
        from hftpipe import worker
        return int(worker.run(args.run_dir, args.process))
    except HftpipeError as error:
        print(secret.scrub(f"error: {args.process}: {error}"), file=sys.stderr)
        return int(error.exit_code)
    except KeyboardInterrupt:
        return int(Exit.INTERRUPTED)
    except Exception:                           # ours to mend: where it was, but not with what
        print(secret.scrub(traceback.format_exc()), end="", file=sys.stderr)
        return int(Exit.ERROR)


if __name__ == "__main__":
    sys.exit(main())
