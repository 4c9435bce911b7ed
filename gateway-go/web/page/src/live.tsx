import { type JSX } from "preact";
import { useMemo } from "preact/hooks";

import { PARTS } from "@vigil/client/gen/tables.js";
import type { Event, Figures } from "@vigil/client/gen/vigil/live/v1/live_pb.js";
import { Stage } from "@vigil/client/gen/vigil/models/v1/models_pb.js";
import type { Transition } from "@vigil/client/gen/vigil/safety/v1/safety_pb.js";

import { Chart, type Line, type Mark } from "./chart.js";
import { latency, rate, stateName, usToMs } from "./format.js";
import { Machine } from "./machine.js";
import { fresh, history, known } from "./store.js";
import { Card, Empty, NowBadge, StateBadge, Table, When } from "./ui.js";

/** Figures that are further apart have a gap between them in the lines. */
const GAP_MS = 3000;

/** Their times, and a place without values wherever two are apart. */
function spaced(figures: readonly Figures[]): { times: number[]; of: (value: (f: Figures) => number | null) => (number | null)[] } {
  const places: (Figures | number)[] = [];
  figures.forEach((f, i) => {
    const before = figures[i - 1];
    if (before && usToMs(f.timeUs) - usToMs(before.timeUs) > GAP_MS) {
      places.push(usToMs(before.timeUs) + 1);
    }
    places.push(f);
  });
  return {
    times: places.map((p) => (typeof p === "number" ? p : usToMs(p.timeUs))),
    of: (value) => places.map((p) => (typeof p === "number" ? null : value(p))),
  };
}

function all(f: Figures): NonNullable<Figures["models"][0]> | undefined {
  return f.models[0];
}

function perSecond(f: Figures, n: bigint | undefined): number {
  return f.intervalMs ? (Number(n ?? 0n) * 1000) / f.intervalMs : 0;
}

/** Switches of versions, as marks. */
export function swapMarks(events: readonly Event[], model?: string): Mark[] {
  const marks: Mark[] = [];
  for (const e of events) {
    if (e.of.case === "model" && e.of.value.stage === Stage.SERVING && e.of.value.replacedVersion > 0n && (!model || e.of.value.model === model)) {
      marks.push({ ms: usToMs(e.of.value.timeUs), label: `${model ? "" : `${e.of.value.model} `}v${e.of.value.version}` });
    }
  }
  return marks;
}

/** Where each subject is. */
export function activeStates(): Map<string, string[]> {
  const active = new Map<string, string[]>();
  if (!fresh.value) {
    return active;
  }
  for (const s of known.value.state?.subjects ?? []) {
    const name = stateName(s.state);
    active.set(name, [...(active.get(name) ?? []), s.subject]);
  }
  return active;
}

/** What tells one change from another. */
export function keyOf(t: Transition): string {
  return t.resume || `${t.timeUs} ${t.subject} ${t.to}`;
}

/** Changes of states of this run: what the history had, and what came since, each once, the latest first. */
export function changes(): Transition[] {
  const all = new Map<string, Transition>();
  for (const t of history.value.value ?? []) {
    all.set(keyOf(t), t);
  }
  for (const e of known.value.events) {
    if (e.of.case === "transition") {
      all.set(keyOf(e.of.value), e.of.value);
    }
  }
  return [...all.values()].sort((a, b) => Number(b.timeUs - a.timeUs));
}

/** The last change of a state: from, to. */
export function lastChange(): readonly [string, string] | undefined {
  const last = changes()[0];
  return last && [stateName(last.from), stateName(last.to)];
}

/** The last events of all kinds, the latest first. */
function lastEvents(most: number): Event[] {
  const steps = known.value.events.filter((e) => e.of.case === "model");
  const moves = changes().map((t): Event => ({ resume: keyOf(t), of: { case: "transition", value: t } }) as Event);
  const timeOf = (e: Event): bigint => e.of.value?.timeUs ?? 0n;
  return [...steps, ...moves].sort((a, b) => Number(timeOf(b) - timeOf(a))).slice(0, most);
}

