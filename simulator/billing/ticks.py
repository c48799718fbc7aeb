"""What the provider does by itself over time: renewals, and the credit worker."""

from simulator.billing.crediting import run_worker
from simulator.billing.periods import renew_due
from simulator.state.platform import Platform


def tick(platform: Platform) -> None:
    """Catch up with the clock; cheap if nothing is due."""
    now = platform.now
    renew_due(platform, now)
    run_worker(platform, now)
