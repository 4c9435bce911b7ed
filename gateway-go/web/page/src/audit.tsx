import { signal } from "@preact/signals";
import { type JSX, type TargetedSubmitEvent } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";

import { type AuditRecord, Code, describe, hex, parseKey, readRecord, type Verdict, type VerifierKey, verifyProof } from "@vigil/client";
import { EVENTS, PAYLOAD_FIELDS } from "@vigil/client/gen/tables.js";
import { Log, type LogRecord } from "@vigil/client/gen/vigil/audit/v1/service_pb.js";

import { Exporter } from "./export.js";
import { fullTime, latency, timeZone } from "./format.js";
import { vigil } from "./store.js";
import { Card, Digest, Empty, Problem, Table, When } from "./ui.js";

/** Rows that are shown at once; more are paged through. */
const PAGE = 100;

/** What is searched for. */
export interface Query {
  log: Log;
  fromNs: bigint;
  toNs: bigint;
  traceId: string;
  model: string;
  eventIds: number[];
  tenant: string;
  newestFirst: boolean;
}

const query = signal<Query>({ log: Log.SIDECAR, fromNs: 0n, toNs: 0n, traceId: "", model: "", eventIds: [], tenant: "", newestFirst: true });
/** The form as it was filled when it was searched for, so that it is there again after another view. */
const filled = signal<Record<string, string>>({});
const tokens = signal<readonly string[]>([""]);
const page = signal<{ records: readonly LogRecord[]; next: string; damage: string } | undefined>(undefined);

function localNs(value: string): bigint {
  const ms = Date.parse(value);
  return Number.isFinite(ms) ? BigInt(ms) * 1_000_000n : 0n;
}

function SearchForm({ search, busy }: { search: () => void; busy: boolean }): JSX.Element {
  const submit = (event: TargetedSubmitEvent<HTMLFormElement>): void => {
    event.preventDefault();
    const data = new FormData(event.currentTarget);
    const text = (name: string): string => String(data.get(name) ?? "").trim();
    query.value = {
      log: Number(text("log")) as Log, fromNs: localNs(text("from")), toNs: localNs(text("to")), traceId: text("trace").toLowerCase(),
      model: text("model"), tenant: text("tenant"), eventIds: text("event") ? [Number(text("event"))] : [], newestFirst: text("order") !== "oldest",
    };
    filled.value = Object.fromEntries(["log", "from", "to", "trace", "model", "tenant", "event", "order"].map((n) => [n, text(n)]));
    search();
  };
  const form = useRef<HTMLFormElement>(null);
  useEffect(() => {
    for (const [name, value] of Object.entries(filled.value)) {
      const field = form.current?.elements.namedItem(name);
      if (field instanceof HTMLInputElement || field instanceof HTMLSelectElement) {
        field.value = value;
      }
    }
  }, []);
  return (
    <form class="row" onSubmit={submit} role="search" ref={form}>
      <label class="pick">Log <select name="log">
        <option value={Log.SIDECAR}>sidecar (answers, models)</option>
        <option value={Log.GATEWAY}>gateway (refusals, stand-ins)</option>
      </select></label>
      <label class="pick">From ({timeZone}) <input name="from" type="datetime-local" step="1" /></label>
      <label class="pick">To ({timeZone}) <input name="to" type="datetime-local" step="1" /></label>
      <label class="pick">Trace <input name="trace" size={34} maxLength={32} pattern="[0-9a-fA-F]{32}" title="32 hex digits" /></label>
      <label class="pick">Model <input name="model" maxLength={128} /></label>
      <label class="pick">Event <select name="event">
        <option value="">any</option>
        {Object.entries(EVENTS).map(([id, e]) => <option key={id} value={id}>{id} {e.name}</option>)}
      </select></label>
      <label class="pick">Tenant <input name="tenant" maxLength={256} /></label>
      <label class="pick">Order <select name="order"><option value="newest">latest first</option><option value="oldest">oldest first</option></select></label>
      <button class="primary" disabled={busy}>{busy ? "Searching…" : "Search"}</button>
    </form>
  );
}

