"""`python -m simulator` is the same command as `shardwise`."""

from __future__ import annotations

if __name__ == "__main__":
    from simulator.cli import main

    main()
