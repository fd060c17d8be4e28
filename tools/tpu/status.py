"""Says how far a request for slices is, or lists all of them. ACTIVE means that they are here.

python tools/tpu/status.py [NAME]
"""

from __future__ import annotations

from cloud import QUEUED, call, check_name, execute, make_parser, where


def main() -> int:
    """The command line; returns the exit code."""
    parser = make_parser(__doc__)
    parser.add_argument("name", metavar="NAME", nargs="?", help="of the slices; all when left out")
    arguments = parser.parse_args()
    asked = ["describe", check_name(arguments.name)] if arguments.name else ["list"]
    return execute(arguments, [*QUEUED, *asked, *where(arguments)])


if __name__ == "__main__":
    call(main)
