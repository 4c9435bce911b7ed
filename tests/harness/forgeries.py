"""Kinds of forgery: what somebody does to an honest log who may recompute everything but has no key."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.harness import forge
from tests.harness.forge import Log, Rec
from vigil_safety import events_gen as events
from vigil_sidecar.audit import layout_gen as layout
from vigil_sidecar.audit.notes import ROTATION, Signer, Verifier, checkpoint_text, open_note, parse_checkpoint, sign_note

__all__ = ["KINDS", "LOGS", "Context", "Honest", "cut_to", "first_key", "rekey", "replaced", "without_checkpoints"]

LOGS = ("gateway", "sidecar")
CHECKPOINT, KEY, ANCHOR, ANSWER, REFUSAL = (
    layout.KIND_CHECKPOINT, layout.KIND_KEY, layout.KIND_ANCHOR, layout.KIND_ANSWER, layout.KIND_REFUSAL,
)  # fmt: skip
HASHES = ("trace_id", "span_id", "input_hash", "output_hash", "model_digest", "request_id_hash", "tenant_hash")
NUMBERS = ("model_version", "status_code", "latency_ns", "batch_row", "batch_size", "flags")


def first_key(keys: Path, log: str) -> str:
    """The key that a log began with."""
    return (keys / f"audit-{log}.pub").read_text().split()[0]


class Honest(NamedTuple):
    """Logs and keys of a product that ran twice, swapped, refused, and rotated its keys."""

    audit: Path
    keys: Path

    def trusted(self) -> list[Verifier]:
        """What an assessor was given at the beginning: the first key of each log."""
        return [Verifier(first_key(self.keys, log)) for log in LOGS]


Forgery = Callable[[Log, random.Random, "Context"], None]


class Context(NamedTuple):
    """What an attacker may have at hand."""

    honest: Honest
    log: str
    stranger: Ed25519PrivateKey


class Kind(NamedTuple):
    """A kind of forgery, the exit codes that reject it, and a word of the reason where there is one."""

    make: Forgery
    codes: set[int]
    reason: str = ""


def some(log: Log, rng: random.Random, kind: int | None = None) -> int:
    """A random record before the last checkpoint, of this kind if asked for."""
    last = log.of_kind(CHECKPOINT)[-1]
    choice = [i for i in range(1, last) if log.records[i].header.kind == (kind or log.records[i].header.kind)]
    return rng.choice([i for i in choice if log.records[i].header.kind not in (CHECKPOINT, KEY)] if kind is None else choice)


def field(name: str, value: Callable[[Any], Any]) -> Kind:
    def make(log: Log, rng: random.Random, _: Context) -> None:
        r = log.records[some(log, rng)]
        r.set(**{name: value(getattr(r.header, name))})

    return Kind(make, {4}, "not those that were signed|segment's tree|another root|runs backwards|began")


def drop(log: Log, rng: random.Random, _: Context) -> None:
    at = some(log, rng)
    log.remove(at, at + 1)
    log.renumber()


def drop_gap(log: Log, rng: random.Random, _: Context) -> None:
    at = some(log, rng)
    log.remove(at, at + 1)


def drop_many(log: Log, rng: random.Random, _: Context) -> None:
    at = rng.randrange(5, 100)
    log.remove(at, at + rng.randrange(2, 60))
    log.renumber()


def copy_in(log: Log, rng: random.Random, _: Context) -> None:
    r = log.records[some(log, rng)]
    log.insert(some(log, rng), Rec(r.header, r.payload))
    log.renumber()


def fabricate(log: Log, rng: random.Random, _: Context) -> None:
    at = some(log, rng)
    header = log.records[at].header._replace(kind=ANSWER, event_id=events.ANSWER, trace_id=rng.randbytes(16), output_hash=rng.randbytes(32))
    log.insert(at, Rec(header, b""))
    log.renumber()


def reorder(log: Log, rng: random.Random, _: Context) -> None:
    at = some(log, rng)
    log.records[at], log.records[at - 1] = log.records[at - 1], log.records[at]
    log.renumber()


def duplicate(log: Log, rng: random.Random, _: Context) -> None:
    at = some(log, rng)
    log.insert(at, Rec(log.records[at].header, log.records[at].payload))


def cut_to(log: Log, keep: int) -> None:
    while keep < len(log.records):
        log.counts[log.segment_of(len(log.records) - 1)] -= 1
        log.records.pop()
    while log.counts[-1] == 0:
        log.counts.pop()
        log.headers.pop()


def witnessed(log: Log, context: Context) -> int:
    """How many records of this log the other one holds a checkpoint of."""
    notes = [r.payload for r in other_log(context).records if r.header.kind == ANCHOR]
    return max(parse_checkpoint(open_note(n, ())[0]).size for n in notes if n.decode().startswith(log.origin))


def cut_after_checkpoint(log: Log, rng: random.Random, context: Context) -> None:
    most = witnessed(log, context)
    cut_to(log, rng.choice([i for i in log.of_kind(CHECKPOINT) if 20 < i < most - 1]) + 1)


def cut_anywhere(log: Log, rng: random.Random, context: Context) -> None:
    cut_to(log, rng.randrange(20, witnessed(log, context)))


def extend(log: Log, rng: random.Random, _: Context) -> None:
    for _i in range(rng.randrange(1, 9)):
        last = log.records[-1]
        header = last.header._replace(kind=REFUSAL, event_id=events.LIMIT_HIT, sequence=last.header.sequence + 1)
        log.insert(len(log.records), Rec(header, b""))


def other_log(context: Context) -> Log:
    return forge.load(context.honest.audit / LOGS[1 - LOGS.index(context.log)])


def splice(log: Log, rng: random.Random, context: Context) -> None:
    other = other_log(context)
    for i in range(rng.randrange(3, 20)):
        r = other.records[i + 5]
        log.records[30 + i] = Rec(r.header._replace(sequence=31 + i), r.payload)


def splice_renamed(log: Log, rng: random.Random, context: Context) -> None:
    splice(log, rng, context)
    for r in log.records:
        r.set(instance=log.headers[0].instance)


def replay_checkpoint(log: Log, rng: random.Random, _: Context) -> None:
    old, last = log.records[rng.choice(log.of_kind(CHECKPOINT)[:-2])], log.records[-1]
    log.insert(len(log.records), Rec(last.header._replace(sequence=last.header.sequence + 1), old.payload))


def swap_boots(log: Log, rng: random.Random, _: Context) -> None:
    boots = list(dict.fromkeys(r.header.boot_id for r in log.records))
    for r in log.records:
        r.set(boot_id=boots[1 - boots.index(r.header.boot_id)])


def old_boot(log: Log, rng: random.Random, _: Context) -> None:
    log.records[-rng.randrange(2, 20)].set(boot_id=log.records[0].header.boot_id)


def shift_clock(log: Log, rng: random.Random, _: Context) -> None:
    shift = rng.randrange(1, 10**13)
    for r in log.records:
        r.set(time_ns=r.header.time_ns + shift)


def record_version(log: Log, rng: random.Random, _: Context) -> None:
    log.records[some(log, rng)].set(version=layout.VERSION + 1)


def segment_version(log: Log, rng: random.Random, _: Context) -> None:
    log.edit_header = lambda i, h: h._replace(version=9) if i == len(log.counts) - 1 else h


def length(value: int) -> Kind:
    def make(log: Log, rng: random.Random, _: Context) -> None:
        log.records[some(log, rng)].fixed["length"] = value

    return Kind(make, {4})


def crc(log: Log, rng: random.Random, _: Context) -> None:
    log.records[some(log, rng)].fixed["crc32c"] = rng.randrange(1 << 32)


def rekey(log: Log, rng: random.Random, context: Context) -> None:
    log.records[some(log, rng)].set(latency_ns=rng.randrange(1 << 40))
    for i in log.of_kind(KEY):
        log.records[i].set(kind=REFUSAL, event_id=events.LIMIT_HIT)
    log.reseal(context.stranger)


def rekey_end(log: Log, rng: random.Random, context: Context) -> None:
    log.reseal(context.stranger, log.of_kind(CHECKPOINT)[-rng.randrange(1, 4)])


def stranger_rotation(log: Log, rng: random.Random, context: Context) -> None:
    """A key record that only the new key signed, and checkpoints by it from there on."""
    at = log.of_kind(CHECKPOINT)[-3]
    new = Signer(log.origin, context.stranger)
    text = f"{ROTATION}\n{checkpoint_text(log.origin, at, true_root(log, at))}{new.verifier_key}\n"
    log.insert(at, Rec(log.records[at].header._replace(kind=KEY, event_id=events.KEY_ROTATED), sign_note(text, new, new)))
    log.renumber()
    log.reseal(context.stranger, at + 1)


def true_root(log: Log, size: int) -> bytes:
    tree, leaf = log.begin.copy(), log.leaf
    for r in log.records[: size - log.begin.size]:
        leaf = forge.leaf_hash(forge.encode(r, leaf))
        tree.append(leaf)
    return tree.root()


def retired(log: Log, rng: random.Random, context: Context) -> None:
    """A checkpoint after the rotation, signed by the key before it: taken from an older one of the same run's size."""
    old = next(r for r in log.records if r.header.kind == CHECKPOINT)
    log.records[log.of_kind(CHECKPOINT)[-1]].payload = old.payload


