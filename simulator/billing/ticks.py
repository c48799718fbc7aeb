"""What the platform does by itself as time goes on: renewals, and the credit worker."""

from simulator.billing.crediting import run_worker
from simulator.billing.periods import renew_due
from simulator.state.platform import Platform


def tick(platform: Platform) -> None:
    """Catches up with the clock; cheap where nothing is due."""
    now = platform.now
    renew_due(platform, now)
    run_worker(platform, now)
