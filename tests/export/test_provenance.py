"""What a card says besides scores."""

import time

from supersam.evaluation.latency import describe_latency
from supersam.model import extract_subnet
from supersam.runs.provenance import describe_start, describe_training_data
from supersam.runs.weights import WeightSource


def test_a_start_whose_checkpoint_is_gone_is_still_of_its_run(trained, synthetic_shards):
    gone = trained.folder / "checkpoints" / "step-000001"
    model = trained.model.model_copy(update={"checkpoint": gone})
    run = trained.model_copy(update={"model": model})
    assert describe_start(run).startswith(f"run `{trained.folder.name}`, ")
    data = describe_training_data(run, WeightSource(step=0))
    assert str(synthetic_shards) in {each["folder"] for each in data}


def test_the_latency_is_that_of_the_exported_model(make_supernet):
    supernet = make_supernet()
    sam = extract_subnet(supernet, supernet.space.smallest())
    fast = describe_latency(sam)
    sam.image_encoder.register_forward_hook(lambda *_: time.sleep(0.03))
    slow = describe_latency(sam)
    assert slow["median_ms"] > fast["median_ms"] + 15
    assert slow["device"] == fast["device"]
