"""What a release before state folders had a marker left in the folder that a person names: it stays as it is."""

from pathlib import Path

from .state_folder import StateError, StateFolder

_FIRST_WORDS = "# Written by vllm-vitals at each start"  # of its prometheus.yml


def take_over(older: Path, folder: StateFolder) -> str:
    """Copy the routes of an older release's Alertmanager and return a sentence about what was found, or nothing.

    Its series are not taken over: they may be the demo's and the machine's in one. Raises StateError.
    """
    if not _is_older(older):
        return ""
    sentence = f"an older release's data stays in {older}, unused: it may mix demo and machine"
    routes = older / "alertmanager.yml"
    try:
        text = routes.read_text(encoding="utf-8")
    except FileNotFoundError:
        return sentence
    except (OSError, UnicodeDecodeError) as error:
        raise StateError(f"expected a readable file, found {routes}: {error}") from None
    return f"{sentence}. Its alertmanager.yml was copied: change {folder.write(routes.name, text)} from now on"


def _is_older(folder: Path) -> bool:
    try:
        written = (folder / "prometheus.yml").read_text(encoding="utf-8").startswith(_FIRST_WORDS)
        return written and (folder / "prometheus").is_dir()
    except (OSError, UnicodeDecodeError):
        return False
