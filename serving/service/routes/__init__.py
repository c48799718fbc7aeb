"""All routes of the service, each module with those of its subject."""

from serving.service.routes import catalog, checks, customers, events, health
from serving.service.routing import Route

ROUTES: tuple[Route, ...] = (
    *events.ROUTES,
    *checks.ROUTES,
    *customers.ROUTES,
    *catalog.ROUTES,
    *health.ROUTES,
)
