"""Give a subnet away: python launch/export.py --run DIR --subnet smallest --out DIR --onnx"""

from supersam.cli import main

if __name__ == "__main__":
    main("export")
