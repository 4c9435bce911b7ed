import { type JSX } from "preact";
import { useState } from "preact/hooks";

import { type Model, Stage, type Version, VersionState } from "@vigil/client/gen/vigil/models/v1/models_pb.js";

import { bytes, latency, usToMs } from "./format.js";
import { Traffic } from "./live.js";
import { fresh, known, loadModels, models, vigil } from "./store.js";
import { Ask, Card, Digest, Empty, Problem, StateBadge, Table, When } from "./ui.js";

const STAGES = [Stage.STAGING, Stage.WARMING, Stage.LOADED, Stage.SERVING] as const;
const WORDS: Record<number, string> = {
  [Stage.STAGING]: "Staging", [Stage.WARMING]: "Warm-up", [Stage.LOADED]: "Passed", [Stage.SERVING]: "Serves",
};

interface Swap {
  model: string;
  version: bigint;
  times: Map<Stage, number>;
  refused: string;
  replaced: bigint;
  /** What became of the version before. */
  old: Map<Stage, number>;
}

/** How many swaps are shown. */
const SWAPS_MAX = 5;

/** The last changes of versions, step by step, the latest first. */
function swaps(): Swap[] {
  const all: Swap[] = [];
  for (const e of known.value.events) {
    if (e.of.case !== "model") {
      continue;
    }
    const m = e.of.value;
    const ms = usToMs(m.timeUs);
    const now = all.findLast((s) => s.model === m.model);
    const begin = (): void => void all.push({ model: m.model, version: m.version, times: new Map([[m.stage, ms]]), refused: "", replaced: m.replacedVersion, old: new Map() });
    if (m.stage === Stage.STAGING) {
      begin();
    } else if (now && m.version === now.version && !now.times.has(m.stage) && (m.stage === Stage.REFUSED || STAGES.some((s) => s === m.stage))) {
      now.times.set(m.stage, ms);
      now.refused = m.stage === Stage.REFUSED ? m.reason : now.refused;
      now.replaced = m.replacedVersion || now.replaced;
    } else if (m.stage === Stage.SERVING) { // one that was loaded before
      begin();
    } else {
      all.findLast((s) => s.model === m.model && s.replaced === m.version)?.old.set(m.stage, ms);
    }
  }
  return all.slice(-SWAPS_MAX).reverse();
}

function SwapSteps({ swap }: { swap: Swap }): JSX.Element {
  const begin = Math.min(...swap.times.values());
  const reached = [...STAGES].filter((s) => swap.times.has(s)).at(-1);
  const after = (ms: number): string => (ms - begin < 1 ? "" : `+${latency(Math.round((ms - begin) * 1000))}`);
  return (
    <div class="swap" data-swap={`${swap.model}/${swap.version}`}>
      <h3>{swap.model}: version {String(swap.version)}</h3>
      <ol class="steps">
        {STAGES.map((s) => (
          <li
            key={s}
            class={swap.refused && s === reached ? "failed" : swap.times.has(s) ? "done" : swap.refused ? "never" : "open"}
            aria-current={s === reached ? "step" : undefined}
          >
            {swap.refused && s === reached ? "✕ " : ""}{WORDS[s]}
            <span class="dim">{s === STAGES[0] && swap.times.has(s) ? <When ms={begin} /> : swap.times.has(s) ? after(swap.times.get(s) as number) : ""}</span>
          </li>
        ))}
        {swap.refused ? <li class="refused">✕ Refused<span class="words">{swap.refused}</span></li> : null}
      </ol>
      {swap.replaced > 0n ? (
        <p class="old-version">
          Version {String(swap.replaced)}: {swap.old.has(Stage.RETIRED)
            ? <>drained and retired {after(swap.old.get(Stage.RETIRED) as number)}</>
            : swap.old.has(Stage.DRAINING) ? "draining: it answers what it was given" : "kept ready"}
        </p>
      ) : null}
    </div>
  );
}

const STATE_WORDS: Record<number, [string, string]> = {
  [VersionState.LOADING]: ["◔", "loading"], [VersionState.SERVING]: ["✓", "serving"], [VersionState.STANDBY]: ["○", "standby"],
  [VersionState.REFUSED]: ["✕", "refused"], [VersionState.RETIRED]: ["–", "retired"],
};

function VersionRow({ model, version, act }: { model: Model; version: Version; act: (verb: string, version: bigint) => void }): JSX.Element {
  const [signOf, word] = STATE_WORDS[version.state] ?? ["?", "unknown"];
  const gates = version.gates.map((g) => `${g.name} (${latency(Number(g.tookUs))})`).join(", ");
  const serves = version.version === model.servingVersion;
  const stopped = serves && model.safetyState === "SAFE_STOP";
  const older = version.version < model.servingVersion;
  return (
    <tr class={serves && !stopped ? "serves" : ""}>
      <td>{String(version.version)}</td>
      <td>{stopped ? <span class="status stopped-version">■ stopped</span> : <span class={`status v-${word}`}>{signOf} {word}</span>}</td>
      <td><When ms={usToMs(version.sinceUs)} ago /></td>
      <td><Digest hex={version.digest} /></td>
      <td>{bytes(Number(version.sizeBytes))}</td>
      <td>{bytes(Number(version.memoryBytes))}</td>
      <td class="words" title={version.gates.map((g) => `${g.name}: ${g.found}`).join("\n")}>{version.reason || gates || "–"}</td>
      <td>
        {serves || word === "refused" || word === "loading" ? null : (
          <button onClick={() => act(older ? "Roll back" : "Activate", version.version)} disabled={!fresh.value || known.value.hello?.control !== true}>
            {older ? "Roll back" : "Activate"}
          </button>
        )}
      </td>
    </tr>
  );
}