def root_changed(log: Log, rng: random.Random, _: Context) -> None:
    r = log.records[rng.choice(log.of_kind(CHECKPOINT))]
    r.payload = forge.change_root(r.payload)


def tree_range(log: Log, rng: random.Random, _: Context) -> None:
    log.edit_header = lambda i, h: h._replace(tree_range=rng.randbytes(64).ljust(2048, b"\0")) if i == len(log.counts) - 1 else h


def previous_leaf(log: Log, rng: random.Random, _: Context) -> None:
    log.edit_header = lambda i, h: h._replace(previous_leaf_hash=rng.randbytes(32)) if i == len(log.counts) - 1 else h


def segment_instance(log: Log, rng: random.Random, _: Context) -> None:
    log.edit_header = lambda i, h: h._replace(instance=rng.randbytes(16)) if i == len(log.counts) - 1 else h


def segment_name(log: Log, rng: random.Random, _: Context) -> None:
    log.edit_header = lambda i, h: h._replace(log_name=b"other") if i == len(log.counts) - 1 else h


def hidden_as_pruning(log: Log, rng: random.Random, _: Context) -> None:
    """The beginning is taken away, and the rest starts at its own sequence, as if older segments had been pruned."""
    log.remove(0, rng.randrange(3, 50))


def gap_with_tree(log: Log, rng: random.Random, _: Context) -> None:
    """The beginning is taken away, and everything behind it is as it was: only the signed word for it is missing."""
    take_away(log, rng.randrange(3, min(50, log.counts[0])))


