"""The catalog's tables of views: what they are, and what was measured of them."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

from sqlalchemy import ColumnElement, Table, case, delete, select
from sqlalchemy.dialects.sqlite import insert as upsert

from embedcache.errors import UnknownNameError
from embedcache.store.database import schema
from embedcache.store.database.catalog_shards import retire_shards
from embedcache.store.database.catalog_tables import CatalogTables, unknown_name
from embedcache.store.database.records import RetiredRecord, ViewRecord
from embedcache.view import FeatureView


class ViewTables(CatalogTables):
    """The views that the store knows, and what was measured of them."""

    def add_view(self, view: FeatureView, handle: str, *, preprocess: str = "") -> None:
        """Make a view known, or renew the handles of a known one."""
        row = {"view_json": view.to_json(), "handle": handle}
        statement = upsert(schema.views).values(
            fingerprint=view.fingerprint, created_at=time.time(), **row
        )
        details = upsert(schema.view_details).values(
            fingerprint=view.fingerprint, preprocess=preprocess, checked_texts=0, max_difference=0.0
        )
        with self._database.write() as connection:
            connection.execute(
                statement.on_conflict_do_update(index_elements=["fingerprint"], set_=row)
            )
            connection.execute(
                details.on_conflict_do_update(
                    index_elements=["fingerprint"], set_={"preprocess": preprocess}
                )
            )

    def add_check(self, fingerprint: str, *, texts: int, max_difference: float) -> None:
        """Keep what comparing some of a view's texts with its module has shown."""
        table = schema.view_details
        # Also where there is no row: a view of an older version's catalog has none.
        first = {"preprocess": "", "checked_texts": texts, "max_difference": max_difference}
        both = {
            "checked_texts": table.c.checked_texts + texts,
            "max_difference": _larger(table.c.max_difference, max_difference),
        }
        self._merge(table, fingerprint, first, both)

    def add_reconstruction(
        self,
        fingerprint: str,
        *,
        rows: int,
        squared_error: float,
        squared_norm: float,
        max_error: float,
    ) -> None:
        """Keep what storing some rows of a view has cost in precision.

        Args:
            fingerprint: The view's.
            rows: How many rows were looked at.
            squared_error: Sum of (stored - computed)² over their numbers.
            squared_norm: Sum of computed².
            max_error: The largest error of a number, as a share of its row's largest.
        """
        table = schema.view_errors
        sums = {"num_rows": rows, "squared_error": squared_error, "squared_norm": squared_norm}
        both = {name: table.c[name] + value for name, value in sums.items()}
        both["max_error"] = _larger(table.c.max_error, max_error)
        self._merge(table, fingerprint, sums | {"max_error": max_error}, both)

    def copy_measurements(self, fingerprint: str, other: ViewTables) -> None:
        """Tell another catalog, which has none, what was measured of a view."""
        with self._database.read() as connection:
            rows = {
                table: connection.execute(
                    select(table).where(table.c.fingerprint == fingerprint)
                ).first()
                for table in (schema.view_details, schema.view_errors)
            }
        checked, errors = rows.values()
        if checked is not None:
            other.add_check(
                fingerprint, texts=checked.checked_texts, max_difference=checked.max_difference
            )
        if errors is not None:
            other.add_reconstruction(
                fingerprint,
                rows=errors.num_rows,
                squared_error=errors.squared_error,
                squared_norm=errors.squared_norm,
                max_error=errors.max_error,
            )

    def _merge(
        self,
        table: Table,
        fingerprint: str,
        first: Mapping[str, Any],
        both: Mapping[str, Any],
    ) -> None:
        new = upsert(table).values(fingerprint=fingerprint, **first)
        with self._database.write() as connection:
            connection.execute(
                new.on_conflict_do_update(index_elements=["fingerprint"], set_=dict(both))
            )

    def views(self) -> list[ViewRecord]:
        """All views, oldest first."""
        views, details, errors = schema.views, schema.view_details, schema.view_errors
        statement = (
            select(
                views,
                details.c.preprocess,
                details.c.checked_texts,
                details.c.max_difference,
                errors.c.num_rows,
                errors.c.squared_error,
                errors.c.squared_norm,
                errors.c.max_error,
            )
            .outerjoin(details, views.c.fingerprint == details.c.fingerprint)
            .outerjoin(errors, views.c.fingerprint == errors.c.fingerprint)
            .order_by(views.c.created_at)
        )
        with self._database.read() as connection:
            rows = connection.execute(statement).all()
        with self._database.mapped_damage():
            return [
                ViewRecord(
                    row.fingerprint,
                    FeatureView.from_json(row.view_json),
                    row.handle,
                    row.preprocess or "",
                    row.checked_texts or 0,
                    row.max_difference or 0.0,
                    _rms_error(row.num_rows, row.squared_error, row.squared_norm),
                    row.max_error if row.num_rows else None,
                )
                for row in rows
            ]

    def find_view(self, prefix: str) -> ViewRecord:
        """The view whose fingerprint begins so.

        Raises:
            UnknownNameError: if none does, or several.
        """
        known = self.views()
        found = [record for record in known if record.fingerprint.startswith(prefix)]
        if prefix and len(found) == 1:
            return found[0]
        names = [record.fingerprint for record in known]
        raise UnknownNameError(unknown_name("view", prefix, names, several=len(found) > 1))

    def remove_view(self, fingerprint: str) -> list[RetiredRecord]:
        """Forget a view with all that was built under it, in one transaction.

        Its shards are retired; datasets and runs stay.

        Returns:
            The shards.
        """
        shards = schema.shards
        with self._database.write() as connection:
            digests = connection.execute(
                select(shards.c.digest).where(shards.c.view == fingerprint)
            ).scalars()
            retired = retire_shards(connection, digests.all())
            for table in (schema.builds, schema.uses):
                connection.execute(delete(table).where(table.c.view == fingerprint))
            for table in (schema.view_errors, schema.view_details, schema.views):
                connection.execute(delete(table).where(table.c.fingerprint == fingerprint))
        return retired


def _larger(column: ColumnElement[float], value: float) -> ColumnElement[float]:
    return case((column > value, column), else_=value)


def _rms_error(rows: int | None, error: float | None, norm: float | None) -> float | None:
    if not rows or error is None or norm is None:
        return None
    return math.sqrt(error / norm) if norm > 0 else 0.0
