"""The few calls of the hub that publishing needs, by huggingface_hub; every failure becomes one sentence."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from kinfolk import files
from kinfolk.errors import KinfolkError, in_short

if TYPE_CHECKING:
    from huggingface_hub import HfApi


def hub_api(endpoint: str | None = None) -> "HfApi":
    """The hub, for the token of HF_TOKEN or `hf auth login`. KinfolkError without one; asks nothing of the network."""
    from huggingface_hub import HfApi, get_token

    token = get_token()
    if not token:
        raise KinfolkError(
            "there is no access token of the hub", fix="log in with `hf auth login`, or set HF_TOKEN to a write token"
        )
    return HfApi(endpoint=endpoint, token=token, library_name="kinfolk")


def check_rights(api: "HfApi", repositories: Sequence[str]) -> None:
    """Refuse before any upload: no network, a token that is refused or only reads, somebody else's repositories."""
    with explained(api, "the hub does not accept the token"):
        who = api.whoami()
    role = who.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise KinfolkError("the access token may only read", fix="make one that may write, and log in with it")
    owners = {who.get("name"), *(each.get("name") for each in who.get("orgs", []))}
    for repository in repositories:
        owner = repository.partition("/")[0]
        if owner not in owners:
            raise KinfolkError(
                f"the token belongs to {who.get('name')}, who has no part in {owner}",
                where=repository,
                fix=f"use --to {who.get('name')}/NAME, or a token of {owner}",
            )


def visibility(api: "HfApi", repository: str) -> bool | None:
    """Whether a repository is private; None where there is none yet."""
    from huggingface_hub.errors import RepositoryNotFoundError

    with explained(api, f"{repository} cannot be looked at"):
        try:
            return bool(api.model_info(repository).private)
        except RepositoryNotFoundError:
            return None


def differing(
    api: "HfApi",
    repository: str,
    folder: Path,
    names: Sequence[str],
    instead: Mapping[str, bytes] = MappingProxyType({}),
) -> list[str]:
    """The files that the repository does not have, or has with other bytes; `instead` are bytes to be in a file."""
    with explained(api, f"the files of {repository} cannot be listed"):
        found = {each.path: each for each in api.get_paths_info(repository, list(names))}
    return [name for name in names if not _is_same(folder / name, instead.get(name), found.get(name))]


def upload(
    api: "HfApi", repository: str, private: bool, folder: Path, names: Sequence[str], message: str
) -> tuple[str, str]:
    """Make the repository if need be, and send the files in one commit; returns its address and id.

    KinfolkError where anything fails, also where the hub afterwards holds other bytes than the folder.
    """
    from huggingface_hub import CommitOperationAdd

    with explained(api, f"{repository} cannot be made"):
        api.create_repo(repository, private=private, exist_ok=True)
    operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in names]
    with explained(api, f"the upload to {repository} failed; the same command goes on with it"):
        commit = api.create_commit(repository, operations, commit_message=message)
    wrong = differing(api, repository, folder, names)
    if wrong:
        raise KinfolkError(
            f"the hub does not hold what was sent: {', '.join(wrong)}", where=repository, fix="publish again"
        )
    return commit.commit_url, commit.oid


@contextmanager
def explained(api: "HfApi", what: str) -> Iterator[None]:
    """Turn whatever the library raises into a KinfolkError, without the token and without a traceback."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        yield
    except KinfolkError:
        raise
    except OfflineModeIsEnabled as error:
        raise KinfolkError("the network is switched off (HF_HUB_OFFLINE)", fix="unset HF_HUB_OFFLINE") from error
    except HfHubHTTPError as error:
        raise KinfolkError(
            f"{what}: {in_short(error)}", where=api.endpoint, fix=_FIXES.get(_status(error), "try again later")
        ) from error
    except ValueError as error:
        raise KinfolkError(f"{what}: {in_short(error)}", where=api.endpoint, fix="mend what it names") from error
    except Exception as error:  # the errors of whichever HTTP library huggingface_hub uses
        raise KinfolkError(
            f"the hub cannot be reached: {in_short(error)}", where=api.endpoint, fix="check the network and HF_ENDPOINT"
        ) from error


_FIXES = {
    401: "log in again with `hf auth login`, or set HF_TOKEN",
    403: "use a token that may write to this repository",
    409: "wait until the other upload is done, and publish again",
}


def _status(error: Any) -> int:
    return int(getattr(getattr(error, "response", None), "status_code", 0) or 0)


def _is_same(path: Path, content: bytes | None, remote: Any) -> bool:
    """Whether the hub's record of a file is of these bytes: by SHA-256 of large files, by git's hash of small ones."""
    size = path.stat().st_size if content is None else len(content)
    if remote is None or remote.size != size:
        return False
    large = getattr(remote, "lfs", None)
    if large is not None:
        return bool(large.sha256 == (files.sha256(path) if content is None else hashlib.sha256(content).hexdigest()))
    return bool(remote.blob_id == git_hash(path.read_bytes() if content is None else content))


def git_hash(content: bytes) -> str:
    """What git calls a file's content: SHA-1 over a header and the bytes."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
