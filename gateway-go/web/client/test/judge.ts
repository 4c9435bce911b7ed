// Judges what comes on standard input, a line of JSON each, with the browser's primitives and with the library's: the
// tests hold that against the other verifiers. It runs in Node, which has the same WebCrypto.
import { createInterface } from "node:readline";

import { library, parseKey, primitives, type Verdict, verifyProof } from "../src/index.js";
import { openNote, signers } from "../src/verify.js";

interface Asked {
  proof?: string;
  note?: string;
  keys: string[];
  position?: string;
}

function bytes(text: string): Uint8Array {
  return new Uint8Array(Buffer.from(text, "base64"));
}

async function judge(asked: Asked): Promise<unknown> {
  const both = [await primitives(), library];
  if (both[0] === library) {
    throw new Error("no WebCrypto with Ed25519 here");
  }
  const said: unknown[] = [];
  for (const use of both) {
    const keys = await Promise.all(asked.keys.map((k) => parseKey(k, use)));
    if (asked.note !== undefined) {
      try {
        const note = openNote(new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes(asked.note)));
        const { right, wrong } = await signers(note, keys, use);
        said.push(wrong.length ? "refused" : right.length);
      } catch {
        said.push("refused");
      }
    } else {
      const v: Verdict = await verifyProof(bytes(asked.proof ?? ""), keys, asked.position ? { position: asked.position } : {}, use);
      said.push({ verdict: v.verdict, steps: v.steps.map((s) => [s.name, s.ok, s.found]), raw: v.raw ? Buffer.from(v.raw).toString("base64") : "" });
    }
  }
  return said;
}

for await (const line of createInterface({ input: process.stdin })) {
  console.log(JSON.stringify(await judge(JSON.parse(line) as Asked)));
}
