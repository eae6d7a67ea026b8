"""TensorBoard on loopback, with the ssh tunnel line: python launch/monitor.py [--logdir DIR]"""

from supersam.cli import main

if __name__ == "__main__":
    main("monitor")
