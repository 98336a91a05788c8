"""``python -m everloop`` is the command line."""

from everloop.cli.main import run

if __name__ == "__main__":
    run()
