"""List shipped configurations, print one or a schema: python launch/config.py [NAME]"""

from supersam.cli import main

if __name__ == "__main__":
    main("config")