/** What was searched for, in words. */
function asked(q: Query): string {
  const at = (ns: bigint): string => fullTime(Number(ns / 1_000_000n));
  return [
    q.log === Log.GATEWAY ? "gateway's log" : "sidecar's log", q.fromNs ? `from ${at(q.fromNs)}` : "", q.toNs ? `to ${at(q.toNs)}` : "",
    q.traceId ? `trace ${q.traceId}` : "", q.model ? `model ${q.model}` : "", q.eventIds.map((e) => `event ${e}`).join(), q.tenant ? `tenant ${q.tenant}` : "",
    q.newestFirst ? "latest first" : "oldest first",
  ].filter(Boolean).join(", ");
}

function words(r: LogRecord): string {
  switch (r.payload.case) {
    case "call":
      return [r.payload.value.method.split("/").at(-1), r.payload.value.model, r.payload.value.message || r.payload.value.reason].filter(Boolean).join(" · ");
    case "model":
      return `${r.payload.value.model} version ${r.payload.value.version} ${r.payload.value.reason}`;
    case "state":
      return `${r.payload.value.subject}: ${r.payload.value.from} → ${r.payload.value.to} ${r.payload.value.reason}`;
    case "system":
      return r.payload.value.text;
    case "note":
      return r.payload.value.split("\n")[0] ?? "";
    default:
      return "";
  }
}

const KEYS = "vigil.keys";

/** Keys that the person pinned here, one a line. */
const pinned = signal(localStorage.getItem(KEYS) ?? "");

async function keysOf(text: string): Promise<{ keys: VerifierKey[]; problem: string }> {
  const keys: VerifierKey[] = [];
  let problem = "";
  for (const line of text.split("\n").filter((l) => l.trim() !== "").slice(0, 16)) {
    try {
      keys.push(await parseKey(line));
    } catch (error) {
      problem = `${line.slice(0, 40)}…: ${(error as Error).message}`;
    }
  }
  return { keys, problem };
}

function Keys(): JSX.Element {
  const [found, setFound] = useState<{ keys: VerifierKey[]; problem: string }>({ keys: [], problem: "" });
  useEffect(() => {
    let on = true;
    void keysOf(pinned.value).then((f) => on && setFound(f));
    return () => {
      on = false;
    };
  }, [pinned.value]);
  return (
    <details open={pinned.value === ""}>
      <summary>Keys that you trust: {found.keys.length ? found.keys.map((k) => k.id).join(", ") : "none yet"}</summary>
      <label>
        <span class="dim">
          One verifier key a line (name+id+key), from whoever runs the logs, by another way than this page: DATA/keys/audit-sidecar.pub and
          audit-gateway.pub. They stay in this browser. A key that the gateway itself offered would prove nothing.
        </span>
        <textarea
          rows={3} spellcheck={false} aria-label="Verifier keys" value={pinned.value}
          onInput={(e) => {
            pinned.value = e.currentTarget.value;
            localStorage.setItem(KEYS, pinned.value);
          }}
        />
      </label>
      <Problem text={found.problem} />
    </details>
  );
}

const VERDICTS: Record<Verdict["verdict"], [string, string, string]> = {
  verified: ["✓", "Verified", "good"],
  forged: ["✕", "Forged or damaged", "bad"],
  unsigned: ["▲", "Not signed by a key that you trust", "warn"],
  unreadable: ["✕", "Not a proof", "bad"],
};

