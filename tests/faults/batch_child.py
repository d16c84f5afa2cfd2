"""A server with batches, to be killed: `python -m tests.faults.batch_child FOLDER ENGINE_URL`; prints its address."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from potstill.serving.batches.settings import BatchSettings
from potstill.serving.settings import ServeSettings
from tests.serving.mock_door import listening, server_before

if __name__ == "__main__":
    settings = ServeSettings(capture=None, batches=BatchSettings(share=1.0), slots=4)
    with listening(server_before(sys.argv[2], Path(sys.argv[1]), settings)) as url:
        print(url, flush=True)
        while True:
            time.sleep(1)
