import { signal } from "@preact/signals";
import { type JSX, type TargetedSubmitEvent } from "preact";
import { useState } from "preact/hooks";

import { describe } from "@vigil/client";
import { FAULTS } from "@vigil/client/gen/tables.js";
import { State, type Transition } from "@vigil/client/gen/vigil/safety/v1/safety_pb.js";

import { latency, span, stateName, usToMs } from "./format.js";
import { activeStates, changes, keyOf, lastChange } from "./live.js";
import { Machine } from "./machine.js";
import { fresh, gatewayNow, history, known, models, tick, vigil } from "./store.js";
import { Ask, Card, Empty, NowBadge, Problem, StateBadge, Table, When } from "./ui.js";

/** The fault that was injected last from this page; times are the gateway's, ms. */
const injected = signal<{ kind: string; model: string; beginMs: number; words: string } | undefined>(undefined);

function Subjects({ reset }: { reset: (subject: string) => void }): JSX.Element {
  tick.value;
  const may = fresh.value && known.value.hello?.control === true;
  return (
    <Table head={["Subject", "State", "Since", "Why", "Probes", "Times degraded", "Times stopped", "Times restarted", "Times expired", "Do"]} label="Subjects and counters">
      {(known.value.state?.subjects ?? []).map((s) => (
        <tr key={s.subject} data-subject={s.subject}>
          <td>{s.subject}</td>
          <td><NowBadge name={stateName(s.state)} /></td>
          <td><When ms={usToMs(s.sinceUs)} ago /></td>
          <td class="words">{s.reason || "–"}</td>
          <td>
            {s.probes ? (
              <>
                <meter min={0} max={s.probes.needed} value={s.probes.good}>{s.probes.good}</meter> {s.probes.good} of {s.probes.needed} good,
                lease {usToMs(s.probes.leaseEndsUs) > gatewayNow() ? `ends in ${((usToMs(s.probes.leaseEndsUs) - gatewayNow()) / 1000).toFixed(1)} s` : "is over"}
              </>
            ) : s.state === State.RECOVERING ? "under way" : "–"}
          </td>
          <td>{String(s.degraded)}</td><td>{String(s.stopped)}</td><td>{String(s.restarted)}</td><td>{String(s.expired)}</td>
          <td>{s.state === State.SAFE_STOP ? <button class="danger" disabled={!may} onClick={() => reset(s.subject)}>Reset…</button> : null}</td>
        </tr>
      ))}
    </Table>
  );
}

/** When the last fault was noticed, and when all was well again; from the stream's events. */
function Reaction(): JSX.Element | null {
  const fault = injected.value;
  tick.value;
  if (!fault) {
    return null;
  }
  const moves = known.value.events.flatMap((e) => (e.of.case === "transition" && usToMs(e.of.value.timeUs) >= fault.beginMs - 5 ? [e.of.value] : []));
  const noticed = moves.find((t) => t.to === State.DEGRADED || t.to === State.SAFE_STOP);
  const well = noticed && moves.find((t) => t.subject === noticed.subject && t.to === State.NORMAL && t.timeUs > noticed.timeUs);
  const after = (t: Transition): string => latency(Math.max(1, Number(t.timeUs) - fault.beginMs * 1000));
  return (
    <dl class="facts-list" data-reaction>
      <dt>Injected</dt>
      <dd>{fault.kind} {fault.model} <When ms={fault.beginMs} /> {fault.words}</dd>
      <dt>Noticed</dt>
      <dd>{noticed ? <>after <b>{after(noticed)}</b>: {noticed.subject} is <StateBadge name={stateName(noticed.to)} /> {noticed.reason}</> : `not in ${span(gatewayNow() - fault.beginMs)} by a change of state (some faults must have none; see the audit log)`}</dd>
      <dt>Normal again</dt>
      <dd>{well ? <>after <b>{after(well)}</b></> : noticed ? "not yet" : "it never was anything else"}</dd>
    </dl>
  );
}