/** One event in words. */
export function EventRow({ event }: { event: Event }): JSX.Element {
  if (event.of.case === "transition") {
    const t = event.of.value;
    return (
      <tr>
        <td><When ms={usToMs(t.timeUs)} /></td>
        <td>{t.subject}</td>
        <td><StateBadge name={stateName(t.from)} /> → <StateBadge name={stateName(t.to)} /></td>
        <td class="words"><b>{t.event}</b> {t.reason}</td>
      </tr>
    );
  }
  const m = event.of.value;
  return (
    <tr>
      <td><When ms={usToMs(m?.timeUs ?? 0n)} /></td>
      <td>{m?.model} v{String(m?.version)}</td>
      <td>{(Stage[m?.stage ?? 0] ?? "").toLowerCase()}</td>
      <td class="words">{m?.reason || (m?.replacedVersion ? `in place of version ${m.replacedVersion}` : "")}</td>
    </tr>
  );
}

function Numbers({ f }: { f: Figures | undefined }): JSX.Element {
  const sum = f ? all(f) : undefined;
  const items: [string, string, string][] = [
    ["Answers", f ? rate(perSecond(f, sum?.answers)) : "–", "per s"],
    ["Stand-ins", f ? rate(perSecond(f, sum?.degraded)) : "–", "per s"],
    ["Errors", f ? rate(perSecond(f, sum?.errors)) : "–", "per s"],
    ["Median", sum ? latency(Number(sum.p50Us)) : "–", ""],
    ["99 %", sum ? latency(Number(sum.p99Us)) : "–", ""],
    ["Batch", sum?.batchRows ? sum.batchRows.toFixed(1) : "–", "rows"],
    ["In flight", f ? String(f.callsInFlight) : "–", "calls"],
    ["Waiting", f ? String(f.waiting) : "–", "calls"],
    ["Heartbeat", f ? (f.heartbeatAgeMs < 0n ? "none" : String(f.heartbeatAgeMs)) : "–", f && f.heartbeatAgeMs >= 0n ? "ms ago" : ""],
  ];
  return (
    <dl class="numbers">
      {items.map(([name, value, unit]) => (
        <div key={name}>
          <dt>{name}</dt>
          <dd data-figure={name}>{value} <span class="dim">{unit}</span></dd>
        </div>
      ))}
    </dl>
  );
}

/** Rate and latency of all calls, or of one model's. */
export function Traffic({ model }: { model?: string }): JSX.Element {
  const { figures, events } = known.value;
  const { times, rates, latencies, marks } = useMemo(() => {
    const { times, of } = spaced(figures);
    type Counted = Figures["models"][0];
    const figuresOf = (f: Figures): Counted | undefined => (model ? f.models.find((m) => m.model === model) : all(f));
    const rateOf = (pick: (m: Counted) => bigint): (number | null)[] =>
      of((f) => {
        const m = figuresOf(f);
        return m ? perSecond(f, pick(m)) : 0;
      });
    const timeOf = (pick: (m: Counted) => bigint): (number | null)[] =>
      of((f) => {
        const m = figuresOf(f);
        return m && pick(m) > 0n ? Number(pick(m)) : null;
      });
    const rates: Line[] = [
      { label: "answers", colour: "--chart-1", values: rateOf((m) => m.answers) },
      { label: "stand-ins", colour: "--chart-2", values: rateOf((m) => m.degraded), dash: [6, 3] },
      { label: "errors", colour: "--chart-3", values: rateOf((m) => m.errors), dash: [2, 2] },
    ];
    const latencies: Line[] = [
      { label: "median", colour: "--chart-1", values: timeOf((m) => m.p50Us) },
      { label: "90 %", colour: "--chart-2", values: timeOf((m) => m.p90Us), dash: [6, 3] },
      { label: "99 %", colour: "--chart-3", values: timeOf((m) => m.p99Us), dash: [2, 2] },
    ];
    return { times, rates, latencies, marks: swapMarks(events, model) };
  }, [figures, events, model]);
  return (
    <>
      <Chart title="Calls" unit="per second" times={times} lines={rates} marks={marks} least={1} format={rate} />
      <Chart title="Latency at the gateway" unit="" times={times} lines={latencies} marks={marks} least={1000} format={(v) => (v === 0 ? "0" : latency(Math.round(v)))} />
    </>
  );
}

