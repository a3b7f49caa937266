"""Where plans are kept: a plan is code, so only what this user built on this machine is ever read back.

Every plan has a JSON sidecar that says what it was built for, with a seal (HMAC) under a secret that never
leaves the folder. A plan that was replaced, cut short or carried in from elsewhere has no seal that fits.
"""

import contextlib
import fcntl
import hashlib
import hmac
import json
import os
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from brainseg_runtime.errors import EngineUnavailable, OutputUnwritable
from brainseg_runtime.files import remove, write_atomically
from brainseg_runtime.plans.building import Built
from brainseg_runtime.plans.request import Request

__all__ = ["Entry", "PlanCache", "default_folder"]

SECRET, SECRET_BYTES = "secret", 32

FORMAT = 1
"""Of the sidecar."""


def default_folder() -> Path:
    """Where the system keeps a user's caches."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "brainseg" / "plans"


@dataclass(frozen=True)
class Entry:
    """A plan in the cache, as its sidecar tells it."""

    key: str
    built_for: Mapping[str, Any]
    """The request; empty where the sidecar cannot be read, or is not to be believed."""
    size: int
    built: str
    """When, in UTC."""
    problem: str = ""
    """Why it would not be loaded; empty for a sound one."""


@dataclass(frozen=True)
class PlanCache:
    """A folder of plans that belongs to one user."""

    folder: Path

    @classmethod
    def open(cls, folder: Path | None = None) -> "PlanCache":
        """The cache in a folder, which is made where there is none.

        Raises:
            OutputUnwritable: ``E_OUTPUT`` where it cannot be made.
            EngineUnavailable: ``E_PLAN_CACHE`` where others could write into it.
        """
        folder = folder or default_folder()
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            found = folder.stat()
        except OSError as error:
            raise OutputUnwritable(
                "E_OUTPUT",
                f"the folder of plans {folder} cannot be made: {error}.",
                "Check space and rights.",
            ) from error
        _require_private(folder, found, "the folder of plans")
        return cls(folder)

    def obtain(self, request: Request, make: Callable[[], Built]) -> bytes:
        """The plan from the cache, or a new one that is then kept; one process builds, others wait for it.

        Raises:
            OutputUnwritable: ``E_OUTPUT``; and whatever ``make`` raises.
        """
        with self._locked(request.key):
            plan = self.get(request)
            if plan is None:
                built = make()
                self.put(request, built)
                plan = built.plan
            return plan

    def get(self, request: Request) -> bytes | None:
        """The bytes of a plan, checked as they were read; none where there is no sound one."""
        plan, entry = self._read(request.key)
        # A plan may be moved together with its sidecar to where another is looked for.
        wanted = json.loads(json.dumps(request.to_dict()))
        return plan if not entry.problem and entry.built_for == wanted else None

    def put(self, request: Request, built: Built) -> None:
        """Keep a plan; the sidecar comes last, so that its presence means that both are whole.

        Raises:
            OutputUnwritable: ``E_OUTPUT``.
        """
        sidecar: dict[str, Any] = {
            "format": FORMAT,
            "built_for": request.to_dict(),
            "sha256": hashlib.sha256(built.plan).hexdigest(),
            "size": len(built.plan),
            "built": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        plan_path, sidecar_path = self._paths(request.key)
        remove(sidecar_path)
        write_atomically(plan_path, built.plan)
        text = json.dumps({**sidecar, "seal": self._seal(sidecar)}, indent=1, sort_keys=True) + "\n"
        write_atomically(sidecar_path, text.encode())

    def entries(self) -> Iterator[Entry]:
        """Every plan of the cache, each checked in full."""
        keys = {path.stem for pattern in ("*.plan", "*.json") for path in self.folder.glob(pattern)}
        for key in sorted(keys):
            yield self._read(key)[1]

    def discard(self, key: str) -> None:
        """Remove a plan.

        Raises:
            OutputUnwritable: ``E_OUTPUT``.
        """
        with self._locked(key):
            for path in (*reversed(self._paths(key)), self.folder / f"{key}.lock"):
                remove(path)

    def _read(self, key: str) -> tuple[bytes, Entry]:
        """A plan and what is to be said of it."""
        plan_path, sidecar_path = self._paths(key)
        try:
            sidecar = json.loads(_own(sidecar_path))
            seal = sidecar.pop("seal")
            sealed = hmac.compare_digest(str(seal), self._seal(sidecar)) and sidecar["format"] == FORMAT
        except OSError:
            return b"", Entry(key, {}, 0, "", "its sidecar is missing or unreadable")
        # RecursionError: brackets within brackets without end.
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return b"", Entry(key, {}, 0, "", "its sidecar is damaged")
        if not sealed:
            # Nothing else that it says is looked at: anybody may have written it.
            return b"", Entry(key, {}, 0, "", "it was not built here by this user: its seal does not fit")
        problem, plan = "", b""
        try:
            plan = _own(plan_path)
        except OSError:
            problem = "the plan itself is missing or unreadable"
        else:
            if hashlib.sha256(plan).hexdigest() != sidecar["sha256"]:
                problem = "the plan was changed or cut short"
        return plan, Entry(key, sidecar["built_for"], sidecar["size"], sidecar["built"], problem)

    def _paths(self, key: str) -> tuple[Path, Path]:
        return self.folder / f"{key}.plan", self.folder / f"{key}.json"

    def _seal(self, sidecar: Mapping[str, Any]) -> str:
        text = json.dumps(sidecar, sort_keys=True).encode()
        return hmac.new(self._secret(), text, hashlib.sha256).hexdigest()

    def _secret(self) -> bytes:
        """Random bytes that only this user can read, made on first use."""
        path = self.folder / SECRET
        with contextlib.suppress(OSError):
            secret = _own(path)
            if len(secret) == SECRET_BYTES:
                return secret
        with self._locked(SECRET):
            # Another process may have made it meanwhile.
            with contextlib.suppress(OSError):
                secret = _own(path)
                if len(secret) == SECRET_BYTES:
                    return secret
            secret = secrets.token_bytes(SECRET_BYTES)
            write_atomically(path, secret)
            path.chmod(0o600)
            return secret

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """Alone among the processes that ask for the same name; a process that dies lets go."""
        path = self.folder / f"{name}.lock"
        try:
            descriptor = _lock(path)
        except OSError as error:
            raise OutputUnwritable(
                "E_OUTPUT",
                f"{path} cannot be written or locked: {error}.",
                "Check space and rights; XDG_CACHE_HOME names another folder, on a disk of this machine.",
            ) from error
        try:
            yield
        finally:
            os.close(descriptor)


def _lock(path: Path) -> int:
    """A file that nobody else has locked, open and locked; it is unlocked when it is closed."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # Whoever held it may have removed it meanwhile, and the next would lock a file of its own.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), path.lstat()):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _own(path: Path) -> bytes:
    """The bytes of a plain file that nobody but this user can write; ``OSError`` for any other."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
            raise PermissionError(f"{path} is not this user's own file")
        return file.read()


def _require_private(path: Path, found: os.stat_result, what: str) -> None:
    if found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise EngineUnavailable(
            "E_PLAN_CACHE",
            f"{what} {path} can be written by others, and a plan is code.",
            f"Make it this user's alone (chmod 700 {path}), or remove it.",
        )
