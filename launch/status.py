"""Where runs stand, and why one failed: python launch/status.py [RUN] [--why] [--follow]"""

from supersam.cli import main

if __name__ == "__main__":
    main("status")