def take_away(log: Log, count: int) -> None:
    """Take away the first records; what the rest says of them stays right."""
    for r in log.records[:count]:
        log.leaf = forge.leaf_hash(forge.encode(r, log.leaf))
        log.begin.append(log.leaf)
    log.remove(0, count)


def pruned(log: Log, rng: random.Random, _: Context) -> None:
    """The first segment is taken away, as pruning would."""
    take_away(log, log.counts[0])
    del log.counts[0], log.headers[0]


def note(text: Callable[[Log, random.Random], bytes], reason: str = "") -> Kind:
    def make(log: Log, rng: random.Random, _: Context) -> None:
        log.records[rng.choice(log.of_kind(CHECKPOINT))].payload = text(log, rng)

    return Kind(make, {4}, reason)


def by_stranger(log: Log, text: str) -> bytes:
    return sign_note(text, Signer(log.origin, Ed25519PrivateKey.generate()))


def anchor_cut(log: Log, rng: random.Random, _: Context) -> None:
    """An anchor with a broken note: the forger hopes that nobody can read it."""
    log.records[log.of_kind(ANCHOR)[-1]].payload = b"not a note"


def foreign_checkpoint(log: Log, rng: random.Random, context: Context) -> None:
    other = other_log(context)
    log.records[rng.choice(log.of_kind(CHECKPOINT))].payload = other.records[rng.choice(other.of_kind(CHECKPOINT))].payload


def without_checkpoints(log: Log, rng: random.Random, _: Context) -> None:
    log.records[some(log, rng)].set(output_hash=rng.randbytes(32))
    for i in [*log.of_kind(CHECKPOINT), *log.of_kind(KEY)]:
        log.records[i].set(kind=REFUSAL, event_id=events.LIMIT_HIT)


def later_note(log: Log, rng: random.Random, _: Context) -> None:
    places = log.of_kind(CHECKPOINT)
    at = rng.randrange(len(places) - 3)
    log.records[places[at]].payload = log.records[places[at + 2]].payload


def zeroed(log: Log, rng: random.Random, _: Context) -> None:
    at = layout.SEGMENT_HEADER_BYTES + rng.randrange(3, 40) * 400

    def edit(index: int, data: bytearray) -> None:
        if index == 0:
            data[at : at + 1200] = bytes(1200)

    log.edit_bytes = edit


def replaced(log: Log, rng: random.Random, context: Context) -> None:
    """The whole log is replaced by a fresh one of another instance, signed by its own key, which nobody trusts."""
    instance = rng.randbytes(16)
    for r in log.records:
        r.set(instance=instance)
    log.headers = [h._replace(instance=instance) for h in log.headers]
    for i in [*log.of_kind(KEY), *log.of_kind(CHECKPOINT)]:
        log.records[i].set(kind=REFUSAL, event_id=events.LIMIT_HIT)


