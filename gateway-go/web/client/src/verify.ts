import { type AuditRecord, hex, NotARecord, readRecord } from "./record.js";
import { primitives, type Primitives } from "./primitives.js";

/** A C2SP note verifier key: `name+id+key` (https://c2sp.org/signed-note). */
export interface VerifierKey {
  readonly text: string;
  readonly name: string;
  readonly id: string;
  readonly key: Uint8Array;
}

/** One step of a check, in the order of the steps. */
export interface Step {
  readonly name: "key" | "record" | "inclusion" | "checkpoint" | "signature" | "place" | "shown";
  readonly ok: boolean;
  /** What was found, in words. */
  readonly found: string;
}

/** What a check found. */
export interface Verdict {
  /**
   * verified: all holds, under a trusted key. forged: something contradicts something else.
   * unsigned: all fits together, but no trusted key signed it. unreadable: it is no proof.
   */
  readonly verdict: "verified" | "forged" | "unsigned" | "unreadable";
  readonly steps: readonly Step[];
  /** The record that the proof carries, where it could be read. */
  readonly record?: AuditRecord;
  /** The same as bytes. */
  readonly raw?: Uint8Array;
  readonly origin?: string;
  readonly treeSize?: bigint;
  /** Who did the arithmetic. */
  readonly by: string;
}

const TITLE = "c2sp.org/tlog-proof@v1";
const PROOF_BYTES_MAX = 1 << 20;
const ED25519 = 1;

class Bad extends Error {}

/** Standard base64 with exactly its padding; `strict`: unused bits are zero, so that bytes have one form only. */
function base64(text: string, what: string, strict = true): Uint8Array {
  if (text === "" || !/^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$/.test(text)) {
    throw new Bad(`${what} is not base64`);
  }
  const binary = atob(text);
  if (strict && btoa(binary) !== text) {
    throw new Bad(`${what} is not base64 in its one form`);
  }
  return Uint8Array.from(binary, (c) => c.charCodeAt(0));
}

function same(a: Uint8Array, b: Uint8Array): boolean {
  return a.length === b.length && a.every((x, i) => x === b[i]);
}

function joined(...parts: readonly Uint8Array[]): Uint8Array {
  const out = new Uint8Array(parts.reduce((n, p) => n + p.length, 0));
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}

const utf8 = new TextEncoder();

/** Reads a verifier key; throws an `Error` with the reason. */
export async function parseKey(text: string, by?: Primitives): Promise<VerifierKey> {
  const use = by ?? (await primitives());
  const trimmed = text.trim();
  const first = trimmed.indexOf("+");
  const second = trimmed.indexOf("+", first + 1);
  const name = trimmed.slice(0, first);
  if (first <= 0 || second < 0 || /\s/.test(trimmed)) {
    throw new Error("not a note verifier key: it has the form name+id+key");
  }
  const id = trimmed.slice(first + 1, second).toLowerCase();
  let key: Uint8Array;
  try {
    key = base64(trimmed.slice(second + 1), "the key", false);
  } catch {
    throw new Error("not a note verifier key: broken encoding");
  }
  if (key.length !== 33 || key[0] !== ED25519) {
    throw new Error("not an Ed25519 note verifier key");
  }
  const digest = await use.sha256(joined(utf8.encode(`${name}\n`), key));
  if (hex(digest.slice(0, 4)) !== id) {
    throw new Error("the key's id does not belong to its name and key: a character was changed or left out");
  }
  return { text: trimmed, name, id, key: key.slice(1) };
}

export interface Note {
  text: string;
  signatures: readonly { name: string; id: string; signature: Uint8Array }[];
}

/** The text and signature lines of a signed note, as docs/audit-format.md bounds them; throws. */
export function openNote(note: string): Note {
  if (utf8.encode(note).length > 8192 || /[\u0000-\u0009\u000b-\u001f]/.test(note) || !note.endsWith("\n")) {
    throw new Bad("the checkpoint is not a signed note");
  }
  const at = note.lastIndexOf("\n\n");
  if (at < 0) {
    throw new Bad("the checkpoint has no signatures");
  }
  const seen = new Set<string>();
  const signatures: { name: string; id: string; signature: Uint8Array }[] = [];
  const lines = note.slice(at + 2, -1).split("\n");
  if (lines.length > 100) {
    throw new Bad("the checkpoint has more than 100 signatures");
  }
  for (const line of lines) {
    const found = /^\u2014 ([^\s\u0085+]+) ([^\s\u0085]+)$/.exec(line);
    const data = found ? base64(found[2] as string, "a signature", false) : new Uint8Array();
    if (!found || data.length < 5) {
      throw new Bad("a signature line is malformed");
    }
    const id = hex(data.slice(0, 4));
    const who = `${found[1]}+${id}`;
    if (!seen.has(who)) {
      seen.add(who);
      signatures.push({ name: found[1] as string, id, signature: data.slice(4) });
    }
  }
  return { text: note.slice(0, at + 1), signatures };
}

