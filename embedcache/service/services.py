"""Services: what the routes and the middleware of one application work with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from embedcache.service.access_log import AccessLog
from embedcache.service.auth import KeyRing
from embedcache.service.metrics import ServiceMetrics
from embedcache.service.settings import ServiceSettings
from embedcache.service.state import ServiceState

if TYPE_CHECKING:
    from embedcache.service.features import FeatureService
    from embedcache.service.predicting import PredictionService


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What the routes work with.

    Attributes:
        features: Stored features, and those computed for what is missing.
        predictions: The runs' predictions.
        settings: What the service was told.
        metrics: What it counts.
        auth: Its API keys.
        state: Whether it is ending, and the requests in flight.
        access_log: Where each request gets a line.
    """

    features: FeatureService
    predictions: PredictionService
    settings: ServiceSettings
    metrics: ServiceMetrics
    auth: KeyRing
    state: ServiceState = field(default_factory=ServiceState)
    access_log: AccessLog = field(default_factory=AccessLog)
