import { signal } from "@preact/signals";
import { type ComponentChildren, type JSX } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";

import { describe } from "@vigil/client";
import { type Frame, type Output, QualityKind, type Source } from "@vigil/client/gen/vigil/perception/v1/perception_pb.js";

import { latency, span, usToMs } from "./format.js";
import { fresh, gatewayNow, known, loadModels, models, tick, vigil, watched } from "./store.js";
import { Card, Digest, Empty, Problem, When } from "./ui.js";

/** A picture with what was found on it, wherever both came from. */
interface Looked {
  output: Output;
  frame: Frame | undefined;
  dropped: number;
  /** How long the call took from here, ms; undefined for a watched source. */
  tookMs?: number;
}

/** Largest picture that is sent from here. */
const UPLOAD_BYTES_MAX = 16 << 20;
const CAMERA_GAP_MS = 250;

const own = signal<Looked | undefined>(undefined);
const ownSource = `page-${Math.random().toString(36).slice(2, 8)}`;

function qualityOf(output: Output): { normal: boolean; words: string } {
  const q = output.quality;
  switch (q?.kind) {
    case QualityKind.NORMAL:
      return { normal: true, words: "Normal: the model's own answer" };
    case QualityKind.CACHE:
      return { normal: false, words: `DEGRADED: last good answer, ${span(Number(q.ageMs))} old (${q.ageMs} ms)` };
    case QualityKind.RULE:
      return { normal: false, words: `DEGRADED: ${q.source} answered in place of the model${q.ageMs ? `, ${q.ageMs} ms old` : ""}` };
    default:
      return { normal: false, words: "DEGRADED: the answer does not say how it came about" };
  }
}

/** A frame as a bitmap; throws an Error with why it is none. */
async function bitmapOf(frame: Frame): Promise<ImageBitmap> {
  if (frame.content.case === "raw") {
    const { width, height, rgb } = frame.content.value;
    if (rgb.length !== 3 * width * height) {
      throw new Error("the picture's bytes do not fit its size");
    }
    const rgba = new Uint8ClampedArray(4 * width * height);
    for (let i = 0, j = 0; i < rgb.length; i += 3, j += 4) {
      rgba[j] = rgb[i] as number;
      rgba[j + 1] = rgb[i + 1] as number;
      rgba[j + 2] = rgb[i + 2] as number;
      rgba[j + 3] = 255;
    }
    return createImageBitmap(new ImageData(rgba, width, height));
  }
  if (frame.content.case === "encoded") {
    try {
      return await createImageBitmap(new Blob([frame.content.value as BlobPart]), { imageOrientation: "none" });
    } catch {
      throw new Error("the browser cannot draw this picture");
    }
  }
  throw new Error("no picture");
}

/** What is drawn: an answer with its picture, or why that cannot be drawn. */
interface Drawn {
  looked: Looked;
  problem: string;
}

/** After this without a frame, what is drawn says nothing of now, ms. */
const OLD_MS = 2000;

/**
 * A picture with its boxes and what is known of them. All change together, when the picture was decoded; a device
 * that decodes slowly shows fewer frames, and never boxes on another frame than theirs.
 */