/** Checks the record that is shown, and no other: it waits for that, and what it found is forgotten with it. */
function Verify({ position, raw }: { position: string; raw: Uint8Array | undefined }): JSX.Element {
  const [verdict, setVerdict] = useState<Verdict | undefined>(undefined);
  const [error, setError] = useState("");
  const [busy, setBusy] = useState(false);
  const round = useRef(0);
  useEffect(() => {
    setVerdict(undefined);
    setError("");
    round.current++;
  }, [position, raw, pinned.value]);
  const [checks, setChecks] = useState(0);
  const check = async (shown: Uint8Array): Promise<void> => {
    const own = ++round.current;
    setBusy(true);
    setError("");
    setVerdict(undefined); // while it is checked anew nothing is known
    try {
      const { keys } = await keysOf(pinned.value);
      const { proof } = await vigil.audit.prove({ position });
      const found = await verifyProof(proof, keys, { position, shown });
      if (own === round.current) {
        setVerdict(found);
      }
    } catch (failed) {
      if (own === round.current) {
        setError(describe(failed).text);
      }
    }
    setBusy(false);
    setChecks((n) => n + 1);
  };
  const [sign, title, look] = verdict ? VERDICTS[verdict.verdict] : ["", "", ""];
  return (
    <div class="verify" data-checks={checks}>
      <Keys />
      <button class="primary" onClick={() => raw && void check(raw)} disabled={busy || !raw}>{busy ? "Verifying…" : "Verify in this browser"}</button>
      {error.includes("no checkpoint covers") ? (
        <p class="notice" role="status">◔ Not signed yet: the next checkpoint covers it (audit.checkpoint_interval_s). Press again in a moment.</p>
      ) : (
        <Problem text={error} />
      )}
      {verdict ? (
        <div class={`verdict ${look}`} role="status" data-verdict={verdict.verdict}>
          <h3>{sign} {title}</h3>
          <ol>
            {verdict.steps.map((s) => <li key={s.name} class={s.ok ? "good" : "bad"}>{s.ok ? "✓" : "✕"} <b>{s.name}</b>: {s.found}</li>)}
          </ol>
          <p class="dim">Computed by {verdict.by}, from the proof alone.{verdict.origin ? ` Log ${verdict.origin}, ${verdict.treeSize} records signed.` : ""}</p>
        </div>
      ) : null}
    </div>
  );
}

function PayloadTable({ record }: { record: AuditRecord }): JSX.Element {
  const p = record.payload;
  if (p.case === "note") {
    return <pre>{p.value}</pre>;
  }
  if (p.case === "unreadable") {
    return <Empty>{p.value.length} bytes that this page cannot read</Empty>;
  }
  const docs = PAYLOAD_FIELDS[`${p.case[0]?.toUpperCase()}${p.case.slice(1)}Payload`] ?? {};
  const said = Object.entries(p.value).flatMap(([name, v]: [string, unknown]) => {
    const text = name.startsWith("$") ? "" : inWords(v);
    return text ? [{ name, text }] : [];
  });
  return said.length ? (
    <Table head={["Field", "Value", "What it is"]} label="Fields of the payload">
      {said.map(({ name, text }) => (
        <tr key={name}>
          <td>{name}</td>
          <td class="value"><code>{text}</code></td>
          <td class="words">{docs[name]}</td>
        </tr>
      ))}
    </Table>
  ) : <Empty>It says nothing more.</Empty>;
}

/** A payload's value as text; empty for one that says nothing. */
function inWords(v: unknown): string {
  if (v === "" || v === 0 || v === 0n || v === false || v === undefined || (Array.isArray(v) && v.length === 0)) {
    return "";
  }
  if (typeof v !== "object" || v === null) {
    return String(v);
  }
  const plain = JSON.stringify(v, (key, x: unknown) => (key.startsWith("$") ? undefined : typeof x === "bigint" ? x.toString() : x));
  return plain === "{}" ? "" : plain;
}

function Record({ position, close }: { position: string; close: () => void }): JSX.Element {
  const [raw, setRaw] = useState<Uint8Array | undefined>(undefined);
  const [record, setRecord] = useState<AuditRecord | undefined>(undefined);
  const [error, setError] = useState("");
  const top = useRef<HTMLDivElement>(null);
  useEffect(() => {
    let on = true;
    setRaw(undefined);
    setRecord(undefined);
    setError("");
    vigil.audit.get({ position }).then(
      (reply) => {
        if (!on) {
          return;
        }
        setRaw(reply.raw);
        try {
          setRecord(readRecord(reply.raw));
        } catch (failed) {
          setError(`the bytes are no record: ${(failed as Error).message}`);
        }
        top.current?.scrollIntoView({ block: "nearest" });
      },
      (failed: unknown) => on && setError(describe(failed).text),
    );
    return () => {
      on = false;
    };
  }, [position]);
  return (
    <Card title={`Record ${position}`} wide>
      <div ref={top}>
        <button onClick={close}>Close</button>
        <Problem text={error} />
        <Verify position={position} raw={raw} />
        {record ? (
          <>
            <Table head={["Field", "Value", "What it is"]} label="Fields of the record, read from its bytes">
              {[...record.fields.values()].map((f) => (
                <tr key={f.field.name}>
                  <td>{f.field.name}</td>
                  <td class="value"><code>{f.words}</code></td>
                  <td class="words">{f.field.name === "event_id" ? EVENTS[Number(f.value)]?.doc : f.field.doc}</td>
                </tr>
              ))}
            </Table>
            <h3>Payload</h3>
            <PayloadTable record={record} />
            <details><summary>Bytes ({raw?.length})</summary><pre class="hex">{raw ? hex(raw) : ""}</pre></details>
          </>
        ) : error ? null : <Empty>Loading…</Empty>}
      </div>
    </Card>
  );
}

