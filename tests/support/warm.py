"""What the process imports that ranks are forked from. They never look at it again for garbage.

ZeRO-3 collects garbage at each start: half a second each time among all that has been imported.
"""

from __future__ import annotations

from shardyard.imports import import_at_once

import_at_once("shardyard.engine.run", "support.tiny")