def hash_of(name: str) -> Kind:
    return field(name, lambda old: bytes(a ^ 1 for a in old))


KINDS: dict[str, Kind] = {
    **{f"{n} changed": hash_of(n) for n in HASHES},
    **{f"{n} changed": field(n, lambda old: old + 1) for n in NUMBERS},
    "time_ns changed": field("time_ns", lambda old: old - 1),
    "monotonic_ns changed": field("monotonic_ns", lambda old: old + 1),
    "safety state changed": field("safety_state", lambda old: old % 5 + 1),
    "quality changed": field("quality", lambda old: (old + 1) % 4),
    "clock status changed": field("clock_status", lambda old: (old + 1) % 3),
    "event changed": field("event_id", lambda old: events.ANSWER if old != events.ANSWER else events.LIMIT_HIT),
    "unknown event": field("event_id", lambda old: 65000)._replace(reason="catalogue"),
    "unknown kind": field("kind", lambda old: 99)._replace(reason="unknown kind"),
    "dropped": Kind(drop, {4}), "dropped, gap left": Kind(drop_gap, {4}, "sequence"), "many dropped": Kind(drop_many, {4}),
    "copied in": Kind(copy_in, {4}), "fabricated": Kind(fabricate, {4}), "reordered": Kind(reorder, {4}),
    "duplicated": Kind(duplicate, {4}, "sequence"),
    "cut off after a checkpoint": Kind(cut_after_checkpoint, {4}, "the end was cut off"),
    "cut off anywhere": Kind(cut_anywhere, {4}, "the end was cut off"),
    "extended without a signature": Kind(extend, {3}),
    "spliced": Kind(splice, {4}, "another log|monotonic|began"), "spliced and renamed": Kind(splice_renamed, {4}),
    "old checkpoint put in again": Kind(replay_checkpoint, {4}, "put in again"),
    "runs swapped": Kind(swap_boots, {4}), "a run goes on": Kind(old_boot, {4}, "began|not those that were signed|backwards"),
    "clock shifted": Kind(shift_clock, {4}),
    "record version": Kind(record_version, {4}, "version"), "segment version": Kind(segment_version, {4}, "version"),
    "length beyond the segment": length(65535), "length below a header": length(100), "CRC wrong": Kind(crc, {4}, "CRC-32C"),
    "all signed by a stranger": Kind(rekey, {4, 6}), "the end signed by a stranger": Kind(rekey_end, {4}, "not signed by the key"),
    "rotated to a stranger": Kind(stranger_rotation, {4}, "the key before did not sign"),
    "signed by a key of the past": Kind(retired, {4}),
    "root under an old signature": Kind(root_changed, {4}, "verify|signature"),
    "segment's tree": Kind(tree_range, {4}, "range|tree"), "segment's chain": Kind(previous_leaf, {4}, "continue"),
    "segment's instance": Kind(segment_instance, {4}), "segment's log": Kind(segment_name, {4}, "another log|in the log"),
    "gap hidden as pruning": Kind(hidden_as_pruning, {4}, "range|expected|not those that were signed"),
    "gap hidden as pruning, its tree right": Kind(gap_with_tree, {4}, "begins here"),
    "pruned without proof": Kind(pruned, {4}, "begins here"),
    "note of garbage": note(lambda log, rng: rng.randbytes(200)), "note too long": note(lambda log, rng: b"a" * 60000, "limit"),
    "note without signature": note(lambda log, rng: b"a\n1\nb\n"), "no note": note(lambda log, rng: b""),
    "note with many signatures": note(lambda log, rng: b"a\n1\nb\n\n" + "\u2014 a AAAAAAAA\n".encode() * 400),
    "note of an absurd size": note(lambda log, rng: by_stranger(log, checkpoint_text(log.origin, 10**18, bytes(32)))),
    "note with a leading zero": note(lambda log, rng: by_stranger(log, f"{log.origin}\n01\n{'A' * 43}=\n")),
    "checkpoint of the other log": Kind(foreign_checkpoint, {4}, "in the log"),
    "checkpoints taken out": Kind(without_checkpoints, {4, 6}), "note of a later checkpoint": Kind(later_note, {4}, "stand before it"),
    "replaced by a fresh log": Kind(replaced, {4}, "that log is not here"),
    "zeroed": Kind(zeroed, {4}), "anchor made unreadable": Kind(anchor_cut, {4}),
}  # fmt: skip
