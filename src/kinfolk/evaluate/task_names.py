"""From what a user calls tasks to tasks of lm-eval that are ready to run, their questions read and checked."""

import hashlib
import inspect
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

import evaluate
import lm_eval
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from kinfolk.errors import KinfolkError, in_short
from kinfolk.evaluate.harness import silence
from kinfolk.files import sha256

LOCAL = Path(__file__).with_name("local_tasks")
"""Folder of the task files that kinfolk brings along."""

_FEWSHOT_SEED = 1234
"""lm-eval's own, which chooses the examples in front of a question."""


@dataclass(frozen=True)
class AskedTask:
    """A task, or a group of tasks that has figures of its own, as lm-eval loads it."""

    name: str
    loaded: dict[str, Any]
    """`tasks` and `groups` by name."""

    @property
    def tasks(self) -> dict[str, Any]:
        """lm-eval's tasks by name: one, or the parts of a group."""
        found: dict[str, Any] = self.loaded["tasks"]
        return found

    def prepare(self) -> None:
        """Set what lm-eval's command line sets before a run: no examples unless the task says so, and their seed."""
        for task in self.tasks.values():
            if task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=_FEWSHOT_SEED)

    def digest(self, limit: int | None) -> str:
        """SHA-256 over all that decides on the figures apart from the model: questions, prompts, metrics, versions."""
        found = hashlib.sha256(f"{self.name} {lm_eval.__version__} {limit}".encode())
        for name, task in sorted(self.tasks.items()):
            config = {key: value for key, value in task.dump_config().items() if key != "metadata"}
            found.update(json.dumps([name, task.VERSION, config, _sources(task)], sort_keys=True, default=str).encode())
            for part in (_documents(task, limit), task.fewshot_docs() if config.get("num_fewshot") else ()):
                for document in part:
                    found.update(json.dumps(document, sort_keys=True, default=str).encode())
        return found.hexdigest()


def load_tasks(names: Sequence[str], task_data: Path | None) -> list[AskedTask]:
    """Load tasks by lm-eval's names (also patterns), by those of kinfolk's own task files, or from task files (.yaml).

    Tags, and groups without figures of their own, stand for their parts. `task_data` is the folder with the questions
    of kinfolk's own tasks. Raises KinfolkError for an unknown task, a broken task file, questions that cannot be had,
    and tasks that need what is not given here: code from the hub, code that models write, images.
    """
    if not names:
        raise KinfolkError("there is no task to run", fix="name one or more, such as local_lambada,arc_easy")
    shelf = _Shelf(task_data)
    asked = dict.fromkeys(unit for name in names for unit in shelf.units(name))
    with silence():
        found = [shelf.load(name) for name in asked]
    twice = [name for name, count in Counter(task.name for task in found).items() if count > 1]
    if twice:
        raise KinfolkError(f"two tasks are called {twice[0]}", fix="give one of them another name, or leave it out")
    return found


class _Shelf:
    """lm-eval's indexes of tasks; that of its own 14,000 files is read only when it is needed."""

    def __init__(self, task_data: Path | None) -> None:
        self._metadata = {} if task_data is None else {"task_data": str(task_data.resolve())}
        self._managers: dict[str, Any] = {}

    @cached_property
    def ours(self) -> Any:
        with silence():
            return TaskManager(include_path=[LOCAL], include_defaults=False, metadata=self._metadata)

    @cached_property
    def theirs(self) -> Any:
        with silence():
            return TaskManager()

    def units(self, name: str) -> Iterator[str]:
        """The tasks, and groups with figures, that a name stands for."""
        if name.endswith((".yaml", ".yml")):
            yield from self._in_file(Path(name))
            return
        manager = self.ours if self.ours.match_tasks([name]) else self.theirs
        found = manager.match_tasks([name])
        if not found:
            raise _unknown(name, self.ours.all_tasks, self.theirs.all_tasks)
        for each in found:
            yield from self._parts(manager, each)

    def load(self, name: str) -> AskedTask:
        """A task that `units` has named."""
        manager = self._managers[name]
        try:
            with _no_code_from_the_hub():
                loaded = manager.load([name])
        except KinfolkError as error:
            raise KinfolkError(error.problem, where=f"task {name}: {error.where}", fix=error.fix) from error
        except Exception as error:  # YAML, jinja, datasets and the network each raise their own
            raise _not_loaded(name, error) from error
        asked = AskedTask(next(iter(loaded["groups"] or loaded["tasks"])), loaded)
        for part, task in asked.tasks.items():
            _check(part, task)
        return asked

    def _parts(self, manager: Any, name: str) -> Iterator[str]:
        entry = manager.task_index[name]
        config = entry.cfg or {}
        if entry.kind.name == "TAG":
            members = sorted(entry.tags)
        elif entry.kind.name == "GROUP" and not config.get("aggregate_metric_list") and _all_names(config.get("task")):
            members = config["task"]
        else:
            self._managers[name] = manager
            yield name
            return
        for member in members:
            if member not in manager.task_index:
                raise KinfolkError(f"{name} names a task {member!r} that is not there", fix="correct the task file")
            yield from self._parts(manager, member)

    def _in_file(self, path: Path) -> Iterator[str]:
        """What a task file defines; the other files of a group's folder come along, for it names them."""
        if not path.is_file():
            raise KinfolkError("there is no such task file", where=str(path), fix="give the path of a task file (YAML)")
        try:
            config = load_yaml(path, resolve_func=False)
            name = config.get("group") or config["task"]
        except Exception as error:  # yaml's, lm-eval's and Python's own
            raise KinfolkError(
                f"no task file of lm-eval: {in_short(error)}", where=str(path), fix="see lm-eval's guide to new tasks"
            ) from error
        if "group" not in config:
            self._managers[str(path)] = self.ours
            yield str(path)
            return
        with silence():
            manager = TaskManager(include_path=[path.parent], include_defaults=False, metadata=self._metadata)
        yield from self._parts(manager, name)


