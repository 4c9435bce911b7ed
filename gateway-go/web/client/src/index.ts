/** Vigil for browsers: connect, follow what happens, resume after a cut, verify what was answered. */
export { Code } from "@connectrpc/connect";
export { connectVigil, type ConnectOptions, describe, newTrace, type Vigil } from "./connect.js";
export { type Connection, contractDifference, follow, type Following, type Heard, SILENT_MS, STALE_MS, type Watched } from "./follow.js";
export { library, type Primitives, primitives } from "./primitives.js";
export { type AuditRecord, crc32c, type FieldValue, hex, NotARecord, type Payload, readRecord } from "./record.js";
export { parseKey, sides, type Step, type Verdict, type VerifierKey, verifyProof } from "./verify.js";
