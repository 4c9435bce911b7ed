"""Signed notes (C2SP signed-note, Ed25519), checkpoints (C2SP tlog-checkpoint), and the keys of both."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

__all__ = [
    "NOTE_BYTES_MAX", "ROTATION", "Checkpoint", "NoteError", "Signer", "Verifier",
    "checkpoint_text", "decode_base64", "open_note", "origin_of", "parse_checkpoint", "parse_prune", "prune_text", "sign_note",
]  # fmt: skip

NOTE_BYTES_MAX = 8192
ROTATION = "vigil audit key rotation"
"""First line of the note of a key record."""
PRUNE = "vigil audit prune"
"""First line of a prune record."""
_ED25519 = b"\x01"
_SIGNATURES_MAX = 100


class NoteError(Exception):
    """Not a signed note, or not signed as asked."""


def origin_of(log_name: str, instance: bytes) -> str:
    """Origin of a log's checkpoints, and name of its keys."""
    return f"vigil/{log_name}/{instance.hex()}"


def _key_id(name: str, public: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\n" + _ED25519 + public).digest()[:4]


class Signer:
    """Signs notes under one name. May be used from several threads at once."""

    def __init__(self, name: str, key: Ed25519PrivateKey) -> None:
        self.name, self.key = name, key
        self._public = key.public_key().public_bytes_raw()
        self.id = _key_id(name, self._public)

    def signature(self, text: str) -> str:
        """The signature line of a text."""
        packed = base64.b64encode(self.id + self.key.sign(text.encode())).decode()
        return f"\u2014 {self.name} {packed}\n"

    @property
    def verifier_key(self) -> str:
        """The public part as a note verifier key: name+id+key."""
        return f"{self.name}+{self.id.hex()}+{base64.b64encode(_ED25519 + self._public).decode()}"


def decode_base64(text: str) -> bytes:
    """The bytes that standard base64 with its padding stands for; raises ``ValueError``. Python's own passes over surplus padding."""
    if len(text) % 4:
        raise ValueError("not base64: its length is no multiple of four")
    return base64.b64decode(text, validate=True)


class Verifier:
    """A note verifier key."""

    def __init__(self, text: str) -> None:
        """Parse ``name+id+key``; raises ``NoteError``."""
        parts = text.strip().split("+", 2)
        if len(parts) != 3 or not parts[0] or any(c.isspace() for c in parts[0]):
            raise NoteError("not a note verifier key (name+id+key)")
        self.name, self.text = parts[0], text.strip()
        try:
            key = decode_base64(parts[2])
            self.id = bytes.fromhex(parts[1])
        except ValueError:
            raise NoteError("not a note verifier key: broken encoding") from None
        if len(key) != 33 or key[:1] != _ED25519:
            raise NoteError("not an Ed25519 note verifier key")
        if self.id != _key_id(self.name, key[1:]):
            raise NoteError("the key's id does not belong to its name and key")
        self._public = Ed25519PublicKey.from_public_bytes(key[1:])

    def verifies(self, text: bytes, signature: bytes) -> bool:
        """Whether the signature is this key's over the text."""
        try:
            self._public.verify(signature, text)
        except InvalidSignature:
            return False
        return True


def sign_note(text: str, *signers: Signer) -> bytes:
    """The text, a blank line, and a signature line of each signer."""
    return (text + "\n" + "".join(s.signature(text) for s in signers)).encode()


def open_note(note: bytes, trusted: Sequence[Verifier]) -> tuple[str, list[Verifier]]:
    """The text, and those of the trusted keys that signed it; raises ``NoteError`` for what is no note.

    A signature by a trusted key that does not verify makes the note invalid;
    signatures by unknown keys are passed over (C2SP signed-note).
    """
    if len(note) > NOTE_BYTES_MAX:
        raise NoteError(f"the note has {len(note)} bytes, the limit is {NOTE_BYTES_MAX}")
    try:
        whole = note.decode()
    except UnicodeDecodeError:
        raise NoteError("the note is not UTF-8") from None
    if any(ord(c) < 0x20 and c != "\n" for c in whole):
        raise NoteError("the note has control characters")
    at = whole.rfind("\n\n")
    if at < 0 or not whole.endswith("\n"):
        raise NoteError("the note has no signatures")
    text, lines = whole[: at + 1], whole[at + 2 : -1].split("\n")
    if len(lines) > _SIGNATURES_MAX:
        raise NoteError(f"the note has {len(lines)} signatures, the limit is {_SIGNATURES_MAX}")
    signed: list[Verifier] = []
    seen: set[tuple[str, bytes]] = set()
    for line in lines:
        dash, _, rest = line.partition(" ")
        name, _, packed = rest.partition(" ")
        try:
            data = decode_base64(packed)
        except ValueError:
            raise NoteError("a signature is not base64") from None
        if dash != "\u2014" or not name or "+" in name or any(c.isspace() for c in name) or len(data) < 5:
            raise NoteError("a signature line is malformed")
        if (name, data[:4]) in seen:
            continue  # only a key's first signature counts
        seen.add((name, data[:4]))
        for key in trusted:
            if key.name == name and key.id == data[:4]:
                if not key.verifies(text.encode(), data[4:]):
                    raise NoteError(f"the signature of {name} ({key.id.hex()}) does not verify")
                if key not in signed:
                    signed.append(key)
    return text, signed


class Checkpoint(NamedTuple):
    """A tree head: origin, number of leaves, root hash, and lines that follow."""

    origin: str
    size: int
    root: bytes
    rest: tuple[str, ...] = ()


def checkpoint_text(origin: str, size: int, root: bytes) -> str:
    """Body of a checkpoint."""
    return f"{origin}\n{size}\n{base64.b64encode(root).decode()}\n"


def parse_checkpoint(text: str) -> Checkpoint:
    """A checkpoint from its body; raises ``NoteError``."""
    lines = text.split("\n")
    if len(lines) < 4 or lines[-1] or any(not line for line in lines[:-1]):
        raise NoteError("not a checkpoint: it needs origin, size and root")
    origin, size, root = lines[:3]
    if not size.isascii() or not size.isdigit() or (len(size) > 1 and size[0] == "0") or len(size) > 19:
        raise NoteError("not a checkpoint: its size is not a plain number")
    try:
        decoded = decode_base64(root)
    except ValueError:
        decoded = b""
    if len(decoded) != 32 or base64.b64encode(decoded).decode() != root:
        raise NoteError("not a checkpoint: its root is not 32 bytes of base64")
    return Checkpoint(origin, int(size), decoded, tuple(lines[3:-1]))


def prune_text(origin: str, size: int, root: bytes) -> str:
    """Payload of a prune record: the first ``size`` records, whose tree has this root, are gone."""
    return f"{PRUNE}\n{checkpoint_text(origin, size, root)}"


def parse_prune(payload: bytes) -> Checkpoint:
    """The tree that a prune record says was taken out; raises ``NoteError``."""
    try:
        title, _, rest = payload.decode().partition("\n")
    except UnicodeDecodeError:
        title = rest = ""
    if title != PRUNE or rest.count("\n") != 3:
        raise NoteError("not a prune record: it needs its title, origin, size and root")
    return parse_checkpoint(rest)
