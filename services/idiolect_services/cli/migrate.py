"""idiolect migrate"""

from __future__ import annotations

from idiolect_services.cli.common import Home, console, settings_for
from idiolect_services.wiring import open_installation


def migrate(home: Home = None) -> None:
    """Bring the database to this version's schema, and check that this machine has the installation's keys.

    Every command does the same when it opens the database; before servers of a new version start, it is good to do it
    once. Where blobs have a place of their own (IDIOLECT_BLOB_URL), a live global model that lies here goes there.

    Example: idiolect migrate
    """
    with open_installation(settings_for(home)) as installation:
        installation.store.check()
        live = installation.store.live_global()
        if live is not None and (installation.models / live).is_dir():
            installation.share_model(live)
    console.print("The database is at this version's schema, and the keys are the installation's.")