def _all_names(members: Any) -> bool:
    return isinstance(members, list) and all(isinstance(member, str) for member in members)


def _unknown(name: str, ours: list[str], theirs: list[str]) -> KinfolkError:
    near = get_close_matches(name, [*ours, *theirs], n=3, cutoff=0.7)
    nearest = f"did you mean {' or '.join(near)}? " if near else ""
    return KinfolkError(
        f"there is no task {name!r}",
        fix=f"{nearest}use a task of lm-eval (`lm_eval ls tasks` has them all), the path of a task file, or "
        f"{', '.join(ours)}",
    )


def _not_loaded(name: str, error: Exception) -> KinfolkError:
    if isinstance(error, OSError) or "offline" in str(error).lower() or type(error).__name__ == "DatasetNotFoundError":
        return KinfolkError(
            f"the questions cannot be had: {in_short(error)}",
            where=f"task {name}",
            fix="check the network and the task's dataset; the tasks local_... read files that are here",
        )
    return KinfolkError(
        f"the task cannot be used: {in_short(error)}", where=f"task {name}", fix="correct the task file"
    )


def _check(name: str, task: Any) -> None:
    """Refuse what would fail, or run code, only once the model is loaded."""
    if getattr(task, "UNSAFE_CODE", False):
        raise KinfolkError(
            "the task runs code that the model writes", where=f"task {name}", fix="use lm-eval itself, in a sandbox"
        )
    if getattr(task, "MULTIMODAL", False):
        raise KinfolkError("the task needs images or sound", where=f"task {name}", fix="use a task of text")
    lacking = [metric for metric, compute in getattr(task, "_metric_fn_list", {}).items() if compute is None]
    if lacking and task.config.process_results is None:
        raise KinfolkError(
            f"lm-eval has no metric {lacking[0]!r} of its own, and code from the hub is not run",
            where=f"task {name}",
            fix="use a task with other metrics, or lm-eval itself",
        )
    if not len(task.eval_docs):
        raise KinfolkError("the task has no questions", where=f"task {name}", fix="check its dataset and split")


@contextmanager
def _no_code_from_the_hub() -> Iterator[None]:
    """Metrics that lm-eval lacks it would fetch from the hub, as Python code."""

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError("code from the hub is not run")

    fetch = evaluate.load
    evaluate.load = refuse
    try:
        yield
    finally:
        evaluate.load = fetch


def _documents(task: Any, limit: int | None) -> Iterator[Any]:
    return (document for _, document in task.doc_iterator(limit=limit))


def _sources(task: Any) -> list[str]:
    """Hashes of the Python files whose functions a task calls."""
    config = vars(task.config)
    called: list[Callable[..., Any]] = [value for value in config.values() if callable(value)]
    called += [value for metric in config.get("metric_list") or () for value in metric.values() if callable(value)]
    files = {inspect.getsourcefile(function) for function in called if inspect.isfunction(function)}
    return sorted(sha256(Path(file)) for file in files if file is not None and Path(file).is_file())