/** Models, their versions, and swaps as they happen. */
export function Models(): JSX.Element {
  const [question, setQuestion] = useState<JSX.Element | null>(null);
  const [shown, setShown] = useState("");
  const list = models.value;
  const ask = (model: Model, verb: string, version: bigint): void =>
    setQuestion(
      <Ask
        title={`${verb}: ${model.name} version ${version}`}
        text={`Version ${version} will answer every call of ${model.name} in place of version ${model.servingVersion}. It is loaded and checked first; if it fails, nothing changes.`}
        verb={verb}
        fields={[{ name: "reason", label: "Reason, for the audit log", required: true, max: 1024 }]}
        act={async (v) => {
          await vigil.models.activateVersion({ name: model.name, version, reason: v["reason"] ?? "" });
          await loadModels();
        }}
        close={() => setQuestion(null)}
      />,
    );
  const reload = (model: Model): void =>
    setQuestion(
      <Ask
        title={`Look again: ${model.name}`}
        text="The model's folder is read again, and earlier refusals are forgotten."
        verb="Look again"
        fields={[{ name: "reason", label: "Reason, for the audit log", max: 1024 }]}
        act={async (v) => {
          await vigil.models.reloadModel({ name: model.name, reason: v["reason"] ?? "" });
          await loadModels();
        }}
        close={() => setQuestion(null)}
      />,
    );
  const happening = swaps();
  const names = list.value?.map((m) => m.name) ?? [];
  const chosen = names.includes(shown) ? shown : (happening[0]?.model ?? names[0] ?? "");
  return (
    <div class={fresh.value ? "view" : "view old"}>
      <Problem text={list.error} />
      {list.loading && !list.value ? <Empty>Loading…</Empty> : null}
      {list.value?.length === 0 ? <Empty>No model yet. Put one into the models folder: models/NAME/1/model.onnx</Empty> : null}
      {known.value.hello && !known.value.hello.control ? (
        <p class="notice">This address answers no control calls (setting control.allow_remote): versions can be looked at only.</p>
      ) : null}
      <Card title="Swaps, as they happen" wide>
        {happening.length ? happening.map((s) => <SwapSteps key={`${s.model} ${[...s.times.values()][0]}`} swap={s} />) : <Empty>No version changed since this page was opened.</Empty>}
        {chosen ? (
          <>
            <label class="pick">
              Figures of{" "}
              <select value={chosen} onChange={(e) => setShown(e.currentTarget.value)}>
                {names.map((n) => <option key={n}>{n}</option>)}
              </select>
            </label>
            <div class="charts"><Traffic model={chosen} /></div>
          </>
        ) : null}
      </Card>
      {(list.value ?? []).map((m) => (
        <Card key={m.name} title={m.name} wide>
          <p class="facts">
            <StateBadge name={m.safetyState} /> {m.safetyState === "NORMAL" ? null : m.safetyReason}
            <span>{m.safetyState === "SAFE_STOP" ? <b>answers nothing until it is <a href="#/safety">reset</a>; </b> : null}{m.servingVersion ? <>{m.safetyState === "SAFE_STOP" ? "loaded" : "serves"} version <b>{String(m.servingVersion)}</b> <Digest hex={m.servingDigest} /></> : <b>serves nothing</b>}</span>
            <span>{m.pipeline === "tensor" ? "tensors" : m.pipeline}</span>
            <span>{m.maxBatchSize ? `batches up to ${m.maxBatchSize}` : "not batched"}</span>
            <span>{m.providers.join(", ")}</span>
            <button onClick={() => reload(m)} disabled={!fresh.value || known.value.hello?.control !== true}>Look again</button>
          </p>
          <Table head={["Version", "State", "Since", "SHA-256", "File", "Memory", "Gates passed, or why not", "Do"]} label={`Versions of ${m.name}`}>
            {[...m.versions].sort((a, b) => Number(b.version - a.version)).map((v) => (
              <VersionRow key={String(v.version)} model={m} version={v} act={(verb, version) => ask(m, verb, version)} />
            ))}
          </Table>
          <p class="dim">
            {m.inputs.map((t) => `${t.name} ${t.datatype} [${t.shape.join(", ")}]`).join(", ")} → {m.outputs.map((t) => `${t.name} ${t.datatype} [${t.shape.join(", ")}]`).join(", ")}
          </p>
        </Card>
      ))}
      {question}
    </div>
  );
}
