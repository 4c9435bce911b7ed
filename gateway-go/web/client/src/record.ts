import { fromBinary } from "@bufbuild/protobuf";

import {
  type CallPayload,
  CallPayloadSchema,
  type ModelPayload,
  ModelPayloadSchema,
  type StatePayload,
  StatePayloadSchema,
  type SystemPayload,
  SystemPayloadSchema,
} from "./gen/vigil/audit/v1/audit_pb.js";
import { EVENTS, type LayoutField, RECORD_FIELDS, RECORD_HEADER_BYTES, RECORD_KINDS, RECORD_VERSION } from "./gen/tables.js";

/** One field of a record's header as it is written, and in words. */
export interface FieldValue {
  readonly field: LayoutField;
  readonly value: bigint | Uint8Array;
  readonly words: string;
}

/** What a record's payload says. */
export type Payload =
  | { case: "call"; value: CallPayload }
  | { case: "model"; value: ModelPayload }
  | { case: "state"; value: StatePayload }
  | { case: "system"; value: SystemPayload }
  | { case: "note"; value: string }
  | { case: "unreadable"; value: Uint8Array };

/** A record, read from its bytes. */
export interface AuditRecord {
  readonly fields: ReadonlyMap<string, FieldValue>;
  readonly kind: string;
  readonly payload: Payload;
}

/** Says that bytes are no record of this layout, and where. */
export class NotARecord extends Error {}

/** Bytes in hex. */
export function hex(bytes: Uint8Array): string {
  return Array.from(bytes, (b) => b.toString(16).padStart(2, "0")).join("");
}

const ALL_ONES = (1n << 64n) - 1n;
const SAFETY = ["unknown", "starting", "normal", "degraded", "recovering", "safe stop"];
const QUALITY = ["no answer", "normal", "cache", "rule"];
const CLOCK = ["unknown", "kernel", "chrony", "ptp4l"];
const CLOCK_STATUS = ["unknown", "synchronised", "free-running"];

function timeWords(ns: bigint): string {
  const ms = Number(ns / 1_000_000n);
  const fraction = (ns % 1_000_000_000n).toString().padStart(9, "0");
  return Number.isFinite(ms) && Math.abs(ms) < 8.64e15 ? `${new Date(ms).toISOString().slice(0, 19)}.${fraction}Z` : `${ns} ns`;
}

function inWords(name: string, value: bigint | Uint8Array): string {
  if (value instanceof Uint8Array) {
    if (name === "magic") {
      return new TextDecoder().decode(value);
    }
    return value.every((b) => b === 0) ? "none" : hex(value);
  }
  const chosen = (words: readonly string[]): string => words[Number(value)] ?? `unknown (${value})`;
  switch (name) {
    case "kind":
      return RECORD_KINDS[Number(value)]?.name ?? `unknown (${value})`;
    case "event_id":
      return `DIA-${value} ${EVENTS[Number(value)]?.name ?? "(not in this page's catalogue)"}`;
    case "time_ns":
      return timeWords(value);
    case "time_uncertainty_ns":
      return value === ALL_ONES ? "unknown" : `± ${Number(value) / 1e6} ms`;
    case "latency_ns":
      return `${Number(value) / 1e6} ms`;
    case "safety_state":
      return chosen(SAFETY);
    case "quality":
      return chosen(QUALITY);
    case "clock_source":
      return chosen(CLOCK);
    case "clock_status":
      return chosen(CLOCK_STATUS);
    case "flags":
      return [value & 1n ? "keyed hashes" : "", value & ~1n ? `unknown (${value & ~1n})` : ""].filter(Boolean).join(", ") || "none";
    case "crc32c":
      return value.toString(16).padStart(8, "0");
    default:
      return value.toString();
  }
}

function readInteger(view: DataView, field: LayoutField): bigint {
  switch (field.type) {
    case "u8":
      return BigInt(view.getUint8(field.offset));
    case "u16":
      return BigInt(view.getUint16(field.offset, true));
    case "u32":
      return BigInt(view.getUint32(field.offset, true));
    default:
      return view.getBigUint64(field.offset, true);
  }
}

/** Reads a record's header and payload from its bytes; throws `NotARecord`. */
export function readRecord(raw: Uint8Array): AuditRecord {
  if (raw.length < RECORD_HEADER_BYTES) {
    throw new NotARecord(`a record has at least ${RECORD_HEADER_BYTES} bytes, these are ${raw.length}`);
  }
  const view = new DataView(raw.buffer, raw.byteOffset, raw.byteLength);
  const fields = new Map<string, FieldValue>();
  for (const field of RECORD_FIELDS) {
    const value = field.type === "bytes" ? raw.slice(field.offset, field.offset + field.size) : readInteger(view, field);
    fields.set(field.name, { field, value, words: inWords(field.name, value) });
  }
  const number = (name: string): number => Number(fields.get(name)?.value);
  if (fields.get("magic")?.words !== "VGLA" || number("version") !== RECORD_VERSION || number("length") !== raw.length) {
    throw new NotARecord(`not a record of layout ${RECORD_VERSION}`);
  }
  const crc = crc32c(raw.subarray(0, RECORD_HEADER_BYTES - 4), raw.subarray(RECORD_HEADER_BYTES));
  if (crc !== number("crc32c")) {
    throw new NotARecord(`its CRC-32C is ${crc.toString(16)}, it says ${number("crc32c").toString(16)}`);
  }
  const kind = RECORD_KINDS[number("kind")];
  return { fields, kind: kind?.name ?? "unknown", payload: readPayload(kind?.message ?? "", raw.slice(RECORD_HEADER_BYTES)) };
}

function readPayload(message: string, bytes: Uint8Array): Payload {
  try {
    switch (message) {
      case "vigil.audit.v1.CallPayload":
        return { case: "call", value: fromBinary(CallPayloadSchema, bytes) };
      case "vigil.audit.v1.ModelPayload":
        return { case: "model", value: fromBinary(ModelPayloadSchema, bytes) };
      case "vigil.audit.v1.StatePayload":
        return { case: "state", value: fromBinary(StatePayloadSchema, bytes) };
      case "vigil.audit.v1.SystemPayload":
        return { case: "system", value: fromBinary(SystemPayloadSchema, bytes) };
      case "":
        return { case: "unreadable", value: bytes };
      default:
        return { case: "note", value: new TextDecoder("utf-8", { fatal: true }).decode(bytes) };
    }
  } catch {
    return { case: "unreadable", value: bytes };
  }
}

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  let c = n;
  for (let k = 0; k < 8; k++) {
    c = c & 1 ? (c >>> 1) ^ 0x82f63b78 : c >>> 1;
  }
  return c >>> 0;
});

/** CRC-32C (Castagnoli, RFC 3720 appendix B.4) of the parts, one after the other. */
export function crc32c(...parts: readonly Uint8Array[]): number {
  let c = 0xffffffff;
  for (const part of parts) {
    for (const byte of part) {
      c = (CRC_TABLE[(c ^ byte) & 0xff] as number) ^ (c >>> 8);
    }
  }
  return (c ^ 0xffffffff) >>> 0;
}