/** Search, read, verify and take away what the logs say. */
export function Audit({ position, open }: { position: string; open: (position: string) => void }): JSX.Element {
  const [error, setError] = useState("");
  const [busy, setBusy] = useState(false);
  const run = async (path: readonly string[]): Promise<void> => {
    setBusy(true);
    setError("");
    try {
      const reply = await vigil.audit.search({ ...query.value, pageSize: PAGE, pageToken: path.at(-1) ?? "" });
      tokens.value = path;
      page.value = { records: reply.records, next: reply.nextPageToken, damage: reply.damage };
    } catch (failed) {
      setError(describe(failed).text);
    }
    setBusy(false);
  };
  useEffect(() => {
    if (!page.value) {
      void run([""]);
    }
  }, []);
  const found = page.value;
  return (
    <div class="view">
      {position ? <Record key={position} position={position} close={() => open("")} /> : null}
      <Card title="Search the logs" wide>
        <SearchForm busy={busy} search={() => void run([""])} />
        <Problem text={error} />
        {found?.damage ? <Problem text={`The log is damaged: ${found.damage}. What is behind that place was not searched.`} /> : null}
        {found ? (
          <>
            <p class="dim">Found in the {asked(query.value)}:</p>
            {found.records.length ? (
              <Table head={["Time", "Event", "What", "Status", "Model version", "Latency", "Trace", "Position"]} label="Records found">
                {found.records.map((r) => (
                  <tr key={r.position} class={r.statusCode ? "failed" : ""}>
                    <td><When ms={Number(r.timeNs / 1_000_000n)} /></td>
                    <td title={EVENTS[r.eventId]?.doc}>{r.eventId} {r.event}</td>
                    <td class="words">{words(r)}</td>
                    <td>{r.kind === "answer" || r.kind === "refusal" ? (r.statusCode ? (Code[r.statusCode] ?? r.statusCode) : "OK") : ""}</td>
                    <td>{r.modelVersion ? <>{String(r.modelVersion)} <Digest hex={r.modelDigest} /></> : ""}</td>
                    <td>{r.latencyNs ? latency(Math.round(Number(r.latencyNs) / 1000)) : ""}</td>
                    <td>{/[1-9a-f]/.test(r.traceId) ? <code title={r.traceId}>{r.traceId.slice(0, 8)}</code> : ""}</td>
                    <td><a href={`#/audit?position=${encodeURIComponent(r.position)}`}>{String(r.sequence)}</a></td>
                  </tr>
                ))}
              </Table>
            ) : <Empty>{found.next ? "Nothing on this page of the search; there is more to read." : "No record matches."}</Empty>}
            <p class="buttons">
              <button disabled={busy || tokens.value.length < 2} onClick={() => void run(tokens.value.slice(0, -1))}>Page before</button>
              <span class="dim">page {tokens.value.length}, {found.records.length} records</span>
              <button disabled={busy || !found.next} onClick={() => void run([...tokens.value, found.next])}>Next page</button>
            </p>
          </>
        ) : <Empty>{busy ? "Searching…" : "Search by time, trace, model, event or tenant; an empty search gives the latest records."}</Empty>}
      </Card>
      <Card title="Export what was searched for" wide>
        <p class="dim">The {asked(query.value)}.</p>
        <Exporter key={asked(query.value)} query={query.value} />
      </Card>
    </div>
  );
}
