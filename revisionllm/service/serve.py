"""`revisionllm serve`: a library over HTTP.

    revisionllm serve library                       # http://127.0.0.1:8765/docs
    REVISIONLLM_TOKEN=secret revisionllm serve library --host 0.0.0.0

It answers on this machine alone; elsewhere only with a token, which callers send as
`Authorization: Bearer TOKEN`. FastAPI and uvicorn (optional: `pip install fastapi uvicorn`):
https://fastapi.tiangolo.com
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import sys
import tempfile
from pathlib import Path

from revisionllm.errors import UserError, check_installed
from revisionllm.library.find import add_library_arguments
from revisionllm.service.offers import open_offers

TOKEN = "REVISIONLLM_TOKEN"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    add_library_arguments(parser)
    add = parser.add_argument
    add("--host", default="127.0.0.1", help=f"another than this machine needs ${TOKEN}")
    add("--port", type=int, default=8765, help="%(default)s")


def run(args: argparse.Namespace) -> int:
    """Serve until interrupted; returns 0."""
    token = os.environ.get(TOKEN, "")
    if not is_here(args.host) and not token:
        raise UserError(f"--host {args.host} is seen by others; set ${TOKEN} to a secret first")
    check_installed("serving needs FastAPI", "fastapi", "uvicorn")
    offers = open_offers(args)
    import uvicorn

    from revisionllm.service.http_app import make_app

    with tempfile.TemporaryDirectory(prefix="revisionllm-serve-") as folder:
        app = make_app(offers, Path(folder), token=token, is_here=is_here(args.host))
        print(f"http://{args.host}:{args.port}/docs", file=sys.stderr)
        config = uvicorn.Config(
            app, host=args.host, port=args.port, log_level="warning", limit_concurrency=256
        )
        try:
            uvicorn.Server(config).run()
        except SystemExit as error:  # uvicorn's way to say that the port is taken
            raise UserError(f"port {args.port} is taken; give another --port") from error
    return 0


def is_here(host: str) -> bool:
    """Whether a name is this machine's own, for itself alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