function Shown({ looked, source }: { looked: Looked; source: string }): JSX.Element {
  tick.value;
  const canvas = useRef<HTMLCanvasElement>(null);
  const [drawn, setDrawn] = useState<Drawn | undefined>(undefined);
  const next = useRef<Looked | undefined>(undefined);
  const busy = useRef(false);
  const there = useRef(true);
  useEffect(() => () => {
    there.current = false;
  }, []);
  const paint = (what: Looked, problem: string, bitmap?: ImageBitmap): void => {
    const surface = canvas.current;
    if (surface && there.current) {
      surface.width = bitmap?.width ?? (what.output.frameWidth || 640);
      surface.height = bitmap?.height ?? (what.output.frameHeight || 480);
      if (bitmap) {
        surface.getContext("2d")?.drawImage(bitmap, 0, 0);
      }
      setDrawn({ looked: what, problem });
    }
    bitmap?.close();
  };
  const work = async (): Promise<void> => {
    busy.current = true;
    for (let what = next.current; what && there.current; what = next.current) {
      next.current = undefined;
      try {
        if (what.frame) {
          paint(what, "", await bitmapOf(what.frame));
        } else {
          paint(what, "no picture with this answer");
        }
      } catch (failed) {
        paint(what, (failed as Error).message);
      }
    }
    busy.current = false;
  };
  useEffect(() => {
    next.current = looked;
    if (!busy.current) {
      void work();
    }
  }, [looked.output]);
  const output = drawn?.looked.output;
  const [w, h] = [output?.frameWidth || 640, output?.frameHeight || 480];
  const line = Math.max(w, h) / 220;
  const quality = output ? qualityOf(output) : undefined;
  const ageMs = output ? gatewayNow() - usToMs(output.captureTimeUs) : 0;
  const old = source !== "" && output !== undefined && (!fresh.value || ageMs > OLD_MS);
  return (
    <div class="looked">
      <div>
        {old ? <div class="mark stop" role="status">▲ NO FRAME for {span(ageMs)}: this is an old picture</div> : null}
        {quality && !quality.normal ? <div class="mark" role="status">▲ {quality.words}</div> : null}
        {drawn?.problem ? <div class="mark">{drawn.problem}</div> : null}
        <div class={`picture${quality && !quality.normal ? " degraded" : ""}`}>
          <canvas ref={canvas} width="640" height="480" role="img" aria-label={`Frame of ${output?.sourceId ?? source}`} />
          <svg viewBox={`0 0 ${w} ${h}`} role="img" aria-label={`${output?.boxes.length ?? 0} boxes`}>
            {(output?.boxes ?? []).map((b, i) => (
              <g key={i} class={quality?.normal ? "box" : "box stand-in"}>
                {b.quadrilateral.length === 4 ? (
                  <polygon points={b.quadrilateral.map((p) => `${p.x},${p.y}`).join(" ")} stroke-width={line} />
                ) : (
                  <rect x={b.xMin} y={b.yMin} width={Math.max(0, b.xMax - b.xMin)} height={Math.max(0, b.yMax - b.yMin)} stroke-width={line} />
                )}
                {b.landmarks.map((p, j) => <circle key={j} cx={p.x} cy={p.y} r={line * 1.6} />)}
                <text x={b.xMin} y={Math.max(line * 8, b.yMin - line * 2)} font-size={line * 8} stroke-width={line * 1.5}>
                  {b.label} {(b.confidence * 100).toFixed(0)} %{quality?.normal ? "" : " stand-in"}
                </text>
              </g>
            ))}
          </svg>
        </div>
      </div>
      {drawn ? <Facts looked={drawn.looked} old={old} /> : <Empty>Drawing…</Empty>}
    </div>
  );
}

function Facts({ looked, old }: { looked: Looked; old: boolean }): JSX.Element {
  tick.value;
  const { output } = looked;
  const quality = qualityOf(output);
  const p = output.auditPosition;
  const position = p ? `${p.log}/${p.boot}/${p.sequence}` : "";
  const captured = usToMs(output.captureTimeUs);
  const good = quality.normal && !old;
  return (
    <dl class="facts-list">
      <dt>Quality</dt>
      <dd class={good ? "good" : "bad"} data-quality={quality.normal ? "normal" : "degraded"} data-old={old}>
        {good ? "✓ " : "▲ "}{old ? "of an old answer: " : ""}{quality.words}
      </dd>
      <dt>Captured</dt>
      <dd><When ms={captured} /> ({span(gatewayNow() - captured)} ago)</dd>
      <dt>Found</dt>
      <dd>{output.boxes.length} {output.boxes.length === 1 ? "box" : "boxes"}, best {(output.confidence * 100).toFixed(0)} %</dd>
      <dt>Model</dt>
      <dd>{output.model} version {output.modelVersion} <Digest hex={output.modelDigest} /></dd>
      <dt>Latency</dt>
      <dd>{looked.tookMs === undefined ? `${figureOf(output.model)} (median of the model now)` : `${latency(Math.round(looked.tookMs * 1000))} from this page and back`}</dd>
      <dt>Trace</dt>
      <dd><code>{output.traceId}</code></dd>
      <dt>Record</dt>
      <dd>{position ? <a href={`#/audit?position=${encodeURIComponent(position)}`}>{position}</a> : "none: the audit log is off"}</dd>
      {looked.dropped ? <><dt>Missed</dt><dd>{looked.dropped} outputs before this one</dd></> : null}
    </dl>
  );
}

