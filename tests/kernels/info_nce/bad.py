"""The calls of info_nce that must fail."""

from __future__ import annotations

import torch

import cpl_kernels
from tests.kernels.spec import Bad

Q, K, L = torch.zeros(4, 3), torch.zeros(6, 3), torch.zeros(4, dtype=torch.int64)
loss = cpl_kernels.info_nce
BAD = {
    "no positive said": Bad(
        lambda: loss(Q), ValueError, "key=None the positives must be said.*SimCLR.*SupCon"
    ),
    "fewer keys": Bad(lambda: loss(Q, K[:3]), ValueError, "M must be at least B = 4, got M = 3"),
    "both": Bad(lambda: loss(Q, Q, L, L, L), ValueError, "targets .* or labels .*not both"),
    "query labels alone": Bad(lambda: loss(Q, Q, query_labels=L), ValueError, "key_labels is missing"),
    "key labels alone": Bad(lambda: loss(Q, Q, key_labels=L), ValueError, "query_labels is missing"),
    "key labels, no key": Bad(
        lambda: loss(Q, query_labels=L, key_labels=L), ValueError, "leave key_labels out"
    ),
    "symmetric, B < M": Bad(lambda: loss(Q, K, symmetric=True), ValueError, "B = 4 and M = 6"),
    "symmetric targets": Bad(lambda: loss(Q, Q, L, symmetric=True), ValueError, "does not go with targets"),
    "symmetric none": Bad(
        lambda: loss(
            Q, K, query_labels=L, key_labels=torch.zeros(6).long(), symmetric=True, reduction="none"
        ),
        ValueError,
        'reduction="none" needs B = M, got B = 4 and M = 6',
    ),
    "target too large": Bad(
        lambda: loss(Q, K, L + 6),
        ValueError,
        "from 0 to M-1 = 5 or ignore_index = -100, got 6",
    ),
    "target negative": Bad(lambda: loss(Q, K, L - 1), ValueError, "got -1"),
    "own target": Bad(lambda: loss(Q, targets=torch.arange(4)), ValueError, r"targets\[i\] = i"),
    "query rank": Bad(lambda: loss(Q[0], K), ValueError, r"query must be \[B, D\].*\(3,\)"),
    "no features": Bad(lambda: loss(Q[:, :0], K[:, :0]), ValueError, "at least one feature"),
    "query dtype": Bad(lambda: loss(Q.int(), K), TypeError, "query.*int32"),
    "key dtype": Bad(
        lambda: loss(Q, K.double()), TypeError, "key is torch.float64 but query is torch.float32"
    ),
    "key features": Bad(lambda: loss(Q, K[:, :2]), ValueError, r"key \(6, 2\).*D = 3"),
    "key rank": Bad(lambda: loss(Q, K[0]), ValueError, r"key must be \[M, D\]"),
    "queue features": Bad(lambda: loss(Q, K, queue=K[:, :2]), ValueError, r"queue \(6, 2\).*D = 3"),
    "queue dtype": Bad(lambda: loss(Q, K, queue=K.bfloat16()), TypeError, "queue is torch.bfloat16"),
    "targets dtype": Bad(lambda: loss(Q, K, L.int()), TypeError, "targets must be int64, got torch.int32"),
    "targets shape": Bad(lambda: loss(Q, K, L[:2]), ValueError, r"targets.*\(4,\).*\(2,\)"),
    "key labels shape": Bad(
        lambda: loss(Q, K, query_labels=L, key_labels=L), ValueError, r"key_labels.*\(6,\)"
    ),
    "temperature 0": Bad(lambda: loss(Q, K, temperature=0.0), ValueError, "positive finite number, got 0.0"),
    "temperature NaN": Bad(lambda: loss(Q, K, temperature=float("nan")), ValueError, "got nan"),
    "temperature tensor": Bad(lambda: loss(Q, K, temperature=torch.tensor(-1.0)), ValueError, "got -1.0"),
    "temperature shape": Bad(
        lambda: loss(Q, K, temperature=torch.ones(2)), ValueError, r"temperature.*\(2,\)"
    ),
    "temperature dtype": Bad(
        lambda: loss(Q, K, temperature=torch.tensor(1)), TypeError, "temperature.*int64"
    ),
    "reduction": Bad(lambda: loss(Q, K, reduction="avg"), ValueError, "'mean', 'sum', 'none', got 'avg'"),
    "device": Bad(lambda: loss(Q, K.to("meta")), ValueError, "key is on meta"),
    "backend": Bad(lambda: loss(Q, K, backend="fast"), ValueError, "'reference'.*'fast'"),
}
