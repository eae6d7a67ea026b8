"""A page about a search, or several: python launch/report.py RUN/results/search"""

from supersam.cli import main

if __name__ == "__main__":
    main("report")