function figureOf(model: string): string {
  const m = known.value.figures.at(-1)?.models.find((x) => x.model === model);
  return m && fresh.value ? latency(Number(m.p50Us)) : "–";
}

/** Sends one picture; throws what the gateway says. */
async function detect(encoded: Uint8Array, model: string, confidence: number): Promise<void> {
  const begin = performance.now();
  const frame = { content: { case: "encoded" as const, value: encoded } };
  const reply = await vigil.perception.detect({
    sourceId: ownSource, captureTimeUs: BigInt(Math.round(gatewayNow() * 1000)), frame, model, minConfidence: confidence,
  });
  if (reply.output) {
    own.value = { output: reply.output, frame: frame as unknown as Frame, dropped: 0, tookMs: performance.now() - begin };
  }
}

/** Models that take pictures. */
function able(): string[] {
  return (models.value.value ?? []).filter((m) => m.pipeline !== "tensor" && m.servingVersion > 0n).map((m) => m.name);
}

function Send({ picked, confidence, source, shown, children }: {
  picked: string;
  confidence: number;
  source: string;
  shown: () => void;
  children: ComponentChildren;
}): JSX.Element {
  const [error, setError] = useState("");
  const [busy, setBusy] = useState(false);
  const [over, setOver] = useState(false);
  const camera = useRef<(() => void) | undefined>(undefined);
  const there = useRef(true);
  const [filming, setFilming] = useState(false);
  useEffect(() => () => {
    there.current = false;
    camera.current?.();
  }, []);

  const looksAt = useRef(source);
  looksAt.current = source;
  useEffect(() => {
    if (source !== "") {
      camera.current?.(); // another source is looked at
    }
  }, [source]);

  const send = async (file: Blob): Promise<boolean> => {
    setError("");
    const from = looksAt.current;
    if (!models.value.value) {
      await loadModels();
    }
    const model = able().includes(picked) ? picked : able()[0];
    if (!model) {
      setError("no model here takes pictures; give one a pipeline in its vigil.toml");
      return false;
    }
    if (file.size > UPLOAD_BYTES_MAX) {
      setError(`the picture has ${file.size} bytes, the limit of this page is ${UPLOAD_BYTES_MAX}`);
      return false;
    }
    setBusy(true);
    try {
      await detect(new Uint8Array(await file.arrayBuffer()), model, confidence);
      if (there.current && looksAt.current === from) {
        shown(); // who went to another view or source meanwhile stays there
      }
      return true;
    } catch (failed) {
      const { code, text, traceId } = describe(failed);
      setError(`${code}: ${text}${traceId ? ` (trace ${traceId})` : ""}`);
      return false;
    } finally {
      setBusy(false);
    }
  };

  const film = async (): Promise<void> => {
    if (camera.current) {
      camera.current();
      return;
    }
    let on = true;
    let stream: MediaStream | undefined;
    const end = (): void => {
      on = false;
      stream?.getTracks().forEach((t) => t.stop());
      camera.current = undefined;
      setFilming(false);
    };
    camera.current = end;
    setFilming(true);
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: true });
      if (!on) { // the view was left, or the button pressed again, while the browser asked
        end();
        return;
      }
      const video = document.createElement("video");
      video.srcObject = stream;
      video.muted = true;
      await video.play();
      const canvas = new OffscreenCanvas(video.videoWidth || 640, video.videoHeight || 480);
      while (on) {
        canvas.getContext("2d")?.drawImage(video, 0, 0);
        if (!(await send(await canvas.convertToBlob({ type: "image/jpeg", quality: 0.85 })))) {
          end();
        }
        await new Promise((done) => setTimeout(done, CAMERA_GAP_MS));
      }
    } catch (failed) {
      end();
      setError(`the camera cannot be used: ${(failed as Error).message}`);
    }
  };

  return (
    <div
      class={`drop${over ? " over" : ""}`}
      onDragOver={(e) => { e.preventDefault(); setOver(true); }}
      onDragLeave={() => setOver(false)}
      onDrop={(e) => {
        e.preventDefault();
        setOver(false);
        const file = e.dataTransfer?.files[0];
        if (file) {
          void send(file);
        }
      }}
    >
      <label>
        {busy ? "Working… " : "Drop a JPEG or PNG here, or choose one "}
        <input type="file" accept="image/jpeg,image/png" aria-label="Picture to look at" onChange={(e) => {
          const file = e.currentTarget.files?.[0];
          e.currentTarget.value = "";
          if (file) {
            void send(file);
          }
        }} />
      </label>
      {typeof navigator.mediaDevices?.getUserMedia === "function" ? (
        <button onClick={() => void film()} disabled={!fresh.value}>{filming ? "Stop this device's camera" : "Use this device's camera"}</button>
      ) : (
        <span class="dim">A camera needs https or localhost.</span>
      )}
      {children}
      <Problem text={error} />
    </div>
  );
}

