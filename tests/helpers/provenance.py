"""What every committed result says of its run."""


def check_provenance(record):
    assert record["config"]
    assert record["commit"]
    assert {"python", "torch", "transformers"} <= set(record["versions"])
    hardware = record["hardware"]
    assert hardware["cpu"]
    assert hardware["cores"] >= 1
    assert hardware["threads"] >= 1
    assert record["date"].endswith("+00:00")
