"""The memory of an image with many objects follows those that are looked at."""

import os
import subprocess
import sys

import pytest

SCORE = """
import sys, torch
from supersam.evaluation.evaluator import score_image
from tests.evaluation.scenes import eval_image, smooth_logits

def resident_mib():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20

class Blobs:
    def predict(self, images, sizes, points, labels):
        n = points.shape[1]
        used.append(resident_mib())
        return smooth_logits(n, cells=32, generator=generator)[None], torch.ones(1, n, 4)

torch.set_num_threads(1)
generator, used = torch.Generator().manual_seed(0), []
masks = torch.zeros(120, 1500, 1500, dtype=torch.bool)
for place, mask in enumerate(masks):
    mask[10 * place : 10 * place + 200, 100 : 100 + 7 * place + 50] = True
image = eval_image(masks, side=128, size=(128, 128), sample_id=1)
del masks
score_image(Blobs(), image, boundary=True, prompts_per_call=20)
print(used[-1] - used[1])
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_objects_scored():
    # Freed blocks above 64 KiB go back to the system, so that what is resident is what is used.
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(64 * 1024)}
    done = subprocess.run(
        [sys.executable, "-c", SCORE], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    # 80 objects held at full size are 170 MiB of masks, and 710 MiB of logits.
    assert float(done.stdout) < 40