function Load(): JSX.Element {
  const { figures, events } = known.value;
  const { times, batch, queue, happened } = useMemo(() => {
    const { times, of } = spaced(figures);
    const swaps = swapMarks(events);
    const swapsIn = (f: Figures): number => {
      const end = usToMs(f.timeUs);
      return swaps.filter((s) => s.ms <= end && s.ms > end - f.intervalMs).length;
    };
    const happened: Line[] = [
      { label: "limits hit", colour: "--chart-3", values: of((f) => f.limits.reduce((n, l) => n + Number(l.count), 0)), dash: [2, 2] },
      { label: "swaps", colour: "--chart-1", values: of(swapsIn) },
    ];
    const batch: Line[] = [{ label: "rows", colour: "--chart-1", values: of((f) => all(f)?.batchRows || null) }];
    const queue: Line[] = [
      { label: "in flight", colour: "--chart-1", values: of((f) => Number(f.callsInFlight)) },
      { label: "waiting", colour: "--chart-2", values: of((f) => Number(f.waiting)), dash: [6, 3] },
    ];
    return { times, batch, queue, happened };
  }, [figures, events]);
  return (
    <>
      <Chart title="Batch size" unit="mean rows" times={times} lines={batch} least={1} format={(v) => v.toFixed(1)} />
      <Chart title="Queue" unit="calls" times={times} lines={queue} least={4} format={(v) => v.toFixed(0)} />
      <Chart title="Limits and swaps" unit="per second" times={times} lines={happened} least={4} format={(v) => v.toFixed(0)} />
    </>
  );
}

/** State, figures and events as they come. */
export function Live(): JSX.Element {
  const { state, figures, limits, gap } = known.value;
  const last = figures.at(-1);
  const shown = lastEvents(12);
  return (
    <div class={fresh.value ? "view" : "view old"}>
      <Card title="Safety machine">
        <Machine active={activeStates()} last={lastChange()} />
      </Card>
      <Card title="Now">
        <Numbers f={fresh.value ? last : undefined} />
        <h3>Limits hit since this page was opened</h3>
        {limits.size ? (
          <ul class="limits">{[...limits].map(([name, n]) => <li key={name}><code>{name}</code> {n}</li>)}</ul>
        ) : (
          <Empty>none</Empty>
        )}
      </Card>
      <Card title="Calls and latency" wide>
        {figures.length ? <div class="charts"><Traffic /><Load /></div> : <Empty>Figures come each second.</Empty>}
      </Card>
      <Card title="Subjects">
        <Table head={["Subject", "State", "Since"]} label="Supervised subjects">
          {(state?.subjects ?? []).map((s) => (
            <tr key={s.subject}>
              <td>{s.subject}</td>
              <td><NowBadge name={stateName(s.state)} /></td>
              <td><When ms={usToMs(s.sinceUs)} ago /></td>
            </tr>
          ))}
        </Table>
      </Card>
      <Card title="Supervised parts">
        <Table head={["Process", "Part", "Status", "What it is"]} label="Supervised parts">
          {(last?.parts ?? []).map((p) => (
            <tr key={`${p.process} ${p.name}`}>
              <td>{p.process}</td>
              <td>{p.name}</td>
              <td>{fresh.value ? <span class={`status ${p.status.toLowerCase()}`}>{sign(p.status)} {p.status.toLowerCase()}</span> : "? unknown"}</td>
              <td class="words">{p.reason || PARTS[p.name]?.doc}</td>
            </tr>
          ))}
        </Table>
      </Card>
      <Card title="What happened last" wide>
        {gap ? <p class="notice">Events before this may be missing: {gap}</p> : null}
        {shown.length ? (
          <Table head={["Time", "Subject", "Change", "Why"]} label="Last events">
            {shown.map((e) => <EventRow key={e.resume} event={e} />)}
          </Table>
        ) : (
          <Empty>Nothing yet.</Empty>
        )}
      </Card>
    </div>
  );
}

function sign(status: string): string {
  return { OK: "✓", FAILED: "▲", EXPIRED: "✕", STOPPED: "■", DEACTIVATED: "○" }[status] ?? "?";
}