interface Head {
  origin: string;
  size: bigint;
  root: Uint8Array;
}

function parseHead(text: string): Head {
  const lines = text.split("\n");
  if (lines.length < 4 || lines.at(-1) !== "" || lines.slice(0, -1).some((l) => l === "")) {
    throw new Bad("not a checkpoint: it needs origin, size and root");
  }
  const [origin, size, root] = lines as [string, string, string];
  if (!/^(?:0|[1-9][0-9]{0,18})$/.test(size)) {
    throw new Bad("not a checkpoint: its size is not a plain number");
  }
  const decoded = base64(root, "the root");
  if (decoded.length !== 32) {
    throw new Bad("not a checkpoint: its root is not 32 bytes");
  }
  return { origin, size: BigInt(size), root: decoded };
}

/** Whether each hash of an inclusion proof is the left one, from the leaf up (RFC 6962, section 2.1.1). */
export function sides(index: bigint, size: bigint): boolean[] {
  const path = (i: bigint, n: bigint): boolean[] => {
    if (n === 1n) {
      return [];
    }
    let k = 1n;
    while (k * 2n < n) {
      k *= 2n;
    }
    return i < k ? [...path(i, k), false] : [...path(i - k, n - k), true];
  };
  return path(index, size);
}

async function rootOf(leaf: Uint8Array, index: bigint, size: bigint, path: readonly Uint8Array[], use: Primitives): Promise<Uint8Array> {
  if (index >= size) {
    throw new Bad(`record ${index + 1n} is not within the ${size} records of the checkpoint`);
  }
  const left = sides(index, size);
  if (path.length !== left.length || path.some((h) => h.length !== 32)) {
    throw new Bad(`the proof has ${path.length} hashes, ${left.length} are needed`);
  }
  let root = leaf;
  for (const [i, other] of path.entries()) {
    const node = left[i] ? joined(Uint8Array.of(1), other, root) : joined(Uint8Array.of(1), root, other);
    root = await use.sha256(node);
  }
  return root;
}

interface Parts {
  record: Uint8Array;
  index: bigint;
  path: Uint8Array[];
  note: Note;
  head: Head;
}

function open(proof: Uint8Array): Parts {
  if (proof.length > PROOF_BYTES_MAX) {
    throw new Bad(`the proof has ${proof.length} bytes, the limit is ${PROOF_BYTES_MAX}`);
  }
  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(proof);
  } catch {
    throw new Bad("the proof is not UTF-8");
  }
  const blank = text.indexOf("\n\n");
  const lines = text.slice(0, Math.max(0, blank)).split("\n");
  const index = /^index (0|[1-9][0-9]{0,18})$/.exec(lines[2] ?? "");
  if (blank < 0 || lines[0] !== TITLE || !lines[1]?.startsWith("extra ") || !index) {
    throw new Bad(`not a tlog-proof of a record: it needs ${TITLE}, extra, index and a checkpoint`);
  }
  const note = openNote(text.slice(blank + 2));
  return {
    record: base64(lines[1].slice(6), "the record"),
    index: BigInt(index[1] as string),
    path: lines.slice(3).map((l) => base64(l, "a hash of the proof")),
    note,
    head: parseHead(note.text),
  };
}

/** Those of the keys that signed a note, and those whose signature is there and wrong. */
export async function signers(note: Note, keys: readonly VerifierKey[], use: Primitives): Promise<{ right: VerifierKey[]; wrong: VerifierKey[] }> {
  const right: VerifierKey[] = [];
  const wrong: VerifierKey[] = [];
  for (const s of note.signatures) {
    for (const key of keys) {
      if (key.name === s.name && key.id === s.id) {
        ((await use.verifyEd25519(key.key, s.signature, utf8.encode(note.text))) ? right : wrong).push(key);
      }
    }
  }
  return { right, wrong };
}