function Inject(): JSX.Element {
  const kinds = Object.entries(FAULTS).filter(([, f]) => f.by !== "caller");
  const [kind, setKind] = useState("");
  const [error, setError] = useState("");
  const [busy, setBusy] = useState(false);
  const fault = FAULTS[kind];
  const names = (models.value.value ?? []).map((m) => m.name);
  const submit = async (event: TargetedSubmitEvent<HTMLFormElement>): Promise<void> => {
    event.preventDefault();
    const data = new FormData(event.currentTarget);
    const model = fault?.group === "process" ? "" : String(data.get("model") ?? "");
    setBusy(true);
    setError("");
    try {
      const reply = await vigil.safety.inject({
        kind, model, durationMs: Number(data.get("duration") || 0), magnitude: Number(data.get("magnitude") || 0),
      });
      injected.value = {
        kind, model, beginMs: usToMs(reply.beginsUs),
        words: [reply.durationMs ? `for ${reply.durationMs} ms` : "", reply.magnitude ? `${reply.magnitude} ${fault?.unit ?? ""}` : ""].filter(Boolean).join(", "),
      };
    } catch (failed) {
      setError(describe(failed).text);
    }
    setBusy(false);
  };
  return (
    <form class="inject" onSubmit={(e) => void submit(e)}>
      <p><b>▲ Faults can be injected here: nothing is promised while that is on (setting safety.injection).</b></p>
      <div class="row">
        <label class="pick">Fault <select name="kind" value={kind} onChange={(e) => setKind(e.currentTarget.value)}>
          <option value="">choose…</option>
          {[...new Set(kinds.map(([, f]) => f.group))].map((group) => (
            <optgroup key={group} label={group}>
              {kinds.filter(([, f]) => f.group === group).map(([name]) => <option key={name} value={name}>{name}</option>)}
            </optgroup>
          ))}
        </select></label>
        {fault && fault.group !== "process" ? <label class="pick">Model <select name="model">{names.map((n) => <option key={n}>{n}</option>)}</select></label> : null}
        {fault && fault.duration_ms > 0 ? (
          <label class="pick">Duration <input name="duration" type="number" min="0" max="600000" placeholder={String(fault.duration_ms)} /> ms</label>
        ) : null}
        {fault?.magnitude !== undefined ? (
          <label class="pick">
            {fault.unit === "ms" ? "For" : "Magnitude"} <input name="magnitude" type="number" min="0" step="any" placeholder={String(fault.magnitude)} /> {fault.unit ?? ""}
          </label>
        ) : null}
        <button class="danger" disabled={busy || !fresh.value || !fault}>Inject{fault?.group === "process" ? ` ${kind}` : ""}</button>
      </div>
      <p class="dim">{fault?.doc}</p>
      <Problem text={error} />
      <Reaction />
    </form>
  );
}

/** What is wrong, what was, what is done about it. */
export function Safety(): JSX.Element {
  const [question, setQuestion] = useState<JSX.Element | null>(null);
  const moves = changes();
  const stopped = (known.value.state?.subjects ?? []).filter((s) => s.state === State.SAFE_STOP);
  const reset = (subject: string): void =>
    setQuestion(
      <Ask
        title={`Reset the safe stop of ${subject}`}
        text={`It was stopped: ${stopped.find((s) => s.subject === subject)?.reason ?? ""}. After the reset it starts anew and serves when its probes are good. Who resets it, and why, stands in the audit log.`}
        verb="Reset" danger
        fields={[
          { name: "by", label: "Your name", required: true, max: 128 },
          { name: "reason", label: "Reason: what was found and done", required: true, max: 1024 },
        ]}
        act={async (v) => {
          await vigil.safety.reset({ subject, by: v["by"] ?? "", reason: v["reason"] ?? "" });
        }}
        close={() => setQuestion(null)}
      />,
    );
  return (
    <div class={fresh.value ? "view" : "view old"}>
      {stopped.length ? (
        <p class="stopped" role="alert">■ Stopped safely until a person resets it: {stopped.map((s) => s.subject).join(", ")}</p>
      ) : null}
      <Card title="Subjects" wide>
        <Subjects reset={reset} />
      </Card>
      {known.value.state?.injection ? <Card title="Fault injection" wide id="inject"><Inject /></Card> : null}
      <Card title="Machine"><Machine active={activeStates()} last={lastChange()} /></Card>
      <Card title="History of this run" wide>
        <Problem text={history.value.error} />
        {known.value.gap ? <p class="notice">Changes before this may be missing: {known.value.gap}. All of them stand in the audit log.</p> : null}
        {moves.length ? (
          <Table head={["Time", "Subject", "Change", "Event", "Why"]} label="Changes of states, the latest first">
            {moves.slice(0, 200).map((t) => (
              <tr key={keyOf(t)}>
                <td><When ms={usToMs(t.timeUs)} /></td>
                <td>{t.subject}</td>
                <td><StateBadge name={stateName(t.from)} /> → <StateBadge name={stateName(t.to)} /></td>
                <td>{t.event}</td>
                <td class="words">{t.reason}</td>
              </tr>
            ))}
          </Table>
        ) : <Empty>No change yet.</Empty>}
      </Card>
      {question}
    </div>
  );
}
