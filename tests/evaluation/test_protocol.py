from cca_ray.evaluation.protocol import Protocol


def test_the_protocol_id_names_everything_a_score_depends_on():
    protocol = Protocol(extractor="a", reference="b", samples=100, seed=0, image_size=8)
    assert protocol.id == Protocol(extractor="a", reference="b", samples=100, seed=0, image_size=8).id
    changes = {"extractor": "c", "reference": "c", "samples": 101, "seed": 1, "image_size": 9, "guidance_scale": 1.5,
               "temperature": 0.9, "top_k": 5, "top_p": 0.9, "labels": "random", "resize": "bicubic",
               "precision": "bfloat16", "guidance_power": 2.75, "last_temperature": 0.5,
               "plugins": ("mine 1.0 abc",), "captions": "d"}  # fmt: skip
    ids = {protocol.model_copy(update={key: value}).id for key, value in changes.items()}
    assert set(changes) == set(Protocol.model_fields)
    assert len(ids | {protocol.id}) == len(changes) + 1


def test_the_ids_of_version_0_1_stay():
    """They are in the names of the files that keep scores, and in every table."""
    protocol = Protocol(extractor="a", reference="b", samples=100, seed=0, image_size=8)
    assert protocol.id == "fbed25d58a"
    assert protocol.model_copy(update={"guidance_power": 0.0, "last_temperature": None}).id == protocol.id
