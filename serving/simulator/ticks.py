"""What the platform does by itself as time goes on: renewals, and the credit worker."""

from serving.simulator.crediting import run_worker
from serving.simulator.periods import renew_due
from serving.simulator.platform import Platform


def tick(platform: Platform) -> None:
    """Catches up with the clock; cheap where nothing is due."""
    now = platform.now
    renew_due(platform, now)
    run_worker(platform, now)
