"""What a card says besides scores."""

import time

from supersam.export.facts import describe_latency
from supersam.model import extract_subnet


def test_the_latency_is_that_of_the_exported_model(make_supernet):
    supernet = make_supernet()
    sam = extract_subnet(supernet, supernet.space.smallest())
    fast = describe_latency(sam)
    sam.image_encoder.register_forward_hook(lambda *_: time.sleep(0.03))
    slow = describe_latency(sam)
    assert slow["median_ms"] > fast["median_ms"] + 15
    assert slow["device"] == fast["device"]
