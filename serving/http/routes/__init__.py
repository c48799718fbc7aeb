"""All routes of the service, each module with those of its subject."""

from tidegate.serving.http.routes import (
    catalog,
    checks,
    customers,
    events,
    health,
    keys,
    limits,
    operations,
    streams,
)
from tidegate.serving.http.routing import Route

ROUTES: tuple[Route, ...] = (
    *events.ROUTES,
    *checks.ROUTES,
    *customers.ROUTES,
    *streams.ROUTES,
    *limits.ROUTES,
    *catalog.ROUTES,
    *operations.ROUTES,
    *keys.ROUTES,
    *health.ROUTES,
)
