"""exchanges: a measuring pass over the same samples in other batches, which exchange samples with one another."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from torch import distributed

from tvgrad.integrations.measuring.pass_options import PassOptions
from tvgrad.integrations.measuring.ranks import ranks
from tvgrad.record.exchange import Exchange


def exchanges(plan: PassOptions) -> Callable[[Any], Callable[[Callable[[], Any]], Any]] | None:
    """Prepare what gives a script other batches than its loaders fetch.

    Args:
        plan: what the pass does.

    Returns:
        Makes, for each pass over a loader, what `LoaderWatch` takes as its parts; None where batches stay as they are.
    """
    if not plan.exchange:
        return None
    of_loaders: weakref.WeakKeyDictionary[Any, Exchange] = weakref.WeakKeyDictionary()

    def parts(loader: Any) -> Callable[[Callable[[], Any]], Any]:
        own = distributed.get_rank() if ranks() > 1 else 0
        count = plan.exchange[own] if own < len(plan.exchange) else 0
        return of_loaders.setdefault(loader, Exchange(count)).parts()

    return parts