/** What a source shows, and what a model finds on it. */
export function Look({ source, choose }: { source: string; choose: (source: string) => void }): JSX.Element {
  const [sources, setSources] = useState<readonly Source[]>([]);
  const [error, setError] = useState("");
  const [confidence, setConfidence] = useState(0.5);
  const [picked, setPicked] = useState("");
  const frames = known.value.hello?.frames === true;
  const names = able();
  const model = names.includes(picked) ? picked : (names[0] ?? "");

  useEffect(() => {
    let on = true;
    const ask = async (): Promise<void> => {
      try {
        const reply = await vigil.perception.listSources({});
        if (on) {
          setSources(reply.sources.filter((s) => s.sourceId !== ownSource));
          setError("");
        }
      } catch (failed) {
        if (on) {
          setError(describe(failed).text);
        }
      }
    };
    void ask();
    const timer = setInterval(() => void ask(), 3000);
    return () => {
      on = false;
      clearInterval(timer);
    };
  }, []);
  useEffect(() => {
    watched.value = source ? [{ sourceId: source, frames }] : [];
    return () => {
      watched.value = [];
    };
  }, [source, frames]);

  const told = source ? known.value.outputs.get(source) : undefined;
  const output = told?.watched?.output;
  const looked: Looked | undefined = source
    ? output && { output, frame: told.watched?.frame, dropped: Number(told.watched?.dropped ?? 0n) }
    : own.value;
  return (
    <div class={fresh.value ? "view" : "view old"}>
      <Card title="Look at" wide>
        <div class="row">
          <label class="pick">
            Source{" "}
            <select value={source} onChange={(e) => choose(e.currentTarget.value)}>
              <option value="">this page's pictures</option>
              {[...new Set([...(source ? [source] : []), ...sources.map((s) => s.sourceId)])].map((s) => <option key={s} value={s}>{s}</option>)}
            </select>
          </label>
        </div>
        <Send picked={picked} confidence={confidence} source={source} shown={() => choose("")}>
          <label class="pick">
            Model{" "}
            <select value={model} onChange={(e) => setPicked(e.currentTarget.value)} disabled={names.length === 0}>
              {names.map((n) => <option key={n}>{n}</option>)}
            </select>
          </label>
          <label class="pick">
            Least confidence {Math.round(confidence * 100)} %{" "}
            <input type="range" min="0" max="1" step="0.05" value={confidence} onInput={(e) => setConfidence(Number(e.currentTarget.value))} />
          </label>
        </Send>
        <Problem text={error || (told?.ended ?? "")} />
      </Card>
      {looked ? (
        <Card title={source ? `Source ${source}` : "This page's picture"} wide>
          <Shown key={source} looked={looked} source={source} />
        </Card>
      ) : (
        <Empty>{source ? `Waiting for a frame of ${source}.` : "Nothing was looked at yet."} {source && !frames ? "Pictures are shown on loopback addresses only (setting perception.frames_remote)." : ""}</Empty>
      )}
    </div>
  );
}
