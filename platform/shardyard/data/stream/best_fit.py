"""Best-fit decreasing: items packed into bins of one size without cutting any.

Legend: n = items, C = room of a bin.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from heapq import heappop, heappush

import numpy as np


def best_fit(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Indices of items packed into bins of `room`: the longest first, each into the fullest bin that it fits.

    Best-fit decreasing needs at most 11/9 of the fewest bins (Johnson 1973); for documents and rows, Ding et al. 2024
    ("Fewer Truncations Improve Language Modeling"). An item longer than `room` has a bin of its own. Of equal items the
    earlier goes first, of equally full bins the older is filled; items of a bin keep their order.

    O(n log n): bins are kept by their free space, of which there are at most C different ones.
    """
    bins: list[list[int]] = []
    spaces = list[int]()  # the different free spaces, ascending
    open_bins = dict[int, list[int]]()  # free space → heap of the numbers of its bins
    for item in np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable").tolist():
        length = lengths[item]
        place = bisect_left(spaces, length)
        if place == len(spaces):
            space, number = room, len(bins)
            bins.append([item])
        else:
            space = spaces[place]
            number = heappop(open_bins[space])
            bins[number].append(item)
            if not open_bins[space]:
                del spaces[place], open_bins[space]
        left = space - length
        if left in open_bins:
            heappush(open_bins[left], number)
        elif left > 0:
            open_bins[left] = [number]
            spaces.insert(bisect_left(spaces, left), left)
    return [sorted(found) for found in bins]