async function signedBy(parts: Parts, keys: readonly VerifierKey[], use: Primitives): Promise<Step & { forged: boolean }> {
  const found = await signers(parts.note, keys, use);
  const wrong = found.wrong.map((k) => k.id);
  const good = found.right.find((k) => k.name === parts.head.origin)?.id ?? "";
  const others = parts.note.signatures.map((s) => `${s.name} (${s.id})`).join(", ");
  if (wrong.length > 0) {
    return { name: "signature", ok: false, forged: true, found: `the signature by your key ${wrong.join(", ")} is not over this checkpoint` };
  }
  if (good) {
    return { name: "signature", ok: true, forged: false, found: `signed by your key ${good}` };
  }
  const why = keys.length === 0 ? "no key is pinned" : "none of your keys signed it; after a rotation the new key has to be pinned";
  return { name: "signature", ok: false, forged: false, found: `${why}. Signers: ${others}` };
}

/**
 * Checks a proof of inclusion by arithmetic alone: the record's own checksum, its leaf hash's way to the
 * checkpoint's root, the checkpoint's signature by one of `keys`, and that the record is the one at
 * `position` (LOG/BOOT/SEQ) of that log. `shown` is what a server showed as that record; it has to be the
 * same bytes. Nothing the server says is taken for granted. Never throws for bad input.
 */
export async function verifyProof(
  proof: Uint8Array,
  keys: readonly VerifierKey[],
  expected: { position?: string; shown?: Uint8Array } = {},
  by?: Primitives,
): Promise<Verdict> {
  const use = by ?? (await primitives());
  const steps: Step[] = [];
  let parts: Parts;
  try {
    parts = open(proof);
  } catch (error) {
    steps.push({ name: "checkpoint", ok: false, found: (error as Error).message });
    return { verdict: "unreadable", steps, by: use.name };
  }
  const { head } = parts;
  const add = (name: Step["name"], ok: boolean, found: string): boolean => {
    steps.push({ name, ok, found });
    return ok;
  };
  let record: AuditRecord | undefined;
  try {
    record = readRecord(parts.record);
    add("record", true, `${parts.record.length} bytes, CRC-32C and layout as they should be`);
  } catch (error) {
    if (!(error instanceof NotARecord)) {
      throw error;
    }
    add("record", false, error.message);
  }
  const leaf = await use.sha256(joined(Uint8Array.of(0), parts.record));
  try {
    const root = await rootOf(leaf, parts.index, head.size, parts.path, use);
    const held = same(root, head.root);
    add(
      "inclusion",
      held,
      held
        ? `leaf ${hex(leaf).slice(0, 16)}… leads over ${parts.path.length} hashes to the root of ${head.size} records`
        : `leaf ${hex(leaf).slice(0, 16)}… leads to ${hex(root).slice(0, 16)}…, the checkpoint says ${hex(head.root).slice(0, 16)}…: the record, or the proof, was changed`,
    );
  } catch (error) {
    add("inclusion", false, (error as Error).message);
  }
  const signature = await signedBy(parts, keys, use);
  add("signature", signature.ok, signature.found);
  if (record) {
    place(record, parts, expected.position, add);
  }
  if (expected.shown) {
    const held = same(expected.shown, parts.record);
    add("shown", held, held ? "the record that is shown is the proven one, byte for byte" : "the record that is shown is not the proven one");
  }
  const contradicted = signature.forged || steps.some((s) => !s.ok && s.name !== "signature");
  const verdict = contradicted ? "forged" : signature.ok ? "verified" : "unsigned";
  return { verdict, steps, raw: parts.record, origin: head.origin, treeSize: head.size, by: use.name, ...(record ? { record } : {}) };
}

/** Whether the record belongs where it is said to be. */
function place(record: AuditRecord, parts: Parts, position: string | undefined, add: (name: Step["name"], ok: boolean, found: string) => boolean): void {
  const bytes = (name: string): string => hex(record.fields.get(name)?.value as Uint8Array);
  const sequence = record.fields.get("sequence")?.value as bigint;
  const log = /^vigil\/([^/]+)\/([0-9a-f]{32})$/.exec(parts.head.origin);
  if (sequence !== parts.index + 1n || log?.[2] !== bytes("instance")) {
    add("place", false, "the record does not belong at this place of this log");
    return;
  }
  const own = `${log[1]}/${bytes("boot_id")}/${sequence}`;
  const [asked, ...rest] = [position ?? own].map((p) => p.split("/"))[0] as string[];
  const held =
    asked === log[1] && rest.length <= 2 && rest.at(-1) === String(sequence) && (rest.length === 1 || rest[0] === bytes("boot_id"));
  add("place", held, held ? `it is ${own}` : `it is ${own}, and ${position} was asked for`);
}
