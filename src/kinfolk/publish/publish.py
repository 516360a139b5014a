"""From checkpoints to repositories: everything is looked at first, shown, and only then sent."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinfolk import files
from kinfolk.build.remaining import unfinished_members
from kinfolk.build.renew import README, is_member
from kinfolk.build.snapshot import open_existing
from kinfolk.errors import KinfolkError
from kinfolk.family.load import load_family
from kinfolk.publish import hub
from kinfolk.publish.card import card_for
from kinfolk.publish.contents import contents_of
from kinfolk.publish.names import check_name, repository_names

if TYPE_CHECKING:
    from huggingface_hub import HfApi


@dataclass(frozen=True)
class Publication:
    """One checkpoint and its repository."""

    folder: Path
    repository: str
    names: tuple[str, ...]
    left_out: tuple[str, ...]
    card: str | None
    """The card that goes up; None where the folder's own is left as it is."""

    def sizes(self) -> dict[str, int]:
        """Bytes of every file that belongs in the repository."""
        found = {name: (self.folder / name).stat().st_size for name in self.names if (self.folder / name).is_file()}
        return found | ({README: len(self.card.encode())} if self.card is not None else {})


@dataclass(frozen=True)
class Published:
    """What became of one."""

    publication: Publication
    status: str
    """"dry run", "unchanged" or "published"."""
    uploaded: tuple[str, ...] = ()
    url: str | None = None
    commit: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "folder": str(self.publication.folder),
            "repository": self.publication.repository,
            "status": self.status,
            "files": [{"name": name, "bytes": size} for name, size in self.publication.sizes().items()],
            "left_out": list(self.publication.left_out),
            "card_is_kept": self.publication.card is None,
            "uploaded": list(self.uploaded),
            "url": self.url,
            "commit": self.commit,
        }


def plan_publications(source: Path, to: str, bases: Sequence[str], force: bool) -> list[Publication]:
    """What would go where. Reads the disk alone; KinfolkError for whatever is not to be published."""
    folders, family = _folders(source, force)
    for base in bases:
        check_name(base, "--base-model")
    names = repository_names(to, folders, family)
    members = {folder.resolve().name: name for folder, name in names.items()}
    found = []
    for folder in folders:
        contents = contents_of(folder, force)
        card = card_for(folder, names[folder], members, bases)
        if card is None and bases:
            raise KinfolkError(
                "the card is not as kinfolk wrote it, so that --base-model cannot be put into it",
                where=str(folder / README),
                fix="write base_model there yourself, and leave --base-model out",
            )
        listed = sorted({*contents.names, *([README] if card is not None else [])})
        found.append(Publication(folder, names[folder], tuple(listed), contents.left_out, card))
    return found


def publish(
    publications: Sequence[Publication],
    private: bool,
    confirm: Callable[[dict[str, list[str]]], bool],
    endpoint: str | None = None,
) -> list[Published]:
    """Send what the hub does not have yet, after `confirm` has been shown it, by repository; [] where it declines.

    The folders' cards are replaced by the ones that go up, so that folder and repository are the same. KinfolkError
    before any upload for a missing token, no network, and repositories that are not the user's or of another
    visibility.
    """
    api = hub.hub_api(endpoint)
    hub.check_rights(api, [each.repository for each in publications])
    new = {each.repository: _is_new(api, each.repository, private) for each in publications}
    lacking = {each.repository: _lacking(api, each, new[each.repository]) for each in publications}
    if any(lacking.values()) and not confirm(lacking):
        return []
    return [_send(api, each, private, lacking[each.repository]) for each in publications]


def _folders(source: Path, force: bool) -> tuple[list[Path], str | None]:
    """The checkpoints that are meant, and the name of their family if they are members of a run."""
    if (source / "family.yaml").is_file():
        run = open_existing(source)
        missing = unfinished_members(run)
        wanted = [stage.member for stage in run.plan.stages if stage.member is not None]
        if missing and not force:
            raise KinfolkError(
                f"{len(missing)} of {len(wanted)} members are not finished: {', '.join(sorted(missing))}",
                where=str(source),
                fix="go on with the build, or publish one member; --force publishes those that are finished",
            )
        folders = [run.member(name) for name in wanted if name not in missing]
        if not folders:
            raise KinfolkError("the run has no finished member yet", where=str(source), fix="go on with the build")
        return folders, run.family.name
    if not source.is_dir():
        raise KinfolkError("there is no such folder", where=str(source), fix="give a run directory or a checkpoint")
    if is_member(source):
        return [source], load_family(str(source.resolve().parent.parent / "family.yaml")).family.name
    return [source], None


def _is_new(api: "HfApi", repository: str, private: bool) -> bool:
    """Whether there is no such repository yet; KinfolkError for one of another visibility."""
    found = hub.visibility(api, repository)
    if found is None:
        return True
    if found != private:
        raise KinfolkError(
            f"the repository is {'private' if found else 'public'} already",
            where=repository,
            fix="leave out --public, or change it in the repository's settings"
            if found
            else "give --public, or another name",
        )
    return False


def _lacking(api: "HfApi", publication: Publication, is_new: bool) -> list[str]:
    """The files that the hub lacks."""
    if is_new:
        return list(publication.names)
    card = {} if publication.card is None else {README: publication.card.encode()}
    return hub.differing(api, publication.repository, publication.folder, publication.names, card)


def _send(api: "HfApi", publication: Publication, private: bool, lacking: Sequence[str]) -> Published:
    if not lacking:
        return Published(publication, "unchanged")
    if publication.card is not None:
        files.write_text(publication.folder / README, publication.card)
    message = f"Upload {publication.folder.resolve().name} with kinfolk"
    url, commit = hub.upload(api, publication.repository, private, publication.folder, lacking, message)
    return Published(publication, "published", tuple(lacking), url, commit)
