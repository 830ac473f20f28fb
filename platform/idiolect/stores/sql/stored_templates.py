"""Reading the template of a release back. Whoever edited it by hand is told which one, and what to do."""

from __future__ import annotations

import json

from idiolect.errors import CorruptArtifactError, IdiolectError
from idiolect.registry.manifest import ReleaseTemplate
from idiolect.registry.strict import template_from_json


def template_of(text: str, release: str) -> ReleaseTemplate:
    """Raises CorruptArtifactError naming the release and the field."""
    try:
        return template_from_json(json.loads(text))
    except KeyError as error:
        raise _damaged(release, f"it lacks {error}") from error
    except (TypeError, ValueError, AttributeError, RecursionError) as error:
        raise _damaged(release, str(error)) from error
    except IdiolectError as error:
        raise _damaged(release, error.message) from error


def _damaged(release: str, why: str) -> CorruptArtifactError:
    return CorruptArtifactError(
        f"the stored template of release {release} was edited or damaged: {why.rstrip('.')}.",
        mend="Restore a backup; or revoke the release (idiolect registry revoke) and train again.",
    )
