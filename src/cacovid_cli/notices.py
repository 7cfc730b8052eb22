"""Lines that belong beside an answer wherever it is shown."""

UNTRAINED = "the policy is untrained: expect answers of a random subset's quality"
