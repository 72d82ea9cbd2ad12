"""Which weights a run uses: a folder, the hub's local cache, a download, or the embedded model."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from dittools.pipelines.errors import BadInput, RunFailed, first_line
from dittools.pipelines.folder import INDEX, check_folder

EMBEDDED, AUTO = "embedded", "auto"
_PROBE_SECONDS = 4.0
_REPO = re.compile(r"[\w.-]+/[\w.-]+")
_NEEDED = (".safetensors", ".json", ".txt", ".model")
_VARIANT = re.compile(r"\.(fp16|bf16|fp32|fp8)[.-]")


@dataclass(frozen=True)
class Weights:
    """A choice. `name` is what the record says: "embedded", a repo id, a folder. `folder` has the files.

    `folder` is None and `files` lists what is needed (`size` bytes in all) while they are still to download.
    """

    name: str
    folder: Path | None
    files: tuple[str, ...] = ()
    size: int = 0

    @property
    def embedded(self) -> bool:
        return self.name == EMBEDDED


class Unreachable(RunFailed):
    """The hub did not answer, or may not be asked."""


def looks_like_folder(asked: str) -> bool:
    """Whether `--weights` names a folder rather than a repo `owner/name`."""
    return os.path.isdir(os.path.expanduser(asked)) or not _REPO.fullmatch(asked) or asked.startswith((".", "~"))


def check_asked(asked: str, classes: Collection[str] = ()) -> Path | None:
    """Check what can be checked at once: the folder, if `--weights` names one, which is returned."""
    if asked in (AUTO, EMBEDDED) or not looks_like_folder(asked):
        return None
    if not asked:
        raise BadInput("--weights is empty: use auto, embedded, a repo id such as owner/name, or a folder")
    folder = Path(asked).expanduser()
    check_folder(folder, classes)
    return folder


def choose(
    asked: str,
    repo: str,
    *,
    cuda: bool,
    classes: Collection[str] = (),
    note: Callable[[str], None] = lambda text: None,
) -> Weights:
    """Decide on the weights. Only "auto" and a repo that is not in the cache may ask the network.

    asked: "auto", "embedded", a repo id or a folder. repo: the model's default checkpoint, for "auto".
    cuda: whether the run has a CUDA GPU: "auto" downloads nothing without one. note: told why "auto" gave up.
    """
    if asked == EMBEDDED:
        return embedded()
    folder = check_asked(asked, classes)
    if folder is not None:
        return Weights(asked, folder)
    if asked != AUTO:
        return cached(asked, classes) or remote(asked)
    here = cached(repo, classes)
    if here:
        return here
    why = f"{repo} is not in the local cache and there is no CUDA GPU to run it"
    if cuda:
        try:
            return remote(repo)
        except (Unreachable, BadInput) as error:
            why = str(error)
    note(f"{why}: using the small embedded model instead")
    return embedded()


def embedded() -> Weights:
    """The embedded model's folder, checked."""
    from dittools.pipelines import embedded as model

    try:
        folder = model.weights_path()
    except FileNotFoundError as error:
        raise BadInput(first_line(error)) from None
    check_folder(folder)
    return Weights(EMBEDDED, folder)


def cached(repo: str, classes: Collection[str] = ()) -> Weights | None:
    """The repo's snapshot in the local hub cache if every file it needs is there and whole, else None."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repo, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    if not (folder / INDEX).is_file():
        return None
    try:
        check_folder(folder)
    except BadInput:
        return None  # an unfinished download: asking the hub again completes it
    check_folder(folder, classes)
    return Weights(repo, folder)


def index_of(repo: str) -> Path | None:
    """A folder with the model_index.json of a repo, from the local cache or the hub; None where neither has it."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repo, INDEX, etag_timeout=_PROBE_SECONDS)).parent
    except Exception:  # whatever the HTTP library of the day raises: who needs the repo is told by `remote`
        return None


def remote(repo: str) -> Weights:
    """What a download of `repo` would fetch, and its size; also the probe whether the hub can be reached.

    Raises Unreachable, or BadInput for a repo that is unknown, closed, or no diffusers pipeline.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    try:
        found = HfApi().model_info(repo, files_metadata=True, timeout=_PROBE_SECONDS)
    except GatedRepoError:
        raise BadInput(f"{repo} asks for its terms to be accepted: do so on its page, then hf auth login") from None
    except (RepositoryNotFoundError, HFValidationError):
        raise BadInput(f"the hub has no model {repo}, or it is private: check --weights") from None
    except Exception as error:  # whatever the HTTP library of the day raises
        raise Unreachable(
            f"{repo} is not in the local cache and the hub could not be asked ({type(error).__name__})"
        ) from error
    files = {file.rfilename: file.size or 0 for file in found.siblings or [] if _is_needed(file.rfilename)}
    if INDEX not in files:
        raise BadInput(f"{repo} has no {INDEX}: it is no diffusers pipeline (look for one ending in -Diffusers)")
    return Weights(repo, None, tuple(sorted(files)), sum(files.values()))


def fetch(weights: Weights, classes: Collection[str] = (), note: Callable[[str], None] = lambda text: None) -> Path:
    """The weights' folder, downloading what is missing after saying how much it is."""
    if weights.folder is not None:
        return weights.folder
    from huggingface_hub import constants, snapshot_download

    cache = Path(constants.HF_HUB_CACHE)
    room = shutil.disk_usage(next(path for path in (cache, *cache.parents) if path.exists())).free
    if weights.size > room:
        raise RunFailed(
            f"{weights.name} needs {gigabytes(weights.size)} and {cache} has {gigabytes(room)} free: "
            "free some space, set HF_HOME to a larger disk, or use --weights embedded"
        )
    note(f"downloading {weights.name}: {gigabytes(weights.size)} in {len(weights.files)} files to {cache}")
    try:
        folder = Path(snapshot_download(weights.name, allow_patterns=list(weights.files)))
    except Exception as error:
        raise RunFailed(
            f"the download of {weights.name} stopped ({first_line(error)}): run again, it goes on from there"
        ) from error
    check_folder(folder, classes)
    return folder


def gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


def _is_needed(name: str) -> bool:
    """A pipeline's own files: model_index.json and, one folder down, weights, configs and vocabularies."""
    if name == INDEX:
        return True
    return name.count("/") == 1 and name.endswith(_NEEDED) and not _VARIANT.search(name)
