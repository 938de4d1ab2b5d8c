"""Which pairs are positive, as kernels are told: by place or by class, and how many each row and column has."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

NO_ROW, NO_COLUMN = -1, -2  # of a pair that is never positive: they differ from each other and from all else


@dataclass(frozen=True)
class Positives:
    """A pair is positive if its places or its labels are equal.

    Attributes:
        row_targets: [B] int32, the column of the row's positive, or None.
        column_targets: [M] int32, the row of the column's positive, or None: nobody asks for the columns.
        row_labels, column_labels: [B] and [M] int32, or None.
        row_count: [B] int64.
        column_count: [M] int64; where the columns have no loss of their own, anything.
        bad: [B] bool, the rows whose target is no key, which count (so that they show) and match nothing; or None.
    """

    row_targets: Tensor | None
    column_targets: Tensor | None
    row_labels: Tensor | None
    column_labels: Tensor | None
    row_count: Tensor
    column_count: Tensor
    bad: Tensor | None = None

    @classmethod
    def of(
        cls,
        queries: int,
        keys: int | None,
        targets: Tensor | None,
        query_labels: Tensor | None,
        key_labels: Tensor | None,
        ignore_index: int,
        device: torch.device,
    ) -> Positives:
        """``keys`` is None where the keys are the queries: no pair of a query with itself is positive."""
        if query_labels is not None:
            return cls._by_label(query_labels, None if keys is None else key_labels, ignore_index)
        if targets is None:
            count = queries if keys is None else keys
            columns = torch.arange(count, dtype=torch.int32, device=device)
            rows, row_count = columns[:queries], torch.ones(queries, dtype=torch.int64, device=device)
            if count == queries:
                return cls(rows, columns, None, None, row_count, row_count.clone())
            columns = torch.where(columns < queries, columns, NO_COLUMN)  # the rest are nobody's positives
            return cls(rows, columns, None, None, row_count, (columns >= 0).long())
        counts = targets != ignore_index
        itself = torch.arange(queries, device=device) if keys is None else NO_ROW
        bad = counts & (
            (targets < 0) | (targets >= (queries if keys is None else keys)) | (targets == itself)
        )
        rows = torch.where(counts & ~bad, targets, NO_ROW).int()
        # With the queries for keys, a pair stands at two places, and the second is its column's.
        return cls(rows, rows if keys is None else None, None, None, counts.long(), counts.long(), bad)

    def with_columns(self, more: int) -> Positives:
        """With ``more`` columns behind the keys', which are nobody's positives."""
        if self.column_labels is None or not more:
            return self
        none = self.column_labels.new_full((more,), NO_COLUMN)
        return replace(self, column_labels=torch.cat((self.column_labels, none)))

    @classmethod
    def _by_label(cls, query_labels: Tensor, key_labels: Tensor | None, ignore_index: int) -> Positives:
        """A class is numbered by where its label begins among the sorted ones of the keys: int32 holds that.

        Sorting, unlike torch.unique, says nothing to the host, so that a GPU need not wait for it.
        """
        of_keys = query_labels if key_labels is None else key_labels
        itself = 1 if key_labels is None else 0
        begin, end = _among(query_labels, of_keys)
        row_count = torch.where(query_labels == ignore_index, 0, end - begin - itself)
        rows = torch.where((query_labels == ignore_index) | (begin == end), NO_ROW, begin)
        columns = torch.where(of_keys == ignore_index, NO_COLUMN, _among(of_keys, of_keys)[0])
        begin, end = _among(of_keys, query_labels)
        column_count = torch.where(of_keys == ignore_index, 0, end - begin - itself)
        return cls(None, None, rows.int(), columns.int(), row_count, column_count)


def _among(labels: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Where each label begins and ends among the sorted others: equal places if it is not there."""
    ordered, labels = others.sort().values, labels.contiguous()
    return torch.searchsorted(ordered, labels), torch.searchsorted(ordered, labels, right=True)
