"""What the fork server of tests imports once for all processes that it begins."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch starts its threads

import deepspeed  # noqa: F401 - loaded, not used
import pytest  # noqa: F401 - loaded, not used
import torch._dynamo  # noqa: F401  # the first step of an optimizer loads it

import supersam.design.session
import supersam.evaluation
import supersam.export.command
import supersam.search.tuner
import supersam.training.session  # noqa: F401 - loaded, not used
