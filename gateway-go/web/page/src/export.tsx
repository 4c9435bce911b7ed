import { type JSX } from "preact";
import { useRef, useState } from "preact/hooks";

import { describe } from "@vigil/client";

import type { Query } from "./audit.js";
import { bytes, count } from "./format.js";
import { vigil } from "./store.js";
import { Problem } from "./ui.js";

/** A file from here has no more records, so that the page's memory is bounded; vigil audit export has no limit. */
export const RECORDS_MAX = 100_000;
const PAGE = 1000;

/** One record as a line of JSON: bytes in hex, numbers beyond 2^53 as text. */
function line(record: unknown): string {
  return JSON.stringify(record, (key, v: unknown) => (key.startsWith("$") ? undefined : typeof v === "bigint" ? v.toString() : v));
}

/** Takes what a search finds as a file of JSON lines, with progress, until it is ended. */
export function Exporter({ query }: { query: Query }): JSX.Element {
  const [state, setState] = useState<{ records: number; bytes: number; running: boolean; words: string }>({ records: 0, bytes: 0, running: false, words: "" });
  const [error, setError] = useState("");
  const stop = useRef(false);
  const run = async (): Promise<void> => {
    stop.current = false;
    setError("");
    const parts: string[] = [];
    let records = 0;
    let size = 0;
    let token = "";
    let words = "";
    try {
      do {
        const reply = await vigil.audit.search({ ...query, pageSize: PAGE, pageToken: token });
        const text = reply.records.map((r) => `${line(r)}\n`).join("");
        parts.push(text);
        records += reply.records.length;
        size += text.length;
        token = reply.nextPageToken;
        words = reply.damage ? `the log is damaged: ${reply.damage}` : "";
        setState({ records, bytes: size, running: true, words });
      } while (token && !stop.current && records < RECORDS_MAX);
      if (token) {
        words = stop.current ? "ended before the last record" : `ended at ${RECORDS_MAX} records: use vigil audit export for all of them, with proofs`;
      }
      save(new Blob(parts, { type: "application/jsonl" }), `vigil-audit-${new Date().toISOString().slice(0, 19).replace(/[:T]/g, "")}.jsonl`);
    } catch (failed) {
      setError(describe(failed).text);
    }
    setState({ records, bytes: size, running: false, words });
  };
  return (
    <div class="row">
      <button onClick={() => void run()} disabled={state.running}>{state.running ? "Exporting…" : "Export as JSON lines"}</button>
      {state.running ? <button onClick={() => (stop.current = true)}>End here</button> : null}
      {state.running ? <progress aria-label="Exporting" /> : null}
      <span role="status" data-exported={state.records}>
        {state.records ? `${count(state.records)} records, ${bytes(state.bytes)}${state.running ? " so far" : ""}` : ""} {state.words}
      </span>
      <span class="dim">For an assessor: vigil audit export writes records with proofs that can be checked offline.</span>
      <Problem text={error} />
    </div>
  );
}

function save(blob: Blob, name: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
