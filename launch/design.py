"""Design a space: python launch/design.py --data DIR --checkpoint FILE_OR_RUN --out space.yaml"""

from supersam.cli import main

if __name__ == "__main__":
    main("design")
