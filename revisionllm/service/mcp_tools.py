"""`revisionllm mcp`: a library as tools for agents, over stdin and stdout.

    {"mcpServers": {"films": {"command": "revisionllm", "args": ["mcp", "/data/library"]}}}

Model Context Protocol, by the package `mcp` (optional: `pip install mcp`):
https://modelcontextprotocol.io
"""

from __future__ import annotations

import argparse
from pathlib import Path

from revisionllm.errors import check_installed
from revisionllm.library.find import add_library_arguments
from revisionllm.service.offers import open_offers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    add_library_arguments(parser)
    parser.add_argument(
        "--clips", type=Path, default=Path("clips"), help="where clips go (%(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Serve until stdin ends; returns 0."""
    check_installed("tools for agents need a package", "mcp")
    from revisionllm.service.mcp_server import make_server

    make_server(open_offers(args), args.clips).run("stdio")
    return 0
