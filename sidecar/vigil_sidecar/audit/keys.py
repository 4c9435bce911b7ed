"""Key files of a log: ``audit-NAME.key`` (PKCS #8, mode 0600), ``.pub`` (note verifier keys) and ``.head`` (its latest checkpoint)."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from vigil_sidecar.audit.disk import DISK
from vigil_sidecar.audit.notes import NoteError, Signer, Verifier
from vigil_sidecar.errors import AuditError

__all__ = ["KeyFile", "hash_key"]


class KeyFile:
    """The signing key of one log. Used by the log's writer only."""

    def __init__(self, folder: Path, log_name: str) -> None:
        """Load the key, or create it with mode 0600 when there is none; raises ``AuditError``."""
        self._private, self._public = folder / f"audit-{log_name}.key", folder / f"audit-{log_name}.pub"
        self._next = self._private.with_suffix(".key.next")
        self._head = folder / f"audit-{log_name}.head"
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.key = self._load(self._private) or self._create()
        except OSError as error:
            raise AuditError(f"audit key {self._private}: {error.strerror}; give --data-dir a folder that can be written") from None

    @staticmethod
    def _load(path: Path) -> Ed25519PrivateKey | None:
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        if path.stat().st_mode & 0o077:
            raise AuditError(f"audit key {path}: others may read it; set mode 0600, or rotate the key if they did")
        try:
            key = load_pem_private_key(data, None)
        except (ValueError, TypeError):
            raise AuditError(f"audit key {path}: not a PKCS #8 key in PEM; put the right file back") from None
        if not isinstance(key, Ed25519PrivateKey):
            raise AuditError(f"audit key {path}: not an Ed25519 key")
        return key

    def _create(self) -> Ed25519PrivateKey:
        key = Ed25519PrivateKey.generate()
        self._write(self._private, key)
        return key

    @staticmethod
    def _write(path: Path, key: Ed25519PrivateKey) -> None:
        _replace(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), 0o600)

    def stage(self, key: Ed25519PrivateKey) -> None:
        """Keep a new key beside the old one until the log has its record."""
        self._write(self._next, key)

    def switch(self, key: Ed25519PrivateKey) -> None:
        """Put the staged key in place of the old one: the log has its record, on disk."""
        self._next.rename(self._private)
        DISK.sync_folder(self._private.parent)
        self.key = key

    def settle(self, origin: str, last_note: Callable[[], bytes]) -> None:
        """After a crash amid a rotation: take the staged key if the log's last key record names it, else drop it."""
        try:
            staged = self._load(self._next)
            if staged is None:
                return
            if Signer(origin, staged).verifier_key.encode() in last_note():
                self.switch(staged)
            else:
                self._next.unlink()
        except OSError as error:
            raise AuditError(f"audit key {self._next}: {error.strerror}") from None

    def verifiers(self, origin: str) -> list[Verifier]:
        """The log's keys, present and published."""
        keys = [Verifier(Signer(origin, self.key).verifier_key)]
        try:
            for line in self._public.read_text().splitlines():
                keys.append(Verifier(line))
        except (OSError, UnicodeDecodeError, NoteError):
            pass  # the present key is enough for what the file adds
        return keys

    def keep(self, note: bytes) -> None:
        """Keep the latest checkpoint beside the key, before anybody is given it: what the log must still be at the next start."""
        _replace(self._head, note, 0o600)

    def kept(self) -> bytes:
        """The checkpoint that was kept; empty before the first. Raises ``AuditError``."""
        try:
            return self._head.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise AuditError(f"{self._head}: {error.strerror}") from None

    def publish(self, signer: Signer) -> None:
        """Add the verifier key to the public file, unless it is there; older keys stay, for older logs."""
        try:
            known = self._public.read_text().splitlines() if self._public.exists() else []
            if signer.verifier_key not in known:
                _replace(self._public, "".join(f"{line}\n" for line in [*known, signer.verifier_key]).encode(), 0o644)
        except (OSError, UnicodeDecodeError) as error:
            raise AuditError(f"audit key {self._public}: {error}") from None


def _replace(path: Path, data: bytes, mode: int) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        os.write(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)
    partial.rename(path)
    DISK.sync_folder(path.parent)


_HASH_KEY_BYTES = 32


def hash_key(folder: Path) -> bytes:
    """The key of keyed hashes, ``audit-hash.key`` (64 hex digits, mode 0600), made when it is not there; raises ``AuditError``.

    Both writers share it: whoever comes second finds the first one's.
    """
    path = folder / "audit-hash.key"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not path.exists():
            partial = folder / f"audit-hash.{os.getpid()}.partial"
            _replace(partial, os.urandom(_HASH_KEY_BYTES).hex().encode() + b"\n", 0o600)
            try:
                os.link(partial, path)
            except FileExistsError:
                pass
            partial.unlink()
            DISK.sync_folder(folder)
        if path.stat().st_mode & 0o077:
            raise AuditError(f"audit key {path}: others may read it; set mode 0600")
        key = bytes.fromhex(path.read_text())
    except OSError as error:
        raise AuditError(f"audit key {path}: {error.strerror}; give --data-dir a folder that can be written") from None
    except ValueError:
        key = b""
    if len(key) != _HASH_KEY_BYTES:
        raise AuditError(f"audit key {path}: not {2 * _HASH_KEY_BYTES} hex digits; put the right file back")
    return key
